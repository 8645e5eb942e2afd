//! What is left to the process that reads the stream.
//!
//! It is killed for anything else: mig-recv may die at any moment without harm, its vmrun refuses
//! the guest then or waits for its GO alone.

use mig_channel::Tunnel;
use migpipe_confine::sets::{CHILDREN, OPEN_FILES, OPENING, POLL, RUNTIME, SOCKET, THREADS};
use migpipe_confine::{Access, Call, Check, Files, Filter, calls};

/// Opening the way back when the header asks for it.
const CHANNEL: &[Call] = calls![
    SYS_ioctl(Check::Is(1, libc::TCGETS as u32)) => "whether stdout is a terminal";
    SYS_ioctl(Check::Is(1, libc::FIONREAD as u32)) => "what a pipe holds";
    SYS_ioctl(Check::Is(1, libc::TIOCOUTQ as u32)) => "what a socket has not sent yet";
    SYS_dup2 => "stdout is taken for the answers";
    SYS_dup3;
    SYS_getsockname;
    SYS_getcwd => "--disk with a relative path";
    SYS_ioctl(Check::Is(1, libc::TIOCGWINSZ as u32)) => "how wide the live line may be";
    SYS_getrusage => "the report";
    SYS_ftruncate => "the report takes the place of an older one";
];

/// All threads: the one that reads, and the one that makes pages exist ahead of it.
pub const FILTER: Filter = Filter {
    thread: "mig-recv",
    tables: &[RUNTIME, THREADS, POLL, OPEN_FILES, OPENING, SOCKET, CHANNEL, CHILDREN],
};

/// Confines this process: the stream and the way back are open, the broker runs, and no byte was
/// looked at.
pub fn enter(tunnel: Option<&Tunnel>) -> anyhow::Result<()> {
    let files = Files::none()
        // Takes the place of stdout when that becomes the way back.
        .and("/dev/null", Access::ReadWrite);
    let group: Vec<_> =
        tunnel.map(|tunnel| Call::kill(-tunnel.process_group())).into_iter().collect();
    Ok(migpipe_confine::enter(&FILTER, &group, &files)?)
}
