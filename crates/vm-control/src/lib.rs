//! The Unix-socket protocol between vmrun and its clients.
//!
//! One socket per guest. A client connects, says [`Request::Hello`] and then sends requests, each
//! answered by one reply, in order. A frame is a length (u32, little-endian, bytes) and a postcard
//! message; file descriptors travel beside the length by SCM_RIGHTS. Guest memory never goes
//! through the socket: the client gets the memory files of the regions, and a memfd with a bitmap to
//! which vmrun adds what is dirty at each harvest.
//!
//! ```text
//! mig-send                              vmrun
//!    | -- Hello ------------------------> |
//!    | <------------------ Hello, version |
//!    | -- Describe ---------------------> |
//!    | <-------- regions, vCPUs, devices  |
//!    | -- MapMemory --------------------> |
//!    | <------- memory files (SCM_RIGHTS) |
//!    | -- Own(Begin(id)) ---------------> | owned -> migrating: bound to this connection
//!    | -- DirtyLogStart ----------------> |
//!    | <------- bitmap memfd (SCM_RIGHTS) |
//!    | -- DirtyLogHarvest --------------> | adds to the bitmap, then answers with a count
//!    |             ... rounds ...         |
//!    | -- Pause, SaveState, Harvest ----> |
//!    | -- FlushDisks -------------------> | by another connection, beside the rest
//!    | -- Own(Commit(id)) --------------> | migrating -> handed-over, whatever happens to us
//! ```
//!
//! A client that began a migration and goes away before the commit leaves the guest running: the
//! vmrun sees the connection close, stops the dirty log and resumes the guest. It does the same for
//! the operator ([`Order::Cancel`], [`Request::Resume`]) at any moment before the commit, and when the
//! client does nothing for a while though the guest stands still for it: a request on its connection,
//! or its progress, is what says that it lives. Whatever such a client asks afterwards is refused. A connection that
//! is receiving a guest and goes away before the guest is prepared makes the vmrun refuse it.
//!
//! Who may connect: the user that runs vmrun, and root (peer credentials). The socket's mode is
//! 0600.
#![warn(missing_docs)]

mod client;
mod connection;
mod frame;
mod message;
mod refusal;
pub mod server;

pub use client::{Client, ClientError, Subscription};
pub use connection::{pass_connection, take_connection};
pub use frame::FrameError;
pub use message::{
    Event, Handover, Loaded, MemoryBacking, Order, PROTOCOL_VERSION, Reply, Request, Started,
    Status,
};
pub use refusal::Refusal;
