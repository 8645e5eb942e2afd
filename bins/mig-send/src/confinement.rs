//! What is left to the processes that read answers.
//!
//! They are killed for anything else: mig-send may die at any moment without harm, its guest runs
//! on or is resolved.

use std::path::Path;

use mig_channel::{Endpoint, Tunnel};
use migpipe_confine::sets::{CHILDREN, OPEN_FILES, OPENING, POLL, RUNTIME, SOCKET, THREADS};
use migpipe_confine::{Access, Call, Check, ConfineError, Files, Filter, calls};

/// The forward half of a channel.
const CHANNEL: &[Call] = calls![
    SYS_vmsplice => "the pages of a copy, or with --zero-copy those of the guest";
    SYS_ioctl(Check::Is(1, libc::FIONREAD as u32)) => "what a pipe holds";
    SYS_ioctl(Check::Is(1, libc::TIOCOUTQ as u32)) => "what a socket has not sent yet";
    SYS_ioctl(Check::Is(1, libc::TIOCGWINSZ as u32)) => "how wide the live line may be";
    SYS_getrusage => "the report";
    SYS_ftruncate => "the report takes the place of an older one";
];

/// A file: channel takes its name when it is whole.
const FILE: &[Call] = calls![
    SYS_fsync;
    SYS_fdatasync;
    SYS_rename;
    SYS_renameat;
    SYS_renameat2;
    SYS_unlink;
    SYS_unlinkat;
];

/// The threads that move the guest and show how far it is.
pub const MAIN: Filter = Filter {
    thread: "mig-send",
    tables: &[RUNTIME, THREADS, POLL, OPEN_FILES, OPENING, SOCKET, CHANNEL, FILE, CHILDREN],
};

/// The thread that waits for signals.
pub const SIGNALS: Filter =
    Filter { thread: "signals", tables: &[RUNTIME, calls![SYS_rt_sigtimedwait]] };

/// Confines the calling thread and those that it starts: the channel is open, and nothing was read
/// from it.
pub fn enter(tunnel: Option<&Tunnel>, destination: &Endpoint) -> Result<(), ConfineError> {
    let mut files = Files::none();
    if let Endpoint::File(path) = destination {
        files = files.and(directory_of(path), Access::Keep);
        // Behind a symbolic link.
        if let Ok(target) = path.canonicalize() {
            files = files.and(directory_of(&target), Access::Keep);
        }
    }
    let group = tunnel.map(|tunnel| Call::kill(-tunnel.process_group()));
    migpipe_confine::enter(&MAIN, group.as_slice(), &files)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
