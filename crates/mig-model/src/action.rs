//! What may happen.

/// A host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// The source's.
    Source,
    /// The one that a guest may come to with this number.
    Destination(usize),
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The operator starts mig-send.
    Send(usize),
    /// A mig-recv takes up a stream.
    Receive(usize),
    /// The operator starts mig-send --resolve.
    Resolve(usize),
    /// A tool goes on.
    Go(usize),
    /// A tool goes on, and its query comes to another host than it should.
    GoElsewhere(usize),
    /// What a tool does fails, or it waited too long for the other side.
    Fail(usize),
    /// A tool stops waiting for its vmrun, which serves the request later.
    TimeOut(usize),
    /// The operator cancels.
    Cancel(usize),
    /// The file cannot be finished, and mig-send removes it.
    Abandon(usize),
    /// vmrun serves a request that nobody waits for any more.
    Late(usize),
    /// vmrun notices that a tool is gone.
    Gone(usize),
    /// A record is on the disk, and vmrun goes on.
    Recorded(usize),
    /// Somebody found the time to record what became of the guest.
    RecordedLate(usize),
    /// A vmrun that has nothing left to do ends.
    Exit(usize),
    /// No GO came.
    GoTimeout(usize),
    /// The mig-recv that answers a query goes on.
    AnswerQuery(usize),
    /// A query, its answer, or the mig-recv between them is lost. That is after the source_tool gave
    /// up: earlier it would be the same to it.
    LoseQuery(usize),
    /// A query breaks off in the middle, and mig-recv says so.
    BreakQuery(usize),
    /// The tunnel ends and loses what is in it. That some of it arrives first is the same as that
    /// it is cut later.
    CutForward(usize),
    /// The way back does.
    CutBack(usize),
    /// kill -9 of a tool.
    KillTool(usize),
    /// kill -9 of a vmrun.
    KillVm(usize),
    /// A host loses its power and starts again.
    KillHost(Host),
    /// A host loses its records, and who it was with them.
    Wipe(usize),
    /// The operator wants the guest to run at the source.
    Resume,
    /// The operator ends a guest.
    Quit(usize),
    /// The operator says GO at the destination ([`OperatorsGo`](crate::mutation::Mutation::OperatorsGo)).
    Commit(usize),
}

impl Action {
    /// What the bound on faults counts.
    pub const fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Fail(_)
                | Self::TimeOut(_)
                | Self::Cancel(_)
                | Self::Abandon(_)
                | Self::LoseQuery(_)
                | Self::BreakQuery(_)
                | Self::CutForward(_)
                | Self::CutBack(_)
        )
    }

    /// What happens even if nothing breaks and nobody but `--resolve` is called: what the pair
    /// has to come to rest by.
    pub const fn is_recovery(self) -> bool {
        matches!(
            self,
            Self::Receive(_)
                | Self::Resolve(_)
                | Self::Go(_)
                | Self::Fail(_)
                | Self::Late(_)
                | Self::Gone(_)
                | Self::Recorded(_)
                | Self::RecordedLate(_)
                | Self::Exit(_)
                | Self::GoTimeout(_)
                | Self::AnswerQuery(_)
        )
    }
}
