//! The ports of vmrun that this guest knows. A port access costs some 30 us on a PVM host, and KVM
//! makes one of every byte of a string instruction, so that a line by way of the UART would be a
//! gap of 3 ms, and could be cut in two by a pause. vmrun has a port that takes a whole line;
//! elsewhere the UART has to do, and nobody asks it whether it is ready.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::console::Line;

const SERIAL: u16 = 0x3f8;
/// vmrun's line port: a 32-bit write of the physical address of a length (u32) and so many bytes
/// prints them. It reads as [`VMRUN`] where it is.
const LINE: u16 = 0x60c;
const VMRUN: u32 = u32::from_le_bytes(*b"migp");
/// ACPI sleep control register of vmrun, and the value that means S5.
const SLEEP_CONTROL: u16 = 0x600;
const POWER_OFF: u8 = 0x34;
/// vmrun's idle port: a 32-bit write of microseconds puts the vCPU to sleep for that long.
const IDLE: u16 = 0x605;

/// What the line port reads as; 0 before it was asked.
static ANSWER: AtomicU32 = AtomicU32::new(0);

/// Prints a line; vCPU 0 alone does.
pub fn print(line: &Line) {
    if ANSWER.load(Ordering::Relaxed) == 0 {
        let answer: u32;
        // SAFETY: a port read that touches no memory.
        unsafe {
            asm!("in eax, dx", in("dx") LINE, out("eax") answer,
                options(nostack, preserves_flags, nomem));
        }
        ANSWER.store(answer, Ordering::Relaxed);
    }
    if ANSWER.load(Ordering::Relaxed) == VMRUN {
        // SAFETY: vmrun reads the line, which is in memory that is mapped where it is, below 4 GiB.
        unsafe {
            asm!("out dx, eax", in("dx") LINE, in("eax") &raw const *line as u32,
                options(nostack, preserves_flags, readonly));
        }
        return;
    }
    let bytes = line.text();
    // SAFETY: reads `bytes` and nothing else.
    unsafe {
        asm!("rep outsb", inout("rcx") bytes.len() => _, inout("rsi") bytes.as_ptr() => _,
            in("dx") SERIAL, options(nostack, preserves_flags, readonly));
    }
}

/// Prints an empty line.
pub fn beat() {
    // SAFETY: a port write that touches no memory.
    unsafe {
        asm!("out dx, al", in("dx") SERIAL, in("al") b'\n',
            options(nostack, preserves_flags, nomem));
    }
}

/// Sleeps for about `micros` microseconds.
pub fn idle(micros: u32) {
    // SAFETY: a port write that touches no memory.
    unsafe {
        asm!("out dx, eax", in("dx") IDLE, in("eax") micros,
            options(nostack, preserves_flags, nomem));
    }
}

/// Switches the machine off.
pub fn power_off() -> ! {
    // SAFETY: a port write that touches no memory.
    unsafe {
        asm!("out dx, al", in("dx") SLEEP_CONTROL, in("al") POWER_OFF,
            options(nostack, preserves_flags, nomem));
    }
    stop()
}

/// Does nothing more, for ever. HLT is not for CPL 3.
pub fn stop() -> ! {
    loop {
        idle(1000);
    }
}
