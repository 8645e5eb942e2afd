//! What the guest has printed and nobody has taken yet.

use std::collections::VecDeque;

/// A queue of bytes with an upper bound: the guest never waits for a slow reader. When it is full
/// the oldest bytes go, and the reader is told how many.
#[derive(Debug)]
pub struct Backlog {
    bytes: VecDeque<u8>,
    limit: usize,
    dropped: u64,
    /// What is left of a note about dropped bytes that has been begun; never dropped itself.
    note: VecDeque<u8>,
}

impl Backlog {
    /// An empty queue of at most `limit` bytes.
    pub const fn new(limit: usize) -> Self {
        Self { bytes: VecDeque::new(), limit, dropped: 0, note: VecDeque::new() }
    }

    /// Adds bytes at the end, at the cost of the oldest.
    pub fn push(&mut self, bytes: &[u8]) {
        let kept = &bytes[bytes.len().saturating_sub(self.limit)..];
        let over = (self.bytes.len() + kept.len()).saturating_sub(self.limit);
        self.bytes.drain(..over);
        self.dropped += (over + bytes.len() - kept.len()) as u64;
        self.bytes.extend(kept);
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.note.is_empty() && self.dropped == 0
    }

    /// The next bytes, some of them at least if there are any.
    pub fn front(&mut self) -> &[u8] {
        if self.note.is_empty() && self.dropped > 0 {
            let note = format!("\r\n[{} bytes of console output dropped]\r\n", self.dropped);
            self.note.extend(note.bytes());
            self.dropped = 0;
        }
        if self.note.is_empty() { self.bytes.as_slices().0 } else { self.note.as_slices().0 }
    }

    /// Takes `count` bytes of [`Self::front`] away.
    pub fn consume(&mut self, count: usize) {
        let from = if self.note.is_empty() { &mut self.bytes } else { &mut self.note };
        from.drain(..count.min(from.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(backlog: &mut Backlog) -> String {
        let mut all = Vec::new();
        while !backlog.is_empty() {
            let count = backlog.front().len().min(5);
            all.extend_from_slice(&backlog.front()[..count]);
            backlog.consume(count);
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn bytes_come_out_in_the_order_in_which_they_went_in() {
        let mut backlog = Backlog::new(20);
        for part in ["one ", "two ", "three"] {
            backlog.push(part.as_bytes());
        }
        assert_eq!(take_all(&mut backlog), "one two three");
    }

    #[test]
    fn the_oldest_bytes_are_dropped_and_the_reader_is_told() {
        let mut backlog = Backlog::new(8);
        backlog.push(b"0123456789");
        backlog.push(b"ab");
        assert_eq!(take_all(&mut backlog), "\r\n[4 bytes of console output dropped]\r\n456789ab");
        backlog.push(b"more");
        assert_eq!(take_all(&mut backlog), "more");
    }

    #[test]
    fn a_note_that_was_begun_is_finished_though_more_is_dropped() {
        let mut backlog = Backlog::new(4);
        backlog.push(b"01234");
        assert!(backlog.front().starts_with(b"\r\n[1"));
        backlog.consume(6);
        backlog.push(b"56");
        assert_eq!(
            take_all(&mut backlog),
            "ytes of console output dropped]\r\n\r\n[2 bytes of console output dropped]\r\n3456"
        );
    }
}
