//! What connects processes: control connections and tunnels.

use mig_engine::ownership::Input;
use mig_stream::StreamDigest;

use super::records::Ack;

/// The digest of every stream.
pub const DIGEST: StreamDigest = StreamDigest(1);

/// What a tool asks of its vmrun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// A step of ownership.
    Own(Input),
    /// Pause the guest and save its state.
    Save,
}

/// A tool's end of its control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Line {
    /// Nobody is connected.
    Idle,
    /// The tool is there.
    Open,
    /// The tool has given up waiting for an answer once, and hears nothing more.
    TimedOut,
    /// The tool is gone, and vmrun has not noticed yet.
    Gone,
}

/// A control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The tool's end.
    pub line: Line,
    /// Requests that vmrun has not served, the oldest first.
    pub pending: [Option<Request>; 2],
}

impl Connection {
    /// No connection.
    pub const IDLE: Self = Self { line: Line::Idle, pending: [None; 2] };

    /// Adds a request behind the others.
    pub fn ask(&mut self, request: Request) {
        if let Some(free) = self.pending.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(request);
        }
    }

    /// Takes the oldest request.
    pub const fn take(&mut self) {
        self.pending = [self.pending[1], None];
    }
}

/// What goes forward. Pages are not modelled: they travel between the header and `End`, and a cut
/// between them is a cut before `End`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Forward {
    /// The header, with the earlier migrations that the source released.
    Header([bool; 2]),
    /// The last page and section, and `End`.
    End,
    /// GO, for the copy of the guest that was acknowledged so.
    Go(Option<Ack>),
    /// The source gave up before its commit.
    Abort,
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Back {
    /// READY.
    Ready,
    /// ACK.
    Ack(Ack),
    /// RUNNING.
    Running,
    /// The destination gave up.
    Failed,
}

/// One direction of a tunnel: no reordering, but it may end anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pipe<M> {
    /// What is on its way, the oldest first.
    pub queue: [Option<M>; 4],
    /// Whether what is written from now on will arrive.
    pub open: bool,
}

impl<M: Copy> Pipe<M> {
    /// Nothing, and nothing will come.
    pub const CLOSED: Self = Self { queue: [None; 4], open: false };
    /// A fresh tunnel.
    pub const OPEN: Self = Self { queue: [None; 4], open: true };

    /// How many messages are on their way.
    pub fn len(&self) -> usize {
        self.queue.iter().flatten().count()
    }

    /// Whether nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes; what is written into a dead tunnel is lost.
    pub fn write(&mut self, message: M) {
        if self.open {
            let end = self.len();
            assert!(end < self.queue.len(), "no handover has so many messages on their way");
            self.queue[end] = Some(message);
        }
    }

    /// Takes the oldest message.
    pub fn read(&mut self) -> Option<M> {
        let message = self.queue[0]?;
        self.queue.rotate_left(1);
        self.queue[3] = None;
        Some(message)
    }
}
