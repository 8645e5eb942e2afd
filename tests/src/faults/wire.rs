//! What a test and its tunnel say to each other: where to stop, and what to do there.

use std::fmt;
use std::str::FromStr;

/// A place in the conversation of mig-send and mig-recv, as a tunnel between them sees it. Unless
/// it says otherwise it is reached when the thing has come from its writer, whole, and not a byte
/// of it was passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// The tunnel has started its command, and nothing has passed.
    Connect,
    /// Preamble and header of a guest have passed.
    Header,
    /// READY.
    Ready,
    /// In the middle of a run of pages of the first round.
    Round,
    /// In the middle of a run of pages of a later round.
    Later,
    /// The hint that the guest is about to be paused.
    Blackout,
    /// The first section: the guest is paused and its state was saved.
    Section,
    /// `End`.
    End,
    /// The end of the stream, behind `End`.
    Eof,
    /// ACK: the destination is prepared.
    Ack,
    /// GO: the source has committed.
    Go,
    /// GO has passed.
    AfterGo,
    /// RUNNING: the guest runs at the destination.
    Running,
    /// RUNNING has passed.
    AfterRunning,
    /// A query: what became of the guest?
    Query,
    /// The answer to it.
    Answer,
}

const POINTS: [(Point, &str); 16] = [
    (Point::Connect, "connect"),
    (Point::Header, "header"),
    (Point::Ready, "ready"),
    (Point::Round, "round"),
    (Point::Later, "later"),
    (Point::Blackout, "blackout"),
    (Point::Section, "section"),
    (Point::End, "end"),
    (Point::Eof, "eof"),
    (Point::Ack, "ack"),
    (Point::Go, "go"),
    (Point::AfterGo, "after-go"),
    (Point::Running, "running"),
    (Point::AfterRunning, "after-running"),
    (Point::Query, "query"),
    (Point::Answer, "answer"),
];

/// What a tunnel does at its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    /// Goes on as if nothing were.
    Pass,
    /// Ends with status 1; the far end sees the end of its input.
    Cut,
    /// Ends with status 0.
    ExitEarly,
    /// Ends with status 1, and the far end is told nothing.
    Partition,
    /// Closes the far end's input; the way back stays.
    CloseForward,
    /// Closes the way back; the way forward stays.
    CloseBack,
    /// Loses everything that goes forward from here on, and then ends it in order.
    DropTail,
    /// Stays, and passes nothing more.
    Stall,
    /// Passes everything late.
    Delay,
    /// Passes everything, and ends with status 1.
    ExitLate,
}

const ACTS: [(Act, &str); 10] = [
    (Act::Pass, "pass"),
    (Act::Cut, "cut"),
    (Act::ExitEarly, "exit-early"),
    (Act::Partition, "partition"),
    (Act::CloseForward, "close-forward"),
    (Act::CloseBack, "close-back"),
    (Act::DropTail, "drop-tail"),
    (Act::Stall, "stall"),
    (Act::Delay, "delay"),
    (Act::ExitLate, "exit-late"),
];

/// What a test tells a tunnel that has just started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The network is there.
    Carry,
    /// The network is not there: end with status 1 at once.
    Down,
    /// Carry up to this point, say so, and wait for an [`Act`].
    Stop(Point),
}

fn find<T: Copy>(table: &[(T, &str)], text: &str) -> Result<T, String> {
    table
        .iter()
        .find(|(_, name)| *name == text)
        .map(|(value, _)| *value)
        .ok_or_else(|| format!("'{text}' is none of: {}", names(table)))
}

fn names<T>(table: &[(T, &str)]) -> String {
    table.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

fn name<T: Copy + PartialEq>(table: &[(T, &'static str)], value: T) -> &'static str {
    table.iter().find(|(it, _)| *it == value).map_or("?", |(_, name)| name)
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        find(&POINTS, text)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name(&POINTS, *self))
    }
}

impl FromStr for Act {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        find(&ACTS, text)
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(name(&ACTS, *self))
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "carry" => Ok(Self::Carry),
            "down" => Ok(Self::Down),
            point => point.parse().map(Self::Stop),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Carry => f.write_str("carry"),
            Self::Down => f.write_str("down"),
            Self::Stop(point) => point.fmt(f),
        }
    }
}
