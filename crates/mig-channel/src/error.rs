//! What goes wrong with a channel: while it is opened, and while bytes move.
#![forbid(unsafe_code)]

use std::io;
use std::time::Duration;

use thiserror::Error;

/// Why bytes do not move. Reads and writes give it inside an [`io::Error`];
/// [`ChannelError::of`] takes it out again.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The [`Interrupt`](crate::Interrupt) of the channel was triggered.
    #[error("{doing}: interrupted")]
    Interrupted {
        /// What was going on, such as `writing to stdout`.
        doing: String,
    },
    /// The stall limit or the deadline passed.
    #[error("{doing}: nothing moved within {after:?}")]
    TimedOut {
        /// The limit that passed.
        after: Duration,
        /// What was going on.
        doing: String,
    },
    /// Whoever is at the other end has gone.
    #[error("{doing}: the {peer} of the stream went away")]
    PeerClosed {
        /// What was going on.
        doing: String,
        /// `reader` or `writer`.
        peer: &'static str,
    },
    /// This half was closed before.
    #[error("{doing}: it is closed already")]
    Closed {
        /// What was tried.
        doing: String,
    },
    /// The system refused.
    #[error("{doing} failed")]
    Failed {
        /// What was going on.
        doing: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ChannelError {
    /// The channel's own reason inside an error of a read or a write, if it has one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Whether `error` says that the channel was interrupted.
    pub fn is_interrupted(error: &io::Error) -> bool {
        matches!(Self::of(error), Some(Self::Interrupted { .. }))
    }
}

impl From<ChannelError> for io::Error {
    fn from(error: ChannelError) -> Self {
        let kind = match &error {
            // Not ErrorKind::Interrupted: write_all and read_exact take that for EINTR and try
            // again for ever.
            ChannelError::Interrupted { .. } => io::ErrorKind::Other,
            ChannelError::TimedOut { .. } => io::ErrorKind::TimedOut,
            ChannelError::PeerClosed { peer: "reader", .. } => io::ErrorKind::BrokenPipe,
            ChannelError::PeerClosed { .. } => io::ErrorKind::ConnectionReset,
            ChannelError::Closed { .. } => io::ErrorKind::NotConnected,
            ChannelError::Failed { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// Why a channel could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A stream is binary, and a terminal is where somebody types or reads.
    #[error("{what} is a terminal: {remedy}")]
    Terminal {
        /// `stdin`, `stdout` or `descriptor N`.
        what: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// The descriptor leads nowhere.
    #[error("{what} is closed, or a device that keeps nothing: {remedy}")]
    Nowhere {
        /// `stdin`, `stdout` or `descriptor N`.
        what: String,
        /// What that means, and what to do instead.
        remedy: &'static str,
    },
    /// The parent passed no such descriptor.
    #[error(
        "descriptor {fd} was not passed to this program, or is named twice: open it in the shell, \
         as in {fd}<>PATH"
    )]
    NotPassed {
        /// Its number.
        fd: i32,
    },
    /// The descriptor is there and cannot carry a stream.
    #[error("{what} cannot be used: {reason}")]
    Unsuitable {
        /// Which descriptor.
        what: String,
        /// What is wrong with it, and what would be right.
        reason: &'static str,
    },
    /// A path holds something that must not be replaced.
    #[error("{path}: {reason}")]
    InTheWay {
        /// The path.
        path: String,
        /// What is there, and what to do about it.
        reason: &'static str,
    },
    /// Nobody can listen at a path.
    #[error("cannot listen there; choose another path")]
    Taken(#[from] unix_socket::Taken),
    /// One-way was asked for, and a return path too.
    #[error("a return path ({0}) and one-way contradict each other: leave one of them out")]
    Contradiction(crate::ReturnPath),
    /// The stream wants answers and this channel cannot carry them.
    #[error(
        "the stream asks for answers, and {channel} carries none: send it with --one-way, or \
         through exec:, tcp: or unix:"
    )]
    NoWayBack {
        /// The channel.
        channel: String,
    },
    /// A host name has no address.
    #[error("cannot find an address for {host}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said; none when it found nothing.
        #[source]
        source: io::Error,
    },
    /// The wait for the other side ended early.
    #[error("no peer")]
    Wait(#[source] ChannelError),
    /// The system refused.
    #[error("cannot {doing}")]
    System {
        /// What was tried, on what.
        doing: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// Whether the command line, or what the shell has made of it, is what is wrong: nothing
    /// outside was asked yet.
    pub const fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Terminal { .. }
                | Self::Nowhere { .. }
                | Self::NotPassed { .. }
                | Self::Unsuitable { .. }
                | Self::Contradiction(_)
        )
    }

    pub(crate) fn system(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { doing: doing.into(), source: source.into() }
    }
}
