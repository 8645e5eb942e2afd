//! The set of sections from which a machine is loaded.

use std::collections::BTreeMap;

use migpipe_units::limits::{MAX_SECTIONS, MAX_STATE};

use crate::section::Section;
use crate::snapshot::{LoadError, SectionId, Snapshot};

/// The sections from which a machine is loaded. Everything that the machine has takes its own
/// section exactly once; [`Self::finish`] makes sure that none is left.
#[derive(Debug, Default)]
pub struct SectionSet {
    sections: BTreeMap<SectionId, Section>,
    bytes: usize,
}

impl SectionSet {
    /// A set of these sections.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn new(sections: impl IntoIterator<Item = Section>) -> Result<Self, LoadError> {
        let mut set = Self::default();
        for section in sections {
            set.add(section)?;
        }
        Ok(set)
    }

    /// Adds a section, in any order.
    ///
    /// # Errors
    /// [`LoadError::Duplicate`] if it is there already, [`LoadError::TooMany`] past the bounds.
    pub fn add(&mut self, section: Section) -> Result<(), LoadError> {
        let id = SectionId::of(&section);
        if self.sections.contains_key(&id) {
            return Err(LoadError::Duplicate(id));
        }
        let bytes = self.bytes.saturating_add(section.payload.len());
        if self.sections.len() == MAX_SECTIONS || bytes > MAX_STATE {
            return Err(LoadError::TooMany(id));
        }
        self.bytes = bytes;
        self.sections.insert(id, section);
        Ok(())
    }

    /// Takes the state of one instance out of the set.
    ///
    /// # Errors
    /// [`LoadError::Missing`] if it is not there (or was taken already), and what
    /// [`Snapshot::from_section`] says.
    pub fn take<S: Snapshot>(&mut self, instance: u32) -> Result<S, LoadError> {
        S::from_section(&self.take_section(S::NAME, instance)?)
    }

    /// Takes one section out of the set, for a device whose name is known only at run time.
    ///
    /// # Errors
    /// [`LoadError::Missing`] if it is not there, or was taken already.
    pub fn take_section(&mut self, name: &str, instance: u32) -> Result<Section, LoadError> {
        let id = SectionId { name: name.to_owned(), instance };
        self.sections.remove(&id).ok_or(LoadError::Missing(id))
    }

    /// The sections that are still there.
    pub fn ids(&self) -> impl Iterator<Item = &SectionId> {
        self.sections.keys()
    }

    /// Ends loading.
    ///
    /// # Errors
    /// [`LoadError::Unknown`] if sections are left that nothing has taken.
    pub fn finish(self) -> Result<(), LoadError> {
        if self.sections.is_empty() {
            return Ok(());
        }
        Err(LoadError::Unknown(self.sections.into_keys().collect()))
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Timer {
        ticks: u64,
    }

    impl Snapshot for Timer {
        const NAME: &'static str = "timer";
        const VERSION: u16 = 1;
    }

    const TIMER: Timer = Timer { ticks: 300 };

    fn raw(name: &str, instance: u32) -> Section {
        Section { name: name.to_owned(), instance, version: 1, payload: Vec::new() }
    }

    #[test]
    fn a_missing_section_is_named() {
        let error = SectionSet::default().take::<Timer>(4).unwrap_err();
        assert_eq!(error.to_string(), "section timer 4 is missing");
    }

    #[test]
    fn each_instance_is_taken_once() {
        let mut set =
            SectionSet::new([TIMER.to_section(0).unwrap(), TIMER.to_section(1).unwrap()]).unwrap();
        set.take::<Timer>(1).unwrap();
        assert!(matches!(
            set.take::<Timer>(1),
            Err(LoadError::Missing(id)) if id.instance == 1
        ));
        set.take::<Timer>(0).unwrap();
        set.finish().unwrap();
    }

    #[test]
    fn a_section_that_nothing_asked_for_is_named() {
        let set = SectionSet::new([raw("floppy", 1)]).unwrap();
        let error = set.finish().unwrap_err();
        assert_eq!(error.to_string(), "nothing in this machine knows section floppy 1");
    }

    #[test]
    fn the_same_section_twice_is_named() {
        let twice = [TIMER.to_section(0).unwrap(), TIMER.to_section(0).unwrap()];
        let error = SectionSet::new(twice).unwrap_err();
        assert_eq!(error.to_string(), "section timer 0 is there twice");
    }

    #[test]
    fn what_is_still_there_is_told() {
        let mut set = SectionSet::new([raw("a", 0), raw("b", 7)]).unwrap();
        set.take_section("a", 0).unwrap();
        let left: Vec<_> = set.ids().map(|id| (id.name.as_str(), id.instance)).collect();
        assert_eq!(left, [("b", 7)]);
    }

    #[test]
    fn a_set_holds_as_many_bytes_as_it_may_and_not_one_more() {
        // They are counted and never looked at.
        let mut set = SectionSet { bytes: MAX_STATE - 3, ..SectionSet::default() };
        let of = |instance, bytes| Section { payload: vec![0; bytes], ..raw("x", instance) };
        set.add(of(0, 3)).unwrap();
        assert!(matches!(set.add(of(1, 1)), Err(LoadError::TooMany(id)) if id.instance == 1));
        set.add(of(2, 0)).unwrap();
    }

    #[test]
    fn a_set_stops_taking_sections_at_its_bounds() {
        let many = (0..=MAX_SECTIONS as u32).map(|instance| raw("x", instance));
        assert!(matches!(
            SectionSet::new(many),
            Err(LoadError::TooMany(id)) if id.instance == MAX_SECTIONS as u32
        ));
    }
}
