//! Least privilege for programs that read what comes from outside.
//!
//! A program does its set-up with the rights of its user: it opens, connects, starts. Then, before
//! it reads the first byte that somebody else has chosen, it calls [`enter`], and has from there on
//! only what the rest of its work needs:
//!
//! - no_new_privs: no set-user-id program gives it rights back;
//! - landlock(7): no file, TCP port or abstract socket but those of a [`Files`];
//! - seccomp(2): no system call but those of a [`Filter`], with the arguments that matter checked.
//!
//! All three hold for the calling thread and the threads and processes that it starts later; a
//! thread that exists already confines itself ([`thread`]). None can be taken back.
//!
//! **What is not in a filter** depends on whom the end of the process hurts ([`ViolationAction`]):
//! a tool that may die at any moment is killed; a process that others depend on gets ENOSYS, which
//! stops the call just as well. ENOSYS and not EPERM: the C library takes it for an older kernel
//! and falls back to an older call, so that a newer library than those that were tested costs
//! nothing. The kernel logs both (audit record 1326, with the program and the number of the call).
//!
//! **Files that others open for it.** A file descriptor keeps the rights with which it was opened;
//! what must be started or opened later and cannot be foreseen is asked from a [`broker`], a child
//! that stays outside and does a few fixed things.
//!
//! Where the kernel lacks landlock or seccomp the program says so once, in one line, and goes on
//! with what there is. A landlock that is older than the rules (files before 5.19 cannot be kept
//! from being truncated, TCP needs 6.7, devices 6.10, abstract sockets 6.12) enforces what it knows.
#![warn(missing_docs)]

pub mod broker;
mod call;
mod files;
mod filter;
mod install;
mod mode;
pub mod sets;
mod show;

pub use call::{Call, Check};
pub use files::{Access, Files};
pub use filter::Filter;
pub use libc;
pub use mode::{Mode, ViolationAction, begin};
pub use show::show;

use thiserror::Error;

/// Why a thread could not be confined.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// landlock(7) refused.
    #[error("cannot restrict the files of {thread}; --confine off runs without")]
    Files {
        /// The filter of the thread.
        thread: &'static str,
        /// Why.
        #[source]
        source: landlock::RulesetError,
    },
    /// The table cannot be a BPF program.
    #[error("the filter of {thread} is wrong")]
    Table {
        /// The filter.
        thread: &'static str,
        /// Why.
        #[source]
        source: seccompiler::BackendError,
    },
    /// seccomp(2) refused.
    #[error("cannot install the filter of {thread}; --confine off runs without")]
    Install {
        /// The filter.
        thread: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Confines the calling thread, and all that it starts from here on, to `files`, and to the calls
/// of `filter` and those of `also`, which depend on what was set up (the process that may be sent a
/// signal, say). Does nothing where [`begin`] was not called or switched it off.
///
/// Files come first: the calls that restrict them are in no filter.
///
/// # Errors
/// [`ConfineError`] if the kernel has what is needed and refuses all the same.
pub fn enter(filter: &Filter, also: &[Call], files: &Files) -> Result<(), ConfineError> {
    let Some(policy) = mode::policy() else { return Ok(()) };
    if policy.files {
        files.restrict().map_err(|source| ConfineError::Files { thread: filter.thread, source })?;
    }
    if policy.calls {
        let program = filter
            .compile(also, policy.action.clone())
            .map_err(|source| ConfineError::Table { thread: filter.thread, source })?;
        install::install(&program)
            .map_err(|source| ConfineError::Install { thread: filter.thread, source })?;
    }
    Ok(())
}

/// Whether this kernel has landlock, in whatever version.
pub fn restricts_files() -> bool {
    files::is_there().0
}

/// Confines the calling thread for its whole life: it opens no file. For the first line of a
/// thread; one that cannot be confined must not begin its work, so the process ends then, and that
/// is before there is anything to lose.
pub fn thread(filter: &Filter) {
    if let Err(error) = enter(filter, &[], &Files::none()) {
        let error: &dyn std::error::Error = &error;
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        tracing::error!("{error}: {cause}");
        // Another thread may be the one that writes it.
        std::thread::sleep(std::time::Duration::from_millis(100));
        std::process::exit(1);
    }
}
