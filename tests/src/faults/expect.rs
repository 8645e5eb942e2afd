//! The table: what each fault at each step must lead to.
//!
//! It follows from the rules of the handover ([`mig_engine::handover`]) and from what the fault
//! leaves possible, not from what the programs were seen to do. What it rests on:
//!
//! - Until the commit the guest is the source's. Whatever breaks, it runs on there, and the
//!   destination gives it up.
//! - The commit needs ACK (both ways) or everything but `End` sent (one way). From then on the
//!   source runs the guest again only after a refusal that was resolved.
//! - The destination runs the guest after GO, or, one way, after `End` and the end of the stream.
//! - A vmrun that dies takes the guest with it that it owns. Whether a destination ran the guest
//!   is then not known to anybody, and the source says so.
//! - The tools own nothing: what they had begun is finished by the vmruns or by whoever asks.

use super::case::{Fault, Form, Order, Party, Step};
use super::wire::{Act, Point};

/// How things stand when mig-send has ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ending {
    /// The source runs the guest, the destination has given it up.
    Stays,
    /// The same, at the operator's wish.
    Cancelled,
    /// The destination runs the guest, and the source has ended.
    Moved,
    /// The source is handed-over; the destination waits for GO.
    Prepared,
    /// The source is handed-over; the destination runs the guest.
    Running,
    /// The source is handed-over; the destination refused, or never heard of it.
    Refused,
    /// The source is handed-over; the destination's vmrun died, and may have run the guest.
    Doubtful,
    /// The guest ended at the source, and runs nowhere.
    EndedHere,
    /// The guest ended at the destination, and runs nowhere.
    EndedThere,
    /// A second mig-send moved the guest.
    Elsewhere,
}

impl Ending {
    /// Whether the source still has to find out.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Prepared | Self::Running | Self::Refused | Self::Doubtful)
    }

    /// What becomes of it when the source asks and is answered.
    pub const fn resolved(self) -> Self {
        match self {
            Self::Prepared | Self::Running => Self::Moved,
            Self::Refused => Self::Stays,
            other => other,
        }
    }

    /// A word for tables.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stays => "stays",
            Self::Cancelled => "cancelled",
            Self::Moved => "moved",
            Self::Prepared => "prepared",
            Self::Running => "running",
            Self::Refused => "refused",
            Self::Doubtful => "doubtful",
            Self::EndedHere => "ended here",
            Self::EndedThere => "ended there",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// How far the handover is. Numbers, so that a rule can say "up to".
type Phase = u8;

/// The destination may not have a vmrun yet.
const OPENING: Phase = 0;
/// It has one, and takes pages; the guest runs.
const COPYING: Phase = 1;
/// The guest is about to be paused, or was.
const PAUSING: Phase = 2;
/// State and pages are on their way; the source's vmrun is needed for nothing but the commit.
const SAVED: Phase = 3;
/// The destination is prepared, and the source does not know yet.
const ACKED: Phase = 4;
/// The source has committed, GO has not passed.
const COMMITTED: Phase = 5;
/// GO is on its last way.
const GOING: Phase = 6;
/// The destination runs, the source does not know.
const RAN: Phase = 7;
/// It has been told.
const TOLD: Phase = 8;

const fn phase(step: Step) -> Phase {
    match step {
        Point::Connect | Point::Header => OPENING,
        Point::Ready | Point::Round => COPYING,
        // What the tunnel holds here the sender has written long ago: the rest of the guest fits
        // into the buffers in front of it.
        Point::Later | Point::Blackout => PAUSING,
        Point::Section | Point::End | Point::Eof => SAVED,
        Point::Ack => ACKED,
        Point::Go | Point::Query => COMMITTED,
        Point::AfterGo => GOING,
        Point::Running | Point::Answer => RAN,
        Point::AfterRunning => TOLD,
    }
}

/// What may come of `fault` at `step`. More than one where the two sides race; none where there is
/// no such case: the party is not there, or the order means nothing.
pub fn outcomes(form: Form, step: Step, fault: Fault) -> &'static [Ending] {
    match form {
        Form::Both => both(phase(step), step, fault),
        Form::Commit => commit(phase(step), step, fault),
        Form::OneWay => one_way(step, fault),
        Form::Resolve => resolve(step, fault),
        Form::File => file(step, fault),
    }
}

fn both(phase: Phase, step: Step, fault: Fault) -> &'static [Ending] {
    use {Act::*, Ending::*, Fault::*, Order::*, Party::*};
    match (fault, phase) {
        (Kill(Send), ..=ACKED) => &[Stays],
        // What it had written passes, and nobody tells the source; but behind GO the answer may be a
        // moment faster than the kill.
        (Kill(Send), ..=COMMITTED | RAN) => &[Running],
        (Kill(Send), GOING | TOLD..) => &[Running, Moved],

        (Kill(Recv), ..=SAVED) => &[Stays],
        // It has loaded the guest, and GO finds nobody.
        (Kill(Recv), ACKED | COMMITTED) => &[Prepared],
        (Kill(Recv), GOING) => &[Prepared, Running, Moved],
        // It has nothing left to do.
        (Kill(Recv) | Freeze(Recv), RAN | TOLD..) => &[],

        (Kill(Source), ..=ACKED) => &[EndedHere],
        (Kill(Source), _) => &[Moved],

        (Kill(Destination) | Freeze(Destination), OPENING) => &[],
        (Kill(Destination), ..=SAVED) => &[Stays],
        (Kill(Destination), ACKED | COMMITTED) => &[Doubtful],
        (Kill(Destination), GOING) => &[Doubtful, EndedThere],
        (Kill(Destination), RAN | TOLD..) => &[EndedThere],

        // Nobody has to be asked.
        (Kill(SendBroker) | Freeze(SendBroker), ..=RAN) => &[Moved],
        (Kill(SendBroker) | Freeze(SendBroker), TOLD..) => &[],
        // It starts the vmrun, and after that it is needed only where something else breaks.
        (Kill(RecvBroker) | Freeze(RecvBroker), _) if step == Point::Connect => &[Stays],
        (Kill(RecvBroker) | Freeze(RecvBroker), OPENING) => &[Stays, Moved],
        (Kill(RecvBroker) | Freeze(RecvBroker), ..=COMMITTED) => &[Moved],
        (Kill(RecvBroker) | Freeze(RecvBroker), _) => &[],

        (Kill(Tunnel) | Net(Cut | ExitEarly | Partition), _) => match phase {
            ..=ACKED => &[Stays],
            COMMITTED => &[Prepared],
            GOING => &[Prepared, Running, Moved],
            RAN => &[Running],
            TOLD.. => &[Moved],
        },
        (Net(CloseForward | DropTail), ..=SAVED) => &[Stays],
        (Net(CloseForward | DropTail), ACKED | COMMITTED) => &[Prepared],
        (Net(CloseForward | DropTail), _) => &[Moved],
        (Net(CloseBack), ..=ACKED) => &[Stays],
        (Net(CloseBack), COMMITTED | RAN) => &[Running],
        (Net(CloseBack), GOING) => &[Running, Moved],
        (Net(CloseBack), TOLD..) => &[Moved],
        (Net(Stall) | Freeze(Tunnel), _) => match phase {
            ..=ACKED => &[Stays],
            COMMITTED => &[Prepared],
            GOING => &[Running, Moved],
            RAN => &[Running],
            TOLD.. => &[Moved],
        },
        (Net(Delay | ExitLate | Pass), _) => &[Moved],

        (Freeze(Send), ..=ACKED) => &[Stays],
        (Freeze(Send), ..=RAN) => &[Moved],
        (Freeze(Send), TOLD..) => &[],
        (Freeze(Recv), ..=SAVED) => &[Stays],
        // The same.
        (Freeze(Recv), ACKED | COMMITTED) => &[Prepared, Running],
        (Freeze(Recv), GOING) => &[Prepared, Running, Moved],
        (Freeze(Source), ..=COPYING) => &[Stays],
        // The commit is asked for, and served when nobody waits for the answer any more.
        (Freeze(Source), PAUSING) => &[Stays, Prepared],
        (Freeze(Source), SAVED | ACKED) => &[Prepared],
        (Freeze(Source), ..=RAN) => &[Moved],
        (Freeze(Source), TOLD..) => &[],
        (Freeze(Destination), ..=SAVED) => &[Stays],
        // GO waits for it, and is served when it thaws.
        (Freeze(Destination), ACKED | COMMITTED) => &[Running],
        (Freeze(Destination), GOING) => &[Prepared, Running, Moved],
        (Freeze(Destination), _) => &[Moved],

        (Say(Interrupt), ..=ACKED) => &[Cancelled],
        (Say(Interrupt), ..=RAN) => &[Moved],
        // vmrun knows of no migration before its sender has begun.
        (Say(Cancel), OPENING) => &[],
        (Say(Cancel), _) if step == Point::Ready => &[],
        (Say(Cancel), ..=ACKED) => &[Cancelled],
        (Say(Cancel), ..=RAN) => &[Moved],
        (Say(Pause), ..=RAN) => &[Moved],
        // In the blackout it cancels.
        (Say(Resume), PAUSING) => &[Moved, Cancelled],
        (Say(Resume), SAVED | ACKED) => &[Cancelled],
        (Say(Resume), ..=RAN) => &[Moved],
        (Say(ResumeThere), OPENING) => &[],
        (Say(ResumeThere), ..=RAN) => &[Moved],
        (Say(Quit), ..=ACKED) => &[EndedHere],
        // It may be the last copy.
        (Say(Quit), ..=RAN) => &[Moved],
        (Say(QuitForce), ..=ACKED) => &[],
        (Say(QuitForce), ..=RAN) => &[Moved],
        (Say(QuitThere), OPENING) => &[],
        (Say(QuitThere), ..=SAVED) => &[Stays],
        (Say(QuitThere), ACKED | COMMITTED) => &[Refused],
        (Say(QuitThere), GOING) => &[Refused, EndedThere],
        (Say(QuitThere), _) => &[EndedThere],
        // READY passes meanwhile, and the two race.
        (Say(SecondSend), _) if step == Point::Header => &[],
        (Say(SecondSend), OPENING) => &[Elsewhere],
        (Say(SecondSend), _) if step == Point::Ready => &[Elsewhere],
        (Say(SecondSend), ..=RAN) => &[Moved],
        (Say(_), TOLD..) => &[],

        (PowerOff, ..=COPYING) => &[EndedHere],
        (PowerOff, RAN) => &[EndedThere],
        // The guest stands still.
        (PowerOff, _) => &[],

        // The handover waits for no disk.
        (StateLost, COPYING..=RAN) => &[Moved],
        (StateUnwritable | LittleMemory, _) if step == Point::Connect => &[Stays],
        // The source keeps no records.
        (SourceStateUnwritable, _) if step == Point::Connect => &[Moved],
        // A thread that the standard library cannot complete ends its vmrun: whether that is before
        // ACK or behind GO is a matter of what it had in store.
        (NoMoreMemory, COPYING..=SAVED) => &[Stays, Moved, Doubtful, EndedThere],
        (NoMoreMemory, ACKED | COMMITTED) => &[Moved, Prepared, Running, Doubtful, EndedThere],
        (
            StateLost
            | StateUnwritable
            | SourceStateUnwritable
            | LittleMemory
            | NoMoreMemory
            | DiskFull
            | NameTaken,
            _,
        ) => &[],
    }
}

/// As both ways but where the form matters: nobody waits for READY, the forward path is closed
/// behind `End`, and the mig-recv that brings GO is not the one that brought the guest.
fn commit(phase: Phase, step: Step, fault: Fault) -> &'static [Ending] {
    use {Act::*, Ending::*, Fault::*, Order::*, Party::*};
    match (fault, phase) {
        // It brings GO, and that it is dead is seen before the commit. One that thaws finds that it
        // was asked to.
        (Kill(SendBroker), ..=ACKED) => &[Stays],
        (Freeze(SendBroker), ..=ACKED) => &[Prepared, Running],
        // What it started brings GO, and nobody hears the answer.
        (Kill(SendBroker) | Freeze(SendBroker), _) => &[Running],
        // The sender does not wait until there is a vmrun.
        (Kill(RecvBroker) | Freeze(RecvBroker), OPENING..=SAVED) if step != Point::Connect => {
            &[Stays, Moved]
        }
        (Kill(RecvBroker) | Freeze(RecvBroker), COMMITTED..) => &[],
        (Kill(Recv) | Freeze(Recv), ACKED) => &[Moved],
        (Kill(Recv) | Freeze(Recv), COMMITTED | RAN) => &[],
        // It may be asked soon enough, or too late.
        (Freeze(Destination), ACKED | COMMITTED) => &[Prepared, Running],
        // Nobody can reach the vmrun on a new connection.
        (NoMoreMemory, COPYING..=SAVED) => &[Stays, Prepared, Doubtful],
        // Whoever has begun to ask finds the vmrun without the records; nobody can begin without
        // the host's identity, which is beside them.
        (StateLost, _) if step == Point::Query => &[Moved],
        (StateLost, COPYING..=COMMITTED) => &[Prepared],
        // The path is closed anyway.
        (Net(CloseForward | DropTail), SAVED) if step == Point::Eof => &[Moved],
        (Net(CloseForward | DropTail), ACKED | RAN) => &[Moved],
        // The sender does not wait for anything before it begins, and may have asked its vmrun for all
        // but the commit by now.
        (Kill(Source), OPENING) => &[EndedHere],
        (Freeze(Source), OPENING) => &[Stays, Moved],
        (Say(SecondSend | Cancel), OPENING) => &[],
        _ => both(phase, step, fault),
    }
}

fn one_way(step: Step, fault: Fault) -> &'static [Ending] {
    use {Act::*, Ending::*, Fault::*, Order::*, Party::*};
    let early = matches!(step, Point::Connect | Point::Header | Point::Round);
    // From here on mig-send waits for nobody: at Point::Section it may or may not have committed.
    let racing = step == Point::Section;
    let whole = step == Point::Eof;
    match fault {
        Kill(Send) if early => &[Stays],
        Kill(Send) if racing => &[Stays, Refused, Running],
        Kill(Send) => &[Running],
        Kill(Recv) if early => &[Stays],
        Kill(Recv) if racing => &[Stays, Refused],
        Kill(Recv) => &[Refused],
        Kill(SendBroker) | Freeze(SendBroker) => &[Running],
        Kill(RecvBroker) | Freeze(RecvBroker) if step == Point::Connect => &[Stays],
        Kill(RecvBroker) | Freeze(RecvBroker) if early => &[Stays, Running],
        Kill(RecvBroker) | Freeze(RecvBroker) if whole => &[Running],
        Kill(RecvBroker) | Freeze(RecvBroker) => &[],
        Kill(Source) if early => &[EndedHere],
        Kill(Source) if racing => &[EndedHere, Moved],
        Kill(Source) => &[Moved],
        Kill(Destination) | Freeze(Destination)
            if matches!(step, Point::Connect | Point::Header) =>
        {
            &[]
        }
        Kill(Destination) if !whole && step != Point::End => &[Stays, Doubtful],
        Kill(Destination) => &[Doubtful],
        Net(CloseForward) if early => &[Stays, Refused],
        Kill(Tunnel) | Net(Cut | ExitEarly | Partition) if early => &[Stays],
        Kill(Tunnel) | Net(Cut | ExitEarly | Partition | CloseForward) if racing => {
            &[Stays, Refused]
        }
        // The end of the stream is all that was missing, and that is what a dead tunnel gives.
        Kill(Tunnel) | Net(Cut | ExitEarly | CloseForward) if whole => &[Running],
        Kill(Tunnel) | Net(Cut | ExitEarly | Partition | CloseForward) => &[Refused],
        Net(DropTail) if whole => &[Running],
        Net(DropTail) => &[Refused],
        Net(Stall) if early => &[Stays],
        // The tunnel is ended at last, and with it the stream.
        Net(Stall) if whole => &[Running],
        Net(Stall) if racing => &[Stays, Refused],
        Net(Stall) => &[Refused],
        Net(Delay | ExitLate) => &[Running],
        // There is no way back.
        Net(CloseBack | Pass) => &[],
        Freeze(Send) if early => &[Stays],
        Freeze(Send) if racing => &[Stays, Refused, Running],
        Freeze(Send) => &[Refused, Running],
        Freeze(Recv | Tunnel) if early => &[Stays],
        Freeze(Recv | Tunnel) if racing => &[Stays, Running],
        Freeze(Recv | Tunnel) => &[Running],
        Freeze(Source) if early => &[Stays],
        Freeze(Source) if racing => &[Stays, Refused, Running],
        Freeze(Source) => &[Running],
        // It may not have taken the guest up yet.
        Freeze(Destination) if step == Point::Round => &[Stays, Running],
        Freeze(Destination) => &[Running],
        Say(Interrupt) if early => &[Cancelled],
        Say(Interrupt) if racing => &[Cancelled, Running],
        Say(Interrupt) => &[Running],
        Say(Cancel) if step == Point::Round => &[Cancelled],
        Say(Resume) if racing => &[Cancelled, Running],
        Say(Pause | Resume) if step != Point::Connect => &[Running],
        Say(Quit) if early => &[EndedHere],
        Say(Quit) if racing => &[EndedHere, Running],
        Say(Quit) => &[Running],
        Say(QuitThere) if matches!(step, Point::Connect | Point::Header) => &[],
        Say(QuitThere) if step == Point::Round || racing => &[Stays, Refused],
        Say(QuitThere) => &[Refused],
        Say(SecondSend) if matches!(step, Point::Connect | Point::Header) => &[],
        Say(SecondSend) => &[Running],
        Say(Cancel | Pause | Resume | ResumeThere | QuitForce) => &[],
        PowerOff if step == Point::Round => &[EndedHere],
        StateLost if !matches!(step, Point::Connect | Point::Header) => &[Running],
        StateUnwritable | LittleMemory if step == Point::Connect => &[Stays],
        SourceStateUnwritable if step == Point::Connect => &[Running],
        PowerOff
        | StateLost
        | StateUnwritable
        | LittleMemory
        | SourceStateUnwritable
        | NoMoreMemory
        | DiskFull
        | NameTaken => &[],
    }
}

/// The source is handed-over, the destination is prepared, and the operator asks.
fn resolve(step: Step, fault: Fault) -> &'static [Ending] {
    use {Act::*, Ending::*, Fault::*, Order::*, Party::*};
    let answered = step == Point::Answer;
    match fault {
        Kill(Send) => &[Running],
        Kill(Source) => &[Moved],
        Kill(Destination) if answered => &[EndedThere],
        Kill(Destination) => &[Doubtful],
        Kill(Tunnel) | Net(Cut | ExitEarly | Partition | Stall) | Freeze(Tunnel) => {
            if answered {
                &[Running]
            } else {
                &[Prepared]
            }
        }
        Net(CloseForward | DropTail) if answered => &[Moved],
        Net(CloseForward | DropTail) => &[Prepared],
        Net(CloseBack) => &[Running],
        Net(Delay | ExitLate) => &[Moved],
        Freeze(Source) => &[Moved],
        // It has nothing left to do.
        Kill(RecvBroker) | Freeze(RecvBroker) if answered => &[],
        Kill(RecvBroker) => &[Prepared],
        // It answers when nobody listens any more, and the query was GO.
        Freeze(RecvBroker) => &[Prepared, Running],
        // Its patience may be over when it thaws.
        Freeze(Send) => &[Moved, Running],
        Freeze(Destination) if answered => &[Moved],
        Freeze(Destination) => &[Prepared, Running],
        Say(Interrupt) if answered => &[Running],
        Say(Interrupt) => &[Prepared, Running],
        Say(Quit | Resume | SecondSend) => &[Moved],
        Say(QuitThere) if answered => &[EndedThere],
        Say(QuitThere) => &[Stays],
        Say(QuitForce) => &[Moved],
        // Whoever has begun to answer finds the vmrun without the records.
        StateLost => &[Moved],
        // The mig-recv that answers may not be there yet, or not any more.
        Kill(Recv) | Freeze(Recv) => &[],
        _ => &[],
    }
}

/// A file is whole or not there, and mig-send knows which.
fn file(step: Step, fault: Fault) -> &'static [Ending] {
    match (fault, step) {
        (Fault::DiskFull, Point::Round) | (Fault::NameTaken, Point::Eof) => &[Ending::Stays],
        _ => &[],
    }
}
