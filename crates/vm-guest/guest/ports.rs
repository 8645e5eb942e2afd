//! The ports of vmrun that this guest knows. A port access costs some 30 us on a PVM host, so a
//! line is one string instruction and nobody asks the UART whether it is ready (vmrun's always is).

use core::arch::asm;

const SERIAL: u16 = 0x3f8;
/// ACPI sleep control register of vmrun, and the value that means S5.
const SLEEP_CONTROL: u16 = 0x600;
const POWER_OFF: u8 = 0x34;
/// vmrun's idle port: a 32-bit write of microseconds puts the vCPU to sleep for that long.
const IDLE: u16 = 0x605;

/// Writes all of `bytes` to the serial console.
pub fn write_serial(bytes: &[u8]) {
    // SAFETY: reads `bytes` and nothing else.
    unsafe {
        asm!("rep outsb", inout("rcx") bytes.len() => _, inout("rsi") bytes.as_ptr() => _,
            in("dx") SERIAL, options(nostack, preserves_flags, readonly));
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
