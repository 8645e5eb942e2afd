//! What nobody in the system can see, kept for the properties.

use super::numbers::VMS;

/// What nobody in the system can see, kept for the properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct History {
    /// How often the state saved for each migration was continued from: the source that runs on
    /// counts, and each destination that runs it.
    pub continued: [u8; 2],
    /// The source was handed-over for this migration.
    pub committed: [bool; 2],
    /// The vmrun whose ACK the source committed with.
    pub taken_by: [Option<u8>; 2],
    /// GO was written, in whatever shape.
    pub released: [bool; 2],
    /// The operator's cancel was accepted, or the tool's status said that the guest stays.
    pub stays: [bool; 2],
    /// The guest ran in this vmrun, after it arrived there.
    pub ran: [bool; VMS],
    /// A tool's exit status said that the guest will never run in this vmrun.
    pub never: [bool; VMS],
    /// A vmrun that owned the guest was killed or ended by its operator.
    pub gone: bool,
    /// A vmrun of the destination host was killed, or ended by its operator after it had run.
    pub unsure: bool,
    /// A rule that a step broke.
    pub broken: Option<Rule>,
}

/// Rules that are checked where the step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// GO was written before the source was handed-over.
    CommitBeforeGo,
    /// A destination ran before GO was written.
    GoBeforeRunning,
    /// A cancelled or failed migration was committed after all, or its guest ran elsewhere.
    StaysMeansStays,
    /// mig-send's status 0 was not true.
    MovedMeansMoved,
    /// mig-recv's status 0 was not true.
    RunsMeansRuns,
    /// mig-recv's status 1 was not true.
    RefusedMeansNever,
    /// A refusal left the host before it was on the disk.
    RecordedBeforeSaid,
    /// The last whole copy of a guest was thrown away, and nobody had said so.
    KeptForSomebody,
}
