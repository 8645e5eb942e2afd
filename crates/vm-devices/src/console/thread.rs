//! The thread that reads and writes for a console.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::shared::Shared;
use super::spec::ConsoleSpec;

/// One write: a pipe that poll calls writable takes this much without blocking (PIPE_BUF).
const PIECE: usize = 4096;
/// How often bytes that the guest has no room for are offered again.
const INPUT_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// How long the end waits for a reader that is slow.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);
/// A console whose output fails is left alone for so long.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// What a console reads from and writes to.
pub(super) struct Ends {
    output: Option<Box<dyn Output>>,
    input: Option<Box<dyn Source>>,
    listener: Option<UnixListener>,
    /// Typed bytes that the guest has not taken yet.
    typed: Vec<u8>,
    /// Printed bytes that were taken from the backlog and not written yet.
    piece: Vec<u8>,
    quiet_until: Option<Instant>,
    /// It was said that output is lost, and none was taken since.
    complained: bool,
}

trait Output: Write + AsFd + Send {}
impl<T: Write + AsFd + Send> Output for T {}
trait Source: Read + AsFd + Send {}
impl<T: Read + AsFd + Send> Source for T {}

impl Ends {
    /// Opens what `spec` names; nothing for the null console.
    pub(super) fn open(spec: &ConsoleSpec) -> io::Result<Option<Self>> {
        let mut ends = Self {
            output: None,
            input: None,
            listener: None,
            typed: Vec::new(),
            piece: Vec::new(),
            quiet_until: None,
            complained: false,
        };
        match spec {
            ConsoleSpec::Null => return Ok(None),
            ConsoleSpec::Stdio => {
                // Descriptors of our own: std's handles have buffers and locks that poll does not
                // see.
                ends.output =
                    Some(Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)));
                ends.input = Some(Box::new(File::from(io::stdin().as_fd().try_clone_to_owned()?)));
            }
            ConsoleSpec::File(path) => {
                ends.output = Some(Box::new(open(path)?));
            }
            ConsoleSpec::Unix(path) => ends.listener = Some(listen(path)?),
        }
        Ok(Some(ends))
    }

    /// Serves until the console ends.
    pub(super) fn serve(mut self, shared: &Shared) {
        let mut give_up = None;
        loop {
            if shared.is_ending() {
                let until = *give_up.get_or_insert_with(|| Instant::now() + FLUSH_TIMEOUT);
                let written = self.piece.is_empty() && shared.backlog().is_empty();
                let done = written || self.output.is_none();
                if done || self.quiet_until.is_some() || Instant::now() >= until {
                    return;
                }
            }
            if self.quiet_until.is_some_and(|until| Instant::now() >= until) {
                self.quiet_until = None;
            }
            let ready = self.wait(shared, give_up);
            if ready.wake {
                let _ = shared.wake.read();
            }
            if ready.output {
                self.write(shared);
            }
            if ready.gone {
                self.lose_client();
            }
            if ready.input {
                self.read();
            }
            if ready.listener {
                self.accept();
            }
            if !self.typed.is_empty() {
                let taken = shared.offer(&self.typed);
                self.typed.drain(..taken.min(self.typed.len()));
            }
        }
    }

    fn wait(&self, shared: &Shared, give_up: Option<Instant>) -> Ready {
        let waiting = !self.piece.is_empty() || !shared.backlog().is_empty();
        let writing = self.quiet_until.is_none() && waiting;
        // A client is watched when there is nothing to write too, so that its going is noticed.
        let watched = writing || self.listener.is_some();
        let output = self.output.as_ref().filter(|_| watched);
        let input = self.input.as_ref().filter(|_| self.typed.is_empty());
        // One client at a time: the next waits in the listener's queue.
        let listener = self.listener.as_ref().filter(|_| self.output.is_none());
        let out = if writing { PollFlags::POLLOUT } else { PollFlags::empty() };
        let wants: [Option<(BorrowedFd<'_>, PollFlags)>; 4] = [
            Some((shared.wake.as_fd(), PollFlags::POLLIN)),
            output.map(|output| (output.as_fd(), out)),
            input.map(|input| (input.as_fd(), PollFlags::POLLIN)),
            listener.map(|listener| (listener.as_fd(), PollFlags::POLLIN)),
        ];
        let mut fds: Vec<PollFd<'_>> =
            wants.iter().flatten().map(|(fd, events)| PollFd::new(*fd, *events)).collect();
        let now = Instant::now();
        let ends = [give_up, self.quiet_until];
        let waits = ends.iter().flatten().map(|at| at.saturating_duration_since(now));
        let again = (!self.typed.is_empty()).then_some(INPUT_RETRY_INTERVAL);
        let timeout = waits.chain(again).min().map_or(PollTimeout::NONE, |wait| {
            PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        if poll(&mut fds, timeout).is_err() {
            return Ready::default();
        }
        let mut fired = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let mut next = |wanted: bool| match wanted {
            true => fired.next().unwrap_or(PollFlags::empty()),
            false => PollFlags::empty(),
        };
        let (wake, out) = (next(true), next(output.is_some()));
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        Ready {
            wake: !wake.is_empty(),
            output: writing && !out.is_empty(),
            gone: out.intersects(gone) && self.listener.is_some(),
            input: !next(input.is_some()).is_empty(),
            listener: !next(listener.is_some()).is_empty(),
        }
    }

    /// Writes one piece, or what is left of it.
    fn write(&mut self, shared: &Shared) {
        let Some(output) = &mut self.output else {
            return;
        };
        if self.piece.is_empty() {
            let mut backlog = shared.backlog();
            let front = backlog.front();
            let len = front.len().min(PIECE);
            self.piece.extend_from_slice(&front[..len]);
            backlog.consume(len);
        }
        match output.write(&self.piece) {
            Ok(0) => self.lose_output(&io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                self.piece.drain(..written);
                self.complained = false;
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => self.lose_output(&error),
        }
    }

    /// A client that is gone makes room for the next; anything else is tried again later, as a
    /// full disk may have room by then.
    fn lose_output(&mut self, error: &io::Error) {
        if self.listener.is_some() {
            self.lose_client();
        } else {
            self.quiet_until = Some(Instant::now() + REOPEN_INTERVAL);
            if !std::mem::replace(&mut self.complained, true) {
                tracing::warn!("console output waits: {error}");
            }
        }
    }

    fn lose_client(&mut self) {
        self.output = None;
        self.input = None;
    }

    fn read(&mut self) {
        let Some(input) = &mut self.input else {
            return;
        };
        let mut bytes = [0; 1024];
        match input.read(&mut bytes) {
            // A client that says no more may still listen.
            Ok(0) => self.input = None,
            Ok(count) => self.typed.extend_from_slice(&bytes[..count]),
            Err(error) if is_passing(&error) => {}
            Err(_) => self.input = None,
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let client = listener.accept().and_then(|(client, _)| {
            client.set_nonblocking(true)?;
            Ok((client.try_clone()?, client))
        });
        match client {
            Ok((input, output)) => {
                self.input = Some(Box::new(input));
                self.output = Some(Box::new(output));
            }
            Err(error) => tracing::warn!("a client of the console was not served: {error}"),
        }
    }
}

#[derive(Default)]
struct Ready {
    wake: bool,
    output: bool,
    /// The client has closed both directions.
    gone: bool,
    input: bool,
    listener: bool,
}

/// Whether the same call can succeed later.
fn is_passing(error: &io::Error) -> bool {
    let passing = [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock];
    passing.contains(&error.kind())
}

/// Opens a file to append to, without waiting for anybody.
///
/// A FIFO is opened for both directions: one that nobody reads would be waited for, or refused,
/// otherwise, and one whose reader goes away would lose what is printed until the next comes. What is
/// printed waits in it meanwhile, as far as there is room, and then in the backlog.
fn open(path: &Path) -> io::Result<File> {
    // A terminal is not to become the one whose signals are ours.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut options = OpenOptions::new();
    if std::fs::metadata(path).is_ok_and(|there| there.file_type().is_fifo()) {
        return options.read(true).write(true).custom_flags(flags).open(path);
    }
    options.append(true).create(true).mode(0o600).custom_flags(flags).open(path)
}

/// Listens at `path`, in the place of a socket of ours that nobody listens on any more.
/// Whether [`Ends::open`] would find what it needs: a file that can be written, or a directory in which
/// one, or a socket, can be made.
pub(super) fn examine(spec: &ConsoleSpec) -> io::Result<()> {
    let Some(path) = spec.path() else { return Ok(()) };
    if let ConsoleSpec::File(path) = spec
        && path.try_exists()?
    {
        return open(path).map(drop);
    }
    let directory = path.parent().filter(|parent| *parent != Path::new(""));
    // A file without a name is gone when it is closed.
    let options = OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).clone();
    match options.open(directory.unwrap_or(Path::new("."))) {
        // Not every file system has such files.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        made => made.map(drop),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    unix_socket::make_room(path).map_err(unix_socket::Taken::into_io)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;
    use std::sync::{Arc, Mutex};

    use migpipe_confine::{Mode, ViolationAction};

    use super::super::{Console, Input};
    use super::*;

    /// Ends what hangs, and measures nothing.
    const HANG_TIMEOUT: Duration = Duration::from_secs(600);

    /// A guest that takes two bytes at a time.
    #[derive(Default)]
    struct Slow(Mutex<Vec<u8>>);

    impl Input for Slow {
        fn receive(&self, bytes: &[u8]) -> usize {
            let count = bytes.len().min(2);
            self.0.lock().unwrap().extend_from_slice(&bytes[..count]);
            count
        }
    }

    #[test]
    fn a_fifo_is_opened_without_a_reader_and_keeps_what_is_printed_for_the_one_that_comes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let console = opened(&format!("file:{}", path.display()));
        for text in ["for the first\n", "for the second\n"] {
            console.print(text.as_bytes());
            let reader = File::open(&path).unwrap();
            let mut line = String::new();
            BufReader::new(reader).read_line(&mut line).unwrap();
            assert_eq!(line, text);
        }
        // One that nobody reads, and that is full.
        for _ in 0..200 {
            console.print(&[b'x'; 1024]);
        }
        drop(console);
    }

    fn opened(text: &str) -> Console {
        // A thread that calls what its filter does not have ends the tests.
        migpipe_confine::begin(Mode::Enforce, ViolationAction::Killed);
        Console::open(&text.parse().unwrap()).unwrap()
    }

    fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + HANG_TIMEOUT;
        while !done() {
            assert!(Instant::now() < end, "{what} within {HANG_TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_file_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for line in ["one\n", "two\n"] {
            let console = opened(&format!("file:{}", path.display()));
            console.print(line.as_bytes());
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_console_that_cannot_be_opened_is_named() {
        let error = Console::open(&"file:/no/such/folder/log".parse().unwrap()).err();
        assert!(error.unwrap().to_string().contains("file:/no/such/folder/log"));
    }

    #[test]
    fn a_socket_serves_one_client_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let console = opened(&format!("unix:{}", path.display()));
        for text in ["for the first\n", "for the second\n"] {
            let client = UnixStream::connect(&path).unwrap();
            client.set_read_timeout(Some(HANG_TIMEOUT)).unwrap();
            console.print(text.as_bytes());
            let mut line = String::new();
            BufReader::new(client).read_line(&mut line).unwrap();
            assert_eq!(line, text);
        }
    }

    #[test]
    fn a_client_that_reads_nothing_does_not_hold_the_guest_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let console = opened(&format!("unix:{}", path.display()));
        let client = UnixStream::connect(&path).unwrap();
        // A console that waited for its client would wait here for ever.
        for _ in 0..2000 {
            console.print(&[b'x'; 1024]);
        }
        drop(console);
        let mut all = String::new();
        // A console that ends before it took the client up resets the connection.
        let _ = BufReader::new(client).read_to_string(&mut all);
        assert!(all.len() < 2000 * 1024);
    }

    #[test]
    fn what_is_typed_waits_until_the_guest_has_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let console = opened(&format!("unix:{}", path.display()));
        let slow = Arc::new(Slow::default());
        let input: Arc<dyn Input> = slow.clone();
        console.attach(&input);
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"login: root").unwrap();
        wait_for("all of it", || slow.0.lock().unwrap().as_slice() == b"login: root");
    }

    #[test]
    fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let spec = format!("unix:{}", path.display());
        let console = opened(&spec);
        let error = Console::open(&spec.parse().unwrap()).err().unwrap();
        assert!(error.to_string().contains("in use"), "{error}");
        drop(console);
        drop(opened(&spec));
        let notes = dir.path().join("notes");
        std::fs::write(&notes, "precious").unwrap();
        let error = Console::open(&format!("unix:{}", notes.display()).parse().unwrap());
        assert!(error.is_err());
        assert_eq!(std::fs::read_to_string(&notes).unwrap(), "precious");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
