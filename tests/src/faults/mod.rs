//! Faults at every step of the protocol, on the real programs.
//!
//! A [`Case`] is a form of migration, a step, a fault, and what comes after. Two hosts are made, a
//! guest is booted on one and sent to the other through `lossy-tunnel`, which knows every record
//! that passes and stops exactly at the step; the fault happens there; and then it is looked at
//! what became of the guest. A case that does not come to its step, twice, has failed.
//!
//! ```text
//!            source host                              destination host
//!   vmrun a <--- mig-send <=====> lossy-tunnel <=====> recv (mig-recv) ---> vmrun b
//!     |                                | ^                                      |
//!   console a                  reached | | what to do there                 console b
//!     |                                v |                                      |
//!     +--------> watch              gate: inject                    watch <-----+
//! ```
//!
//! One case, in order (`drive`):
//!
//! 1. `bed` makes the hosts, breaks what is to be broken from the beginning, boots the guest
//!    and starts mig-send, with timeouts that are short where one is to come and long where not.
//! 2. The tunnel asks the `gate` what it is to do and says when it is at its step (`wire`).
//!    Nothing passes until it is told to go on.
//! 3. `inject` does the fault to a process, to the tunnel, to a disk, to the guest, or gives an
//!    order as an operator would (`party` finds the processes).
//! 4. `check` waits until nothing moves, says how things stand, and holds that against the table
//!    (`expect`), which follows from the rules of the handover and not from what was seen. More
//!    than one outcome is allowed only where two sides race.
//! 5. What is open is resolved by `mig-send --resolve`, as an operator does, at once or late.
//! 6. The invariant, whatever the outcome: the guest goes on where it should; `watch`, which
//!    looked at both consoles all the time, never saw the source speak after the destination
//!    did; every tick is there once and in order over all consoles; exit statuses and words are
//!    those that are documented; and no process, socket, draft or dirty log is left over.
//!
//! `survey` runs many cases at once, in an order that a seed gives, and prints the table. What
//! varies within a case comes from the same seed (`seed`).
//!
//! What is not done: no record is reordered or made up (a tunnel cannot do that to a byte stream
//! without breaking its checksums, and the fuzz targets do), no host loses its power (the model
//! check does that), and clocks are not turned.

mod case;
mod check;
mod drive;
pub mod expect;
mod gate;
mod inject;
mod party;
mod seed;
mod survey;
mod test_bed;
mod watch;
mod wire;

pub use case::{After, Case, Fault, Form, Order, Party, Step};
pub use drive::{Verdict, run};
pub use expect::Ending;
pub use seed::Seed;
pub use survey::{Survey, choose, cover, possible};
pub use wire::{Act, Plan, Point};
