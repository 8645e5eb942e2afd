//! The way forward, record by record.

use std::cell::RefCell;
use std::io::{self, Read, StdinLock};
use std::sync::mpsc::Sender;

use mig_stream::{Record, StreamReader};
use migpipe_tests::faults::Point;
use migpipe_units::MigrationId;

use crate::control::Control;
use crate::far::Far;

/// A run of pages that is not the first of its round.
const MIDDLE: u32 = 4;

/// Reads the stream, and keeps what was read until it may pass.
struct Tap<'a> {
    from: StdinLock<'static>,
    held: &'a RefCell<Vec<u8>>,
}

impl Read for Tap<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.held.borrow_mut().extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

/// Carries the stream to its end, then ends the far end's input.
pub fn carry(control: &Control, far: &Far, id: &Sender<MigrationId>) {
    let held = RefCell::new(Vec::new());
    // A stream that breaks off is passed on as far as it came.
    let _ = records(control, far, id, &held);
    let _ = pass(control, far, &held);
    far.close();
}

fn records(
    control: &Control,
    far: &Far,
    id: &Sender<MigrationId>,
    held: &RefCell<Vec<u8>>,
) -> Option<()> {
    control.at(Point::Connect, far);
    let mut reader = StreamReader::open(Tap { from: io::stdin().lock(), held }).ok()?;
    let _ = id.send(reader.preamble().id);
    let query = reader.preamble().kind.is_query();
    if query {
        control.at(Point::Query, far);
    }
    pass(control, far, held)?;
    if !query {
        control.at(Point::Header, far);
    }
    let (mut rounds, mut runs, mut sections) = (0, 0, 0);
    while let Some(record) = reader.next_record().ok()? {
        match record {
            Record::Pages(range) => {
                let mut payload = vec![0; range.len().0 as usize];
                let middle = payload.len() / 2;
                reader.read_payload(&mut payload[..middle]).ok()?;
                pass(control, far, held)?;
                runs += 1;
                if rounds > 0 {
                    control.at(Point::Later, far);
                } else if runs >= MIDDLE {
                    control.at(Point::Round, far);
                }
                reader.read_payload(&mut payload[middle..]).ok()?;
            }
            Record::Round(_) => rounds += 1,
            Record::Blackout => control.at(Point::Blackout, far),
            Record::Section(_) => {
                if sections == 0 {
                    control.at(Point::Section, far);
                }
                sections += 1;
            }
            Record::End(_) => control.at(Point::End, far),
            Record::Go { .. } => {
                control.at(Point::Go, far);
                pass(control, far, held)?;
                control.at(Point::AfterGo, far);
            }
            _ => {}
        }
        pass(control, far, held)?;
    }
    control.at(Point::Eof, far);
    Some(())
}

/// Lets pass what was held back.
fn pass(control: &Control, far: &Far, held: &RefCell<Vec<u8>>) -> Option<()> {
    let bytes = held.take();
    if bytes.is_empty() {
        return Some(());
    }
    control.wait();
    if control.drops_forward() {
        return Some(());
    }
    far.write(&bytes).ok()
}
