//! What a migration would come to, reckoned beforehand.
//!
//! The rounds are those of the migration itself: [`Policy`] decides after each, by the same limits. What
//! is put in place of a guest is how much it was seen to write ([`Dirtying`]), and in place of a path its
//! rate. Each round takes as long as its pages do at that rate; what is written meanwhile is the next.
//! Where rounds become shorter they do so geometrically, by the ratio of the two rates, until what is left
//! fits the downtime; and a round can leave no more than the working set.

use std::time::Duration;

use migpipe_units::{Bytes, BytesPerSec, Pages};

use super::{Dirtying, Limits, Next, Path, Policy, RoundStats};

/// What a record adds to a run of pages: its frame.
const FRAME: u64 = 32;

/// Pages that memory which was never sent yet goes in, in one record. Later they come one by one.
const LONG_RUN: u64 = 256;

/// What a forecast is made of.
#[derive(Clone, Copy, Debug)]
pub struct Outlook<'a> {
    /// The limits of the migration.
    pub limits: Limits,
    /// Whether pages that are dirty in each round wait for the blackout ([`super::Wws`]).
    pub defers: bool,
    /// What round 0 sends as it is.
    pub first: Pages,
    /// How much the guest writes.
    pub dirtying: &'a Dirtying,
    /// The path while the guest runs, and what a blackout takes beside its pages.
    pub path: Path,
    /// The rate of the blackout, which no bandwidth limit holds for.
    pub blackout_rate: BytesPerSec,
    /// There and back.
    pub round_trip: Duration,
}

/// What a migration would come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// How pre-copy would end: [`Next::StopAndCopy`] or [`Next::GiveUp`].
    pub end: Next,
    /// How many rounds there would be before.
    pub rounds: u32,
    /// How far the vCPUs would be throttled by then, in percent.
    pub throttle: u8,
    /// What the blackout would send.
    pub left: Pages,
    /// The bytes of all rounds and of the blackout, if there is one.
    pub bytes: Bytes,
    /// From the first page to the end of the blackout, or to where it is given up.
    pub duration: Duration,
    /// How long the guest would stand still; what would be needed where it is given up.
    pub downtime: Duration,
}

impl Outlook<'_> {
    /// Goes through the rounds.
    pub fn forecast(&self) -> Forecast {
        let mut policy = Policy::new(self.limits);
        let mut so_far = Round { todo: self.first, run: LONG_RUN, ..Round::default() };
        let mut forecast = Forecast {
            end: Next::Round,
            rounds: 0,
            throttle: 0,
            left: Pages(0),
            bytes: Bytes(0),
            duration: Duration::ZERO,
            downtime: Duration::ZERO,
        };
        // The policy ends it within its hard limit.
        while let Next::Round | Next::Throttle { .. } = forecast.end {
            let (next, stats) = self.round(&so_far, forecast.rounds, &policy);
            so_far = next;
            forecast.rounds += 1;
            forecast.bytes += stats.bytes;
            forecast.duration += stats.duration;
            forecast.left = stats.left();
            forecast.end = policy.decide(&stats, &self.path);
            forecast.throttle = policy.throttle();
        }
        match forecast.end {
            Next::GiveUp { needed, .. } => forecast.downtime = needed,
            _ => {
                let last = of_stream(forecast.left, 1);
                forecast.downtime = self.blackout_rate.time_for(last)
                    + self.path.overhead
                    // ACK and GO, each of which is waited for.
                    + self.round_trip * 2;
                forecast.bytes += last;
                forecast.duration += forecast.downtime;
            }
        }
        forecast
    }

    fn round(&self, round: &Round, number: u32, policy: &Policy) -> (Round, RoundStats) {
        let bytes = of_stream(round.todo, round.run);
        let duration = self.path.rate.time_for(bytes);
        let runs = duration * u32::from(100 - policy.throttle()) / 100;
        let dirty = self.dirtying.within(runs);
        let plan = self.plan(round, dirty, policy);
        let stats = RoundStats {
            number,
            sent: round.todo,
            fills: Pages(0),
            bytes,
            deferred: round.waiting,
            dirtied: plan.became_dirty,
            duration,
            rate: self.path.rate,
        };
        let next = Round { todo: plan.to_send, waiting: plan.waiting, dirty, run: 1 };
        (next, stats)
    }

    /// As [`super::Wws::plan`], of numbers of pages: nobody knows yet which these are.
    fn plan(&self, round: &Round, dirty: Pages, policy: &Policy) -> Plan {
        let Pages(both) = self.dirtying.again(round.dirty, dirty);
        let still_hot = share(both, round.waiting.0, round.dirty.0).min(round.waiting.0);
        let room = if self.defers { policy.deferrable(&self.path).0 } else { 0 };
        let waiting = both.min(room);
        let became_dirty = dirty.0 - still_hot.min(dirty.0);
        Plan {
            became_dirty: Pages(became_dirty),
            waiting: Pages(waiting),
            to_send: Pages((became_dirty + round.waiting.0).saturating_sub(waiting)),
        }
    }
}

/// What is to be sent, and what is known of the round before.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    todo: Pages,
    waiting: Pages,
    dirty: Pages,
    /// Pages to a record.
    run: u64,
}

struct Plan {
    became_dirty: Pages,
    waiting: Pages,
    to_send: Pages,
}

/// `count` of `part` in `whole`.
fn share(count: u64, part: u64, whole: u64) -> u64 {
    match whole {
        0 => 0,
        whole => (u128::from(count) * u128::from(part) / u128::from(whole)) as u64,
    }
}

/// The stream of so many pages in runs of `run`.
fn of_stream(pages: Pages, run: u64) -> Bytes {
    pages.bytes() + Bytes(pages.0.div_ceil(run) * FRAME)
}
