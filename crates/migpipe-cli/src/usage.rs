//! Wrong usage that is found out after the command line was parsed, and commands that a message
//! tells.

use std::borrow::Cow;
use std::fmt::Display;

use thiserror::Error;

/// A command line that makes no sense: nothing was done, and the exit status is [`crate::USAGE`].
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Usage(String);

impl Usage {
    /// What is wrong with it, and what to write instead.
    pub fn new(why: &impl Display) -> Self {
        Self(why.to_string())
    }
}

/// `error` as wrong usage. For `map_err`.
pub fn usage(error: impl Into<anyhow::Error>) -> anyhow::Error {
    Usage(crate::one_line(&error.into())).into()
}

/// Whether `error` is one of usage, whatever was put in front of it.
pub fn is_usage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Usage>())
}

/// `word` as a POSIX shell reads it back, for a command that a message tells. A channel such as
/// `exec:ssh hostb mig-recv` is quoted behind its protocol, as people write it.
pub fn quoted(word: &str) -> String {
    let (protocol, rest) = match word.split_once(':') {
        Some((protocol, rest)) if protocol.bytes().all(|byte| byte.is_ascii_lowercase()) => {
            (Some(protocol), rest)
        }
        _ => (None, word),
    };
    // Only a NUL cannot be quoted, and no argument has one.
    let rest = shlex::try_quote(rest).unwrap_or(Cow::Borrowed(rest));
    match protocol {
        Some(protocol) => format!("{protocol}:{rest}"),
        None => rest.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn usage_is_recognised_under_whatever_stands_in_front_of_it() {
        let error: anyhow::Result<()> = Err(usage(anyhow!("inner").context("outer")));
        let error = error.context("cannot begin").unwrap_err();
        assert!(is_usage(&error));
        assert_eq!(crate::one_line(&error), "cannot begin: outer: inner");
        assert!(!is_usage(&anyhow!("something else")));
    }

    #[test]
    fn a_shell_reads_a_quoted_word_back_as_it_was() {
        for word in [
            "web",
            "exec:ssh hostb mig-recv",
            "exec:ssh hostb 'mig-recv --name \"w 2\"'; echo $HOME `id` \\ !",
            "unix:/run/a b/it's",
            "exec:",
            "/run/vmrun/a b.sock",
            "",
            "-n",
            "a\nb",
        ] {
            let script = format!("printf %s {}", quoted(word));
            let shell = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(shell.stdout).unwrap(), word, "{script}");
        }
        assert_eq!(quoted("exec:ssh hostb mig-recv"), "exec:'ssh hostb mig-recv'");
    }
}
