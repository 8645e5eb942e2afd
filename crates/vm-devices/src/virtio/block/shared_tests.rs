//! Images that more than one host sees.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use tempfile::NamedTempFile;

use super::tests::{OK, ask, spec};
use super::*;
use crate::Device;
use crate::virtio::driver::Driver;
use crate::virtio::registry;

/// A LUN and the device nodes of two hosts that see it, each with a page cache of its own: two
/// loop devices over one file.
struct Lun {
    file: NamedTempFile,
    nodes: Vec<PathBuf>,
}

impl Lun {
    /// Says what is missing where there are no loop devices for this user.
    fn of(bytes: u64) -> Option<Self> {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        let mut lun = Self { file, nodes: Vec::new() };
        for _ in 0..2 {
            let mut losetup = Command::new("losetup");
            match losetup.args(["--find", "--show"]).arg(lun.file.path()).output() {
                Ok(done) if done.status.success() => {
                    lun.nodes.push(String::from_utf8(done.stdout).unwrap().trim().into());
                }
                other => {
                    println!("SKIPPED a LUN that two hosts see: no loop device: {other:?}");
                    return None;
                }
            }
        }
        Some(lun)
    }
}

impl Drop for Lun {
    fn drop(&mut self) {
        for node in &self.nodes {
            let _ = Command::new("losetup").arg("--detach").arg(node).status();
        }
    }
}

const SECTOR_9: usize = 9 * SECTOR as usize;

fn sector_9(driver: &mut Driver) -> u8 {
    ask(driver, VIRTIO_BLK_T_IN, 9, &[], 512).0[0]
}

fn write_sector_9(driver: &mut Driver, byte: u8) {
    assert_eq!(ask(driver, VIRTIO_BLK_T_OUT, 9, &[byte; 512], 0).1, OK);
}

fn moves_with_what_it_has_written(options: &str) {
    let Some(lun) = Lun::of(1 << 20) else { return };
    let [here, there] = [&lun.nodes[0], &lun.nodes[1]].map(|node| spec(node, options));
    let mut at_source = Driver::start(&here, 0);
    write_sector_9(&mut at_source, 1);
    // Something on the other host has looked at its device and has it open, as a volume manager
    // does: what it has read stays in that host's cache.
    let mut looks = File::open(&lun.nodes[1]).unwrap();
    assert_eq!(looks.read_to_end(&mut Vec::new()).unwrap(), 1 << 20);

    write_sector_9(&mut at_source, 2);
    at_source.device.quiesce().unwrap();
    at_source.device.disk().unwrap().flush().unwrap();
    at_source.device.release();
    let mut at_destination = at_source.move_to(&there);
    at_destination.device.acquire().unwrap();
    at_destination.device.resume();
    assert_eq!(sector_9(&mut at_destination), 2, "what the guest has written before it moved");

    write_sector_9(&mut at_destination, 3);
    assert_eq!(ask(&mut at_destination, VIRTIO_BLK_T_FLUSH, 0, &[], 0).1, OK);
    // The source ends; nothing of it is written any more.
    drop(at_source);
    nix::unistd::sync();
    assert_eq!(fs::read(lun.file.path()).unwrap()[SECTOR_9], 3);

    // And it comes back to the first host.
    at_destination.device.quiesce().unwrap();
    at_destination.device.release();
    let mut back = at_destination.move_to(&here);
    back.device.acquire().unwrap();
    back.device.resume();
    assert_eq!(sector_9(&mut back), 3, "what it has written elsewhere");
}

#[test]
fn what_was_written_to_a_shared_lun_is_there_on_the_other_host() {
    moves_with_what_it_has_written("");
}

#[test]
fn what_was_written_directly_to_a_shared_lun_is_there_on_the_other_host() {
    moves_with_what_it_has_written(",direct");
}

#[test]
fn a_device_that_ends_inside_a_block_is_read_and_written_to_its_end() {
    let sectors = 2048 + 3;
    let Some(lun) = Lun::of(sectors * SECTOR) else { return };
    let mut driver = Driver::start(&spec(&lun.nodes[0], ""), 0);
    assert_eq!(u64::from_le_bytes(driver.config(0)), sectors);
    for sector in [2046, 2049, 2050] {
        let byte = sector as u8;
        assert_eq!(ask(&mut driver, VIRTIO_BLK_T_OUT, sector, &[byte; 512], 0).1, OK);
        let found = ask(&mut driver, VIRTIO_BLK_T_IN, sector, &[], 512).0;
        assert!(found.iter().all(|found| *found == byte), "sector {sector}");
    }
    assert_eq!(ask(&mut driver, VIRTIO_BLK_T_IN, 2048, &[], 512).0, [0; 512], "beside them");
    let whole = ask(&mut driver, VIRTIO_BLK_T_IN, 2047, &[], 4 * 512).0;
    assert_eq!([whole[0], whole[512], whole[1024], whole[1536]], [0, 0, 1, 2]);
}

#[test]
fn what_is_neither_a_file_nor_a_device_is_no_image_and_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [&fifo, dir.path()] {
        for options in [",ro", ""] {
            let spec = spec(path, options);
            let error = registry::open(&spec, &mut spec.params.clone()).err().unwrap();
            assert!(error.to_string().contains("cannot open the disk image"), "{error}");
        }
    }
}
