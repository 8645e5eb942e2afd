//! What a case is: which form of migration, at which step, which fault, and what comes after.

use std::fmt;

use super::expect::{self, Ending};
use super::wire::{Act, Point};

/// How the guest is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// With a handover through the stream.
    Both,
    /// GO through a second command.
    Commit,
    /// Forward only.
    OneWay,
    /// The guest was handed over, and its outcome is asked for.
    Resolve,
    /// Into a file.
    File,
}

/// A step of the protocol.
pub type Step = Point;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// `kill -9`.
    Kill(Party),
    /// SIGSTOP for longer than everybody's patience, then SIGCONT.
    Freeze(Party),
    /// The tunnel misbehaves.
    Net(Act),
    /// The operator gives an order.
    Say(Order),
    /// The guest powers itself off.
    PowerOff,
    /// The destination's state directory cannot be written from here on.
    StateLost,
    /// It never could.
    StateUnwritable,
    /// The source's state directory cannot be written.
    SourceStateUnwritable,
    /// mig-recv and its vmrun have less memory than the guest.
    LittleMemory,
    /// The destination's vmrun gets no more memory from here on.
    NoMoreMemory,
    /// The disk is full.
    DiskFull,
    /// The name of the file is taken by a directory before the file is whole.
    NameTaken,
}

/// A process that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// mig-send.
    Send,
    /// mig-recv.
    Recv,
    /// The source's vmrun.
    Source,
    /// The destination's vmrun.
    Destination,
    /// The tunnel.
    Tunnel,
    /// mig-send's helper, which asks for it.
    SendBroker,
    /// mig-recv's helper, which starts its vmrun.
    RecvBroker,
}

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Order {
    /// SIGINT to mig-send.
    Interrupt,
    /// `vmctl cancel`.
    Cancel,
    /// `vmctl pause`, at the source.
    Pause,
    /// `vmctl resume`, at the source.
    Resume,
    /// `vmctl resume`, at the destination.
    ResumeThere,
    /// `vmctl quit`, at the source.
    Quit,
    /// `vmctl quit --force`, at the source.
    QuitForce,
    /// `vmctl quit`, at the destination.
    QuitThere,
    /// A second mig-send of the same guest.
    SecondSend,
}

/// What comes after an outcome that is not known at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum After {
    /// The network is there again, and mig-send asks by itself.
    Mended,
    /// mig-send gives up; the operator asks soon.
    Asked,
    /// mig-send gives up; the operator asks when the destination has given up too.
    AskedLate,
}

/// One case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Case {
    /// How the guest is sent.
    pub form: Form,
    /// Where it goes wrong.
    pub step: Step,
    /// What goes wrong.
    pub fault: Fault,
    /// What comes after.
    pub after: After,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Both, Self::Commit, Self::OneWay, Self::Resolve, Self::File];

    /// The steps that this form has, in order.
    pub const fn steps(self) -> &'static [Step] {
        use Point::*;
        match self {
            Self::Both => &[
                Connect,
                Header,
                Ready,
                Round,
                Later,
                Blackout,
                Section,
                End,
                Ack,
                Go,
                AfterGo,
                Running,
                AfterRunning,
            ],
            Self::Commit => &[Connect, Header, Round, Later, Section, End, Eof, Ack, Query, Answer],
            Self::OneWay => &[Connect, Header, Round, Section, End, Eof],
            Self::Resolve => &[Query, Answer],
            Self::File => &[Round, Eof],
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Both => "both",
            Self::Commit => "commit",
            Self::OneWay => "one-way",
            Self::Resolve => "resolve",
            Self::File => "file",
        })
    }
}

impl Fault {
    /// All of them.
    pub fn all() -> Vec<Self> {
        use {Order::*, Party::*};
        let parties = [Send, Recv, Source, Destination, Tunnel, SendBroker, RecvBroker];
        let acts = [
            Act::Cut,
            Act::ExitEarly,
            Act::Partition,
            Act::CloseForward,
            Act::CloseBack,
            Act::DropTail,
            Act::Stall,
            Act::Delay,
            Act::ExitLate,
        ];
        let orders =
            [Interrupt, Cancel, Pause, Resume, ResumeThere, Quit, QuitForce, QuitThere, SecondSend];
        let mut all: Vec<_> = parties.map(Self::Kill).into();
        all.extend(parties.map(Self::Freeze));
        all.extend(acts.map(Self::Net));
        all.extend(orders.map(Self::Say));
        all.extend([
            Self::PowerOff,
            Self::StateLost,
            Self::StateUnwritable,
            Self::SourceStateUnwritable,
            Self::LittleMemory,
            Self::NoMoreMemory,
            Self::DiskFull,
            Self::NameTaken,
        ]);
        all
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Kill(party) => format!("kill-{party}"),
            Self::Freeze(party) => format!("freeze-{party}"),
            Self::Net(act) => act.to_string(),
            Self::Say(order) => order.to_string(),
            Self::PowerOff => "power-off".into(),
            Self::StateLost => "state-lost".into(),
            Self::StateUnwritable => "no-state".into(),
            Self::SourceStateUnwritable => "no-source-state".into(),
            Self::LittleMemory => "little-memory".into(),
            Self::NoMoreMemory => "no-more-memory".into(),
            Self::DiskFull => "disk-full".into(),
            Self::NameTaken => "name-taken".into(),
        };
        f.pad(&text)
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Send => "send",
            Self::Recv => "recv",
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Tunnel => "tunnel",
            Self::SendBroker => "send-broker",
            Self::RecvBroker => "recv-broker",
        })
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Interrupt => "interrupt",
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::ResumeThere => "resume-there",
            Self::Quit => "quit",
            Self::QuitForce => "quit-force",
            Self::QuitThere => "quit-there",
            Self::SecondSend => "second-send",
        })
    }
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Mended => "mended",
            Self::Asked => "asked",
            Self::AskedLate => "asked-late",
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { form, step, fault, after } = self;
        f.pad(&format!("{form}/{step}/{fault}/{after}"))
    }
}

impl Case {
    /// Every case there is, in the order of forms, steps and faults.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for form in Form::ALL {
            for &step in form.steps() {
                for fault in Fault::all() {
                    let outcomes = expect::outcomes(form, step, fault);
                    for &after in afters(form, fault, outcomes) {
                        all.push(Self { form, step, fault, after });
                    }
                }
            }
        }
        all
    }

    /// The case of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|case| case.to_string() == name)
    }
}

/// What can come after: only where something is open can it matter.
fn afters(form: Form, fault: Fault, outcomes: &[Ending]) -> &'static [After] {
    use After::*;
    let waits = outcomes.contains(&Ending::Prepared);
    let open = outcomes.iter().any(|outcome| outcome.is_open());
    // Nobody is there who would ask by itself.
    let alone = matches!(form, Form::OneWay | Form::Resolve)
        || matches!(
            fault,
            Fault::Kill(Party::Send | Party::SendBroker)
                | Fault::Freeze(Party::SendBroker)
                | Fault::Freeze(Party::Source)
                | Fault::StateLost
                | Fault::NoMoreMemory
        );
    match (outcomes.is_empty(), open, waits, alone) {
        (true, ..) => &[],
        (_, false, ..) => &[Mended],
        (_, _, true, true) => &[Asked, AskedLate],
        (_, _, false, true) => &[Asked],
        (_, _, true, false) => &[Mended, Asked, AskedLate],
        (_, _, false, false) => &[Mended, Asked],
    }
}
