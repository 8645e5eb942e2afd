//! Where a console goes: `stdio|file:PATH|unix:PATH|null`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// Where the guest's console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleSpec {
    /// Standard input and output.
    Stdio,
    /// Output is appended to a file; there is no input.
    File(PathBuf),
    /// A Unix socket that serves one client at a time.
    Unix(PathBuf),
    /// Nowhere.
    Null,
}

impl ConsoleSpec {
    /// Its file or socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Unix(path) => Some(path),
            Self::Stdio | Self::Null => None,
        }
    }
}

/// A text that names no console.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("'{0}' is no console: write stdio, file:PATH, unix:PATH or null")]
pub struct ConsoleSpecError(String);

impl FromStr for ConsoleSpec {
    type Err = ConsoleSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "null" => Ok(Self::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(ConsoleSpecError(text.to_owned())),
        }
    }
}

impl fmt::Display for ConsoleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Null => f.write_str("null"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_console_is_read_and_shown_again() {
        for text in ["stdio", "file:/var/log/web", "unix:/run/web:0", "null"] {
            assert_eq!(text.parse::<ConsoleSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_names_no_console_is_refused_with_what_does() {
        for text in ["", "file:", "unix:", "tty", "pty:x", "null:"] {
            let error = text.parse::<ConsoleSpec>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")) && error.contains("file:PATH"));
        }
    }
}
