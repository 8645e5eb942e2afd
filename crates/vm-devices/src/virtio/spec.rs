//! How a virtio device is named on a command line and in a machine description.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_state::DeviceDescription;

use crate::console::ConsoleSpec;

/// The kinds of virtio devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtioKind {
    /// A disk.
    Block,
    /// A source of randomness.
    Rng,
    /// A network card.
    Net,
    /// A console beside the serial one.
    Console,
    /// A balloon, by which memory is given back to the host.
    Balloon,
}

impl VirtioKind {
    const ALL: [Self; 5] = [Self::Block, Self::Rng, Self::Net, Self::Console, Self::Balloon];

    /// What a machine description calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Rng => "rng",
            Self::Net => "net",
            Self::Console => "console",
            Self::Balloon => DeviceDescription::BALLOON,
        }
    }

    /// The kind that a machine description calls so.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Why a text is no device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VirtioSpecError {
    /// It has no value where it needs one, or a name that nothing has.
    #[error("'{text}' is no {kind}: write {form}")]
    Form {
        /// What was written.
        text: String,
        /// What it should be.
        kind: &'static str,
        /// How it is written.
        form: &'static str,
    },
    /// A parameter has a value that it cannot have.
    #[error("{device}: {param} cannot be '{value}'")]
    Param {
        /// The device.
        device: String,
        /// The parameter.
        param: String,
        /// Its value.
        value: String,
    },
    /// A parameter that every such device has is not there.
    #[error("{device} has no {param}")]
    Missing {
        /// The device.
        device: String,
        /// The parameter.
        param: &'static str,
    },
}

/// One virtio device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioSpec {
    /// What it is.
    pub kind: VirtioKind,
    /// Which one: unique in its machine among those of its kind.
    pub id: String,
    /// What else is to be said of it.
    pub params: BTreeMap<String, String>,
}

impl VirtioSpec {
    /// The parameter of a disk that says where its image is.
    pub(super) const PATH_PARAM: &str = "path";

    /// How a disk is written.
    pub const DISK_FORM: &'static str = "PATH[,ro][,direct][,serial=TEXT][,id=NAME]";

    /// The disk that a command line names by `PATH[,ro][,direct][,serial=TEXT][,id=NAME]`;
    /// without an id it is called disk and its `number`. The path is made absolute, for it has to
    /// mean the same at a destination.
    ///
    /// # Errors
    /// [`VirtioSpecError`] for anything else.
    pub fn disk(text: &str, number: usize) -> Result<Self, VirtioSpecError> {
        let (path, options) = text.split_once(',').unwrap_or((text, ""));
        let path = std::path::absolute(path).ok().and_then(|path| Some(path.to_str()?.to_owned()));
        let wrong =
            || VirtioSpecError::Form { text: text.to_owned(), kind: "disk", form: Self::DISK_FORM };
        let mut spec = Self {
            kind: VirtioKind::Block,
            id: format!("disk{number}"),
            params: BTreeMap::from([(Self::PATH_PARAM.to_owned(), path.ok_or_else(wrong)?)]),
        };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let (name, value) = match option {
                "ro" | "direct" => (option, "yes"),
                _ => option.split_once('=').ok_or_else(wrong)?,
            };
            match (name, value) {
                ("id", id) if !id.is_empty() => spec.id = id.to_owned(),
                ("ro" | "direct", "yes" | "no") | ("serial", _) => {
                    spec.params.insert(name.to_owned(), value.to_owned());
                }
                _ => return Err(wrong()),
            }
        }
        Ok(spec)
    }

    /// How a network card is written.
    pub const NET_FORM: &'static str = "tap=NAME[,mac=MAC][,id=NAME]";

    /// The network card that a command line names by `tap=NAME[,mac=MAC][,id=NAME]`; without an id
    /// it is called net and its `number`, without an address it gets one of its own.
    ///
    /// # Errors
    /// [`VirtioSpecError`] for anything else.
    pub fn net(text: &str, number: usize) -> Result<Self, VirtioSpecError> {
        let wrong = || VirtioSpecError::Form {
            text: text.to_owned(),
            kind: "network card",
            form: Self::NET_FORM,
        };
        let mut spec =
            Self { kind: VirtioKind::Net, id: format!("net{number}"), params: BTreeMap::new() };
        for option in text.split(',') {
            match option.split_once('=').ok_or_else(wrong)? {
                (_, "") => return Err(wrong()),
                ("id", id) => spec.id = id.to_owned(),
                (name @ ("tap" | "mac"), value) => {
                    spec.params.insert(name.to_owned(), value.to_owned());
                }
                _ => return Err(wrong()),
            }
        }
        if spec.params.contains_key("tap") { Ok(spec) } else { Err(wrong()) }
    }

    /// The source of randomness; a machine has one at most.
    pub fn rng() -> Self {
        Self { kind: VirtioKind::Rng, id: "rng0".to_owned(), params: BTreeMap::new() }
    }

    /// The parameter of a console that says where it goes.
    pub const CONSOLE_PARAM: &'static str = "console";

    /// The console that goes where `to` says; a machine has one at most beside its serial one.
    pub fn console(to: &ConsoleSpec) -> Self {
        Self {
            kind: VirtioKind::Console,
            id: "console0".to_owned(),
            params: BTreeMap::from([(Self::CONSOLE_PARAM.to_owned(), to.to_string())]),
        }
    }

    /// The balloon; a machine has one at most.
    pub fn balloon() -> Self {
        Self { kind: VirtioKind::Balloon, id: "balloon0".to_owned(), params: BTreeMap::new() }
    }

    /// The file or socket of this host that it opens, if its parameters name one.
    pub fn path(&self) -> Option<PathBuf> {
        match self.kind {
            VirtioKind::Block => self.params.get(Self::PATH_PARAM).map(PathBuf::from),
            VirtioKind::Console => {
                let to: ConsoleSpec = self.params.get(Self::CONSOLE_PARAM)?.parse().ok()?;
                to.path().map(Path::to_owned)
            }
            VirtioKind::Rng | VirtioKind::Net | VirtioKind::Balloon => None,
        }
    }

    /// The parameter of that name.
    pub(super) fn param(&self, param: &'static str) -> Result<&str, VirtioSpecError> {
        let value = self.params.get(param).map(String::as_str);
        value.ok_or_else(|| VirtioSpecError::Missing { device: self.to_string(), param })
    }

    /// Whether the parameter of that name is there and says yes.
    pub(super) fn flag(&self, param: &str) -> Result<bool, VirtioSpecError> {
        match self.params.get(param).map(String::as_str) {
            None | Some("no") => Ok(false),
            Some("yes") => Ok(true),
            Some(value) => Err(self.wrong(param, value)),
        }
    }

    /// The number, decimal or with 0x before it, that `text`, the value of `param`, is.
    pub(super) fn number(&self, param: &str, text: &str) -> Result<u64, VirtioSpecError> {
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.map_err(|_| self.wrong(param, text))
    }

    pub(super) fn wrong(&self, param: &str, value: &str) -> VirtioSpecError {
        VirtioSpecError::Param {
            device: self.to_string(),
            param: param.to_owned(),
            value: value.to_owned(),
        }
    }
}

impl fmt::Display for VirtioSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_read_as_people_write_it() {
        let disk = VirtioSpec::disk("/images/web.raw,ro,serial=abc", 1).unwrap();
        assert_eq!(disk.to_string(), "block disk1");
        assert_eq!(disk.param("path").unwrap(), "/images/web.raw");
        assert!(disk.flag("ro").unwrap() && !disk.flag("direct").unwrap());
        assert_eq!(disk.param("serial").unwrap(), "abc");
        assert_eq!(VirtioSpec::disk("/a,id=root", 0).unwrap().id, "root");
    }

    #[test]
    fn a_network_card_needs_a_tap() {
        let net = VirtioSpec::net("tap=tap0,mac=52:54:00:12:34:56", 2).unwrap();
        assert_eq!((net.to_string().as_str(), net.param("tap").unwrap()), ("net net2", "tap0"));
        for text in ["", "tap0", "tap=", "mac=52:54:00:12:34:56", "tap=a,speed=1"] {
            let error = VirtioSpec::net(text, 0).unwrap_err().to_string();
            assert!(error.contains("tap=NAME"), "{error}");
        }
    }

    #[test]
    fn what_is_no_disk_is_refused_with_the_form() {
        for text in ["", "/a,rw", "/a,serial", "/a,id=", "/a,size=3"] {
            let error = VirtioSpec::disk(text, 0).unwrap_err().to_string();
            assert!(error.contains("PATH[,ro]"), "{error}");
        }
    }
}
