//! What the guest finds at its I/O ports and outside its memory.
//!
//! | port | what |
//! | --- | --- |
//! | 0x3f8 - 0x3ff | the serial console |
//! | 0x600, 0x602, 0xcf9, 0x64 | power-off and reset: [`PowerPorts`] |
//! | 0x605 | [`IDLE_PORT`] |
//! | 0x60c | [`LINE_PORT`] |
//!
//! Everything else reads as ones and forgets what is written, as an empty bus does.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use page_bitmap::TrackedMemory;
use vm_devices::{PowerPorts, PowerRequest, SERIAL_PORTS};
use vm_memory::{Bytes, GuestAddress};

use crate::devices::Devices;

/// A 32-bit write of microseconds, 10 ms at most, puts the vCPU to sleep for that long or until
/// the machine is paused. It is how a guest at CPL 3, where HLT is not allowed, gives its
/// processor back: the built-in guest uses it.
pub const IDLE_PORT: u16 = 0x605;

/// A 32-bit write of a guest-physical address prints the line there: its length in bytes
/// (little-endian u32, [`LONGEST_LINE`] at most), then the bytes. They go the way of the serial
/// port, but at once: no pause cuts the line in two, and it costs one exit instead of one per byte,
/// as string output does under KVM. The port reads as [`LINE_PORT_ANSWER`]. The built-in guest uses
/// it.
pub const LINE_PORT: u16 = 0x60c;

/// What [`LINE_PORT`] reads as, little-endian, for guests that look whether it is there.
pub const LINE_PORT_ANSWER: [u8; 4] = *b"migp";

/// The longest line that [`LINE_PORT`] prints; of a longer one this much.
pub const LONGEST_LINE: usize = 4096;

/// The longest sleep that is granted.
const IDLE_TIMEOUT: Duration = Duration::from_millis(10);

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
    pub(crate) memory: TrackedMemory,
    /// The threads of the vCPUs have the bus before a guest that arrives has devices. No vCPU runs
    /// without them.
    pub(crate) devices: Arc<OnceLock<Devices>>,
}

impl Ports {
    /// The guest writes `data` to `port`: several bytes are one wide access or a string of them.
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Ask {
        if SERIAL_PORTS.contains(&port) {
            if let Some(devices) = self.devices.get() {
                devices.serial.write((port - SERIAL_PORTS.start) as u8, data);
            }
            return Ask::Nothing;
        }
        if port == IDLE_PORT {
            return match <[u8; 4]>::try_from(data) {
                Ok(micros) => {
                    let asked = Duration::from_micros(u32::from_le_bytes(micros).into());
                    Ask::Idle(asked.min(IDLE_TIMEOUT))
                }
                Err(_) => Ask::Nothing,
            };
        }
        if port == LINE_PORT {
            if let Ok(address) = <[u8; 4]>::try_from(data) {
                self.print_line(u32::from_le_bytes(address).into());
            }
            return Ask::Nothing;
        }
        let request = data.first().and_then(|&byte| PowerPorts::write(port, byte));
        request.map_or(Ask::Nothing, Ask::Power)
    }

    /// The guest reads from `port`.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let (true, Some(devices)) = (SERIAL_PORTS.contains(&port), self.devices.get()) {
            let offset = (port - SERIAL_PORTS.start) as u8;
            data.fill_with(|| devices.serial.read(offset));
        }
        if port == LINE_PORT && data.len() == LINE_PORT_ANSWER.len() {
            data.copy_from_slice(&LINE_PORT_ANSWER);
        }
    }

    /// The guest reads outside its memory.
    pub(crate) fn read_mmio(&self, address: u64, data: &mut [u8]) {
        match self.devices.get() {
            Some(devices) => devices.virtio.read(address, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes outside its memory.
    pub(crate) fn write_mmio(&self, address: u64, data: &[u8]) {
        if let Some(devices) = self.devices.get() {
            devices.virtio.write(address, data);
        }
    }

    /// Nothing is printed where there is no memory.
    fn print_line(&self, address: u64) {
        let mut len = [0; 4];
        if self.memory.read_slice(&mut len, GuestAddress(address)).is_err() {
            return;
        }
        let mut line = vec![0; LONGEST_LINE.min(u32::from_le_bytes(len) as usize)];
        if self.memory.read_slice(&mut line, GuestAddress(address + 4)).is_ok()
            && let Some(devices) = self.devices.get()
        {
            devices.serial.write(0, &line);
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_devices::{Console, Serial};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::virtio::VirtioDevices;

    const MEMORY: usize = 64 << 10;

    /// A bus with 64 KiB of memory behind it, and what it printed.
    fn printed(use_it: impl FnOnce(&Ports)) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let spec = format!("file:{}", path.display()).parse().unwrap();
        let console = Arc::new(Console::open(&spec).unwrap());
        let memory = TrackedMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let serial = Serial::new(EventFd::new(libc::EFD_NONBLOCK).unwrap(), console);
        let devices = Devices { serial, virtio: VirtioDevices::default() };
        let ports = Ports { memory, devices: Arc::new(OnceLock::from(devices)) };
        use_it(&ports);
        drop(ports);
        std::fs::read(&path).unwrap()
    }

    fn line_at(ports: &Ports, address: usize, len: u32, text: &[u8]) {
        let line = [&len.to_le_bytes(), text].concat();
        let room = (MEMORY - address).min(line.len());
        ports.memory.write_slice(&line[..room], GuestAddress(address as u64)).unwrap();
        let ask = ports.write(LINE_PORT, &(address as u32).to_le_bytes());
        assert_eq!(ask, Ask::Nothing);
    }

    #[test]
    fn a_line_is_printed_from_memory() {
        let text = printed(|ports| line_at(ports, 0x1001, 6, b"hello\nand more"));
        assert_eq!(text, b"hello\n");
    }

    #[test]
    fn a_line_that_memory_does_not_hold_is_not_printed() {
        let text = printed(|ports| {
            line_at(ports, MEMORY - 8, 100, b"abcd");
            ports.write(LINE_PORT, &u32::MAX.to_le_bytes());
            ports.write(LINE_PORT, &(MEMORY as u32 - 2).to_le_bytes());
            ports.write(LINE_PORT, &[0]);
        });
        assert_eq!(text, b"");
    }

    #[test]
    fn of_a_line_without_end_a_page_is_printed() {
        let text = printed(|ports| line_at(ports, 0, u32::MAX, &[b'x'; MEMORY]));
        assert_eq!(text, [b'x'; LONGEST_LINE]);
    }

    #[test]
    fn a_sleep_is_bounded_and_what_is_no_32_bit_write_is_none() {
        printed(|ports| {
            let ask = |data: &[u8]| ports.write(IDLE_PORT, data);
            assert_eq!(ask(&500_u32.to_le_bytes()), Ask::Idle(Duration::from_micros(500)));
            assert_eq!(ask(&u32::MAX.to_le_bytes()), Ask::Idle(IDLE_TIMEOUT));
            assert_eq!(ask(&[1]), Ask::Nothing);
            assert_eq!(ask(&[]), Ask::Nothing);
        });
    }

    #[test]
    fn an_empty_port_reads_as_ones_and_the_line_port_as_its_name() {
        printed(|ports| {
            let mut data = [0; 4];
            ports.read(0x70, &mut data);
            assert_eq!(data, [0xff; 4]);
            ports.read(LINE_PORT, &mut data);
            assert_eq!(data, LINE_PORT_ANSWER);
            assert_eq!(ports.write(0x80, &[1]), Ask::Nothing);
            assert_eq!(ports.write(0x600, &[0x34]), Ask::Power(PowerRequest::PowerOff));
        });
    }
}
