//! The beginning of a stream, which comes within one deadline.
//!
//! A sender writes it in one piece before it does anything else. Whoever brings it byte by byte would
//! hold this process, and a place at the socket that started it, for as long as he likes if each byte
//! were a reason to wait for the next.

use std::io;
use std::time::Duration;

use anyhow::anyhow;
use mig_channel::ChannelReader;
use mig_stream::{OpenError, OpenProblem, StreamReader};

/// The longest time that a header takes: 2 MiB at most, through the slowest of tunnels.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Opens the stream that `forward` brings. The time runs from the connection where there is one: who
/// connects has something to say. Elsewhere the first byte may be long in coming, for somebody may
/// have to type a password before; it runs from there.
pub fn read(
    mut forward: ChannelReader,
    timeout: Duration,
) -> io::Result<Result<StreamReader<ChannelReader>, OpenError>> {
    if !forward.is_connection() {
        forward.wait_readable()?;
    }
    forward.set_deadline(Some(limit(timeout)));
    let opened = StreamReader::open(forward);
    Ok(opened.map(|mut reader| {
        reader.get_mut().set_deadline(None);
        reader
    }))
}

fn limit(timeout: Duration) -> Duration {
    HEADER_TIMEOUT.min(timeout)
}

/// Says it of a header that did not come in time.
pub fn explain(error: OpenError, timeout: Duration) -> anyhow::Error {
    match &error.problem {
        OpenProblem::Io(io) if io.kind() == io::ErrorKind::TimedOut => anyhow!(
            "the header of the stream was not here within {} s: its sender or the tunnel is stuck",
            limit(timeout).as_secs_f32()
        ),
        _ => error.into(),
    }
}
