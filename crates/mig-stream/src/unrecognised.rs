//! What bytes look like that are no migration stream.
//!
//! A pipeline that was put together wrongly is the commonest fault of all, and the first bytes
//! tell which: the filter that is missing, the shell that says hello, the terminal in between.

use std::fmt;

use crate::preamble::{MAGIC, RETURN_MAGIC};
use crate::text::clean;

/// What stands where a migration stream should begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnrecognisedStream {
    /// Nothing at all.
    Nothing,
    /// The output of a compressor: its name, and the filter that undoes it.
    Compressed {
        /// What it is: `gzip`.
        what: &'static str,
        /// What to put in front: `gunzip`.
        filter: &'static str,
    },
    /// A stream whose line ends a terminal or a text-mode channel has translated.
    Translated,
    /// The other direction of the conversation.
    WrongDirection,
    /// Text, of which this is the beginning.
    Text(String),
    /// Something else, which begins with these bytes.
    Unknown(Vec<u8>),
}

/// First bytes of the compressors that people put into pipelines (each format's specification:
/// RFC 1952, RFC 8878, the xz file format, the LZ4 frame format, bzip2, lzip).
const COMPRESSORS: [(&[u8], &str, &str); 6] = [
    (&[0x1f, 0x8b], "gzip", "gunzip"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", "zstd -d"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", "xz -d"),
    (&[0x04, 0x22, 0x4d, 0x18], "lz4", "lz4 -d"),
    (b"BZh", "bzip2", "bzip2 -d"),
    (b"LZIP", "lzip", "lzip -d"),
];

impl UnrecognisedStream {
    /// Says what `bytes`, the first ones that came, look like.
    pub(crate) fn recognise(bytes: &[u8], expected: &[u8; 8]) -> Self {
        if bytes.is_empty() {
            return Self::Nothing;
        }
        for (magic, what, filter) in COMPRESSORS {
            if bytes.starts_with(magic) {
                return Self::Compressed { what, filter };
            }
        }
        let other = if *expected == MAGIC { RETURN_MAGIC } else { MAGIC };
        if bytes.starts_with(&other) {
            return Self::WrongDirection;
        }
        // Either translation leaves the four bytes in front of the first line end alone.
        if bytes.starts_with(&expected[..4]) {
            return Self::Translated;
        }
        let valid = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        let end = valid.find(|c: char| c.is_control() && !c.is_whitespace()).unwrap_or(valid.len());
        // Four characters in a row are seldom chance; fewer must be all there is.
        if end >= 4 || end == bytes.len() {
            return Self::Text(clean(valid[..end].trim(), 64));
        }
        // A shell that wants a terminal may begin with an escape sequence.
        if bytes[0] == 0x1b {
            return Self::Text(clean(&String::from_utf8_lossy(bytes), 64));
        }
        Self::Unknown(bytes[..bytes.len().min(8)].to_owned())
    }
}

impl fmt::Display for UnrecognisedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str(
                "nothing came: the other end failed before it sent a byte, and said why on its stderr",
            ),
            Self::Compressed { what, filter } => {
                write!(f, "this is a {what} stream: put '{filter}' in front")
            }
            Self::Translated => f.write_str(
                "the tunnel translates bytes, as a terminal does: use 'ssh -T' instead of 'ssh -t', \
                 and no text mode",
            ),
            Self::WrongDirection => f.write_str(
                "this is the other direction of a migration: the two ends of the tunnel are crossed",
            ),
            Self::Text(text) => write!(
                f,
                "this is text, \"{text}\": something on the way prints to stdout, such as a shell \
                 profile or a login banner"
            ),
            Self::Unknown(bytes) => {
                f.write_str("this is no migration, it begins with")?;
                for byte in bytes {
                    write!(f, " {byte:02x}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recognise(bytes: &[u8]) -> UnrecognisedStream {
        UnrecognisedStream::recognise(bytes, &MAGIC)
    }

    #[test]
    fn a_missing_filter_is_named() {
        let said = recognise(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]).to_string();
        assert_eq!(said, "this is a gzip stream: put 'gunzip' in front");
        for (bytes, filter) in [
            (&b"\x28\xb5\x2f\xfd\x04\x58"[..], "zstd -d"),
            (b"\xfd7zXZ\0\0\x04", "xz -d"),
            (b"\x04\x22\x4d\x18\x64", "lz4 -d"),
            (b"BZh91AY", "bzip2 -d"),
        ] {
            assert!(recognise(bytes).to_string().contains(filter));
        }
    }

    #[test]
    fn a_talkative_shell_is_quoted_without_its_escape_sequences() {
        let said = recognise(b"Last login: Mon \x1b[1m").to_string();
        assert!(said.contains("\"Last login: Mon\""), "{said}");
        let said = recognise(b"\x1b[H\x1b[2Jwelcome").to_string();
        assert!(said.contains("welcome") && !said.contains('\x1b'), "{said}");
        assert_eq!(recognise(b"no\n"), UnrecognisedStream::Text("no".into()));
    }

    #[test]
    fn a_terminal_in_between_is_named() {
        assert_eq!(recognise(b"\x89MIG\r\r\n\x1a\r\n"), UnrecognisedStream::Translated);
        assert_eq!(recognise(b"\x89MIG\n\x1a\n"), UnrecognisedStream::Translated);
    }

    #[test]
    fn crossed_ends_and_silence_are_named() {
        assert_eq!(recognise(&RETURN_MAGIC), UnrecognisedStream::WrongDirection);
        assert_eq!(
            UnrecognisedStream::recognise(&MAGIC, &RETURN_MAGIC),
            UnrecognisedStream::WrongDirection
        );
        assert_eq!(recognise(b""), UnrecognisedStream::Nothing);
        let said = recognise(&[0, 1, 2, 255]).to_string();
        assert!(said.ends_with("begins with 00 01 02 ff"), "{said}");
    }
}
