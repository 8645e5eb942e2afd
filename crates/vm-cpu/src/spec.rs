//! Which processor a guest is to have: as a command line says it, and with its baseline read.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;
use vm_state::compat::{Level, WORDS, arch_capability};

use crate::json::OfferError;
use crate::left_out::never;
use crate::offer::Offer;

/// A processor as a command line names it:
/// `host|baseline:FILE|x86-64-v2|v3|v4[,+feature,-feature]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSpec {
    base: Base,
    changes: Vec<Change>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Base {
    Host,
    Baseline(PathBuf),
    Level(Level),
}

/// A feature that is added or taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `+feature`
    Add(String),
    /// `-feature`
    Remove(String),
}

/// Where the features of a guest come from, before any is added or taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// All that the host has and that migrates.
    #[default]
    Host,
    /// What hosts have in common.
    Baseline(Box<Offer>),
    /// A level of x86-64.
    Level(Level),
}

/// The processor that a guest is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Where it begins.
    pub model: Model,
    /// What is changed then, in this order.
    pub changes: Vec<Change>,
}

/// Why words are no processor.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    /// The first word is none that is known.
    #[error(
        "{0} is no CPU: host, baseline:FILE (from vmctl cpu baseline), x86-64-v2, x86-64-v3 and \
         x86-64-v4 are"
    )]
    NoModel(String),
    /// `baseline:` without a file.
    #[error("baseline: needs a file, which vmctl cpu baseline writes")]
    NoFile,
    /// A change begins with + or -.
    #[error("{0} is neither +FEATURE nor -FEATURE")]
    NoChange(String),
    /// No feature has this name.
    #[error("no CPU feature is called {0}: vmctl cpu lists those of a host, as /proc/cpuinfo does")]
    Unknown(String),
    /// No guest is given this.
    #[error("no guest is given {feature}: {why}")]
    Never {
        /// The feature.
        feature: String,
        /// The reason.
        why: &'static str,
    },
}

impl FromStr for CpuSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut words = text.split(',');
        let base = words.next().unwrap_or_default();
        let base = match (base.strip_prefix("baseline:"), base) {
            (Some(""), _) => return Err(SpecError::NoFile),
            (Some(file), _) => Base::Baseline(PathBuf::from(file)),
            (None, "host") => Base::Host,
            (None, "v2" | "v3" | "v4") => level(&format!("x86-64-{base}"))?,
            (None, base) => level(base)?,
        };
        let changes = words.map(change).collect::<Result<_, _>>()?;
        Ok(Self { base, changes })
    }
}

fn level(text: &str) -> Result<Base, SpecError> {
    text.parse().map(Base::Level).map_err(|_| SpecError::NoModel(text.to_owned()))
}

fn change(word: &str) -> Result<Change, SpecError> {
    let (make, feature): (fn(String) -> Change, _) = match word.split_at_checked(1) {
        Some(("+", feature)) => (Change::Add, feature),
        Some(("-", feature)) => (Change::Remove, feature),
        _ => return Err(SpecError::NoChange(word.to_owned())),
    };
    let known = WORDS.iter().any(|word| word.bit(feature) != 0);
    if !known && arch_capability(feature).is_none() {
        return Err(SpecError::Unknown(feature.to_owned()));
    }
    let change = make(feature.to_owned());
    match never(feature) {
        Some(why) if matches!(change, Change::Add(_)) => {
            Err(SpecError::Never { feature: feature.to_owned(), why })
        }
        _ => Ok(change),
    }
}

impl fmt::Display for CpuSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.base {
            Base::Host => f.write_str("host")?,
            Base::Baseline(file) => write!(f, "baseline:{}", file.display())?,
            Base::Level(level) => level.fmt(f)?,
        }
        for change in &self.changes {
            match change {
                Change::Add(feature) => write!(f, ",+{feature}")?,
                Change::Remove(feature) => write!(f, ",-{feature}")?,
            }
        }
        Ok(())
    }
}

impl CpuSpec {
    /// The file of the baseline, if it is one.
    pub fn baseline(&self) -> Option<&Path> {
        match &self.base {
            Base::Baseline(file) => Some(file),
            Base::Host | Base::Level(_) => None,
        }
    }

    /// The same, wherever it is read.
    ///
    /// # Errors
    /// If this process has no working directory.
    pub fn absolute(mut self) -> io::Result<Self> {
        if let Base::Baseline(file) = &mut self.base {
            *file = std::path::absolute(&*file)?;
        }
        Ok(self)
    }

    /// Reads the baseline, if there is one.
    ///
    /// # Errors
    /// [`OfferError`] if its file cannot be read.
    pub fn read(self) -> Result<Wanted, OfferError> {
        let model = match self.base {
            Base::Host => Model::Host,
            Base::Baseline(file) => Model::Baseline(Box::new(Offer::read(&file)?)),
            Base::Level(level) => Model::Level(level),
        };
        Ok(Wanted { model, changes: self.changes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<CpuSpec>().unwrap_err().to_string()
    }

    #[test]
    fn a_processor_is_written_as_it_is_read() {
        for text in [
            "host",
            "x86-64-v2",
            "x86-64-v3,-avx2",
            "host,+amx_tile,-avx512f,-rdcl_no",
            "baseline:fleet.json",
            "baseline:/etc/fleet.json,+avx2",
        ] {
            assert_eq!(text.parse::<CpuSpec>().unwrap().to_string(), text);
        }
        assert_eq!("v3".parse::<CpuSpec>().unwrap().to_string(), "x86-64-v3");
    }

    #[test]
    fn what_is_no_processor_is_refused_by_name() {
        assert!(refused("Skylake").starts_with("Skylake is no CPU: host, baseline:FILE"));
        assert!(refused("").contains("is no CPU"));
        assert!(refused("x86-64-v1").contains("x86-64-v1 is no CPU"));
        assert!(refused("baseline:").contains("needs a file"));
        assert!(refused("host,avx").contains("avx is neither +FEATURE nor -FEATURE"));
        assert!(refused("host,").contains("is neither"));
        assert!(refused("host,-avx3").contains("no CPU feature is called avx3"));
        assert!(refused("host,+-").contains("no CPU feature is called -"));
        let vmx = "no guest is given vmx: the state of a nested guest is not saved";
        assert_eq!(refused("host,+vmx"), vmx);
        "host,-vmx".parse::<CpuSpec>().unwrap();
    }

    #[test]
    fn a_baseline_that_is_not_there_is_named() {
        let spec: CpuSpec = "baseline:/nowhere/fleet.json".parse().unwrap();
        assert_eq!(spec.baseline(), Some(Path::new("/nowhere/fleet.json")));
        assert_eq!(spec.clone().absolute().unwrap(), spec);
        let near: CpuSpec = "baseline:fleet.json,-rdrand".parse().unwrap();
        let near = near.absolute().unwrap();
        assert!(near.baseline().unwrap().is_absolute(), "{near}");
        assert!(near.to_string().ends_with("/fleet.json,-rdrand"), "{near}");
        assert!(spec.read().unwrap_err().to_string().contains("/nowhere/fleet.json"));
    }
}
