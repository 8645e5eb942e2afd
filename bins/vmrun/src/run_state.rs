//! Whether the guest was running, as a section of its saved state: a guest that its operator had
//! paused arrives paused.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_state::Section;

const NAME: &str = "run-state";
const VERSION: u16 = 1;

/// Version 1 of the section.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunState {
    /// Whether the operator wants the guest to run.
    pub wanted: bool,
}

/// Why a saved guest has no run state.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum RunStateError {
    #[error("the saved state has no section {NAME}")]
    Missing,
    #[error("section {NAME} has version {0}; this program loads up to {VERSION}")]
    Version(u16),
    #[error("section {NAME} does not read")]
    Damaged(#[from] postcard::Error),
    #[error("section {NAME} has {0} bytes too many")]
    LeftOver(usize),
}

impl RunState {
    pub fn section(&self) -> Result<Section, RunStateError> {
        let payload = postcard::to_allocvec(self)?;
        Ok(Section { name: NAME.into(), instance: 0, version: VERSION, payload })
    }

    /// Takes the section out of `sections`.
    pub fn take(sections: &mut Vec<Section>) -> Result<Self, RunStateError> {
        let at = sections
            .iter()
            .position(|section| section.name == NAME && section.instance == 0)
            .ok_or(RunStateError::Missing)?;
        let section = sections.swap_remove(at);
        if section.version != VERSION {
            return Err(RunStateError::Version(section.version));
        }
        match postcard::take_from_bytes(&section.payload)? {
            (state, []) => Ok(state),
            (_, rest) => Err(RunStateError::LeftOver(rest.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paused_guest_arrives_paused_and_other_sections_stay_in_order() {
        let other =
            |instance| Section { name: "vcpu".into(), instance, version: 1, payload: vec![] };
        let mut sections = vec![other(0), other(1), RunState { wanted: false }.section().unwrap()];
        assert!(!RunState::take(&mut sections).unwrap().wanted);
        assert_eq!(sections.iter().map(|s| s.instance).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn a_bad_section_is_refused_by_name() {
        for (version, payload) in [(2, vec![1]), (1, vec![1, 0]), (1, vec![])] {
            let section = Section { name: NAME.into(), instance: 0, version, payload };
            let error = RunState::take(&mut vec![section]).unwrap_err();
            assert!(error.to_string().contains(NAME), "{error}");
        }
        assert_eq!(RunState::take(&mut vec![]).unwrap_err(), RunStateError::Missing);
    }
}
