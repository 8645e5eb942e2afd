//! Which files a confined thread can still open, by landlock(7).
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest landlock whose rights these rules know. An older kernel enforces what it has.
const NEWEST: ABI = ABI::V7;

/// What is possible with a file, or with the files of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing what exists.
    ReadWrite,
    /// Making, replacing, renaming within it and removing regular files, and reading them.
    Keep,
    /// Removing files.
    Remove,
    /// Everything but running a program and making device nodes, links to elsewhere and
    /// directories.
    Open,
}

impl Access {
    fn rights(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = AccessFs::WriteFile | AccessFs::Truncate;
        match self {
            Self::Read => read,
            Self::ReadWrite => read | write,
            Self::Keep => read | write | AccessFs::MakeReg | AccessFs::RemoveFile,
            Self::Remove => AccessFs::RemoveFile.into(),
            Self::Open => {
                read | write
                    | AccessFs::MakeReg
                    | AccessFs::MakeSock
                    | AccessFs::RemoveFile
                    | AccessFs::IoctlDev
            }
        }
    }
}

/// The files that a thread can still open, and nothing else: no other file, no TCP port, no
/// abstract Unix socket from outside. What is open already stays usable.
#[derive(Clone, Debug, Default)]
pub struct Files {
    rules: Vec<(PathBuf, Access)>,
}

impl Files {
    /// No files.
    pub const fn none() -> Self {
        Self { rules: Vec::new() }
    }

    /// These too. A path that does not exist is passed over: nothing can be opened there then.
    #[must_use]
    pub fn and(mut self, path: impl AsRef<Path>, access: Access) -> Self {
        self.rules.push((path.as_ref().to_owned(), access));
        self
    }

    /// Restricts the calling thread. What it names stays open until the process ends.
    pub(crate) fn restrict(&self) -> Result<(), RulesetError> {
        let mut ruleset = ruleset()?;
        for (path, access) in &self.rules {
            let Ok(fd) = PathFd::new(path) else { continue };
            let rights = match path.is_dir() {
                true => access.rights(),
                false => access.rights() & AccessFs::from_file(NEWEST),
            };
            ruleset = ruleset.add_rule(PathBeneath::new(&fd, rights))?;
            // A rule is about an inode. File systems that forget one when nobody holds it (9p does)
            // would make another of the same directory, which no rule knows.
            std::mem::forget(fd);
        }
        ruleset.restrict_self().map(drop)
    }
}

fn ruleset() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        // Not signals: some kernels then keep threads from calling each other. The filters say
        // who may be sent one.
        .scope(Scope::AbstractUnixSocket)?
        .create()
}

/// Whether this kernel has landlock, and all of it that the rules use.
pub(crate) fn is_there() -> (bool, bool) {
    // Asked in a thread that ends: it is confined for good.
    let asked = std::thread::spawn(|| Some(ruleset().ok()?.restrict_self().ok()?.ruleset));
    match asked.join().ok().flatten() {
        Some(RulesetStatus::FullyEnforced) => (true, true),
        Some(RulesetStatus::PartiallyEnforced) => (true, false),
        Some(RulesetStatus::NotEnforced) | None => (false, false),
    }
}
