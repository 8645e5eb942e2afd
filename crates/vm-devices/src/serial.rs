//! The 16550 serial port, whose far end is the [`Console`].

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_state::{
    DeviceDescription, LoadError, PayloadError, SaveError, Section, SectionId, SectionSet, Snapshot,
};
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

use crate::console::{Console, Input};
use crate::device::{Device, DeviceError};

/// The ports of the first serial port of a PC.
pub const SERIAL_PORTS: Range<u16> = 0x3f8..0x400;

/// Its interrupt line.
pub const SERIAL_IRQ: u32 = 4;

/// Size of the receive FIFO (vm-superio's, which is larger than the 16 bytes of the chip).
const FIFO: usize = 64;

/// The saved state of the port: its registers by the names of the 16550 data sheet, and what the
/// guest has not read yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the data sheet has these names")]
pub struct SerialSnapshot {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    pub received: Vec<u8>,
}

impl Snapshot for SerialSnapshot {
    const NAME: &'static str = "serial";
    const VERSION: u16 = 1;

    fn validate(&self) -> Result<(), PayloadError> {
        if self.received.len() > FIFO {
            return Err(PayloadError::Field {
                field: "received",
                problem: format!("has {} bytes; the FIFO holds {FIFO}", self.received.len()),
            });
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

type Uart = vm_superio::Serial<Line, NoEvents, Vec<u8>>;

struct Port {
    uart: Uart,
    stopped: bool,
}

/// The serial port of one guest.
pub struct Serial {
    port: Mutex<Port>,
    console: Arc<Console>,
}

impl Serial {
    /// A port in its state after power-on, stopped, which raises its interrupt by writing to
    /// `interrupt` and talks to `console`.
    pub fn new(interrupt: EventFd, console: Arc<Console>) -> Arc<Self> {
        Self::stopped(Uart::new(Line(Arc::new(interrupt)), Vec::new()), console)
    }

    /// The stopped port in the state that its section says, which is taken out of `sections`.
    ///
    /// # Errors
    /// [`LoadError`] if the section is missing or no port can be in that state.
    pub fn restore(
        interrupt: EventFd,
        console: Arc<Console>,
        sections: &mut SectionSet,
    ) -> Result<Arc<Self>, LoadError> {
        let saved: SerialSnapshot = sections.take(0)?;
        let state = vm_superio::SerialState {
            baud_divisor_low: saved.baud_divisor_low,
            baud_divisor_high: saved.baud_divisor_high,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.received,
        };
        let line = Line(Arc::new(interrupt));
        let uart = Uart::from_state(&state, line, NoEvents, Vec::new()).map_err(|error| {
            LoadError::Payload {
                id: SectionId { name: SerialSnapshot::NAME.to_owned(), instance: 0 },
                version: SerialSnapshot::VERSION,
                source: PayloadError::Field {
                    field: "received",
                    problem: format!("cannot be had by a port: {error:?}"),
                },
            }
        })?;
        Ok(Self::stopped(uart, console))
    }

    fn stopped(uart: Uart, console: Arc<Console>) -> Arc<Self> {
        let port = Mutex::new(Port { uart, stopped: true });
        let serial = Arc::new(Self { port, console: Arc::clone(&console) });
        let input: Arc<dyn Input> = serial.clone();
        console.attach(&input);
        serial
    }

    /// What the machine description says of a port that talks to `console`.
    pub fn description(console: &Console) -> DeviceDescription {
        DeviceDescription {
            kind: "serial".to_owned(),
            id: "serial0".to_owned(),
            section_version: SerialSnapshot::VERSION,
            params: BTreeMap::from([("console".to_owned(), console.spec().to_string())]),
        }
    }

    fn port(&self) -> MutexGuard<'_, Port> {
        // A panic elsewhere leaves the registers as they are: each access is complete in itself.
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest writes `bytes`, one after the other, to the register at `offset` (0 to 7).
    pub fn write(&self, offset: u8, bytes: &[u8]) {
        let mut port = self.port();
        for &byte in bytes {
            // Vec takes every byte; an eventfd fails only when its counter is full, and then the
            // interrupt is pending already.
            let _ = port.uart.write(offset, byte);
        }
        let output = port.uart.writer_mut();
        if !output.is_empty() {
            self.console.print(output);
            output.clear();
        }
    }

    /// The guest reads the register at `offset` (0 to 7).
    pub fn read(&self, offset: u8) -> u8 {
        self.port().uart.read(offset)
    }
}

impl Input for Serial {
    fn receive(&self, bytes: &[u8]) -> usize {
        let mut port = self.port();
        if port.stopped {
            return 0;
        }
        let room = port.uart.fifo_capacity().min(bytes.len());
        if room == 0 {
            return 0;
        }
        port.uart.enqueue_raw_bytes(&bytes[..room]).unwrap_or(0)
    }
}

impl Device for Serial {
    fn describe(&self) -> DeviceDescription {
        Self::description(&self.console)
    }

    fn quiesce(&self) -> Result<(), DeviceError> {
        self.port().stopped = true;
        Ok(())
    }

    fn save(&self) -> Result<Section, SaveError> {
        let state = self.port().uart.state();
        SerialSnapshot {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            received: state.in_buffer,
        }
        .to_section(0)
    }

    fn resume(&self) {
        self.port().stopped = false;
    }

    fn announce(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConsoleSpec;

    const DATA: u8 = 0;
    const INTERRUPT_ENABLE: u8 = 1;
    const LINE_STATUS: u8 = 5;
    const SCRATCH: u8 = 7;

    fn serial(console: &str) -> (Arc<Serial>, EventFd) {
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let console = Console::open(&console.parse::<ConsoleSpec>().unwrap()).unwrap();
        let serial = Serial::new(interrupt.try_clone().unwrap(), Arc::new(console));
        (serial, interrupt)
    }

    fn golden() -> SerialSnapshot {
        SerialSnapshot {
            baud_divisor_low: 1,
            baud_divisor_high: 2,
            interrupt_enable: 1,
            interrupt_identification: 4,
            line_control: 3,
            line_status: 0x61,
            modem_control: 8,
            modem_status: 0xb0,
            scratch: 0x5a,
            received: b"login".to_vec(),
        }
    }

    #[test]
    fn every_version_ever_released_still_loads() {
        let bytes = include_bytes!("../tests/golden/serial-1.section");
        assert_eq!(golden().to_section(0).unwrap().encode().unwrap(), bytes);
        let section = Section::decode(bytes).unwrap();
        assert_eq!(SerialSnapshot::from_section(&section).unwrap(), golden());
    }

    fn restore(state: &SerialSnapshot) -> Result<Arc<Serial>, LoadError> {
        let console = Console::open(&ConsoleSpec::Null).unwrap();
        let mut sections = SectionSet::new([state.to_section(0).unwrap()]).unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let restored = Serial::restore(line, Arc::new(console), &mut sections);
        sections.finish().unwrap();
        restored
    }

    #[test]
    fn what_was_saved_goes_on_in_another_port() {
        let serial = restore(&golden()).unwrap();
        let again = serial.save().unwrap();
        assert_eq!(SerialSnapshot::from_section(&again).unwrap(), golden());
        assert_eq!(serial.read(SCRATCH), 0x5a);
        assert_eq!(serial.read(DATA), b'l');
    }

    #[test]
    fn a_receive_buffer_that_no_port_has_is_refused() {
        let state = SerialSnapshot { received: vec![0; FIFO + 1], ..golden() };
        assert!(restore(&state).is_err());
    }

    #[test]
    fn a_stopped_port_takes_no_input_and_a_resumed_one_raises_its_interrupt() {
        let (serial, interrupt) = serial("null");
        serial.write(INTERRUPT_ENABLE, &[1]);
        assert_eq!(serial.receive(b"x"), 0);
        serial.resume();
        assert_eq!(serial.receive(&[b'x'; 100]), FIFO);
        assert_eq!(interrupt.read().unwrap(), 1);
        assert_eq!(serial.read(LINE_STATUS) & 1, 1);
        serial.quiesce().unwrap();
        assert_eq!(serial.read(DATA), b'x');
        assert_eq!(serial.receive(b"y"), 0, "room, but stopped");
    }

    #[test]
    fn a_line_written_at_once_reaches_the_console_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let (serial, _) = serial(&format!("file:{}", path.display()));
        serial.write(DATA, b"hello\n");
        drop(serial);
        assert_eq!(std::fs::read(&path).unwrap(), b"hello\n");
    }
}
