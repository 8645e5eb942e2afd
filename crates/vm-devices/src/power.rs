//! The ports by which a guest switches its machine off or resets it.
//!
//! | port | write | does |
//! | --- | --- | --- |
//! | 0x600 | SLP_EN with SLP_TYP 5 (0x34) | power off: ACPI sleep control register (ACPI 6.5, 4.8.3.7) |
//! | 0x601 | | nothing: the sleep status register, which an FADT must name, and which reads as ones |
//! | 0x602 | 1 | reset: the RESET_REG and RESET_VALUE that the FADT names |
//! | 0xcf9 | bit 2 set | reset: the reset control register of the PIIX3 and all that came after |
//! | 0x64 | 0xfe | reset: the i8042 pulses the reset line |
//!
//! There is no state to save.

/// What a guest asked of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Switch it off.
    PowerOff,
    /// Reset it.
    Reset,
}

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct PowerPorts;

impl PowerPorts {
    /// ACPI sleep control register.
    pub const SLEEP_CONTROL: u16 = 0x600;
    /// ACPI sleep status register.
    pub const SLEEP_STATUS: u16 = 0x601;
    /// ACPI reset register.
    pub const RESET: u16 = 0x602;
    /// What a guest writes to [`Self::RESET`].
    pub const RESET_VALUE: u8 = 1;
    /// The sleep type of S5, as the DSDT names it.
    pub const S5: u8 = 5;

    const SLEEP_ENABLE: u8 = 1 << 5;
    const RESET_CONTROL: u16 = 0xcf9;
    const RESET_CPU: u8 = 1 << 2;
    const I8042_COMMAND: u16 = 0x64;
    const I8042_PULSE_RESET: u8 = 0xfe;

    /// What writing `value` to `port` asks for, if anything.
    pub fn write(port: u16, value: u8) -> Option<PowerRequest> {
        match port {
            Self::SLEEP_CONTROL
                if value & Self::SLEEP_ENABLE != 0 && (value >> 2) & 7 == Self::S5 =>
            {
                Some(PowerRequest::PowerOff)
            }
            Self::RESET if value == Self::RESET_VALUE => Some(PowerRequest::Reset),
            Self::RESET_CONTROL if value & Self::RESET_CPU != 0 => Some(PowerRequest::Reset),
            Self::I8042_COMMAND if value == Self::I8042_PULSE_RESET => Some(PowerRequest::Reset),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_register_does_what_the_table_says() {
        for (port, value, wanted) in [
            (0x600, 0x34, Some(PowerRequest::PowerOff)),
            (0x600, 0x14, None),
            (0x600, 0x20, None),
            (0x602, 1, Some(PowerRequest::Reset)),
            (0x602, 0, None),
            (0xcf9, 0x06, Some(PowerRequest::Reset)),
            (0xcf9, 0x02, None),
            (0x64, 0xfe, Some(PowerRequest::Reset)),
            (0x64, 0xd1, None),
            (0x80, 0xfe, None),
        ] {
            assert_eq!(PowerPorts::write(port, value), wanted, "{port:#x} {value:#x}");
        }
    }
}
