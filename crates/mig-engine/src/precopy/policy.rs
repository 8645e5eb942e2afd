//! When to go on, when to stop, when to give up.

use std::time::Duration;

use migpipe_units::{Bytes, BytesPerSec, PAGE_SIZE, Pages};
use serde::{Deserialize, Serialize};

use super::{Limits, OnStall, RoundStats, Rule};

/// The first throttle step and the size of the further ones, in percent of a vCPU's time.
///
/// A throttle slows the guest's users down, so it begins mildly, and each step is given one round
/// to show its effect. From 20% by tens there are nine steps up to the last, which leaves room for
/// them within the default hard limit of 30 rounds. (QEMU's auto-converge has the same defaults:
/// `cpu-throttle-initial`, `cpu-throttle-increment`, `max-cpu-throttle`.)
const FIRST_THROTTLE: u8 = 20;
const THROTTLE_STEP: u8 = 10;

/// The last throttle step, in percent: what is left of a vCPU keeps its timers and watchdogs alive.
const LAST_THROTTLE: u8 = 99;

/// A round makes headway when it leaves at most this share of what it sent (a tenth must go).
///
/// The talk's rule alone never sees a guest that sweeps over a fixed working set: it dirties
/// exactly what was sent, not more. Nine tenths to the power of 30 rounds is a factor of 24, which
/// is too little to count on, so a slower pace than that is a stall, whatever a stall leads to.
const HEADWAY: (u64, u64) = (9, 10);

/// Of what fits the promised downtime, this fraction may be taken by pages that wait for the
/// blackout: one in two. The rest stays free for what becomes dirty in the last round.
const DEFERRABLE: u64 = 2;

/// What the way to the destination can do, as measured by the time of a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Path {
    /// The rate at which the blackout will be sent. Under a bandwidth limit the measured rate is
    /// the limit: what the path could carry beyond it is unknown, and the promise is not staked
    /// on it. 0 where nothing was measured yet.
    pub rate: BytesPerSec,
    /// Bytes that were written and have not left this host yet (pipes, socket buffers). They go
    /// out ahead of the blackout.
    pub backlog: Bytes,
    /// What a blackout takes beside sending pages: harvest, state, round trips, load.
    pub overhead: Duration,
}

impl Path {
    /// The downtime of a blackout that sends no page.
    pub fn fixed(&self) -> Duration {
        self.rate.time_for(self.backlog).saturating_add(self.overhead)
    }

    /// The downtime of a blackout that sends `left` pages. Every page counts in full, though some
    /// may turn out to be fills.
    pub fn downtime(&self, left: Pages) -> Duration {
        self.rate.time_for(left.bytes()).saturating_add(self.fixed())
    }

    /// How many pages a blackout of `downtime` can send.
    pub fn fits(&self, downtime: Duration) -> Pages {
        let room = downtime.saturating_sub(self.fixed());
        let bytes = u128::from(self.rate.0).saturating_mul(room.as_nanos()) / 1_000_000_000;
        Pages(u64::try_from(bytes).unwrap_or(u64::MAX) / PAGE_SIZE)
    }
}

/// What to do after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Next {
    /// Send another round.
    Round,
    /// Throttle the vCPUs, then send another round.
    Throttle {
        /// The share of its time that a vCPU shall not run, in percent.
        percent: u8,
    },
    /// Pause the guest and send what is left.
    StopAndCopy(Rule),
    /// End the migration; the guest runs on.
    GiveUp {
        /// The downtime that would have been needed; [`Duration::MAX`] where nothing moves.
        #[serde(rename = "needed_ns", with = "super::nanos")]
        needed: Duration,
        /// Why no further round was worth it.
        rule: Rule,
    },
}

/// The pre-copy policy of one migration.
///
/// Except under `classic`, [`Next::StopAndCopy`] keeps the promised downtime as far as `Path` told
/// the truth, unless the user chose otherwise (`on_stall` is [`OnStall::Stop`]). That holds for few
/// pages too: [`Limits::min_pages`] names the reason, it does not break the promise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    limits: Limits,
    rounds: u32,
    stall: Stall,
    unreachable: u32,
    throttle: u8,
}

/// Rounds in a row that made no progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Stall {
    rounds: u32,
    sent: Pages,
    dirtied: Pages,
}

impl Stall {
    fn note(&mut self, stalled: bool, round: &RoundStats) {
        if !stalled {
            *self = Self::default();
            return;
        }
        self.rounds = self.rounds.saturating_add(1);
        self.sent = Pages(self.sent.0.saturating_add(round.transferred().0));
        self.dirtied = Pages(self.dirtied.0.saturating_add(round.dirtied.0));
    }

    fn rule(&self, throttle: u8) -> Rule {
        Rule::NoProgress { rounds: self.rounds, sent: self.sent, dirtied: self.dirtied, throttle }
    }
}

impl Policy {
    /// The policy at the start of a migration.
    pub fn new(limits: Limits) -> Self {
        Self { limits, rounds: 0, stall: Stall::default(), unreachable: 0, throttle: 0 }
    }

    /// The limits now in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How far the vCPUs are to be throttled, in percent; 0 is not at all.
    pub fn throttle(&self) -> u8 {
        self.throttle
    }

    /// Promises another downtime, from the next decision on (`vmctl set-downtime`).
    pub fn set_max_downtime(&mut self, max_downtime: Duration) {
        self.limits.max_downtime = max_downtime;
        self.unreachable = 0;
    }

    /// How many pages may wait for the blackout ([`super::Wws::plan`]). None under `classic`: the
    /// talk's rules count what is left in pages, and what waits would never let them converge.
    pub fn deferrable(&self, path: &Path) -> Pages {
        if self.limits.classic {
            return Pages(0);
        }
        Pages(path.fits(self.limits.max_downtime).0 / DEFERRABLE)
    }

    /// What to do after `round`. Ends (with [`Next::StopAndCopy`] or [`Next::GiveUp`]) after
    /// [`Limits::max_rounds`] calls at the latest.
    pub fn decide(&mut self, round: &RoundStats, path: &Path) -> Next {
        self.rounds = self.rounds.saturating_add(1);
        if self.limits.classic {
            self.decide_as_the_talk_does(round)
        } else {
            self.decide_by_promise(round, path)
        }
    }

    fn decide_as_the_talk_does(&mut self, round: &RoundStats) -> Next {
        let left = round.left();
        self.stall.note(fell_behind(round), round);
        if left <= self.limits.min_pages {
            Next::StopAndCopy(self.converged(left))
        } else if self.stall.rounds >= self.stall_rounds() {
            Next::StopAndCopy(self.stall.rule(0))
        } else if self.at_hard_limit() {
            Next::StopAndCopy(self.hard_limit(left))
        } else {
            Next::Round
        }
    }

    fn decide_by_promise(&mut self, round: &RoundStats, path: &Path) -> Next {
        let max_downtime = self.limits.max_downtime;
        let left = round.left();
        let needed = path.downtime(left);
        if needed <= max_downtime {
            return Next::StopAndCopy(if left <= self.limits.min_pages {
                self.converged(left)
            } else {
                Rule::FitsDowntime { left, estimate: needed, max_downtime }
            });
        }

        let fixed = path.fixed();
        self.unreachable =
            if fixed > max_downtime { self.unreachable.saturating_add(1) } else { 0 };
        if self.unreachable >= self.stall_rounds() {
            return self.cannot_keep_it(needed, Rule::OutOfReach { fixed, max_downtime });
        }

        self.stall.note(!made_headway(round), round);
        let next = match self.stalled(needed) {
            // A throttle cannot shorten the fixed part, so the guest is not made to pay for it.
            Next::Throttle { .. } if fixed > max_downtime => Next::Round,
            next => next,
        };
        match next {
            Next::Round | Next::Throttle { .. } if self.at_hard_limit() => {
                Next::GiveUp { needed, rule: self.hard_limit(left) }
            }
            Next::Throttle { percent } => {
                self.throttle = percent;
                self.stall = Stall::default();
                next
            }
            next => next,
        }
    }

    fn stalled(&self, needed: Duration) -> Next {
        // Once the guest is throttled, one more round shows what the last step did; after the
        // last step there is nothing else to try, so that one is given its full time again.
        let rounds =
            if (1..LAST_THROTTLE).contains(&self.throttle) { 1 } else { self.stall_rounds() };
        if self.stall.rounds < rounds {
            return Next::Round;
        }
        if self.limits.on_stall == OnStall::Throttle && self.throttle < LAST_THROTTLE {
            return Next::Throttle { percent: next_throttle(self.throttle) };
        }
        self.cannot_keep_it(needed, self.stall.rule(self.throttle))
    }

    fn cannot_keep_it(&self, needed: Duration, rule: Rule) -> Next {
        match self.limits.on_stall {
            OnStall::Stop => Next::StopAndCopy(rule),
            OnStall::Throttle | OnStall::Abort => Next::GiveUp { needed, rule },
        }
    }

    fn converged(&self, left: Pages) -> Rule {
        Rule::Converged { left, min_pages: self.limits.min_pages }
    }

    fn hard_limit(&self, left: Pages) -> Rule {
        Rule::HardLimit { rounds: self.rounds, left }
    }

    fn at_hard_limit(&self) -> bool {
        self.rounds >= self.limits.max_rounds
    }

    fn stall_rounds(&self) -> u32 {
        self.limits.stall_rounds.max(1)
    }
}

/// The talk's measure: fewer pages were sent than became dirty.
fn fell_behind(round: &RoundStats) -> bool {
    round.transferred() < round.dirtied
}

fn made_headway(round: &RoundStats) -> bool {
    let (share, of) = HEADWAY;
    let dirtied = u128::from(round.dirtied.0) * u128::from(of);
    dirtied <= u128::from(round.transferred().0) * u128::from(share)
}

fn next_throttle(now: u8) -> u8 {
    match now {
        0 => FIRST_THROTTLE,
        now => now.saturating_add(THROTTLE_STEP).min(LAST_THROTTLE),
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
