//! What breaks: processes and hosts that end, records that are lost, connections that go.

use mig_engine::ownership::{Decision, State as Owner};

use crate::action::Host;
use crate::bounds::HandoverModel;
use crate::mutation::Mutation;
use crate::served::Served;
use crate::state::{
    Connection, Line, Phase, Record, SOURCE, SOURCE_TOOLS, Saved, State, TOOLS, VMS, vm_of,
};

impl HandoverModel {
    pub(crate) fn crash(state: &mut State) -> bool {
        match state.crashes.checked_sub(1) {
            Some(left) => {
                state.crashes = left;
                true
            }
            None => false,
        }
    }

    pub(crate) fn end_tool(&self, state: &mut State, tool: usize) {
        if tool < SOURCE_TOOLS {
            self.end_sender(state, tool);
        } else {
            self.end_receiver(state, tool - SOURCE_TOOLS);
        }
    }

    pub(crate) fn kill_host(&self, state: &mut State, host: Host) {
        let here = |vm: usize| match host {
            Host::Source => vm == SOURCE,
            Host::Destination(number) => vm != SOURCE && self.host_of(vm) == number,
        };
        for tool in (0..TOOLS).filter(|tool| here(vm_of(*tool))) {
            if self.exists(state, tool) {
                self.end_tool(state, tool);
            }
        }
        for vm in (0..VMS).filter(|vm| here(*vm)) {
            if state.is_alive(vm) {
                self.killed(state, vm);
            }
        }
        if host == Host::Source && state.file == Saved::Visible {
            state.file = Saved::No;
        }
        if let Host::Destination(number) = host {
            for record in &mut state.records[number] {
                record.visible = record.durable;
                if record.visible.is_none() {
                    record.vm = None;
                }
            }
            for slot in &mut state.queries {
                if slot.is_some_and(|query| {
                    usize::from(query.host) == number && !matches!(query.phase, Phase::Answer(_))
                }) {
                    *slot = None;
                }
            }
        }
    }

    /// The directory of a host's records is gone; its vmruns live on. A host that forgets a refusal
    /// takes the same stream when it is sent again, as the first that reads a saved guest does.
    pub(crate) fn wipe(state: &mut State, host: usize) -> bool {
        if state.records[host].iter().any(|record| record.visible == Some(Decision::Refused)) {
            return false;
        }
        // Nor between a look that found nothing and the refusal that follows.
        if state.queries.iter().flatten().any(|query| query.refuses_next(host)) {
            return false;
        }
        let Some(left) = state.wipes.checked_sub(1) else { return false };
        state.wipes = left;
        state.records[host] = [Record::NONE; 2];
        state.lost[host] += 1;
        true
    }

    /// The tool's connection ends. Where vmrun would do nothing about that, now or later, it is
    /// forgotten at once.
    pub(crate) fn hang_up(&self, state: &mut State, tool: usize) {
        let (vm, client) = (&state.vms[vm_of(tool)], tool as u8);
        let leaving = vm.leaving.is_some_and(|it| it.client == client);
        let matters = leaving && matches!(vm.ownership.state(), Owner::Migrating(_))
            || vm.receiver == Some(client) && matches!(vm.ownership.state(), Owner::Receiving(_))
            || vm.receiver == Some(client) && vm.ownership.is_saved()
            || vm.receiver == Some(client)
                && matches!(vm.ownership.state(), Owner::Prepared(_))
                && vm.ownership.is_saved()
            || state.connections[tool].pending[0].is_some()
            || leaving && self.is(Mutation::ClientGoneAfterCommit)
            || self.is(Mutation::ReleasedAnswersCommit);
        state.connections[tool].line = match state.is_alive(vm_of(tool)) && matters {
            true => Line::Gone,
            false => Line::Idle,
        };
    }

    pub(crate) fn late(&self, state: &mut State, tool: usize) -> bool {
        let vm = vm_of(tool);
        let connection = state.connections[tool];
        let Some(request) = connection.pending[0] else { return false };
        if connection.line == Line::Open || !state.is_alive(vm) || state.vms[vm].busy.is_some() {
            return false;
        }
        if self.serve(state, vm, tool as u8, request) != Served::Busy {
            state.connections[tool].take();
        }
        true
    }

    pub(crate) fn gone(&self, state: &mut State, tool: usize) -> bool {
        let (vm, connection) = (vm_of(tool), state.connections[tool]);
        let quiet = connection.pending[0].is_none() && state.vms[vm].busy.is_none();
        if connection.line != Line::Gone || !quiet {
            return false;
        }
        state.connections[tool] = Connection::IDLE;
        self.closed(state, vm, tool as u8);
        true
    }

    pub(crate) fn exists(&self, state: &State, tool: usize) -> bool {
        if tool < SOURCE_TOOLS {
            state.source_tools[tool].is_some()
        } else {
            state.receivers[tool - SOURCE_TOOLS].is_some()
        }
    }
}
