//! What the guest finds at its I/O ports and outside its memory.
//!
//! | port | what |
//! | --- | --- |
//! | 0x3f8 - 0x3ff | the serial console |
//! | 0x600, 0x602, 0xcf9, 0x64 | power-off and reset: [`PowerPorts`] |
//! | 0x605 | [`IDLE_PORT`] |
//!
//! Everything else reads as ones and forgets what is written, as an empty bus does.

use std::sync::Arc;
use std::time::Duration;

use vm_devices::{PowerPorts, PowerRequest, SERIAL_PORTS, Serial};

/// A 32-bit write of microseconds, 10 ms at most, puts the vCPU to sleep for that long or until
/// the machine is paused. It is how a guest at CPL 3, where HLT is not allowed, gives its
/// processor back: the built-in guest uses it.
pub const IDLE_PORT: u16 = 0x605;

/// The longest sleep that is granted.
const LONGEST_IDLE: Duration = Duration::from_millis(10);

/// What a port write asks of the vCPU that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Go on.
    Nothing,
    /// Sleep.
    Idle(Duration),
    /// End the run.
    Power(PowerRequest),
}

/// The bus of one machine.
#[derive(Clone)]
pub(crate) struct Ports {
    pub(crate) serial: Arc<Serial>,
}

impl Ports {
    /// The guest writes `data` to `port`: several bytes are one wide access or a string of them.
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Ask {
        if SERIAL_PORTS.contains(&port) {
            self.serial.write((port - SERIAL_PORTS.start) as u8, data);
            return Ask::Nothing;
        }
        if port == IDLE_PORT {
            return match <[u8; 4]>::try_from(data) {
                Ok(micros) => {
                    let asked = Duration::from_micros(u32::from_le_bytes(micros).into());
                    Ask::Idle(asked.min(LONGEST_IDLE))
                }
                Err(_) => Ask::Nothing,
            };
        }
        let request = data.first().and_then(|&byte| PowerPorts::write(port, byte));
        request.map_or(Ask::Nothing, Ask::Power)
    }

    /// The guest reads from `port`.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if SERIAL_PORTS.contains(&port) {
            let offset = (port - SERIAL_PORTS.start) as u8;
            data.fill_with(|| self.serial.read(offset));
        }
    }
}
