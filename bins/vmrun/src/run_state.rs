//! Whether the guest was running, as a section of its saved state: a guest that its operator had
//! paused arrives paused.

use serde::{Deserialize, Serialize};
use vm_control::Refusal;
use vm_state::Section;

use crate::refusal::refusal;

const NAME: &str = "run-state";
const VERSION: u16 = 1;

/// Version 1 of the section.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunState {
    /// Whether the operator wants the guest to run.
    pub wanted: bool,
}

impl RunState {
    pub fn section(&self) -> Result<Section, Refusal> {
        let payload = postcard::to_allocvec(self).map_err(refusal)?;
        Ok(Section { name: NAME.into(), instance: 0, version: VERSION, payload })
    }

    /// Takes the section out of `sections`.
    pub fn take(sections: &mut Vec<Section>) -> Result<Self, Refusal> {
        let at = sections
            .iter()
            .position(|section| section.name == NAME && section.instance == 0)
            .ok_or_else(|| Refusal::new(format!("the saved state has no section {NAME}")))?;
        let section = sections.swap_remove(at);
        if section.version != VERSION {
            return Err(Refusal::new(format!(
                "section {NAME} has version {}; this program loads up to {VERSION}",
                section.version
            )));
        }
        match postcard::take_from_bytes(&section.payload).map_err(refusal)? {
            (state, []) => Ok(state),
            (_, rest) => {
                Err(Refusal::new(format!("section {NAME} has {} bytes too many", rest.len())))
            }
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
            assert!(RunState::take(&mut vec![section]).is_err(), "{version}");
        }
        assert!(RunState::take(&mut vec![]).unwrap_err().message.contains(NAME));
    }
}
