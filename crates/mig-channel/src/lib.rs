//! The byte channels that carry a migration, named as the talk names them:
//! `<protocol>:<params>`.
//!
//! | endpoint | sending side | receiving side | ways |
//! | --- | --- | --- | --- |
//! | `-` | stdout; a regular file as `file:` | stdin, answers to stdout | one, unless a return path is given |
//! | `ssh:[USER@]HOST[/NAME]` | stdin of a mig-recv that ssh starts there | none | both |
//! | `exec:CMD` | stdin of `sh -c CMD` | stdout of it | both |
//! | `tcp:HOST:PORT` | connects | listens, takes one peer | both |
//! | `unix:PATH` | connects | listens, takes one peer | both |
//! | `file:PATH` | writes `PATH.part`, renames | reads | one |
//! | `fd:N` | an inherited descriptor; a regular file as `file:` | the same; accepts if it listens | both if a socket |
//!
//! [`open_sender`] and [`open_receiver`] give a *forward* half, which carries the stream, and
//! where there is a way back a *back* half, which carries the answers. Both halves obey a
//! deadline, a stall limit and an [`Interrupt`].
//!
//! A file description that came from the parent is shared with other processes, so its flags are
//! never changed: pipes are reopened, sockets are asked not to wait call by call.
#![warn(missing_docs)]

mod activation;
mod backlog;
mod endpoint;
mod error;
mod file_sink;
mod inherit;
mod interrupt;
mod listen;
mod passed_file;
mod port;
mod reader;
mod receiver;
mod sender;
mod socket;
mod ssh;
mod terminal;
mod tunnel;
mod writer;

pub use activation::{ActivationError, activated_endpoint};
pub use endpoint::{Endpoint, ParseEndpointError, ParseReturnPathError, ReturnPath};
pub use error::{ChannelError, OpenError};
pub use inherit::claim;
pub use interrupt::Interrupt;
pub use reader::ChannelReader;
pub use receiver::{BackHalf, PendingReceiver, ReceiverChannel, open_receiver, prepare_receiver};
pub use sender::{SenderChannel, open_sender};
pub use ssh::Ssh;
pub use terminal::Job;
pub use tunnel::{Tunnel, TunnelError};
pub use writer::ChannelWriter;
