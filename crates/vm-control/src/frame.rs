//! Frames: one message each, with file descriptors beside it.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use migpipe_units::limits::MAX_FRAME;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// The most descriptors that Linux passes beside one message (SCM_MAX_FD, unix(7)). With room for
/// all of them none is lost on the way: those that do not fit would be ours already, and nobody
/// would close them.
const MAX_FDS: usize = 253;

/// Why a frame could not be sent or read.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The other side closed the connection between two frames.
    #[error("the connection was closed")]
    Closed,
    /// The other side neither reads nor writes within the time that it was given.
    #[error("it does not answer")]
    TimedOut,
    /// The socket failed, or ended inside a frame.
    #[error("the connection failed")]
    Io(#[source] io::Error),
    /// The length is beyond every real message of its kind.
    #[error("a message of {length} bytes; at most {most} are read here")]
    TooLong {
        /// The length.
        length: u64,
        /// The longest that is read.
        most: u32,
    },
    /// The bytes are no message of this protocol.
    #[error("the message is damaged, or from another release")]
    Damaged(#[source] postcard::Error),
}

impl FrameError {
    /// A socket with a timeout says "would block" when it is over (socket(7), SO_RCVTIMEO).
    fn io(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Io(error),
        }
    }
}

/// Sends `message`, and `fds` beside it.
pub(crate) fn send<T: Serialize>(
    stream: &UnixStream,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), FrameError> {
    let mut frame = postcard::to_extend(message, vec![0; 4]).map_err(FrameError::Damaged)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME as usize {
        return Err(FrameError::TooLong { length: length as u64, most: MAX_FRAME });
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(&frame)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map_err(|errno| FrameError::io(errno.into()))?;
    let mut stream = stream;
    stream.write_all(&frame[sent..]).map_err(FrameError::io)
}

/// Waits for the next frame, as long as the socket's read timeout allows.
pub(crate) fn receive<T: DeserializeOwned>(
    stream: &UnixStream,
) -> Result<(T, Vec<OwnedFd>), FrameError> {
    let (length, fds) = receive_length(stream)?;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong { length: length.into(), most: MAX_FRAME });
    }
    let mut body = Vec::new();
    stream.take(length.into()).read_to_end(&mut body).map_err(FrameError::io)?;
    Ok((decode(&body, length)?, fds))
}

/// Waits for the next request, as long as the socket's read timeout allows; once its length is
/// there, its body must come within `within`, in however many pieces. `most` is the longest length
/// of a request whose body begins with that byte: it is read only so far.
///
/// Descriptors beside a request never become ours: reading without room for them has the kernel
/// close them (unix(7)).
pub(crate) fn receive_request<T: DeserializeOwned>(
    mut stream: &UnixStream,
    within: Duration,
    most: impl FnOnce(u8) -> u32,
) -> Result<T, FrameError> {
    let mut length = [0; 4];
    match stream.read(&mut length).map_err(FrameError::io)? {
        0 => return Err(FrameError::Closed),
        came => read_by(stream, &mut length[came..], Instant::now() + within)?,
    }
    let length = u32::from_le_bytes(length);
    let deadline = Instant::now() + within;
    let mut body = vec![0; length.min(1) as usize];
    read_by(stream, &mut body, deadline)?;
    let most = body.first().map_or(0, |&first| most(first));
    if length > most {
        return Err(FrameError::TooLong { length: length.into(), most });
    }
    // The buffer grows with what arrives, not with what was promised.
    while body.len() < length as usize {
        let begun = body.len();
        body.resize((length as usize).min(begun + PIECE), 0);
        read_by(stream, &mut body[begun..], deadline)?;
    }
    decode(&body, length)
}

/// How much of a request is read at a time (bytes).
const PIECE: usize = 256 << 10;

/// Fills `buf` before the deadline.
fn read_by(
    mut stream: &UnixStream,
    mut buf: &mut [u8],
    deadline: Instant,
) -> Result<(), FrameError> {
    while !buf.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        // No timeout at all is what zero means to the system.
        let left = left.max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).map_err(FrameError::io)?;
        match stream.read(buf) {
            Ok(0) => return Err(FrameError::Io(ErrorKind::UnexpectedEof.into())),
            Ok(came) => buf = &mut buf[came..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(FrameError::io(error)),
        }
        if !buf.is_empty() && Instant::now() > deadline {
            return Err(FrameError::TimedOut);
        }
    }
    Ok(())
}

/// Waits for the length of the next frame. The descriptors come with its first byte.
fn receive_length(stream: &UnixStream) -> Result<(u32, Vec<OwnedFd>), FrameError> {
    let mut length = [0_u8; 4];
    let mut fds = Vec::new();
    let mut got = 0;
    while got < length.len() {
        let mut control = nix::cmsg_space!([std::os::fd::RawFd; MAX_FDS]);
        let mut parts = [IoSliceMut::new(&mut length[got..])];
        let message = match recvmsg::<()>(
            stream.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other.map_err(|errno| FrameError::io(errno.into()))?,
        };
        for part in message.cmsgs().map_err(|errno| FrameError::io(errno.into()))? {
            if let ControlMessageOwned::ScmRights(raw) = part {
                fds.extend(raw.into_iter().map(|fd| {
                    // SAFETY: the kernel has just made this descriptor for us, and nobody else
                    // knows of it.
                    unsafe { OwnedFd::from_raw_fd(fd) }
                }));
            }
        }
        match message.bytes {
            0 if got == 0 => return Err(FrameError::Closed),
            0 => return Err(FrameError::Io(ErrorKind::UnexpectedEof.into())),
            bytes => got += bytes,
        }
    }
    Ok((u32::from_le_bytes(length), fds))
}

/// The message that `body` holds, which should be `length` bytes.
fn decode<T: DeserializeOwned>(body: &[u8], length: u32) -> Result<T, FrameError> {
    if body.len() < length as usize {
        return Err(FrameError::Io(ErrorKind::UnexpectedEof.into()));
    }
    match postcard::take_from_bytes(body).map_err(FrameError::Damaged)? {
        (message, []) => Ok(message),
        _ => Err(FrameError::Damaged(postcard::Error::DeserializeBadEncoding)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Refusal, Reply, Request};
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::thread;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = File::open("/proc/self/exe").unwrap();
        send(&ours, &Request::Describe, &[file.as_fd(), file.as_fd()]).unwrap();
        let (message, fds) = receive::<Request>(&theirs).unwrap();
        assert_eq!(message, Request::Describe);
        assert_eq!(fds.len(), 2);
        let arrived = File::from(fds.into_iter().next().unwrap()).metadata().unwrap();
        assert_eq!(arrived.len(), file.metadata().unwrap().len());
    }

    #[test]
    fn a_frame_larger_than_the_socket_buffer_arrives_whole() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let state = Reply::State(vec![vec![7; 3 << 20]; 2]);
        let expected = state.clone();
        let sender = thread::spawn(move || send(&ours, &state, &[]));
        assert_eq!(receive::<Reply>(&theirs).unwrap().0, expected);
        sender.join().unwrap().unwrap();
    }

    #[test]
    fn a_promised_length_beyond_the_limit_is_refused_unread() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(receive::<Reply>(&theirs), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn an_end_inside_a_frame_is_not_a_clean_close() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[9, 0, 0, 0, 1]).unwrap();
        drop(ours);
        assert!(matches!(receive::<Reply>(&theirs), Err(FrameError::Io(_))));
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert!(matches!(receive::<Reply>(&theirs), Err(FrameError::Closed)));
    }

    #[test]
    fn an_end_inside_a_length_is_not_a_clean_close() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[9, 0]).unwrap();
        drop(ours);
        assert!(matches!(receive::<Reply>(&theirs), Err(FrameError::Io(_))));
    }

    #[test]
    fn silence_is_told_from_an_end() {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        assert!(matches!(receive::<Reply>(&theirs), Err(FrameError::TimedOut)));
    }

    #[test]
    fn the_longest_frame_arrives_and_one_byte_more_is_not_sent() {
        // In front of the bytes: which reply, how many sections, and how long the one is.
        let of = |length| Reply::State(vec![vec![7; length as usize - 6]]);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let error = send(&ours, &of(MAX_FRAME + 1), &[]).unwrap_err();
        let length = u64::from(MAX_FRAME) + 1;
        assert!(matches!(error, FrameError::TooLong { length: it, .. } if it == length));
        let sender = thread::spawn(move || send(&ours, &of(MAX_FRAME), &[]));
        assert!(receive::<Reply>(&theirs).unwrap().0 == of(MAX_FRAME));
        sender.join().unwrap().unwrap();
    }

    /// Ends what hangs, and measures nothing.
    const HANG_TIMEOUT: Duration = Duration::from_secs(600);

    fn framed(request: &Request) -> Vec<u8> {
        let body = postcard::to_stdvec(request).unwrap();
        [&(body.len() as u32).to_le_bytes()[..], &body].concat()
    }

    fn hello(client: &str) -> Request {
        Request::Hello { version: 1, client: client.to_owned() }
    }

    #[test]
    fn a_request_may_come_in_pieces() {
        let request = hello("one that is slow");
        let bytes = framed(&request);
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let sender = thread::spawn(move || {
            // In the middle of the length, behind it, in the body, and so that more than one piece
            // of the body is waited for.
            for piece in [&bytes[..2], &bytes[2..4], &bytes[4..9], &bytes[9..12], &bytes[12..]] {
                ours.write_all(piece).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        });
        assert_eq!(receive_request::<Request>(&theirs, HANG_TIMEOUT, |_| 100).unwrap(), request);
        sender.join().unwrap();
    }

    #[test]
    fn a_request_may_be_as_long_as_its_kind_and_not_longer() {
        let request = hello("web");
        let bytes = framed(&request);
        let length = bytes.len() as u32 - 4;
        for (most, is_read) in [(length, true), (length - 1, false)] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(&bytes).unwrap();
            let read = receive_request::<Request>(&theirs, HANG_TIMEOUT, |_| most);
            assert_eq!(read.is_ok(), is_read, "{read:?}");
        }
    }

    #[test]
    fn a_request_that_trickles_without_a_pause_has_one_deadline() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let bytes = framed(&hello(&"x".repeat(16 << 20)));
        let trickle = thread::spawn(move || {
            // Nobody waits a millisecond for the next byte, and yet the whole takes seconds.
            let _ = bytes.iter().try_for_each(|byte| ours.write_all(&[*byte]));
        });
        let within = Duration::from_millis(20);
        let read = receive_request::<Request>(&theirs, within, |_| u32::MAX);
        assert!(matches!(read, Err(FrameError::TimedOut)));
        drop(theirs);
        trickle.join().unwrap();
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(&bytes).unwrap();
            drop(ours);
            let _ = receive::<Request>(&theirs);
        }

        #[test]
        fn any_refusal_arrives_as_it_was_sent(message in ".{0,300}") {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let reply = Reply::Refused(Refusal::failed(message));
            send(&ours, &reply, &[]).unwrap();
            prop_assert_eq!(receive::<Reply>(&theirs).unwrap().0, reply);
        }
    }
}
