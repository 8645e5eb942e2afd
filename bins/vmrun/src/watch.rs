//! What the guest itself does to its vmrun: power off, ask for a reset, fail.

use std::{io, thread};

use vm_machine::{Machine, MachineEvent};

use crate::end::End;
use crate::guest::Guest;

impl Guest {
    /// Ends the process when the guest does.
    pub fn watch(&self, machine: &Machine) -> io::Result<()> {
        let events = machine.events();
        let Some(this) = self.this() else { return Ok(()) };
        thread::Builder::new().name("guest-end".into()).spawn(move || {
            if let Ok(event) = events.recv() {
                this.end(match event {
                    MachineEvent::PowerOff => End::PowerOff,
                    MachineEvent::Reset => End::Reset,
                    MachineEvent::Failed(why) => End::Failed(why),
                });
            }
        })?;
        Ok(())
    }
}
