//! Where the stream comes from.

use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;

/// Gathers the many small records of a stream; long payloads pass by it.
const BUFFER: usize = 64 << 10;

/// What the command line names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard input.
    Stdin,
    /// A file, or whatever has a path and can be read.
    File(PathBuf),
}

impl FromStr for Source {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "-" => Self::Stdin,
            _ => Self::File(text.strip_prefix("file:").unwrap_or(text).into()),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("stdin"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl Source {
    /// Whether somebody would have to type the stream.
    pub fn is_terminal(&self) -> bool {
        *self == Self::Stdin && io::stdin().is_terminal()
    }

    /// Opens it for reading.
    pub fn open(&self) -> anyhow::Result<Box<dyn Read>> {
        Ok(match self {
            Self::Stdin => Box::new(BufReader::with_capacity(BUFFER, io::stdin().lock())),
            Self::File(path) => {
                let file = File::open(path).context("cannot open it")?;
                Box::new(BufReader::with_capacity(BUFFER, file))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_with_or_without_its_protocol() {
        let parse = |text: &str| text.parse::<Source>().unwrap();
        assert_eq!(parse("-"), Source::Stdin);
        assert_eq!(parse("web.mig"), Source::File("web.mig".into()));
        assert_eq!(parse("file:web.mig"), Source::File("web.mig".into()));
        assert_eq!(parse("file:-"), Source::File("-".into()));
    }
}
