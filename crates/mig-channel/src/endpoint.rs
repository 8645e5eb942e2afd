//! The names of channels: `-`, `ssh:[USER@]HOST[/NAME]`, `exec:CMD`, `tcp:HOST:PORT`, `unix:PATH`,
//! `file:PATH`, `fd:N`.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use crate::ssh::Ssh;

/// Where a stream goes to or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `-`: stdout on the sending side, stdin on the receiving side.
    Standard,
    /// `ssh:[USER@]HOST[/NAME]`: a mig-recv that ssh starts on another host. Of the sending side.
    Ssh(Ssh),
    /// `exec:CMD`: a command run by `sh -c`, which carries the stream as its stdin or stdout.
    ///
    /// Both are sockets, so a program that opens `/dev/stdin` or `/dev/stdout` by name gets
    /// ENXIO; `cat | CMD` gives it a pipe. The command inherits stderr and no other descriptor.
    Exec(String),
    /// `tcp:HOST:PORT`: connects on the sending side, listens on the receiving side. `host` has
    /// no brackets, also where it is an IPv6 address.
    Tcp {
        /// A name or an address.
        host: String,
        /// The port; 0 lets a listener choose one.
        port: u16,
    },
    /// `unix:PATH`: a Unix stream socket; connects or listens as TCP does.
    Unix(PathBuf),
    /// `file:PATH`: a saved guest.
    File(PathBuf),
    /// `fd:N`: a descriptor that the parent passed.
    Fd(i32),
}

/// Why a text names no channel.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{text}' names no channel: {reason}; write one of -, ssh:[USER@]HOST[/NAME] (to send), exec:CMD, \
     tcp:HOST:PORT, unix:PATH, file:PATH, fd:N"
)]
pub struct ParseEndpointError {
    text: String,
    reason: &'static str,
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| ParseEndpointError { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<Endpoint, &'static str> {
    if text == "-" {
        return Ok(Endpoint::Standard);
    }
    if text.contains('\0') {
        return Err("it holds a NUL byte");
    }
    let (protocol, params) = text.split_once(':').ok_or("it has no protocol")?;
    match protocol {
        "ssh" => Ssh::parse(params).map(Endpoint::Ssh),
        "exec" if params.trim().is_empty() => Err("the command is empty"),
        "exec" => Ok(Endpoint::Exec(params.to_owned())),
        "tcp" => parse_tcp(params),
        "unix" | "file" if params.is_empty() => Err("the path is empty"),
        "unix" => Ok(Endpoint::Unix(params.into())),
        "file" => Ok(Endpoint::File(params.into())),
        "fd" => parse_fd(params).map(Endpoint::Fd).ok_or("the descriptor is not a number"),
        _ => Err("the protocol is not known"),
    }
}

fn parse_tcp(params: &str) -> Result<Endpoint, &'static str> {
    let (host, port) = params.rsplit_once(':').ok_or("the port is missing")?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or("the bracket is not closed")?,
        None if host.contains(':') => return Err("an IPv6 address needs brackets: [::1]:4444"),
        None => host,
    };
    if host.is_empty() {
        return Err("the host is missing");
    }
    if !port.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err("the port is not a number");
    }
    Ok(Endpoint::Tcp {
        host: host.to_owned(),
        port: port.parse().map_err(|_| "the port is not between 0 and 65535")?,
    })
}

/// A descriptor number; only digits, so that `+3` and `-1` are no descriptors.
fn parse_fd(text: &str) -> Option<i32> {
    if text.bytes().all(|digit| digit.is_ascii_digit()) { text.parse().ok() } else { None }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard => f.write_str("-"),
            Self::Ssh(ssh) => write!(f, "ssh:{ssh}"),
            Self::Exec(command) => write!(f, "exec:{command}"),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Fd(fd) => write!(f, "fd:{fd}"),
        }
    }
}

/// Where the answers come from when the forward channel does not bring them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnPath {
    /// `stdin`: for FIFO loops and socat.
    Stdin,
    /// `fd:N`: a descriptor that the parent passed.
    Fd(i32),
    /// `none`: there are no answers, whatever the channel could carry.
    None,
}

/// Why a text names no return path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("'{text}' is no return path: write one of stdin, fd:N, none")]
pub struct ParseReturnPathError {
    text: String,
}

impl FromStr for ReturnPath {
    type Err = ParseReturnPathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fd = || text.strip_prefix("fd:").and_then(parse_fd).map(Self::Fd);
        match text {
            "stdin" => Some(Self::Stdin),
            "none" => Some(Self::None),
            _ => fd(),
        }
        .ok_or_else(|| ParseReturnPathError { text: text.to_owned() })
    }
}

impl fmt::Display for ReturnPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("stdin"),
            Self::Fd(fd) => write!(f, "fd:{fd}"),
            Self::None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_shown_as_it_was_written() {
        for (text, endpoint) in [
            ("-", Endpoint::Standard),
            (
                "exec:ssh hostb 'gunzip | mig-recv'",
                Endpoint::Exec("ssh hostb 'gunzip | mig-recv'".into()),
            ),
            ("tcp:hostb:4444", Endpoint::Tcp { host: "hostb".into(), port: 4444 }),
            ("tcp:[fe80::1%eth0]:1", Endpoint::Tcp { host: "fe80::1%eth0".into(), port: 1 }),
            ("unix:/run/web:1", Endpoint::Unix("/run/web:1".into())),
            ("file:web.mig", Endpoint::File("web.mig".into())),
            ("fd:3", Endpoint::Fd(3)),
        ] {
            assert_eq!(text.parse(), Ok(endpoint.clone()));
            assert_eq!(endpoint.to_string(), text);
        }
        let ssh: Endpoint = "ssh:root@hostb/w2".parse().unwrap();
        assert!(matches!(&ssh, Endpoint::Ssh(ssh) if ssh.host == "hostb"), "{ssh:?}");
        assert_eq!(ssh.to_string(), "ssh:root@hostb/w2");
    }

    #[test]
    fn what_names_no_channel_is_refused_with_its_text_and_all_forms() {
        for text in [
            "",
            "hostb",
            "--",
            "exec:",
            "exec: ",
            "tcp:",
            "tcp:hostb",
            "tcp::4444",
            "tcp:hostb:",
            "tcp:hostb:65536",
            "tcp:hostb:+1",
            "tcp:::1:4444",
            "tcp:[::1:4444",
            "unix:",
            "file:",
            "file:a\0b",
            "fd:",
            "fd:-1",
            "fd:+1",
            "fd:99999999999",
            "ssh:",
            "ssh:hostb:22",
            "ssh:-oProxyCommand=id",
            "ssh://hostb",
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")), "{error}");
            for form in ["ssh:", "exec:CMD", "tcp:HOST:PORT", "unix:PATH", "file:PATH", "fd:N"] {
                assert!(error.contains(form), "{error}");
            }
        }
    }

    #[test]
    fn return_paths_are_stdin_a_descriptor_or_none() {
        for text in ["stdin", "fd:5", "none"] {
            assert_eq!(text.parse::<ReturnPath>().unwrap().to_string(), text);
        }
        for text in ["", "stdout", "fd:", "fd:x", "5"] {
            let error = text.parse::<ReturnPath>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")), "{error}");
        }
    }
}
