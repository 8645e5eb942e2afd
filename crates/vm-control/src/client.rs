//! The client's end of the control socket.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mig_engine::handover::HandoverMode;
use mig_engine::ownership::{Authority, Input, MigrationStatus};
use migpipe_units::{Bytes, MigrationId, Nonce, Pages};
use page_bitmap::{BitmapError, GuestBitmap};
use thiserror::Error;
use vm_state::{DeviceParam, MachineDescription};

use crate::frame::{self, FrameError};
use crate::message::{Event, Loaded, Order, PROTOCOL_VERSION, Reply, Request, Started, Status};
use crate::refusal::Refusal;
use vm_mapping::{Access, GuestMemory, MemoryError};

/// A vmrun that has not answered for so long hangs. Loading a large machine's state takes
/// milliseconds; building one with hugetlbfs memory can take seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a request was not answered as hoped.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no guest at {path}: is its vmrun running?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or vmrun does not answer.
    #[error("lost vmrun at {path}")]
    Lost {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: FrameError,
    },
    /// vmrun said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// vmrun speaks another version of the protocol.
    #[error(
        "vmrun at {path} speaks version {theirs} of the control protocol, this program {PROTOCOL_VERSION}: use both from one release"
    )]
    Version {
        /// The socket.
        path: PathBuf,
        /// vmrun's version.
        theirs: u16,
    },
    /// vmrun answered something that is no answer to this request.
    #[error("vmrun at {path} answered out of turn")]
    OutOfTurn {
        /// The socket.
        path: PathBuf,
    },
    /// Guest memory cannot be mapped.
    #[error("cannot map the guest's memory")]
    Memory(#[from] MemoryError),
    /// The dirty bitmap cannot be mapped.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
}

impl ClientError {
    /// Whether it is the end of vmrun that broke the connection: the guest has ended with it.
    pub fn is_end_of_vmrun(&self) -> bool {
        matches!(self, Self::Lost { source, .. } if !matches!(source, FrameError::TimedOut))
    }
}

/// What the one answer that belongs to a request brings; any other is out of turn.
macro_rules! answer {
    ($client:ident, $request:expr, $answer:pat => $brings:expr) => {
        match $client.call($request)? {
            $answer => Ok($brings),
            _ => Err($client.out_of_turn()),
        }
    };
}

/// A connection to one vmrun.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
    name: String,
    pid: u32,
}

impl Client {
    /// Connects to the vmrun at `path`; `who` is for its log.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if nobody listens, [`ClientError::Version`] if it is another
    /// release, [`ClientError::Refused`] if vmrun does not take us.
    pub fn connect(path: &Path, who: &str) -> Result<Self, ClientError> {
        Self::connect_within(path, who, ANSWER_TIMEOUT)
    }

    /// As [`Self::connect`], giving up on each answer after `timeout`.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn connect_within(path: &Path, who: &str, timeout: Duration) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        Self::over(stream, path, who, timeout)
    }

    /// A client on a connection that is there already; `path` is for its messages.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn over(
        stream: UnixStream,
        path: &Path,
        who: &str,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect { path: path.to_owned(), source };
        stream.set_read_timeout(Some(timeout)).map_err(failed)?;
        stream.set_write_timeout(Some(timeout)).map_err(failed)?;
        let mut client = Self { stream, path: path.to_owned(), name: String::new(), pid: 0 };
        let client_text = format!("{who} {}", std::process::id());
        match client.call(&Request::Hello { version: PROTOCOL_VERSION, client: client_text })? {
            Reply::Hello { version: PROTOCOL_VERSION, name, pid } => {
                client.name = name;
                client.pid = pid;
                Ok(client)
            }
            Reply::Hello { version, .. } => {
                Err(ClientError::Version { path: path.to_owned(), theirs: version })
            }
            _ => Err(client.out_of_turn()),
        }
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// vmrun's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on each answer is waited for so long.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection cannot be used any more.
    pub fn set_timeout(&self, timeout: Duration) -> Result<(), ClientError> {
        let read = self.stream.set_read_timeout(Some(timeout));
        read.and_then(|()| self.stream.set_write_timeout(Some(timeout)))
            .map_err(|error| self.lost(FrameError::Io(error)))
    }

    fn out_of_turn(&self) -> ClientError {
        ClientError::OutOfTurn { path: self.path.clone() }
    }

    fn lost(&self, source: FrameError) -> ClientError {
        ClientError::Lost { path: self.path.clone(), source }
    }

    fn call_with_fds(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let sent = frame::send(&self.stream, request, &[] as &[BorrowedFd<'_>]);
        // A vmrun that refuses a connection says why and closes it, so its words are read first.
        match frame::receive(&self.stream) {
            Ok((Reply::Refused(refusal), _)) => Err(refusal.into()),
            Ok(answer) => Ok(answer),
            Err(error) => {
                // A late answer must not be taken for that to the next request.
                let _ = self.stream.shutdown(Shutdown::Both);
                Err(self.lost(sent.err().unwrap_or(error)))
            }
        }
    }

    fn call(&self, request: &Request) -> Result<Reply, ClientError> {
        self.call_with_fds(request).map(|(reply, _)| reply)
    }

    fn done(&self, request: &Request) -> Result<(), ClientError> {
        answer!(self, request, Reply::Done => ())
    }

    /// What the guest is.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub fn describe(&self) -> Result<MachineDescription, ClientError> {
        answer!(self, &Request::Describe, Reply::Description(description) => description)
    }

    /// How the guest is.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub fn status(&self) -> Result<Status, ClientError> {
        answer!(self, &Request::Status, Reply::Status(status) => status)
    }

    /// Maps the guest's memory for reading.
    ///
    /// # Errors
    /// [`ClientError::Memory`] if it cannot be mapped; otherwise as for every request.
    pub fn map_memory(&self, machine: &MachineDescription) -> Result<GuestMemory, ClientError> {
        let (_, fds) = self.call_with_fds(&Request::MapMemory)?;
        let access = match machine.gives_memory_back() {
            true => Access::ReadSparse,
            false => Access::Read,
        };
        Ok(GuestMemory::map(&machine.memory, fds, access)?)
    }

    /// Starts the dirty log and maps its bitmap, which is empty.
    ///
    /// # Errors
    /// [`ClientError::Bitmap`] if it cannot be mapped; otherwise as for every request.
    pub fn dirty_log_start(
        &self,
        machine: &MachineDescription,
    ) -> Result<GuestBitmap, ClientError> {
        self.map_log(&Request::DirtyLogStart, machine)
    }

    /// The same to see how much is written, without a migration: it ends with this connection, or
    /// when somebody begins one.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if a migration is under way, or another measures; otherwise as
    /// [`Self::dirty_log_start`].
    pub fn measure_dirtying(
        &self,
        machine: &MachineDescription,
    ) -> Result<GuestBitmap, ClientError> {
        self.map_log(&Request::MeasureDirtying, machine)
    }

    fn map_log(
        &self,
        request: &Request,
        machine: &MachineDescription,
    ) -> Result<GuestBitmap, ClientError> {
        let (_, fds) = self.call_with_fds(request)?;
        let fd = fds.into_iter().next().ok_or_else(|| self.out_of_turn())?;
        Ok(GuestBitmap::map(fd, machine.region_pages())?)
    }

    /// Has vmrun add what became dirty to the bitmap, and returns how many pages that is.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub fn dirty_log_harvest(&self) -> Result<Pages, ClientError> {
        answer!(self, &Request::DirtyLogHarvest, Reply::Harvested { dirty } => dirty)
    }

    /// Stops the guest; returns how long that took.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub fn pause(&self) -> Result<Duration, ClientError> {
        answer!(self, &Request::Pause, Reply::Paused { took } => took)
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub fn resume(&self) -> Result<(), ClientError> {
        self.done(&Request::Resume)
    }

    /// Has what the guest has written put on stable storage, which may take long:
    /// [`Self::set_timeout`].
    ///
    /// # Errors
    /// [`ClientError::Refused`] names the disk that takes no more.
    pub fn flush_disks(&self) -> Result<(), ClientError> {
        self.done(&Request::FlushDisks)
    }

    /// The encoded sections of the paused guest.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub fn save_state(&self) -> Result<Vec<Vec<u8>>, ClientError> {
        answer!(self, &Request::SaveState, Reply::State(sections) => sections)
    }

    /// Slows the vCPUs down by `percent`, 0 to 99.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub fn throttle(&self, percent: u8) -> Result<(), ClientError> {
        self.done(&Request::Throttle(percent))
    }

    /// Asks the guest to do with `target` of its memory.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if it has no balloon or not so much memory.
    pub fn balloon(&self, target: Bytes) -> Result<(), ClientError> {
        self.done(&Request::Balloon(target))
    }

    /// Has this host note where the guest goes by the migration `id`; the `destination` is that of
    /// [`Handover`](crate::Handover).
    ///
    /// # Errors
    /// [`ClientError::Refused`] if this connection did not begin it.
    pub fn leaves(
        &self,
        id: MigrationId,
        to: String,
        destination: Vec<String>,
    ) -> Result<(), ClientError> {
        self.done(&Request::Leaves { id, to, destination })
    }

    /// A step of the ownership machine.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub fn own(&self, input: Input) -> Result<(), ClientError> {
        self.done(&Request::Own(input))
    }

    /// Has an incoming vmrun build the machine and maps its memory for writing. A guest that is
    /// `saved` comes from a file. What vmrun says about it is for the user.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if this host cannot take the guest.
    pub fn receive(
        &self,
        id: MigrationId,
        description: MachineDescription,
        overrides: Vec<DeviceParam>,
        mode: HandoverMode,
    ) -> Result<(GuestMemory, Vec<String>), ClientError> {
        let memory = description.memory.clone();
        match self.call_with_fds(&Request::Receive { id, description, overrides, mode })? {
            (Reply::Received { notes }, fds) => {
                Ok((GuestMemory::map(&memory, fds, Access::ReadWrite)?, notes))
            }
            _ => Err(self.out_of_turn()),
        }
    }

    /// Loads the state of the guest being received.
    ///
    /// # Errors
    /// [`ClientError::Refused`] names the section that does not load.
    pub fn prepare(
        &self,
        id: MigrationId,
        sections: Vec<Vec<u8>>,
        paused_for: Option<Duration>,
    ) -> Result<Loaded, ClientError> {
        answer!(self, &Request::Prepare { id, sections, paused_for }, Reply::Prepared(loaded) => loaded)
    }

    /// Runs the prepared guest.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the migration was refused here before, or GO is for another copy
    /// of the guest.
    pub fn go(&self, id: MigrationId, by: Authority) -> Result<Started, ClientError> {
        answer!(self, &Request::Go { id, by }, Reply::Started(started) => started)
    }

    /// What vmrun knows of a migration, for one whose ACK had this nonce.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub fn migration_status(
        &self,
        id: MigrationId,
        nonce: Option<Nonce>,
    ) -> Result<MigrationStatus, ClientError> {
        answer!(self, &Request::MigrationStatus { id, nonce }, Reply::MigrationStatus(status) => status)
    }

    /// Shows `progress` to whoever asks vmrun, and takes the orders that came for us.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub fn post_progress(
        &self,
        id: MigrationId,
        progress: String,
    ) -> Result<Vec<Order>, ClientError> {
        answer!(self, &Request::PostProgress { id, progress }, Reply::Orders(orders) => orders)
    }

    /// Leaves an order for whoever sends the guest away.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if nobody does.
    pub fn order(&self, order: Order) -> Result<(), ClientError> {
        self.done(&Request::Order(order))
    }

    /// Waits until vmrun has ended, and says whether it did within `limit`. It closes this
    /// connection last of all, so that when this returns true the guest's name, its memory and the
    /// locks of its disks are free.
    pub fn await_end(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // A timeout of zero would wait for ever.
            if self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).is_err() {
                return true;
            }
            match (&self.stream).read(&mut [0; 64]) {
                Ok(0) => return true,
                // An answer that nobody waits for any more.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
            if left.is_zero() {
                return false;
            }
        }
    }

    /// Turns the connection into a stream of events.
    ///
    /// # Errors
    /// [`ClientError`], as for every request.
    pub fn subscribe(self) -> Result<Subscription, ClientError> {
        self.done(&Request::Subscribe)?;
        Ok(Subscription { client: self })
    }
}

/// The events of one guest.
#[derive(Debug)]
pub struct Subscription {
    client: Client,
}

impl Subscription {
    /// Waits for the next event; `None` when vmrun is gone or `within` is over.
    pub fn next(&mut self, within: Option<Duration>) -> Option<Event> {
        self.client.stream.set_read_timeout(within).ok()?;
        frame::receive(&self.client.stream).ok().map(|(event, _)| event)
    }
}
