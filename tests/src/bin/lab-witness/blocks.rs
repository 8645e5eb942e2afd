//! A disk whose queue is always full, and what must be on it: each block tells how often it was
//! written, so that a write that was lost, came late or came again shows.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::OFlag;

const BLOCK: usize = 4096;

/// Enough for a writer that holds two blocks.
const STACK: usize = 128 << 10;

/// Between two lines of the count.
const EVERY: Duration = Duration::from_millis(500);

/// One block in memory, where a direct read or write may have it.
struct Block {
    memory: Vec<u8>,
    start: usize,
}

impl Block {
    fn new() -> Self {
        let memory = vec![0; 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BLOCK]
    }

    /// What the block has after so many writes: its place and their number, then what follows from
    /// these in every byte. A block that was never written is zero.
    fn fill(&mut self, place: u64, writes: u64) {
        let bytes = self.bytes();
        if writes == 0 {
            bytes.fill(0);
            return;
        }
        let mut word = place << 32 ^ writes;
        for (index, eight) in bytes.chunks_exact_mut(8).enumerate() {
            let value = match index {
                0 => place,
                1 => writes,
                _ => step(&mut word),
            };
            eight.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn number(&mut self, index: usize) -> u64 {
        let eight = &self.bytes()[8 * index..8 * (index + 1)];
        u64::from_le_bytes(eight.try_into().expect("eight bytes"))
    }
}

/// A linear congruential generator: the same blocks in every run, in an order that nobody made.
fn step(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *state >> 11
}

/// What all writers share.
struct Disk {
    file: File,
    writes: AtomicU64,
    end: AtomicBool,
}

impl Disk {
    /// That the block is as its last write left it.
    fn check(
        &self,
        place: u64,
        writes: u64,
        is: &mut Block,
        shall: &mut Block,
    ) -> Result<(), String> {
        self.file
            .read_exact_at(is.bytes(), place * BLOCK as u64)
            .map_err(|error| format!("cannot read block {place}: {error}"))?;
        shall.fill(place, writes);
        if is.bytes() == shall.bytes() {
            return Ok(());
        }
        let (found, count) = (is.number(0), is.number(1));
        Err(format!(
            "block {place} was written {writes} times, and is as of write {count} of block {found}"
        ))
    }

    fn write(&self, place: u64, writes: u64, block: &mut Block) -> Result<(), String> {
        block.fill(place, writes);
        match self.file.write_at(block.bytes(), place * BLOCK as u64) {
            Ok(BLOCK) => Ok(()),
            Ok(less) => Err(format!("of block {place} only {less} bytes were written")),
            Err(error) => Err(format!("cannot write block {place}: {error}")),
        }
    }

    /// One writer's work on blocks of its own: look whether one is as it was left, write it once
    /// more. At the end all of them are looked at.
    fn work(&self, mine: &[u64]) -> Result<(), String> {
        let (mut is, mut shall) = (Block::new(), Block::new());
        let mut written = vec![0_u64; mine.len()];
        let mut random = mine[0];
        while !self.end.load(Ordering::Relaxed) {
            let index = step(&mut random) as usize % mine.len();
            self.check(mine[index], written[index], &mut is, &mut shall)?;
            written[index] += 1;
            self.write(mine[index], written[index], &mut shall)?;
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
        for (&place, &writes) in mine.iter().zip(&written) {
            self.check(place, writes, &mut is, &mut shall)?;
        }
        Ok(())
    }
}

/// Keeps `writers` requests at the disk until `stop` exists, in its first `blocks` blocks of 4 KiB,
/// which are zero. Prints how many writes were acknowledged, now and then and at the end.
pub fn storm(path: &Path, writers: usize, blocks: u64, stop: &Path) -> Result<(), String> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path)
        .map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    let disk = Disk { file, writes: AtomicU64::new(0), end: AtomicBool::new(false) };
    // A writer without a block has nothing to do.
    let writers = writers.min(blocks as usize);
    std::thread::scope(|scope| {
        let start = |first: usize| {
            let mine: Vec<u64> = (first as u64..blocks).step_by(writers).collect();
            let disk = &disk;
            let work = move || {
                let result = disk.work(&mine);
                if result.is_err() {
                    disk.end.store(true, Ordering::Relaxed);
                }
                result
            };
            let builder = std::thread::Builder::new().stack_size(STACK);
            builder.spawn_scoped(scope, work).map_err(|error| format!("no thread: {error}"))
        };
        let threads = (0..writers).map(start).collect::<Result<Vec<_>, _>>();
        while threads.is_ok() && !stop.exists() && !disk.end.load(Ordering::Relaxed) {
            println!("writes {} end", disk.writes.load(Ordering::Relaxed));
            std::thread::sleep(EVERY);
        }
        disk.end.store(true, Ordering::Relaxed);
        for thread in threads? {
            thread.join().map_err(|_| "a writer panicked".to_owned())??;
        }
        Ok::<(), String>(())
    })?;
    println!("blocks whole: {} writes", disk.writes.load(Ordering::Relaxed));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: u64 = 3;

    fn disk() -> Disk {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(8 * BLOCK as u64).expect("its length");
        Disk { file, writes: AtomicU64::new(0), end: AtomicBool::new(false) }
    }

    #[test]
    fn a_block_is_whole_as_its_last_write_left_it() {
        let (disk, mut is, mut shall) = (disk(), Block::new(), Block::new());
        for writes in 0..3 {
            if writes > 0 {
                disk.write(PLACE, writes, &mut shall).expect("written");
            }
            disk.check(PLACE, writes, &mut is, &mut shall).expect("whole");
        }
    }

    #[test]
    fn a_write_that_was_lost_or_came_again_or_went_elsewhere_shows() {
        let (disk, mut is, mut shall) = (disk(), Block::new(), Block::new());
        for writes in [1, 2, 1] {
            disk.write(PLACE, writes, &mut shall).expect("written");
        }
        let error = disk.check(PLACE, 2, &mut is, &mut shall).expect_err("it came again");
        assert_eq!(error, "block 3 was written 2 times, and is as of write 1 of block 3");
        disk.check(PLACE + 1, 1, &mut is, &mut shall).expect_err("it was lost");
        disk.write(PLACE, 2, &mut shall).expect("written");
        disk.file.write_all_at(shall.bytes(), (PLACE + 1) * BLOCK as u64).expect("written");
        disk.check(PLACE + 1, 2, &mut is, &mut shall).expect_err("it went elsewhere");
    }
}
