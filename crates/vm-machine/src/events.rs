//! What happens to a guest by itself.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

/// The end of a guest's run, by its own doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// It switched its machine off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// It can run no further; the text says which vCPU and why.
    Failed(String),
}

/// Who wants to know, and what there was to know.
#[derive(Debug, Default)]
pub(crate) struct Events(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// A machine ends once: the first event stays.
    ended: Option<MachineEvent>,
    listeners: Vec<Sender<MachineEvent>>,
}

impl Events {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A receiver of the event, also of one that has been already.
    pub(crate) fn listen(&self) -> Receiver<MachineEvent> {
        let (sender, receiver) = channel();
        let mut inner = self.inner();
        if let Some(event) = &inner.ended {
            // The receiver is right here.
            let _ = sender.send(event.clone());
        }
        inner.listeners.push(sender);
        receiver
    }

    pub(crate) fn send(&self, event: &MachineEvent) {
        let mut inner = self.inner();
        if inner.ended.is_some() {
            return;
        }
        inner.ended = Some(event.clone());
        inner.listeners.retain(|listener| listener.send(event.clone()).is_ok());
    }

    /// The event that ended the machine.
    pub(crate) fn ended(&self) -> Option<MachineEvent> {
        self.inner().ended.clone()
    }
}
