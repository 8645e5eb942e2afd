//! Watching how much a guest writes, without a migration: its dirty log is on for that time, and off when
//! the connection is closed. The guest runs on.

use std::thread;
use std::time::{Duration, Instant};

use mig_engine::precopy::{Dirtying, DirtyingMeter, HARVESTS};
use migpipe_units::Pages;
use page_bitmap::{GuestBitmap, PageBitmap};
use vm_control::Client;
use vm_state::MachineDescription;

use crate::error::StepError;
use crate::monitor::Shared;

/// What was seen.
#[derive(Debug)]
pub struct Watched {
    /// How much the guest writes.
    pub dirtying: Dirtying,
    /// How long a harvest takes, the last ones.
    pub harvest: Duration,
    /// For how long it was watched, and what it wrote to in that time.
    pub time: Duration,
    pub written: Pages,
}

/// Watches the guest of `client` for as long as [`HARVESTS`] say.
pub fn watch(
    client: Client,
    machine: &MachineDescription,
    shared: &Shared,
) -> Result<Watched, StepError> {
    let log = client.measure_dirtying(machine)?;
    // The first harvest may show everything as dirty.
    client.dirty_log_harvest()?;
    log.clear();
    let began = Instant::now();
    let bitmap = || GuestBitmap::new(machine.region_pages());
    let (sum, mut last) = (bitmap(), bitmap());
    let mut meter = DirtyingMeter::default();
    let mut harvest = Duration::MAX;
    for moment in HARVESTS {
        thread::sleep(moment.saturating_sub(began.elapsed()));
        if shared.is_cancelled() {
            return Err(StepError::Cancelled);
        }
        let asked = Instant::now();
        client.dirty_log_harvest()?;
        let time = began.elapsed();
        harvest = harvest.min(asked.elapsed());
        let piece = bitmap();
        for (piece, log) in piece.iter().zip(log.iter()) {
            piece.merge(log.take_words());
        }
        for (sum, piece) in sum.iter().zip(piece.iter()) {
            sum.merge(piece.words());
        }
        meter.note(time, piece.count(), in_common(&piece, &last), sum.count());
        last = piece;
    }
    let memory = machine.pages();
    let (dirtying, time) = (meter.curve(memory), began.elapsed());
    Ok(Watched { dirtying, harvest, time, written: sum.count() })
}

fn in_common(one: &[PageBitmap], other: &[PageBitmap]) -> Pages {
    let words = one.iter().zip(other).flat_map(|(one, other)| one.words().zip(other.words()));
    Pages(words.map(|(one, other)| u64::from((one & other).count_ones())).sum())
}
