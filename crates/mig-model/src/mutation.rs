//! Deliberate mistakes. The real machines stay as they are; the model's own wiring around them is
//! made wrong in one place, and a property must notice.

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// The destination's vmrun lets the guest run as soon as it is prepared.
    RunsWhenPrepared,
    /// A query about an unknown migration is answered "refused", and nothing is recorded.
    UnknownIsRefusedUnrecorded,
    /// The operator's resume does not look at the ownership.
    ResumeIgnoresOwnership,
    /// The operator's resume lets the guest run on in the blackout, and the commit does not ask
    /// whether it ran since its state was saved. Each alone does no harm.
    CommitsAfterResume,
    /// A refusal takes effect first and is recorded some time later.
    RefusalRecordedAfter,
    /// mig-send writes GO and commits then.
    CommitAfterGo,
    /// The go-timeout refuses and records nothing.
    TimeoutUnrecorded,
    /// "May run" is recorded some time after the first page.
    MayRunRecordedLate,
    /// "May run" is never recorded.
    MayRunUnrecorded,
    /// A GO that comes after the refusal runs the guest.
    GoAfterRefusal,
    /// "May have run" is answered as "refused".
    MayHaveRunIsRefused,
    /// Any client that goes away releases the guest, and a vmrun that was released answers a commit
    /// as if it were handed-over. Each alone does no harm.
    ReleasedAnswersCommit,
    /// A source whose client goes away after the commit runs on.
    ClientGoneAfterCommit,
    /// One way, the commit comes after `End`.
    EndBeforeCommit,
    /// The destination runs a one-way stream whose `End` never came.
    RunsAtEof,
    /// A record that its writer has not synced yet is repeated as an answer.
    RepeatsUnsynced,
    /// "I could not read your query" counts as a refusal of the guest.
    UnreadableIsRefused,
    /// A vmrun that is slow to say how the guest stands, or cannot run it now, or is gone, counts as
    /// one that refused it.
    SlowIsRefused,
    /// The vmrun is not told that mig-recv gives up, and mig-recv calls that a refusal.
    UntoldIsRefused,
    /// The operator's word is GO at the destination, whatever the source is.
    OperatorsGo,
    /// The source's vmrun does not take the guest back.
    IgnoresTakeBack,
    /// A query about a prepared guest is not GO: it waits until the guest runs.
    QueryIsNotGo,
    /// A file that can be read before it is whole is given up all the same.
    AbandonsWhatIsRead,
    /// A saved guest's source is ended before its file is on the disk.
    ConfirmsUnsynced,
    /// A restore takes over what another one works on, and neither looks whether the record is still
    /// its own before it runs. Each alone does no harm.
    TakesOverLiving,
    /// A guest whose sender goes away before the commit is not released.
    ForgetsClient,
    /// GO is for whatever copy of the guest it comes to.
    GoForAnyCopy,
    /// A query does not say who acknowledged the guest.
    AnyHostAnswers,
    /// A host whose records are younger than the migration says "never heard of it".
    YoungHostAnswers,
    /// Only the record is looked at, and the vmrun that is named in it.
    AsksItsRecordsOnly,
    /// "Never heard of it" is said before every vmrun was asked, by a host whose records are old enough
    /// for that and not those that the guest was received with.
    UnknownBeforeAllAreAsked,
    /// A refusal counts as recorded though somebody has recorded something else first.
    OvertakenIsRefused,
    /// That the guest was released is taken for GO, as a query is.
    ReleaseIsGo,
    /// A prepared guest is given up after some time, whether its source can be asked or not.
    GivesUpByItself,
    /// mig-send gives the guest back after any failure, also behind the commit, and twice; its vmrun
    /// refuses that, and does it when it is asked again. Each alone does no harm.
    ReleasesWhenAskedTwice,
    /// A snapshot is restored as the guest that it was taken of.
    RestoresSnapshot,
    /// That no GO came in time is taken for the source's word that none will come.
    LateGoIsRefused,
}
