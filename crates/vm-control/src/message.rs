//! What vmrun and its clients say to each other.

use std::fmt;
use std::time::Duration;

use mig_engine::handover::HandoverMode;
use mig_engine::ownership::{Authority, Input, MigrationStatus, State};
use migpipe_units::limits::{MAX_DESCRIPTION, MAX_FRAME, MAX_SECTIONS};
use migpipe_units::{Acknowledged, Bytes, BytesPerSec, MigrationId, Nonce, Pages};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
pub use vm_state::MemoryBacking;
use vm_state::{Balloon, DeviceParam, MachineDescription};

use crate::refusal::Refusal;

/// The version of these messages. Client and vmrun must speak the same: both belong to one host
/// and one installation.
pub const PROTOCOL_VERSION: u16 = 10;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first request of a connection. Answered by [`Reply::Hello`].
    Hello {
        /// [`PROTOCOL_VERSION`] of the client.
        version: u16,
        /// Who the client is, for vmrun's log: `mig-send 4711`.
        client: String,
    },
    /// What the guest is. Answered by [`Reply::Description`].
    Describe,
    /// How the guest is. Answered by [`Reply::Status`].
    Status,
    /// The memory files of the regions, in the order of the description, open for reading. Answered by
    /// [`Reply::Done`] with the descriptors.
    MapMemory,
    /// Start to log writes to guest memory. Answered by [`Reply::Done`] with one descriptor: the
    /// memfd of a [`GuestBitmap`](page_bitmap::GuestBitmap) of all regions, which is empty. The first
    /// harvest may show more pages than were written since.
    DirtyLogStart,
    /// Add the pages dirtied since the last harvest to the bitmap. Each dirty bit is handed out
    /// exactly once: the client takes it out when it sends the page. What it leaves there, or puts
    /// back, is there after the next harvest too. Answered by [`Reply::Harvested`].
    DirtyLogHarvest,
    /// Stop the vCPUs and quiesce the devices. Answered by [`Reply::Paused`] once all have stopped.
    Pause,
    /// Let the vCPUs run. In the blackout of a migration it cancels that, unless it comes from the
    /// migration's own client.
    Resume,
    /// The state of a paused machine. Answered by [`Reply::State`].
    SaveState,
    /// Slow the vCPUs down by this many percent, 0 to 99. For the client of a migration, and no longer
    /// than that.
    Throttle(u8),
    /// Ask the guest to do with so much of its memory and give the rest back to the host, or to take
    /// it again: it is asked through its balloon, and does it when it can. How far it has come is in
    /// [`Status::balloon`]. Answered by [`Reply::Done`] once it is asked; refused if it has no
    /// balloon or not so much memory, and in the blackout of a migration.
    Balloon(Bytes),
    /// A step of the ownership machine that needs nothing else.
    Own(Input),
    /// Build the machine of `description` and start to receive it. Answered by [`Reply::Received`]
    /// with the memory files of the regions.
    Receive {
        /// The migration.
        id: MigrationId,
        /// What the source says the guest is.
        description: MachineDescription,
        /// What is another on this host; vmrun may replace more.
        overrides: Vec<DeviceParam>,
        /// How it comes. A guest from a file may be received again until it has run; one whose
        /// source hears of it when it is prepared runs for a GO that says so: see
        /// [`Loaded::acknowledge`].
        mode: HandoverMode,
    },
    /// Load this state into the machine being received: it is prepared then. Answered by
    /// [`Reply::Prepared`].
    Prepare {
        /// The migration.
        id: MigrationId,
        /// The encoded sections.
        #[serde(deserialize_with = "sections")]
        sections: Vec<Vec<u8>>,
        /// How long ago the stream said that the guest is paused; nothing of a guest from a file.
        paused_for: Option<Duration>,
    },
    /// Run. Answered by [`Reply::Started`].
    Go {
        /// The migration.
        id: MigrationId,
        /// Who says so.
        by: Authority,
    },
    /// What is known here of a migration. Answered by [`Reply::MigrationStatus`].
    MigrationStatus {
        /// The migration.
        id: MigrationId,
        /// That of the ACK which whoever asks has.
        nonce: Option<Nonce>,
    },
    /// What `vmctl info` shows of the migration `id`, as JSON. Answered by [`Reply::Orders`].
    PostProgress {
        /// The migration.
        id: MigrationId,
        /// A JSON document.
        progress: String,
    },
    /// An order for whoever sends the guest away. Answered by [`Reply::Done`].
    Order(Order),
    /// From now on this connection carries [`Event`]s and nothing else.
    Subscribe,
    /// Put what the guest has written to its disks on stable storage. Answered by [`Reply::Done`]
    /// when it is, which takes as long as the storage does; nobody waits for it but this
    /// connection. A commit takes one that began in the blackout.
    FlushDisks,
    /// The guest leaves by the migration `id`, which this connection began, for this place: its host
    /// notes that, so that nobody starts it there a second time.
    Leaves {
        /// The migration.
        id: MigrationId,
        /// Where to, in the user's words.
        to: String,
        /// See [`Handover::destination`].
        destination: Vec<String>,
    },
    /// Log writes to guest memory for this connection, to see how many there are: no migration
    /// begins, and nothing else changes. Answered as [`Request::DirtyLogStart`]; harvested as that
    /// is. It ends with the connection, or when a migration begins.
    MeasureDirtying,
}

/// A list of sections, which no peer makes longer than [`MAX_SECTIONS`].
fn sections<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
    struct Sections;

    impl<'de> Visitor<'de> for Sections {
        type Value = Vec<Vec<u8>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_SECTIONS} sections")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut sections = Vec::new();
            while let Some(section) = list.next_element()? {
                if sections.len() == MAX_SECTIONS {
                    return Err(A::Error::invalid_length(MAX_SECTIONS + 1, &self));
                }
                sections.push(section);
            }
            Ok(sections)
        }
    }

    from.deserialize_seq(Sections)
}

/// The number by which postcard tells a [`Request::Prepare`] from the others: its place among them.
const PREPARE: u8 = 13;

/// The longest request but that (bytes): the description of a machine is the largest part of any,
/// which is at most half of this.
const MAX_REQUEST: u32 = 2 * MAX_DESCRIPTION as u32;

/// The longest request of a client that has not said hello (bytes).
const MAX_HELLO: u32 = 4 << 10;

/// The longest request whose encoding begins with `first`, of a client that has said hello or not.
/// What a client can make us hold is so bounded before it is read.
pub(crate) fn longest_request(first: u8, greeted: bool) -> u32 {
    match (greeted, first) {
        (false, _) => MAX_HELLO,
        (true, PREPARE) => MAX_FRAME,
        (true, _) => MAX_REQUEST,
    }
}

/// What a migration can be told while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Give up, with the guest running on the source. vmrun carries it out by itself, and answers
    /// once the guest is its own again; the client hears of it by [`Refusal::Cancelled`].
    Cancel,
    /// Send at most this fast; `None` is as fast as it goes.
    SetSpeed(Option<BytesPerSec>),
    /// Stop the guest for at most this long.
    SetDowntime(Duration),
}

/// What vmrun answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done; descriptors may come with it.
    Done,
    /// To [`Request::Hello`].
    Hello {
        /// [`PROTOCOL_VERSION`] of vmrun.
        version: u16,
        /// The guest's name.
        name: String,
        /// vmrun's process.
        pid: u32,
    },
    /// To [`Request::Describe`].
    Description(MachineDescription),
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::DirtyLogHarvest`].
    Harvested {
        /// How many pages were dirtied since the last harvest.
        dirty: Pages,
    },
    /// To [`Request::Pause`].
    Paused {
        /// How long it took from the request until the last vCPU had stopped.
        took: Duration,
    },
    /// To [`Request::SaveState`]: encoded sections, in the order in which they are loaded.
    State(#[serde(deserialize_with = "sections")] Vec<Vec<u8>>),
    /// To [`Request::Receive`].
    Received {
        /// What is otherwise here than the source and mig-recv have said: one line each, for a
        /// person.
        notes: Vec<String>,
    },
    /// To [`Request::Prepare`].
    Prepared(Loaded),
    /// To [`Request::Go`].
    Started(Started),
    /// To [`Request::MigrationStatus`].
    MigrationStatus(MigrationStatus),
    /// To [`Request::PostProgress`].
    Orders(Vec<Order>),
    /// It is not done.
    Refused(Refusal),
}

/// How long the parts of loading took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Loading and checking every section.
    pub load: Duration,
    /// What the ACK is to say; nothing where there is none ([`Request::Receive`]).
    pub acknowledge: Option<Acknowledged>,
}

/// How long the parts of starting took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// From the request until the vCPUs were told to run.
    pub go: Duration,
    /// From there until the first vCPU entered the guest.
    pub first_instruction: Duration,
}

/// How a guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// vmrun's process.
    pub pid: u32,
    /// Which vmrun may run it.
    pub ownership: State,
    /// Whether its vCPUs run now.
    pub running: bool,
    /// How many vCPUs it has; 0 while it has not arrived.
    pub vcpus: u32,
    /// How much memory it has.
    pub memory: Bytes,
    /// What its memory is made of; nothing while it has not arrived.
    pub backing: Option<MemoryBacking>,
    /// How much the vCPUs are slowed down, in percent.
    pub throttle: u8,
    /// The last progress that a migration posted, as JSON.
    pub progress: Option<String>,
    /// How much of its memory it has for itself, if it has a balloon.
    pub balloon: Option<Balloon>,
    /// Why it is held back, if it is: a guest of its name has left this host.
    pub held: Option<String>,
    /// How it was handed over, if it was.
    pub handover: Option<Handover>,
    /// Migrations that ended before their commit, [`MAX_RELEASED`](migpipe_units::limits::MAX_RELEASED) at most and the oldest first: the
    /// destination of one may still wait for GO.
    pub released: Vec<MigrationId>,
}

impl Status {
    /// How it is, in the word for it that people and scripts see.
    pub const fn word(&self) -> &'static str {
        match (self.ownership, self.running) {
            (State::Owned, true) => "running",
            (State::Owned, false) if self.held.is_some() => "held",
            (State::Owned, false) => "paused",
            (State::Migrating(_), true) => "migrating",
            (State::Migrating(_), false) => "migrating, paused",
            (State::HandedOver(_), _) => "handed-over",
            (State::Incoming, _) => "incoming",
            (State::Receiving(_), _) => "receiving",
            (State::Prepared(_), _) => "prepared",
            (State::Refused(_), _) => "refused",
            (State::Finished, _) => "ending",
        }
    }
}

/// What a source knows of the migration by which its guest was handed over: what a query about
/// it carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// Who acknowledged the guest; nothing one way.
    pub taken_by: Option<Acknowledged>,
    /// How long ago the migration began.
    pub age: Duration,
    /// The arguments with which `mig-send --resolve` asks the destination, as whoever sent the guest
    /// has said; none where nobody has, or the destination cannot be asked.
    pub destination: Vec<String>,
}

/// What happens to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Its vCPUs run.
    Resumed,
    /// Its vCPUs stand still.
    Paused,
    /// Its ownership changed.
    Ownership(State),
    /// Its vmrun ends, for this reason.
    Ended(String),
}

impl Event {
    /// The word for this event in scripts.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Resumed => "resumed",
            Self::Paused => "paused",
            Self::Ownership(_) => "ownership",
            Self::Ended(_) => "ended",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_state_of_a_machine_may_be_long_and_only_after_hello() {
        let prepare =
            Request::Prepare { id: MigrationId::random(), sections: vec![], paused_for: None };
        let first = |request: &Request| postcard::to_stdvec(request).unwrap()[0];
        assert_eq!(first(&prepare), PREPARE);
        assert_eq!(longest_request(first(&prepare), true), MAX_FRAME);
        assert_eq!(longest_request(first(&prepare), false), MAX_HELLO);
        assert_eq!(longest_request(first(&Request::Describe), true), MAX_REQUEST);
    }

    #[test]
    fn a_list_of_more_sections_than_a_machine_has_is_no_message() {
        let prepare = |count| {
            let id = MigrationId::random();
            postcard::to_stdvec(&Request::Prepare {
                id,
                sections: vec![vec![]; count],
                paused_for: None,
            })
            .unwrap()
        };
        postcard::from_bytes::<Request>(&prepare(MAX_SECTIONS)).unwrap();
        postcard::from_bytes::<Request>(&prepare(MAX_SECTIONS + 1)).unwrap_err();
    }
}
