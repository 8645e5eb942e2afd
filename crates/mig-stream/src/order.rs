//! Which record may follow which. The writer and the reader hold to the same rules.

use migpipe_units::Pages;
use migpipe_units::limits::{MAX_SECTIONS, MAX_STATE};
use thiserror::Error;

use crate::frame::RecordType;
use crate::preamble::{Kind, Preamble};

/// The most runs in all `Extents` of one stream together.
const MAX_ALL_EXTENTS: u64 = 1 << 20;

/// How often the fills of one stream may cover the guest's memory. Each costs its sender some bytes
/// and its reader the writing of a page, so that without a bound a few kilobytes keep a reader busy
/// for ever. A guest that refills its memory faster than that has its pages sent as they are, by a
/// sender that finds no room ([`crate::StreamWriter::has_room_for_fill`]).
pub const MOST_FILLS: u64 = 16;

/// A record at a place where none of its type may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OrderError {
    /// The guest's memory and state are complete; this would add to them.
    #[error("a {0} record behind the end of the guest's memory and state")]
    BehindEnd(RecordType),
    /// A record that may be skipped, where nothing may stand.
    #[error("an unknown record behind the end of the guest's memory and state")]
    UnknownBehindEnd,
    /// `Go` or `Abort` in a stream that has no place for it.
    #[error("a {0} record, though the stream said that its forward path is closed behind End")]
    NoAnswerExpected(RecordType),
    /// `Go` before everything was sent.
    #[error("Go before the guest's memory and state are complete")]
    GoBeforeEnd,
    /// Something follows the last word.
    #[error("something follows behind Go or Abort, or behind a query")]
    BehindLast,
    /// The second `Digest`.
    #[error("a second Digest")]
    SecondDigest,
    /// A `Digest` that the preamble did not announce.
    #[error("a Digest, though the stream said that there is nothing to verify")]
    UnexpectedDigest,
    /// `End` without the announced `Digest`.
    #[error("the end of the guest's memory without the Digest that the stream announced")]
    NoDigest,
    /// More state than any guest has.
    #[error("more than {MAX_SECTIONS} sections, or more than {MAX_STATE} bytes of them")]
    TooMuchState,
    /// More pages filled with patterns than a guest's memory explains.
    #[error("its fills cover the guest's memory more than {MOST_FILLS} times")]
    TooManyFills,
    /// A probe carries pages, and nothing of a guest that could be run.
    #[error("a {0} record in a stream that only asks")]
    InProbe(RecordType),
    /// More hints than any guest needs.
    #[error("more than {MAX_ALL_EXTENTS} extents")]
    TooManyExtents,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Memory and state are on their way.
    Guest,
    /// They are complete.
    Complete,
    /// `Go` or `Abort` was said, or the stream is a query.
    Over,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    phase: Phase,
    go_follows: bool,
    probe: bool,
    verify: bool,
    digest_seen: bool,
    sections: u64,
    section_bytes: u64,
    extents: u64,
    /// Pages that may still be filled.
    fills_left: u64,
}

impl Order {
    /// Of the stream of a guest that has so much memory.
    pub(crate) const fn new(preamble: &Preamble, memory: Pages) -> Self {
        Self {
            fills_left: memory.0.saturating_mul(MOST_FILLS),
            phase: if preamble.kind.is_query() { Phase::Over } else { Phase::Guest },
            go_follows: preamble.flags.go_follows() && !matches!(preamble.kind, Kind::Probe),
            probe: matches!(preamble.kind, Kind::Probe),
            verify: preamble.flags.verify,
            digest_seen: false,
            sections: 0,
            section_bytes: 0,
            extents: 0,
        }
    }

    /// Whether the stream may end here.
    pub(crate) fn may_end(&self) -> bool {
        self.phase != Phase::Guest
    }

    /// Whether any record may follow.
    pub(crate) fn may_continue(&self) -> bool {
        match self.phase {
            Phase::Guest => true,
            Phase::Complete => self.go_follows,
            Phase::Over => false,
        }
    }

    /// Takes note of a record with a payload of `length` bytes, if it may stand here.
    pub(crate) fn admit(&mut self, kind: RecordType, length: u64) -> Result<(), OrderError> {
        match (self.phase, kind) {
            (Phase::Over, _) => return Err(OrderError::BehindLast),
            (
                Phase::Guest,
                RecordType::Section
                | RecordType::Digest
                | RecordType::Blackout
                | RecordType::Extents,
            ) if self.probe => return Err(OrderError::InProbe(kind)),
            (Phase::Guest, RecordType::Go) => return Err(OrderError::GoBeforeEnd),
            (Phase::Guest, RecordType::Abort) => self.phase = Phase::Over,
            (Phase::Complete, RecordType::Go | RecordType::Abort) => {
                if !self.go_follows {
                    return Err(OrderError::NoAnswerExpected(kind));
                }
                self.phase = Phase::Over;
            }
            (Phase::Complete, _) => return Err(OrderError::BehindEnd(kind)),
            (Phase::Guest, RecordType::End) => {
                if self.verify && !self.digest_seen {
                    return Err(OrderError::NoDigest);
                }
                self.phase = Phase::Complete;
            }
            (Phase::Guest, RecordType::Digest) => {
                if !self.verify {
                    return Err(OrderError::UnexpectedDigest);
                }
                if self.digest_seen {
                    return Err(OrderError::SecondDigest);
                }
                self.digest_seen = true;
            }
            (Phase::Guest, RecordType::Section) => {
                self.sections += 1;
                self.section_bytes += length;
                if self.sections > MAX_SECTIONS as u64 || self.section_bytes > MAX_STATE as u64 {
                    return Err(OrderError::TooMuchState);
                }
            }
            (Phase::Guest, RecordType::Extents) => {
                self.extents += length / crate::record::EXTENT_BYTES as u64;
                if self.extents > MAX_ALL_EXTENTS {
                    return Err(OrderError::TooManyExtents);
                }
            }
            (Phase::Guest, _) => {}
        }
        Ok(())
    }

    /// Whether so many pages may still be filled.
    pub(crate) const fn has_room_for_fill(&self, count: Pages) -> bool {
        count.0 <= self.fills_left
    }

    /// Takes note of so many filled pages, if there may be so many.
    pub(crate) fn admit_fill(&mut self, count: Pages) -> Result<(), OrderError> {
        let left = self.fills_left.checked_sub(count.0);
        self.fills_left = left.ok_or(OrderError::TooManyFills)?;
        Ok(())
    }

    /// Takes note of a record that is skipped unread.
    pub(crate) fn admit_unknown(&self) -> Result<(), OrderError> {
        match self.phase {
            Phase::Guest => Ok(()),
            Phase::Complete => Err(OrderError::UnknownBehindEnd),
            Phase::Over => Err(OrderError::BehindLast),
        }
    }
}

#[cfg(test)]
mod tests {
    use migpipe_units::MigrationId;

    use super::*;
    use crate::preamble::Flags;
    use RecordType::{Abort, Digest, End, Extents, Fill, Go, Pages, Round, Section};

    fn run(flags: Flags, records: &[RecordType]) -> Result<Order, OrderError> {
        let id = MigrationId::from_bytes([1; 16]);
        follow(Order::new(&Preamble::migrate(id, flags), migpipe_units::Pages(100)), records)
    }

    fn follow(mut order: Order, records: &[RecordType]) -> Result<Order, OrderError> {
        for &kind in records {
            order.admit(kind, 0)?;
        }
        Ok(order)
    }

    const ONE_WAY: Flags = Flags {
        return_path: false,
        page_sums: true,
        separate_commit: false,
        verify: false,
        saved: false,
        snapshot: false,
    };
    const BOTH_WAYS: Flags = Flags { return_path: true, ..ONE_WAY };
    const VERIFIED: Flags = Flags { verify: true, ..ONE_WAY };

    #[test]
    fn pages_and_sections_come_in_any_order_before_the_end() {
        let order = run(BOTH_WAYS, &[Section, Pages, Round, Section, Fill, End, Go]).unwrap();
        assert!(order.may_end() && !order.may_continue());
        assert!(run(BOTH_WAYS, &[Pages, Abort]).unwrap().may_end());
        assert!(run(BOTH_WAYS, &[End, Abort]).unwrap().may_end());
        assert!(!run(ONE_WAY, &[Pages]).unwrap().may_end());
        assert!(!run(ONE_WAY, &[End]).unwrap().may_continue());
    }

    #[test]
    fn what_is_not_known_comes_where_something_may_come() {
        for (records, said) in [
            (&[Pages][..], Ok(())),
            (&[End], Err(OrderError::UnknownBehindEnd)),
            (&[End, Go], Err(OrderError::BehindLast)),
            (&[Abort], Err(OrderError::BehindLast)),
        ] {
            assert_eq!(run(BOTH_WAYS, records).unwrap().admit_unknown(), said, "{records:?}");
        }
    }

    #[test]
    fn what_stands_at_the_wrong_place_is_refused() {
        for (flags, records, error) in [
            (ONE_WAY, &[End, Pages][..], OrderError::BehindEnd(Pages)),
            (ONE_WAY, &[End, Section], OrderError::BehindEnd(Section)),
            (ONE_WAY, &[End, End], OrderError::BehindEnd(End)),
            (ONE_WAY, &[End, Go], OrderError::NoAnswerExpected(Go)),
            (ONE_WAY, &[End, Abort], OrderError::NoAnswerExpected(Abort)),
            (BOTH_WAYS, &[Go], OrderError::GoBeforeEnd),
            (BOTH_WAYS, &[End, Go, Go], OrderError::BehindLast),
            (BOTH_WAYS, &[Abort, Pages], OrderError::BehindLast),
            (ONE_WAY, &[Digest], OrderError::UnexpectedDigest),
            (VERIFIED, &[Digest, Digest], OrderError::SecondDigest),
            (VERIFIED, &[Pages, End], OrderError::NoDigest),
        ] {
            assert_eq!(run(flags, records).unwrap_err(), error, "{records:?}");
        }
    }

    #[test]
    fn a_separate_commit_closes_the_forward_path_behind_the_end() {
        let flags = Flags { separate_commit: true, ..BOTH_WAYS };
        assert!(!run(flags, &[End]).unwrap().may_continue());
        assert_eq!(run(flags, &[End, Go]).unwrap_err(), OrderError::NoAnswerExpected(Go));
    }

    #[test]
    fn a_query_carries_nothing_behind_its_header() {
        let id = MigrationId::from_bytes([1; 16]);
        for preamble in [Preamble::resolve(id), Preamble::release(id)] {
            let order = Order::new(&preamble, migpipe_units::Pages(0));
            assert!(order.may_end() && !order.may_continue());
            for record in [Go, Abort, Pages, End] {
                assert_eq!(follow(order, &[record]).unwrap_err(), OrderError::BehindLast);
            }
        }
    }

    #[test]
    fn fills_cover_the_memory_a_bounded_number_of_times() {
        let mut order = run(ONE_WAY, &[]).unwrap();
        for _ in 0..MOST_FILLS {
            assert!(order.has_room_for_fill(migpipe_units::Pages(100)));
            order.admit_fill(migpipe_units::Pages(100)).unwrap();
        }
        assert!(!order.has_room_for_fill(migpipe_units::Pages(1)));
        assert_eq!(order.admit_fill(migpipe_units::Pages(1)), Err(OrderError::TooManyFills));
    }

    #[test]
    fn state_and_hints_are_bounded_over_the_whole_stream() {
        let mut order = run(ONE_WAY, &[]).unwrap();
        for _ in 0..2 {
            order.admit(Section, 16 << 20).unwrap();
        }
        assert_eq!(order.admit(Section, 1), Err(OrderError::TooMuchState));
        let many = [Section; MAX_SECTIONS + 1];
        assert_eq!(run(ONE_WAY, &many).unwrap_err(), OrderError::TooMuchState);
        let mut order = run(ONE_WAY, &[]).unwrap();
        order.admit(Extents, MAX_ALL_EXTENTS * 18).unwrap();
        assert_eq!(order.admit(Extents, 18), Err(OrderError::TooManyExtents));
    }

    #[test]
    fn a_stream_that_only_asks_carries_nothing_that_could_run() {
        let id = MigrationId::from_bytes([1; 16]);
        let probe = || Order::new(&Preamble::probe(id), migpipe_units::Pages(100));
        let asked = follow(probe(), &[Pages, Round, Fill, Round, End]).unwrap();
        assert!(asked.may_end() && !asked.may_continue());
        assert!(follow(probe(), &[Abort]).unwrap().may_end());
        for kind in [Section, Extents, Digest, RecordType::Blackout] {
            assert_eq!(follow(probe(), &[Pages, kind]).unwrap_err(), OrderError::InProbe(kind));
        }
        for kind in [Go, Abort] {
            let error = follow(probe(), &[End, kind]).unwrap_err();
            assert_eq!(error, OrderError::NoAnswerExpected(kind));
        }
    }
}
