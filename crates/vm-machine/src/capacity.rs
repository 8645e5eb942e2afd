//! Whether the host has memory left for a guest that is about to arrive.
//!
//! Linux gives out more than it has, so a destination would take a guest and be killed half-way
//! through. A guest that arrives may use all of its memory at once, unlike one that boots.

use std::fs;
use std::path::Path;

use migpipe_units::Bytes;

use crate::memory::MemoryError;

/// Checks that `needed` bytes can be filled.
///
/// # Errors
/// [`MemoryError::TooLittle`] with the figure that is the limit. Figures that cannot be read are
/// no limit.
pub fn check(needed: Bytes) -> Result<(), MemoryError> {
    let host = fs::read_to_string("/proc/meminfo");
    let host = host.ok().and_then(|text| mem_available(&text));
    within(needed, host, false)?;
    within(needed, cgroup_room(), true)
}

fn within(needed: Bytes, available: Option<Bytes>, in_cgroup: bool) -> Result<(), MemoryError> {
    match available {
        Some(available) if available < needed => {
            Err(MemoryError::TooLittle { needed, available, in_cgroup })
        }
        _ => Ok(()),
    }
}

/// MemAvailable of /proc/meminfo (proc(5)).
fn mem_available(text: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(Bytes(kib.saturating_mul(1024)))
}

/// The least that is left under any limit of this process' cgroup (version 2) and those above it.
fn cgroup_room() -> Option<Bytes> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let group = root.join(path);
    let groups = group.ancestors().take_while(|group| group.starts_with(root));
    groups
        .filter_map(|group| {
            let read = |name| fs::read_to_string(group.join(name)).ok();
            room(&read("memory.max")?, &read("memory.current")?)
        })
        .min()
}

fn room(max: &str, current: &str) -> Option<Bytes> {
    // "max" is no number, and no limit.
    let max: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    Some(Bytes(max.saturating_sub(current)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_is_refused_with_both_figures() {
        let text = "MemTotal:  16000000 kB\nMemAvailable:    1048576 kB\n";
        let error = within(Bytes(2 << 30), mem_available(text), false).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("2.0 GiB") && text.contains("1.0 GiB"), "{text}");
    }

    #[test]
    fn a_cgroup_without_a_limit_is_none() {
        assert_eq!(room("max\n", "4096\n"), None);
        assert_eq!(room("8192\n", "4096\n"), Some(Bytes(4096)));
        assert_eq!(room("4096\n", "8192\n"), Some(Bytes(0)));
    }

    #[test]
    fn no_host_has_room_for_everything() {
        assert!(check(Bytes(u64::MAX)).is_err());
        assert!(check(Bytes(4096)).is_ok());
    }
}
