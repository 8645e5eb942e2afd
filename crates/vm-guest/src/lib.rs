//! The built-in guest: a small bare-metal program that dirties memory and proves that none was
//! lost.
//!
//! [`IMAGE`] is an ELF with a PVH note. It is started like any PVH kernel, with one private
//! addition: every vCPU is started at the entry at once, in the state of the PVH boot ABI
//! ([`MAX_CPUS`] at most); its APIC tells it its number. [`DirtySpec::command_line`] is what the
//! guest reads. Examples: `image` writes it to a file for another hypervisor.
//!
//! # What it does
//! It fills `fill-mb` MiB, says `ready`, and from then on, on all vCPUs: stamps the hot pages at
//! the given rate with their index and a generation, after checking the stamp of the visit before
//! against a table; and walks the filled memory, recomputing every word. By time stamp counter it
//! measures the longest gap between two of its own steps, which is a pause seen from inside.
//!
//! # What it prints
//! ```text
//! ready pages 1024 fill-pages 16384 cpus 1 hot-gfn 0x1234 fill-gfn 0x5678
//! tick 1 cpu 0 writes 100 checked 410 walks 0 gap-us 61 max-gap-us 61
//! ERROR page 0x1240: expected 0x… found 0x… (hot page 12, word 1)
//! done ticks 10 writes 1000 checked 4100 walks 0 max-gap-us 61
//! ```
//! Counters are sums over all vCPUs since the start (pages written, pages checked), `walks` the
//! complete walks that every vCPU has done, gaps the longest of any vCPU in microseconds: since
//! the last tick, and of all. After an `ERROR` line it stops for ever; after `done` it switches
//! the machine off.
//!
//! # The ports that it uses
//! ACPI sleep control 0x600, the idle port 0x605 (a 32-bit write of microseconds sleeps that long)
//! and the line port 0x60c (prints a whole line at once), as the machine documents them. Where the
//! line port does not answer, lines go to the serial port 0x3f8 byte by byte; so the guest runs
//! under other hypervisors too, without idling and power-off.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod spec;

pub use spec::{DirtySpec, Fill, Idle, Rate, SpecError};

/// The guest program: an ELF with a PVH note, linked at 1 MiB.
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// The highest number of vCPUs that the guest has stacks for.
pub const MAX_CPUS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_a_64_bit_elf_for_x86() {
        assert_eq!(&IMAGE[..5], b"\x7fELF\x02");
        assert_eq!(IMAGE[18..20], 62u16.to_le_bytes());
    }

    #[test]
    fn the_image_has_a_pvh_note() {
        let note: &[u8] = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
        assert!(IMAGE.windows(note.len()).any(|bytes| bytes == note));
    }
}
