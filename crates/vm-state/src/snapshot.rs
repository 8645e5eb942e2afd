//! The save/load registry: what a type must offer so that its values travel as sections.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use migpipe_units::limits::{MAX_SECTIONS, MAX_STATE};

use crate::section::{MAX_PAYLOAD, Section};

/// State that can be saved as a [`Section`] and loaded again, by this release or a later one.
///
/// The payload is the postcard encoding of the type, whose fields therefore never change within a
/// version. To change them: keep the old struct under another name, raise [`Self::VERSION`], and
/// convert the old struct in [`Self::upgrade`]. A golden file of every version stays in the tests.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use vm_state::{PayloadError, SectionSet, Snapshot, read_payload};
///
/// #[derive(Serialize, Deserialize)]
/// struct CounterV1 { ticks: u32 }
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// struct Counter { ticks: u64, armed: bool }
///
/// impl Snapshot for Counter {
///     const NAME: &'static str = "counter";
///     const VERSION: u16 = 2;
///
///     fn upgrade(version: u16, payload: &[u8]) -> Result<Self, PayloadError> {
///         match version {
///             1 => {
///                 let old: CounterV1 = read_payload(payload)?;
///                 Ok(Self { ticks: old.ticks.into(), armed: false })
///             }
///             _ => Err(PayloadError::NoUpgrade),
///         }
///     }
/// }
///
/// let counter = Counter { ticks: 7, armed: true };
/// let mut sections = SectionSet::new([counter.to_section(0).unwrap()]).unwrap();
/// assert_eq!(sections.take::<Counter>(0).unwrap(), counter);
/// sections.finish().unwrap();
/// ```
pub trait Snapshot: Serialize + DeserializeOwned {
    /// The name of the section: a-z, 0-9 and '-'. It never changes.
    const NAME: &'static str;
    /// The version that is written, counted from 1.
    const VERSION: u16;

    /// Reads the payload of an older version. Called only with versions below [`Self::VERSION`].
    ///
    /// # Errors
    /// [`PayloadError::NoUpgrade`] for a version that was never released or is no longer read:
    /// the default refuses all of them.
    fn upgrade(version: u16, payload: &[u8]) -> Result<Self, PayloadError> {
        let _ = (version, payload);
        Err(PayloadError::NoUpgrade)
    }

    /// Holds what was read against rules that its encoding does not express, such as the exact
    /// length of a field. Called after every load.
    ///
    /// # Errors
    /// [`PayloadError::Field`] for the first field that breaks a rule.
    fn validate(&self) -> Result<(), PayloadError> {
        Ok(())
    }

    /// The section that holds this state.
    ///
    /// # Errors
    /// [`SaveError`] if the state cannot be encoded or is larger than a section may be.
    fn to_section(&self, instance: u32) -> Result<Section, SaveError> {
        let payload = postcard::to_stdvec(self)
            .map_err(|source| SaveError::Encode { name: Self::NAME, source })?;
        if payload.len() > MAX_PAYLOAD {
            return Err(SaveError::TooLarge { name: Self::NAME, bytes: payload.len() });
        }
        Ok(Section { name: Self::NAME.to_owned(), instance, version: Self::VERSION, payload })
    }

    /// The state that `section` holds.
    ///
    /// # Errors
    /// [`LoadError`] if it is the section of something else, newer than this program, or damaged.
    fn from_section(section: &Section) -> Result<Self, LoadError> {
        let id = SectionId::of(section);
        if section.name != Self::NAME {
            return Err(LoadError::Unknown(vec![id]));
        }
        let read = match section.version {
            version if version > Self::VERSION => {
                return Err(LoadError::Newer { id, found: version, known: Self::VERSION });
            }
            version if version < Self::VERSION => Self::upgrade(version, &section.payload),
            _ => read_payload(&section.payload),
        };
        read.and_then(|state| state.validate().map(|()| state))
            .map_err(|source| LoadError::Payload { id, version: section.version, source })
    }
}

/// Decodes a whole payload; for [`Snapshot::upgrade`].
///
/// # Errors
/// [`PayloadError`] if it does not decode, or bytes are left over.
pub fn read_payload<T: DeserializeOwned>(payload: &[u8]) -> Result<T, PayloadError> {
    match postcard::take_from_bytes(payload).map_err(PayloadError::Damaged)? {
        (state, []) => Ok(state),
        (_, rest) => Err(PayloadError::LeftOver(rest.len())),
    }
}

/// Which section: name and instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SectionId {
    /// The name.
    pub name: String,
    /// The instance.
    pub instance: u32,
}

impl SectionId {
    pub(crate) fn of(section: &Section) -> Self {
        Self { name: section.name.clone(), instance: section.instance }
    }
}

impl fmt::Display for SectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.instance)
    }
}

/// Why state cannot be saved.
#[derive(Debug, Error)]
pub enum SaveError {
    /// A value has no encoding.
    #[error("section {name} cannot be encoded")]
    Encode {
        /// The section.
        name: &'static str,
        /// What postcard says.
        #[source]
        source: postcard::Error,
    },
    /// There is more state than a section holds.
    #[error("section {name} has {bytes} bytes; at most {MAX_PAYLOAD} can be saved")]
    TooLarge {
        /// The section.
        name: &'static str,
        /// What it has.
        bytes: usize,
    },
}

/// Why a payload cannot be read.
#[derive(Debug, Error)]
pub enum PayloadError {
    /// It does not decode.
    #[error("the payload is damaged")]
    Damaged(#[source] postcard::Error),
    /// It decodes, with something behind it.
    #[error("the payload has {0} bytes too many")]
    LeftOver(usize),
    /// This program has no upgrade step from that version.
    #[error("this program does not read that version; save the guest with a release that does")]
    NoUpgrade,
    /// A field holds what it cannot hold.
    #[error("the field {field} {problem}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// Why a machine cannot be loaded from a set of sections.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A section that the machine needs is not there.
    #[error("section {0} is missing")]
    Missing(SectionId),
    /// Sections that nothing in the machine asked for.
    #[error("nothing in this machine knows section {}", join(.0))]
    Unknown(Vec<SectionId>),
    /// The same section twice.
    #[error("section {0} is there twice")]
    Duplicate(SectionId),
    /// It was written by a newer release.
    #[error("section {id} has version {found}; this program reads up to {known}: use a newer one")]
    Newer {
        /// The section.
        id: SectionId,
        /// The version that it carries.
        found: u16,
        /// The newest version that this program reads.
        known: u16,
    },
    /// Its payload cannot be read.
    #[error("section {id}, version {version}, cannot be loaded")]
    Payload {
        /// The section.
        id: SectionId,
        /// The version that it carries.
        version: u16,
        /// What is wrong with it.
        #[source]
        source: PayloadError,
    },
    /// More sections, or more bytes of them, than any machine has.
    #[error(
        "section {0} is one too many: a machine has at most {MAX_SECTIONS} of {MAX_STATE} bytes together"
    )]
    TooMany(SectionId),
}

fn join(ids: &[SectionId]) -> String {
    let names: Vec<_> = ids.iter().take(8).map(ToString::to_string).collect();
    let more = match ids.len().saturating_sub(8) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    names.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::SectionSet;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct TimerV1 {
        ticks: u32,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Timer {
        ticks: u64,
        armed: bool,
    }

    impl Snapshot for Timer {
        const NAME: &'static str = "timer";
        const VERSION: u16 = 2;

        fn upgrade(version: u16, payload: &[u8]) -> Result<Self, PayloadError> {
            match version {
                1 => read_payload(payload)
                    .map(|old: TimerV1| Self { ticks: old.ticks.into(), armed: false }),
                _ => Err(PayloadError::NoUpgrade),
            }
        }

        fn validate(&self) -> Result<(), PayloadError> {
            if self.ticks > 1000 {
                return Err(PayloadError::Field {
                    field: "ticks",
                    problem: "counts further than the timer does".to_owned(),
                });
            }
            Ok(())
        }
    }

    const TIMER: Timer = Timer { ticks: 300, armed: true };

    fn raw(name: &str, instance: u32, version: u16, payload: &[u8]) -> Section {
        Section { name: name.to_owned(), instance, version, payload: payload.to_vec() }
    }

    fn load(section: Section) -> Result<Timer, LoadError> {
        SectionSet::new([section])?.take(0)
    }

    #[test]
    fn every_version_ever_released_still_loads() {
        let v1 = include_bytes!("../tests/golden/timer-1.section");
        let v2 = include_bytes!("../tests/golden/timer-2.section");
        assert_eq!(TIMER.to_section(0).unwrap().encode().unwrap(), v2);
        assert_eq!(load(Section::decode(v2).unwrap()).unwrap(), TIMER);
        let old = Timer { ticks: 300, armed: false };
        assert_eq!(load(Section::decode(v1).unwrap()).unwrap(), old);
    }

    #[test]
    fn a_newer_version_is_named() {
        let error = load(raw("timer", 0, 3, b"")).unwrap_err();
        assert!(error.to_string().starts_with("section timer 0 has version 3"));
    }

    #[test]
    fn a_version_without_an_upgrade_step_is_named() {
        let error = load(raw("timer", 0, 0, b"")).unwrap_err();
        assert!(error.to_string().contains("section timer 0, version 0"));
        assert!(error.source().unwrap().to_string().contains("does not read"));
    }

    #[test]
    fn left_over_bytes_are_counted() {
        let error = load(raw("timer", 0, 2, &[1, 1, 0])).unwrap_err();
        assert!(error.to_string().contains("timer 0"));
        assert_eq!(error.source().unwrap().to_string(), "the payload has 1 bytes too many");
    }

    #[test]
    fn a_field_that_breaks_a_rule_is_named_in_new_and_old_versions() {
        for (version, payload) in [(1, &[0xff, 0x7f][..]), (2, &[0xff, 0x7f, 0])] {
            let error = load(raw("timer", 0, version, payload)).unwrap_err();
            assert!(error.source().unwrap().to_string().contains("field ticks"));
        }
    }

    #[test]
    fn a_state_that_fills_a_section_is_saved_and_a_larger_one_is_named() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Large(Vec<u8>);

        impl Snapshot for Large {
            const NAME: &'static str = "large";
            const VERSION: u16 = 1;
        }

        // The length of so long a list takes four bytes.
        let most = MAX_PAYLOAD - 4;
        assert_eq!(Large(vec![1; most]).to_section(0).unwrap().payload.len(), MAX_PAYLOAD);
        let larger = Large(vec![1; most + 1]).to_section(0);
        assert!(matches!(
            larger,
            Err(SaveError::TooLarge { name: "large", bytes }) if bytes == MAX_PAYLOAD + 1
        ));
    }

    #[test]
    fn a_type_does_not_load_the_section_of_another() {
        let other = raw("floppy", 0, 2, &[1, 1]);
        assert!(matches!(Timer::from_section(&other), Err(LoadError::Unknown(_))));
    }

    proptest! {
        #[test]
        fn no_payload_makes_it_panic(
            version in 0..4u16,
            payload in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = load(raw("timer", 0, version, &payload));
        }

        #[test]
        fn what_is_saved_is_loaded(ticks in 0..1000u64, armed: bool, instance: u32) {
            let timer = Timer { ticks, armed };
            let mut set = SectionSet::new([timer.to_section(instance).unwrap()]).unwrap();
            prop_assert_eq!(set.take::<Timer>(instance).unwrap(), timer);
            prop_assert!(set.finish().is_ok());
        }
    }
}
