//! The one piece of firmware that there is: what a kernel jumps to that wants the BIOS to restart
//! the machine.
//!
//! Linux on hardware-reduced ACPI passes over the reset register of the FADT and the 8042: it asks
//! EFI, and where there is none it goes to real mode and jumps to FFFF:0000 (`reboot_init` and
//! `native_machine_emergency_restart` in arch/x86/kernel/reboot.c). Zeros there would run for ever.
#![forbid(unsafe_code)]

use vm_devices::PowerPorts;
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::layout::RESET_VECTOR;
use crate::memory::Memory;

/// Writes the code to [`RESET_VECTOR`].
pub(super) fn write(memory: &Memory) -> Result<(), BootError> {
    memory
        .mapped()
        .write_slice(&code(), GuestAddress(RESET_VECTOR))
        .map_err(|_| BootError::TooLittleMemory)
}

/// 16-bit code: `mov dx, RESET; mov al, RESET_VALUE; out dx, al`, and then a halt in a loop, in case
/// that the machine takes its time.
fn code() -> [u8; 9] {
    let [low, high] = PowerPorts::RESET.to_le_bytes();
    [0xba, low, high, 0xb0, PowerPorts::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

#[cfg(test)]
mod tests {
    use migpipe_units::Bytes as Size;

    use super::*;
    use crate::layout;
    use crate::memory::MemorySource;

    #[test]
    fn the_code_is_where_real_mode_looks_for_it_and_clear_of_the_tables() {
        let memory =
            Memory::new(&layout::regions(Size(16 << 20)), &MemorySource::default()).unwrap();
        write(&memory).unwrap();
        let found: [u8; 9] = memory.mapped().read_obj(GuestAddress(0xffff << 4)).unwrap();
        assert_eq!(found, [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd]);
        const {
            assert!(layout::ACPI.end <= RESET_VECTOR);
            assert!(RESET_VECTOR + 9 <= layout::LEGACY_HOLE.end);
        }
    }
}
