//! Whole reads and writes over channels that move less than they are asked to.

use std::io::{self, ErrorKind, IoSlice, Read, Write};

/// Reads until `buf` is full or the channel ends; returns how many bytes came.
pub(crate) fn read_full(from: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match from.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads exactly `length` bytes, or what comes before the channel ends. Memory grows with what
/// arrives, never with what was announced.
pub(crate) fn read_growing(from: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes `head`, then `body`, in as few writes as the channel takes; neither is copied.
pub(crate) fn write_both(to: &mut impl Write, head: &[u8], body: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(head), IoSlice::new(body)];
    let mut left = &mut slices[..];
    // Drops an empty body, for which a write would return 0.
    IoSlice::advance_slices(&mut left, 0);
    while left.iter().any(|slice| !slice.is_empty()) {
        match to.write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut left, count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes at most a few bytes at a time and is interrupted before each.
    struct Reluctant {
        taken: Vec<u8>,
        at_once: usize,
        interrupt: bool,
    }

    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.interrupt = !self.interrupt;
            if self.interrupt {
                return Err(ErrorKind::Interrupted.into());
            }
            let count = bytes.len().min(self.at_once);
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_channel_that_takes_little_gets_everything_in_order() {
        for at_once in 1..8 {
            for body in [&b""[..], b"x", b"payload"] {
                let mut to = Reluctant { taken: Vec::new(), at_once, interrupt: false };
                write_both(&mut to, b"head", body).unwrap();
                assert_eq!(to.taken, [b"head", body].concat());
            }
        }
    }

    #[test]
    fn a_channel_that_takes_nothing_is_an_error_and_no_endless_loop() {
        let mut full = [0u8; 6];
        let error = write_both(&mut &mut full[..], b"head", b"body").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WriteZero);
    }

    #[test]
    fn reading_stops_at_the_end_with_what_came() {
        let mut buf = [0; 8];
        assert_eq!(read_full(&mut &b"abc"[..], &mut buf).unwrap(), 3);
        assert_eq!(read_growing(&mut &b"abc"[..], u32::MAX).unwrap(), b"abc");
    }
}
