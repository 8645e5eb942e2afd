//! What one state of a migration consists of. Everything is `Copy` and small: a check visits millions of
//! these.

mod channel;
mod history;
mod numbers;
mod records;
mod tools;
mod vmrun;
mod whole;

pub use channel::{Back, Connection, DIGEST, Forward, Line, Pipe, Request};
pub use history::{History, Rule};
pub use numbers::{
    HOSTS, NOBODY, QUERIES, RESOLVER, SOURCE, SOURCE_TOOLS, TOOLS, VMS, id_of, number_of, vm_of,
};
pub use records::{Ack, Record, Saved};
pub use tools::{Answer, Driver, PendingQuery, Phase, Receiver, SourceTool};
pub use vmrun::{Busy, Leaving, ProcessState, Vm};
pub use whole::State;
