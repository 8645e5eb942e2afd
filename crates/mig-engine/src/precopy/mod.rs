//! Pre-copy: what to send next, when to stop, and how fast to go.
//!
//! Everything here is data in, decision out. Whoever drives it does the I/O and owns the clock:
//!
//! 1. Send the pages of a round: [`Bitmap::runs`] gives them as long runs, [`Pacer::take`] says
//!    how long to wait before each, [`SentHistogram::record`] and [`RateMeter::add`] keep count.
//! 2. Harvest the dirty log into one [`Bitmap`] per region.
//! 3. [`Wws::plan`] turns those bitmaps into what the next round sends and says how many pages
//!    became dirty and how many were waiting.
//! 4. Fill in a [`RoundStats`] and ask [`Policy::decide`].
//! 5. For the blackout: harvest once more, unite that with what was planned but not sent, and
//!    [`Wws::release`] what was waiting. Together these are all pages the destination lacks.
//!
//! The rules come from the KVM Forum 2007 talk *KVM Live Migration* (Lublin, Liguori): converged,
//! no progress, hard limit. What goes beyond it is that the downtime is a promise here.

mod bitmap;
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

pub use bitmap::{Bitmap, Runs};
pub use histogram::SentHistogram;
pub use limits::{Limits, OnStall, ParseOnStallError};
pub use pacer::Pacer;
pub use policy::{Next, Path, Policy};
pub use rate::RateMeter;
pub use round::RoundStats;
pub use rule::Rule;
pub use wws::{Plan, Wws};
