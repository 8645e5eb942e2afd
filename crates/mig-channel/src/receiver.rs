//! Opens the receiving side of a channel.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use crate::endpoint::Endpoint;
use crate::error::OpenError;
use crate::inherit::{Inherited, take_fd, take_stdin, take_stdout};
use crate::interrupt::Interrupt;
use crate::listen::Listener;
use crate::port::Direction;
use crate::reader::ChannelReader;
use crate::sender::{reader, writer};
use crate::socket::tune;
use crate::tunnel::{Tunnel, TunnelCommand};
use crate::writer::ChannelWriter;

const STDIN_IS_TERMINAL: &str = "a migration stream does not come from a keyboard; pipe it in, \
     as in mig-send web | ssh hostb mig-recv, or name a source such as file:web.mig";
const STDOUT_IS_TERMINAL: &str = "the stream asks for answers, and the sender does not read \
     this terminal; connect stdout to the sender, or send with --one-way";

const NO_SOURCE: &str = "it is a destination; to fetch a guest from there, one way, read from \
     exec:'ssh HOST mig-send GUEST'";

/// The receiving side of a channel.
#[derive(Debug)]
pub struct ReceiverChannel {
    /// Brings the stream.
    pub forward: ChannelReader,
    /// Takes the answers, where the stream asks for them.
    pub back: BackHalf,
    /// The command of an `exec:` channel.
    pub tunnel: Option<Tunnel>,
}

/// The half of a receiving channel for the answers, not opened yet.
#[derive(Debug)]
pub struct BackHalf {
    back: Back,
    /// What messages call the channel.
    channel: String,
    interrupt: Interrupt,
}

#[derive(Debug)]
enum Back {
    None,
    Ready(ChannelWriter),
    /// Left alone until the stream asks for answers: a one-way stream may come while stdout is a
    /// terminal or a log.
    Stdout,
}

impl ReceiverChannel {
    fn new(
        forward: ChannelReader,
        back: Back,
        tunnel: Option<Tunnel>,
        interrupt: &Interrupt,
    ) -> Self {
        let channel = forward.describe().to_owned();
        let back = BackHalf { back, channel, interrupt: interrupt.clone() };
        Self { forward, back, tunnel }
    }

    /// What messages call the channel, such as `stdin` or `tcp:0.0.0.0:4444`.
    pub fn describe(&self) -> &str {
        self.forward.describe()
    }
}

impl BackHalf {
    /// Opens it. Only when the stream's header asks for answers; from stdin they go to stdout.
    ///
    /// # Errors
    /// [`OpenError::NoWayBack`] where the channel carries none, or they were taken before;
    /// [`OpenError::Terminal`] and the like where stdout cannot be the way back.
    pub fn take(&mut self) -> Result<ChannelWriter, OpenError> {
        let no_way_back = || OpenError::NoWayBack { channel: self.channel.clone() };
        match std::mem::replace(&mut self.back, Back::None) {
            Back::Ready(back) => Ok(back),
            Back::None => Err(no_way_back()),
            Back::Stdout => match take_stdout(STDOUT_IS_TERMINAL)? {
                Inherited::Socket(fd) => {
                    tune(&fd);
                    writer(fd, "stdout", &self.interrupt)
                }
                Inherited::OneWay(fd) => writer(fd, "stdout", &self.interrupt),
                Inherited::Listener(_) => Err(no_way_back()),
            },
        }
    }
}

/// A channel that is open, or listens for the one peer that it will take.
#[derive(Debug)]
pub struct PendingReceiver {
    state: State,
    interrupt: Interrupt,
}

#[derive(Debug)]
enum State {
    Open(Box<ReceiverChannel>),
    Listening(Listener),
}

impl PendingReceiver {
    /// Where it listens, such as `tcp:0.0.0.0:4444`, with the port that was really taken; none
    /// where the channel is open already.
    pub fn listens_on(&self) -> Option<&str> {
        match &self.state {
            State::Open(_) => None,
            State::Listening(listener) => Some(listener.name()),
        }
    }

    /// Waits for the peer, at most `limit` (`None`: for ever). The listening socket is closed
    /// afterwards, and the file of a Unix socket removed.
    ///
    /// A peer that leaves without having sent a byte is passed over.
    ///
    /// # Errors
    /// [`OpenError::Wait`] when interrupted or out of time.
    pub fn accept(self, limit: Option<Duration>) -> Result<ReceiverChannel, OpenError> {
        match self.state {
            State::Open(channel) => Ok(*channel),
            State::Listening(listener) => {
                let peer = listener.accept(limit, &self.interrupt)?;
                socket(peer, listener.name(), &self.interrupt)
            }
        }
    }
}

/// Opens `endpoint` to receive a stream from it, or begins to listen.
///
/// # Errors
/// [`OpenError`]: a terminal, a descriptor that was not passed or goes the wrong way, an address
/// that is in use, a file that is not there.
pub fn prepare_receiver(
    endpoint: &Endpoint,
    interrupt: &Interrupt,
) -> Result<PendingReceiver, OpenError> {
    let name = endpoint.to_string();
    let state = match endpoint {
        Endpoint::Standard => match take_stdin(STDIN_IS_TERMINAL)? {
            Inherited::Listener(fd) => {
                State::Listening(Listener::inherited(fd, "stdin".to_owned()))
            }
            Inherited::Socket(fd) | Inherited::OneWay(fd) => {
                open(reader(fd, "stdin", interrupt)?, Back::Stdout, None, interrupt)
            }
        },
        Endpoint::Fd(fd) => match take_fd(*fd, Direction::Read)? {
            Inherited::Listener(fd) => State::Listening(Listener::inherited(fd, name)),
            Inherited::Socket(fd) => {
                tune(&fd);
                State::Open(Box::new(socket(fd, &name, interrupt)?))
            }
            Inherited::OneWay(fd) => {
                open(reader(fd, &name, interrupt)?, Back::None, None, interrupt)
            }
        },
        Endpoint::Tcp { host, port } => State::Listening(Listener::tcp(host, *port)?),
        Endpoint::Unix(path) => State::Listening(Listener::unix(path)?),
        Endpoint::File(path) => {
            let file = open_file(path)?;
            let name = format!("file {}", path.display());
            open(reader(file, &name, interrupt)?, Back::None, None, interrupt)
        }
        Endpoint::Exec(command) => exec(command, interrupt)?,
        Endpoint::Ssh(_) => return Err(OpenError::Unsuitable { what: name, reason: NO_SOURCE }),
    };
    Ok(PendingReceiver { state, interrupt: interrupt.clone() })
}

/// [`prepare_receiver`] and [`PendingReceiver::accept`] in one.
///
/// # Errors
/// Those of both.
pub fn open_receiver(
    endpoint: &Endpoint,
    limit: Option<Duration>,
    interrupt: &Interrupt,
) -> Result<ReceiverChannel, OpenError> {
    prepare_receiver(endpoint, interrupt)?.accept(limit)
}

fn open(
    forward: ChannelReader,
    back: Back,
    tunnel: Option<Tunnel>,
    interrupt: &Interrupt,
) -> State {
    State::Open(Box::new(ReceiverChannel::new(forward, back, tunnel, interrupt)))
}

fn socket(fd: OwnedFd, name: &str, interrupt: &Interrupt) -> Result<ReceiverChannel, OpenError> {
    let back = fd
        .try_clone()
        .map_err(|error| OpenError::system(format!("use {name} both ways"), error))?;
    let back = Back::Ready(writer(back, name, interrupt)?);
    Ok(ReceiverChannel::new(reader(fd, name, interrupt)?, back, None, interrupt))
}

fn exec(command: &str, interrupt: &Interrupt) -> Result<State, OpenError> {
    let command = TunnelCommand::Shell(command.to_owned());
    let name = command.to_string();
    let (tunnel, to_stdin, from_stdout) = Tunnel::start_both_ways(command, interrupt)?;
    Ok(open(
        reader(from_stdout, &name, interrupt)?,
        Back::Ready(writer(to_stdin, &name, interrupt)?),
        Some(tunnel),
        interrupt,
    ))
}

fn open_file(path: &Path) -> Result<OwnedFd, OpenError> {
    let failed = |error| OpenError::system(format!("open {}", path.display()), error);
    // Looked at before it is opened: opening a FIFO would wait for its writer, out of reach of
    // any interrupt.
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return File::open(path).map(OwnedFd::from).map_err(failed);
    }
    Err(OpenError::InTheWay {
        path: path.display().to_string(),
        reason: "this is no file; read from it through stdin, as in mig-recv <PATH",
    })
}
