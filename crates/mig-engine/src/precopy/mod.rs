//! Pre-copy: what to send next, when to stop, and how fast to go.
//!
//! Everything here is data in, decision out. Whoever drives it does the I/O and owns the clock:
//!
//! 1. Send the pages of a round: [`PageBitmap::take_runs`] gives them as long runs and takes them
//!    out of the bitmap, [`Pacer::take`] says how long to wait before each, and
//!    [`SentHistogram::record`] and [`RateMeter::add`] keep count.
//! 2. Harvest the dirty log into the same bitmaps, one [`PageBitmap`] per region.
//! 3. [`Wws::plan`] turns what they hold into what the next round sends, in place, and says how many
//!    pages became dirty and how many were waiting.
//! 4. Fill in a [`RoundStats`] and ask [`Policy::decide`].
//! 5. For the blackout: [`Wws::release`] what was waiting and harvest once more, both into the
//!    bitmaps that still hold what was planned and not sent. They hold all pages then that the
//!    destination lacks.
//!
//! [`PageBitmap`]: page_bitmap::PageBitmap
//! [`PageBitmap::take_runs`]: page_bitmap::PageBitmap::take_runs
//!
//! [`Outlook::forecast`] does all of that beforehand, on a guest that was only watched for a while
//! ([`DirtyingMeter`]).
//!
//! The rules come from the KVM Forum 2007 talk *KVM Live Migration* (Lublin, Liguori): converged,
//! no progress, hard limit. What goes beyond it is that the downtime is a promise here.

mod dirtying;
mod forecast;
mod histogram;
mod limits;
pub(crate) mod nanos;
mod pacer;
mod policy;
mod rate;
mod round;
mod rule;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod talk;
mod wws;

pub use dirtying::{Dirtying, DirtyingMeter, HARVESTS};
pub use forecast::{Forecast, Outlook};
pub use histogram::SentHistogram;
pub use limits::{Limits, OnStall, ParseOnStallError};
pub use pacer::Pacer;
pub use policy::{Next, Path, Policy};
pub use rate::RateMeter;
pub use round::RoundStats;
pub use rule::Rule;
pub use wws::{Plan, Wws};
