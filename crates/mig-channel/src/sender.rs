//! Opens the sending side of a channel.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use crate::endpoint::{Endpoint, ReturnPath};
use crate::error::OpenError;
use crate::inherit::{Inherited, take_fd, take_stdin, take_stdout};
use crate::interrupt::Interrupt;
use crate::passed_file::PassedFile;
use crate::port::Direction;
use crate::reader::ChannelReader;
use crate::socket::{connect_tcp, connect_unix, tune};
use crate::tunnel::{Tunnel, TunnelCommand};
use crate::writer::ChannelWriter;

const STDOUT_IS_TERMINAL: &str = "a migration stream is nothing to read; pipe it, as in \
     mig-send web | ssh hostb mig-recv, or name a destination such as ssh:hostb or file:web.mig";
const STDIN_IS_TERMINAL: &str = "no answers come from there; connect the destination's stdout to \
     stdin, or leave --return stdin out";

/// The sending side of a channel.
#[derive(Debug)]
pub struct SenderChannel {
    /// Takes the stream.
    pub forward: ChannelWriter,
    /// Brings the answers; none where the channel goes one way.
    pub back: Option<ChannelReader>,
    /// The command of an `exec:` channel, or the ssh of an `ssh:` channel.
    pub tunnel: Option<Tunnel>,
}

impl SenderChannel {
    /// What messages call the channel, such as `stdout` or `tcp:hostb:4444`.
    pub fn describe(&self) -> &str {
        self.forward.describe()
    }

    /// Whether answers come back: whether there can be a handover.
    pub fn is_both_ways(&self) -> bool {
        self.back.is_some()
    }
}

/// Opens `endpoint` to send a stream through it.
///
/// `ssh:`, `exec:`, `tcp:`, `unix:` and an `fd:` that is a socket go both ways by themselves, unless
/// `one_way` is set or `return_path` is `none`; `-`, `file:` and any other `fd:` do only with a
/// return path. Where no answers come, a regular file behind `-` or `fd:` is a saved guest as that
/// of `file:` is. A return path replaces the channel's own way back. The stdout of a tunnel that
/// carries no answers is the stdout of this program.
///
/// Connecting waits up to 16 s for each address and can be interrupted; looking a host name up
/// cannot.
///
/// # Errors
/// [`OpenError`]: a terminal, a descriptor that was not passed or goes the wrong way, a host that
/// does not answer, a file that cannot be made. Nothing has been sent then.
pub fn open_sender(
    endpoint: &Endpoint,
    return_path: Option<ReturnPath>,
    one_way: bool,
    interrupt: &Interrupt,
) -> Result<SenderChannel, OpenError> {
    // First, since it fails without having started or connected anything.
    let separate = match return_path {
        None | Some(ReturnPath::None) => None,
        Some(path) if one_way => return Err(OpenError::Contradiction(path)),
        Some(ReturnPath::Stdin) => {
            let taken = take_stdin(STDIN_IS_TERMINAL)?;
            Some(reader(connected(taken, "stdin")?, "stdin", interrupt)?)
        }
        Some(path @ ReturnPath::Fd(fd)) => {
            let name = path.to_string();
            let taken = take_fd(fd, Direction::Read)?;
            Some(reader(connected(taken, &name)?, &name, interrupt)?)
        }
    };
    let own_way_back = separate.is_none() && !one_way && return_path != Some(ReturnPath::None);
    let name = endpoint.to_string();
    let mut channel = match endpoint {
        Endpoint::Standard => {
            let taken = take_stdout(STDOUT_IS_TERMINAL)?;
            one(inherited(taken, "stdout", separate.is_some(), interrupt)?)
        }
        Endpoint::File(path) => one(ChannelWriter::to_file(path, interrupt)?),
        Endpoint::Tcp { host, port } => {
            let fd = connect_tcp(host, *port, &name, interrupt)?;
            socket(fd, &name, own_way_back, interrupt)?
        }
        Endpoint::Unix(path) => {
            let fd = connect_unix(path, &name, interrupt)?;
            socket(fd, &name, own_way_back, interrupt)?
        }
        Endpoint::Fd(fd) => match take_fd(*fd, Direction::Write)? {
            Inherited::Socket(fd) => {
                tune(&fd);
                socket(fd, &name, own_way_back, interrupt)?
            }
            other => one(inherited(other, &name, separate.is_some(), interrupt)?),
        },
        Endpoint::Exec(command) => {
            tunnel(TunnelCommand::Shell(command.clone()), own_way_back, interrupt)?
        }
        Endpoint::Ssh(ssh) => tunnel(TunnelCommand::Ssh(ssh.clone()), own_way_back, interrupt)?,
    };
    if separate.is_some() {
        channel.back = separate;
    }
    Ok(channel)
}

/// What the parent opened. Where nobody answers, a regular file is a saved guest.
fn inherited(
    taken: Inherited,
    name: &str,
    answered: bool,
    interrupt: &Interrupt,
) -> Result<ChannelWriter, OpenError> {
    let fd = connected(taken, name)?;
    let file = if answered { None } else { PassedFile::of(&fd, name)? };
    match file {
        Some(file) => ChannelWriter::to_passed_file(fd, file, name, interrupt)
            .map_err(|error| OpenError::system(format!("write to {name}"), error)),
        None => writer(fd, name, interrupt),
    }
}

fn one(forward: ChannelWriter) -> SenderChannel {
    SenderChannel { forward, back: None, tunnel: None }
}

fn socket(
    fd: OwnedFd,
    name: &str,
    both_ways: bool,
    interrupt: &Interrupt,
) -> Result<SenderChannel, OpenError> {
    let back = if both_ways {
        let fd = fd
            .try_clone()
            .map_err(|error| OpenError::system(format!("use {name} both ways"), error))?;
        Some(reader(fd, name, interrupt)?)
    } else {
        None
    };
    Ok(SenderChannel { forward: writer(fd, name, interrupt)?, back, tunnel: None })
}

fn tunnel(
    command: TunnelCommand,
    both_ways: bool,
    interrupt: &Interrupt,
) -> Result<SenderChannel, OpenError> {
    let name = command.to_string();
    let (tunnel, to_stdin, back) = if both_ways {
        let (tunnel, to_stdin, from_stdout) = Tunnel::start_both_ways(command, interrupt)?;
        let back = reader(from_stdout, &name, interrupt)?;
        (tunnel, to_stdin, Some(back))
    } else {
        let (tunnel, to_stdin) = Tunnel::start_one_way(command, interrupt)?;
        (tunnel, to_stdin, None)
    };
    Ok(SenderChannel { forward: writer(to_stdin, &name, interrupt)?, back, tunnel: Some(tunnel) })
}

/// Refuses a listening socket where a connection is needed.
fn connected(inherited: Inherited, what: &str) -> Result<OwnedFd, OpenError> {
    match inherited {
        Inherited::Socket(fd) => {
            tune(&fd);
            Ok(fd)
        }
        Inherited::OneWay(fd) => Ok(fd),
        Inherited::Listener(_) => Err(OpenError::Unsuitable {
            what: what.to_owned(),
            reason: "it is a listening socket; pass a connected one",
        }),
    }
}

pub(crate) fn reader(
    fd: OwnedFd,
    name: &str,
    interrupt: &Interrupt,
) -> Result<ChannelReader, OpenError> {
    ChannelReader::new(fd, name, interrupt)
        .map_err(|error| OpenError::system(format!("read from {name}"), error))
}

pub(crate) fn writer(
    fd: OwnedFd,
    name: &str,
    interrupt: &Interrupt,
) -> Result<ChannelWriter, OpenError> {
    ChannelWriter::new(fd, name, interrupt)
        .map_err(|error| OpenError::system(format!("write to {name}"), error))
}
