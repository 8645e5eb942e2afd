//! What the end-to-end tests share: hosts (a runtime and a state directory each), guests whose
//! consoles are read, and programs that are run like a user runs them.
//!
//! The programs are those of the same build: the directory above that of the test program.

#![forbid(unsafe_code)]

mod console;
#[cfg(test)]
mod docs;
pub mod faults;
mod guest;
mod host;
mod image;
mod program;
mod scripted;
mod sshd;
mod stream;

pub use console::{Console, Tick, assert_one_story, wait};
pub use guest::{Guest, spec};
pub use host::{Host, bin_dir};
pub use image::Image;
pub use program::{Done, finish, report, run, wait_within};
pub use scripted::{Fault, Moment, REFUSES, Scripted, Writer};
pub use sshd::Sshd;
pub use stream::{Frame, Numbers, frame_of, saved_guest};

use std::time::Duration;

/// Ends what hangs. It measures nothing: what takes a second on a quiet machine takes a minute on
/// one that has much else to do.
pub const HANG_TIMEOUT: Duration = Duration::from_secs(600);

/// Whether this machine can run guests. Says so loudly if not.
pub fn kvm_or_skip(test: &str) -> bool {
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            println!("SKIPPED {test}: /dev/kvm cannot be opened ({error})");
            false
        }
    }
}

/// Ends a test early where no guest can run.
#[macro_export]
macro_rules! needs_kvm {
    () => {
        if !$crate::kvm_or_skip(module_path!()) {
            return;
        }
    };
}
