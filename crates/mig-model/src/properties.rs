//! What must hold in every state, and what is a good end.

use mig_engine::handover::HandoverMode;
use mig_engine::ownership::{Decision, State as Owner};
use stateright::Property;

use crate::bounds::{Bounds, HandoverModel};
use crate::state::{Connection, Rule, SOURCE, Saved, State, VMS, number_of};

/// The guest runs in at most one vmrun.
pub const NEVER_TWO: &str = "never two running";
/// vCPUs run where the ownership says that they may, and nowhere else.
pub const OWNER_RUNS: &str = "only an owner runs";
/// The state that was saved for a migration is continued from once: by the source, which runs on,
/// or by one destination. A second copy is wrong even after the first has ended.
pub const CONTINUED_ONCE: &str = "a saved state is continued once";
/// The source is handed-over before GO is written, in whatever shape GO comes.
pub const COMMIT_BEFORE_GO: &str = "the commit comes before GO";
/// No destination runs before GO was written.
pub const GO_BEFORE_RUNNING: &str = "GO comes before the destination runs";
/// Cancelled before the commit, or status 1 or 3: the guest was never given away.
pub const STAYS: &str = "a cancelled or failed migration gives nothing away";
/// mig-send's status 0.
pub const MOVED: &str = "status 0 of mig-send is true";
/// mig-recv's status 0.
pub const RUNS: &str = "status 0 of mig-recv is true";
/// mig-recv's status 1: the guest has not run and will not run here.
pub const NEVER: &str = "status 1 of mig-recv is true";
/// A guest that its source has committed to, and of which no other whole copy is left, is not given
/// up but by somebody's word.
pub const KEPT: &str = "the last whole copy is kept";
/// A refusal is on the disk before it leaves the host.
pub const RECORDED: &str = "a refusal is recorded before it is said";

/// The guest runs at the destination and the source has ended: if this never came about, the others
/// would say little.
pub const MOVES: &str = "the guest moves";
/// A snapshot is on the disk, and the guest runs on.
pub const SNAPSHOT: &str = "a snapshot is taken";
/// The source runs on after a refusal that was resolved.
pub const RETURNS: &str = "a guest that was handed over comes back";

/// All that hold within these bounds, for the checker.
pub fn of(bounds: &Bounds) -> Vec<Property<HandoverModel>> {
    let mut all = vec![
        Property::always(NEVER_TWO, |_, state: &State| {
            state.vms.iter().filter(|vm| vm.running).count() <= 1
        }),
        Property::always(OWNER_RUNS, |_, state: &State| {
            state.vms.iter().all(|vm| !vm.running || vm.ownership.may_run())
        }),
        Property::always(CONTINUED_ONCE, |_, state: &State| {
            state.history.continued.iter().all(|times| *times <= 1)
        }),
        Property::always(COMMIT_BEFORE_GO, |_, state| keeps(state, Rule::CommitBeforeGo)),
        Property::always(GO_BEFORE_RUNNING, |_, state| keeps(state, Rule::GoBeforeRunning)),
        Property::always(STAYS, |_, state| keeps(state, Rule::StaysMeansStays)),
        Property::always(MOVED, |_, state| keeps(state, Rule::MovedMeansMoved)),
        Property::always(RUNS, |_, state| keeps(state, Rule::RunsMeansRuns)),
        Property::always(NEVER, |_, state| keeps(state, Rule::RefusedMeansNever)),
        Property::always(RECORDED, |_, state| keeps(state, Rule::RecordedBeforeSaid)),
        Property::always(KEPT, |_, state| keeps(state, Rule::KeptForSomebody)),
    ];
    all.push(match bounds.snapshot {
        false => Property::sometimes(MOVES, |model: &HandoverModel, state: &State| {
            state.vms[SOURCE].ownership.state() == Owner::Finished
                && state.vms[1].running
                && is_settled(model, state)
        }),
        true => Property::sometimes(SNAPSHOT, |model: &HandoverModel, state: &State| {
            state.file == Saved::Durable && state.vms[SOURCE].running && is_settled(model, state)
        }),
    });
    // What was acknowledged is refused by somebody's word alone, or by the time limit of a user.
    let returns =
        bounds.modes[0] == Some(HandoverMode::OneWay) || bounds.go_timeout || bounds.quits > 0;
    if returns && !bounds.snapshot {
        all.push(Property::sometimes(RETURNS, |model: &HandoverModel, state: &State| {
            state.vms[SOURCE].running && state.history.committed[0] && is_settled(model, state)
        }));
    }
    all
}

fn keeps(state: &State, rule: Rule) -> bool {
    state.history.broken != Some(rule)
}

/// Nobody is at work, and nothing is on its way.
pub fn is_quiet(state: &State) -> bool {
    state.source_tools.iter().all(Option::is_none)
        && state.receivers.iter().all(Option::is_none)
        && state.queries.iter().all(Option::is_none)
        && state.connections.iter().all(|connection| *connection == Connection::IDLE)
        && state.vms.iter().all(|vm| vm.busy.is_none() && vm.later.is_none())
}

/// A good end. At rest the guest runs in one vmrun; or a vmrun that owned it was killed or ended by
/// its operator; or the source is handed-over and the one process that knew whether the guest ran is
/// dead: then only the operator's force goes on. Another copy may wait for a GO that nobody will
/// send: after a source that died it may be the last, and is the operator's; a source that took
/// its guest back tells it with the next migration.
/// Or the guest is in a file, from which it can be restored: at once, or as a copy if that one
/// process is dead or somebody asked too early.
pub fn is_settled(model: &HandoverModel, state: &State) -> bool {
    if !is_quiet(state) {
        return false;
    }
    let mut owners = 0;
    for vm in (0..VMS).filter(|vm| state.is_alive(*vm)) {
        match state.vms[vm].ownership.state() {
            Owner::Owned if state.vms[vm].running => owners += 1,
            Owner::HandedOver(id) => {
                // As it is without the mistake.
                let model = HandoverModel::new(model.bounds);
                return vm == SOURCE && model.nobody_knows(state, number_of(id));
            }
            Owner::Incoming | Owner::Prepared(_) => {}
            _ => return false,
        }
    }
    let in_file = state.file != Saved::No
        && match state.records[0][0].visible {
            Some(Decision::Ran) => false,
            Some(Decision::MayRun) => {
                let vm = state.records[0][0].vm;
                state.history.unsure && vm.is_none_or(|vm| !state.is_alive(usize::from(vm)))
            }
            Some(Decision::Restoring) => state.is_free(0, 0),
            // Refused: somebody asked while mig-send was about to end.
            None | Some(Decision::Refused) => true,
        };
    owners == 1 || owners == 0 && (state.history.gone || in_file)
}
