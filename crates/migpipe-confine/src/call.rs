//! One line of a filter: a system call, and which arguments it may have.
#![forbid(unsafe_code)]

use std::borrow::Cow;

/// What must hold of an argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The argument, as 32 bits, is this.
    Is(u8, u32),
    /// The argument, as 32 bits, is not this.
    Not(u8, u32),
    /// Of the bits of the mask, the argument has exactly these.
    Bits {
        /// Which argument, from 0.
        arg: u8,
        /// The bits that are looked at.
        mask: u64,
        /// Those of them that are set.
        set: u64,
    },
    /// The argument is the id of this process.
    ThisProcess(u8),
}

/// A system call that is allowed. A table may have several lines for one call: one that holds is
/// enough.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its number.
    pub number: libc::c_long,
    /// The name of its constant, `SYS_...`.
    pub constant: &'static str,
    /// What must hold of its arguments, all of it.
    pub checks: Cow<'static, [Check]>,
    /// What it is needed for, where that is not obvious.
    pub why: &'static str,
}

impl Call {
    /// Its name, as strace(1) shows it.
    pub fn name(&self) -> &'static str {
        let name = self.constant.strip_prefix("SYS_").unwrap_or(self.constant);
        if name == "sendfile64" { "sendfile" } else { name }
    }

    /// `kill` of one process or process group (negative), chosen at run time.
    pub fn kill(target: i32) -> Self {
        Self {
            number: libc::SYS_kill,
            constant: "SYS_kill",
            checks: Cow::Owned(vec![Check::Is(0, target as u32)]),
            why: "the command that it started, and nobody else",
        }
    }
}

/// A table of calls: `calls![SYS_read; SYS_mmap(NO_EXEC) => "why"; ...]`. What stands in
/// parentheses are [`Check`]s.
#[macro_export]
macro_rules! calls {
    ($($name:ident $(($($check:expr),+))? $(=> $why:literal)?);* $(;)?) => {
        &[$($crate::Call {
            number: $crate::libc::$name,
            constant: stringify!($name),
            checks: std::borrow::Cow::Borrowed(&[$($($check),+)?]),
            why: $crate::calls!(@why $($why)?),
        }),*]
    };
    (@why $why:literal) => { $why };
    (@why) => { "" };
}
