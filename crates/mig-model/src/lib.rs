//! The model check of the handover: never two, never lost.
//!
//! Two searches go through every state that a migration can come to, within bounds, and look at
//! each. What decides in them is the code that runs in production, not a description of it:
//! [`Ownership`] of the source's and of the destination's vmruns; [`Source`], [`Resolver`],
//! [`Destination`] and [`Responder`], the drivers of mig-send, of `mig-send --resolve`, of mig-recv
//! and of the mig-recv that answers a query. What is written anew here is what they drive: [`state`]
//! is what one state consists of, and each other module does in it what the code does that its first
//! line names.
//!
//! No program depends on this crate. `cargo test -p mig-model -- --nocapture` runs it and prints
//! what was looked at.
//!
//! # What may happen
//! - A message, a query or an answer is late, or lost with all that follows it; a tool gives up
//!   waiting at any moment, on the other side or on its own vmrun, which then serves the request
//!   later. A query breaks off in the middle. Nothing is reordered within a tunnel. The same
//!   one-way stream is delivered twice, the second time whenever it pleases.
//! - `kill -9` of mig-send, of mig-recv, of a resolver, of the mig-recv that answers a query, of
//!   each vmrun; power loss of each host: also between a record and the state that it allows, and
//!   between the moment when others see a record and the moment when it is on the disk. What is
//!   recorded "later" may never be. A new mig-recv starts a new vmrun at the same socket.
//! - The operator cancels, resumes, ends a guest, resolves (again and again, twice at once), starts
//!   a second migration of the same guest, beside the first or after it.
//! - A second tunnel leads to another host than the first, at every query anew. A stream with
//!   answers is copied on its way, and read on the same host or on another one.
//! - A host loses its records while its vmruns live on, or not; it is another host then.
//! - The go-timeout, if the user wants one, comes at any moment at which the guest is prepared.
//!   Checks of the destination fail before its ACK.
//!
//! # What of the wiring matters for safety, and is therefore modelled
//! - vmrun writes a record before it enters the state, with its lock held, and the first record of
//!   a migration wins.
//! - `Begin` belongs to one connection. When that goes, a guest that was not committed runs on; a
//!   guest that is not complete is refused when its mig-recv goes. Requests that a dead tool sent
//!   are served before its end is noticed.
//! - A commit is refused unless the state was saved on that connection and the guest has not run
//!   since; the operator's resume does nothing in the blackout.
//! - mig-send sees a cancel before it asks for the commit or not at all.
//! - A query is GO, so that only a source that was found handed-over asks; every query comes
//!   by a tunnel of its own, and may arrive after a later one.
//! - "I could not read your query" is no refusal.
//! - A file has no name before it is whole, so that a mig-send which cannot finish it can remove it
//!   and take the guest back, committed or not; its source ends when it is on the disk.
//! - A snapshot is a file whose guest runs on before it has its end; mig-recv does not run what is in it
//!   but as another guest.
//! - A restore holds its record for as long as its vmrun lives; one that is over is taken over by the
//!   next, or by a refusal, and before the guest runs the record says so.
//! - mig-recv says that the guest will never run only if vmrun says so or, when vmrun is gone, its
//!   record; a vmrun that does not answer, or that cannot run the guest now, says nothing of that.
//!
//! # What is checked
//! In every state: see [`properties`]. Of the whole graph ([`graph`]): there is no circle but by
//! the operator's asking again, so every run ends; and from every state a good end can be reached
//! by nothing but what goes on by itself and `--resolve`. A good end is one vmrun that runs the
//! guest; or the guest ended where it ran; or, if the one process or record that knew is gone, a
//! source that is handed-over and says so. Another copy may wait for GO there: the operator's, if
//! the source died; one that the source disowns with its next migration, if it took the guest
//! back.
//!
//! That the check can fail is tested as well: [`mutation`] has the mistakes, and each is found by
//! the property that is there for it.
//!
//! # Bounds
//! One guest, one or two migrations of it, two waiting vmruns on one other host or on two, two
//! queries on their way. "Faults" are failures, timeouts, losses and cancels.
//!
//! | migrations | resolvers | crashes | records lost | ends by the operator | faults | states | steps | depth |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | both ways, cuts spelled out, a time limit for GO | 1 | 0 | 0 | 0 | any | 233,911 | 1,996,126 | 44 |
//! | both ways | 1 | 1 | 0 | 1 | any | 1,342,638 | 12,100,609 | 43 |
//! | both ways | 1 | 2 | 0 | 0 | 2 | 408,434 | 2,503,656 | 40 |
//! | both ways | 2 | 0 | 0 | 0 | any | 338,947 | 3,067,611 | 42 |
//! | both ways, another host may be asked | 1 | 1 | 0 | 0 | 2 | 276,712 | 1,409,982 | 39 |
//! | both ways, copied to another host | 1 | 0 | 0 | 0 | 1 | 72,056 | 265,654 | 38 |
//! | both ways, copied on the same host | 1 | 0 | 0 | 0 | 1 | 10,220 | 35,516 | 31 |
//! | both ways | 1 | 1 | 1 | 0 | 1 | 133,176 | 520,796 | 36 |
//! | separate commit | 1 | 1 | 0 | 1 | any | 604,103 | 4,959,084 | 41 |
//! | separate commit, another host may be asked | 1 | 0 | 0 | 0 | any | 45,130 | 330,642 | 35 |
//! | one way, delivered twice | 1 | 0 | 0 | 0 | any | 552,324 | 4,185,937 | 40 |
//! | one way, delivered twice | 1 | 1 | 0 | 0 | 1 | 261,617 | 1,119,347 | 40 |
//! | one way | 2 | 1 | 0 | 1 | 1 | 1,267,093 | 6,414,324 | 40 |
//! | one way | 1 | 1 | 1 | 0 | 1 | 101,766 | 378,102 | 38 |
//! | into a file, read once | 1 | 1 | 0 | 0 | 2 | 943,252 | 4,709,186 | 42 |
//! | into a file, read twice | 1 | 1 | 0 | 0 | 0 | 344,000 | 1,565,306 | 45 |
//! | into a snapshot | 1 | 2 | 0 | 1 | any | 870 | 3,488 | 11 |
//! | both ways, and both ways at once | 1 | 0 | 0 | 0 | 1 | 219,475 | 874,344 | 45 |
//! | both ways, then separate commit | 1 | 0 | 0 | 0 | 1 | 38,804 | 153,560 | 48 |
//! | one way, then both ways | 1 | 0 | 0 | 0 | 1 | 118,063 | 460,091 | 54 |
//!
//! All of it, mistakes included, takes some minutes on 2 cores.
//!
//! States that nobody can tell apart are one: what is only written is written at once, a cut
//! tunnel is a reader that gives up waiting (the first row has both, and finds the same), the
//! end of a connection that vmrun would do nothing about is not waited for, and a look at a vmrun or a
//! record follows at once on the failure that made it necessary. A second attempt at a query is
//! another resolver's. Who answers a query asks the vmruns of its host all at once; what it does then,
//! with one of them or with the record, is a step of its own.
//!
//! # What is not modelled
//! - Pages and sections: that they arrive whole is a matter of the stream's checks. A stream that
//!   breaks off anywhere before `End` is one case here.
//! - Force: `quit --force` and `--resolve --force` may lose or double a guest; that is what they
//!   say. So does `vmctl commit` on a terminal, which is the operator's own GO.
//! - A source that boots the guest again from its disk after a crash: it has no memory of a
//!   handover, and that guest is another one.
//! - Disks that fail. State directories that are not the same for all tools of a host are as
//!   records that were lost.
//! - A one-way stream that is read on two hosts, or resolved at another host than it was sent to: it
//!   names none. Nor a host that loses a refusal: it takes the same stream when that comes again.
//!   Nor one that loses its records in the instant between its last look at them and the refusal which
//!   it records then: a guest that came and ran in that instant would run on both sides.
//! - The operator's pause (a guest that is paused stays so, on either side), and what a guest does
//!   to itself (power off, reset).
//!
//! [`Ownership`]: mig_engine::ownership::Ownership
//! [`Source`]: mig_engine::handover::Source
//! [`Resolver`]: mig_engine::handover::Resolver
//! [`Destination`]: mig_engine::handover::Destination
//! [`Responder`]: mig_engine::handover::Responder
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod action;
pub mod bounds;
mod faults;
pub mod graph;
mod model;
pub mod mutation;
pub mod properties;
mod queries;
mod receiver;
mod responder;
mod sender;
mod sender_ending;
mod sender_requests;
mod served;
pub mod state;
mod vmrun;
