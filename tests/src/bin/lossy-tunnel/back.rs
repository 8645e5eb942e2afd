//! The way back, message by message.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::process::ChildStdout;
use std::sync::mpsc::Receiver;

use mig_stream::{Message, ReturnReader};
use migpipe_tests::faults::Point;
use migpipe_units::MigrationId;

use crate::control::Control;
use crate::far::Far;

/// Reads the answers, and keeps what was read until it may pass.
struct Tap<'a> {
    from: ChildStdout,
    held: &'a RefCell<Vec<u8>>,
}

impl Read for &mut Tap<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.held.borrow_mut().extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

/// Carries the answers until the far end closes its output.
pub fn carry(from: ChildStdout, id: &Receiver<MigrationId>, control: &Control, far: &Far) {
    let held = RefCell::new(Vec::new());
    let mut tap = Tap { from, held: &held };
    let _ = messages(&mut tap, id, control, far, &held);
    pass(control, &held);
    // What is no answer passes as it is.
    let _ = io::copy(&mut &mut tap, &mut io::sink());
    pass(control, &held);
}

fn messages(
    tap: &mut Tap<'_>,
    id: &Receiver<MigrationId>,
    control: &Control,
    far: &Far,
    held: &RefCell<Vec<u8>>,
) -> Option<()> {
    // A stream that never came has no answers.
    let id = id.recv().ok()?;
    let mut reader = ReturnReader::open(tap, id).ok()?;
    pass(control, held);
    while let Some(message) = reader.next_message().ok()? {
        let (before, after) = match message {
            Message::Ready { .. } => (Some(Point::Ready), None),
            Message::Ack { .. } => (Some(Point::Ack), None),
            Message::Running { .. } => (Some(Point::Running), Some(Point::AfterRunning)),
            Message::Resolved(_) => (Some(Point::Answer), None),
            _ => (None, None),
        };
        if let Some(point) = before {
            control.at(point, far);
        }
        pass(control, held);
        if let Some(point) = after {
            control.at(point, far);
        }
    }
    Some(())
}

/// Lets pass what was held back. A sender that went away takes nothing; the way forward finds out.
fn pass(control: &Control, held: &RefCell<Vec<u8>>) {
    let bytes = held.take();
    if bytes.is_empty() {
        return;
    }
    control.wait();
    if control.drops_back() {
        return;
    }
    let mut out = io::stdout();
    let _ = out.write_all(&bytes).and_then(|()| out.flush());
}
