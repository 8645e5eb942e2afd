//! The thread of one vCPU.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_devices::PowerRequest;

use super::gate::{Gate, Next, RunRequest};
use super::shared::{SharedVcpu, lock};
use crate::confinement;
use crate::events::{Events, MachineEvent};
use crate::monotonic_time::MonotonicTime;
use crate::ports::{Ask, Ports};

/// How often KVM_RUN is called for the completion of one instruction at most: a string instruction
/// may need one call per piece of a page.
const MOST_COMPLETIONS: usize = 10_000;

/// What the thread of a vCPU holds.
pub(super) struct Thread {
    pub(super) number: u32,
    pub(super) vcpu: SharedVcpu,
    pub(super) gate: Arc<Gate>,
    pub(super) ports: Ports,
    pub(super) events: Arc<Events>,
    /// When it last left guest mode; nothing if it has not run since it was parked.
    pub(super) left_guest: Cell<Option<MonotonicTime>>,
}

/// What an exit asks for.
enum After {
    /// Nothing: KVM_RUN again.
    Nothing,
    /// KVM_RUN was interrupted before it did anything.
    Interrupted,
    Idle(Duration),
    End(MachineEvent),
}

impl Thread {
    /// Does what the gate says until it says that this is the end.
    pub(super) fn run(self) {
        migpipe_confine::thread(&confinement::VCPU);
        let kick = self.gate.kick(self.number);
        kick.is_mine();
        loop {
            kick.lower();
            match self.gate.next() {
                Next::Run => self.step(),
                Next::Hold => self.gate.wait_while_held(),
                Next::Pause => {
                    // A vCPU that has not run has nothing to complete, and one that waits for its
                    // state must not enter KVM at all.
                    let left_guest = self.left_guest.take();
                    if left_guest.is_some() {
                        self.complete();
                    }
                    self.gate.park(left_guest);
                }
                Next::Quit => return,
            }
        }
    }

    /// Enters guest mode once and serves what it comes back for.
    fn step(&self) {
        self.gate.entering();
        let after = self.enter(&mut lock(&self.vcpu));
        self.left_guest.set(Some(MonotonicTime::now()));
        match after {
            After::Nothing | After::Interrupted => {}
            After::Idle(time) => self.gate.sleep(time),
            After::End(event) => {
                self.events.send(&event);
                self.gate.set(RunRequest::Pause);
            }
        }
    }

    /// Finishes an instruction whose I/O user space has served: KVM does its part at the next
    /// KVM_RUN (KVM API, KVM_RUN), which must not go on into the guest.
    fn complete(&self) {
        let mut vcpu = lock(&self.vcpu);
        let kick = self.gate.kick(self.number);
        for _ in 0..MOST_COMPLETIONS {
            kick.raise();
            match self.enter(&mut vcpu) {
                After::Nothing | After::Idle(_) => {}
                After::Interrupted => break,
                After::End(event) => {
                    self.events.send(&event);
                    break;
                }
            }
        }
        kick.lower();
    }

    fn enter(&self, vcpu: &mut VcpuFd) -> After {
        let failed =
            |what: String| After::End(MachineEvent::Failed(format!("vCPU {} {what}", self.number)));
        let what = match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => return self.out(port, data),
            Ok(VcpuExit::IoIn(port, data)) => {
                self.ports.read(port, data);
                return After::Nothing;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.ports.read_mmio(address, data);
                return After::Nothing;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.ports.write_mmio(address, data);
                return After::Nothing;
            }
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {
                return After::Nothing;
            }
            Ok(VcpuExit::Intr) => return After::Interrupted,
            // EAGAIN: this vCPU waits for its start-up interrupt.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                return After::Interrupted;
            }
            Ok(VcpuExit::Shutdown) => "stopped at a triple fault".to_owned(),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                format!("cannot enter guest mode, hardware reason {reason:#x}")
            }
            Ok(VcpuExit::InternalError) => "met an instruction that KVM cannot emulate".to_owned(),
            Ok(exit) => format!("left guest mode for an unknown reason: {exit:?}"),
            Err(error) => format!("cannot run: {error}"),
        };
        let place = vcpu.get_regs().map_or_else(
            |_| String::new(),
            |regs| format!(" (rip {:#x}, rsp {:#x})", regs.rip, regs.rsp),
        );
        failed(what + &place)
    }

    fn out(&self, port: u16, data: &[u8]) -> After {
        match self.ports.write(port, data) {
            Ask::Nothing => After::Nothing,
            Ask::Idle(time) => After::Idle(time),
            Ask::Power(PowerRequest::PowerOff) => After::End(MachineEvent::PowerOff),
            Ask::Power(PowerRequest::Reset) => After::End(MachineEvent::Reset),
        }
    }
}
