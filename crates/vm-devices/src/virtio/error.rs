//! Why a device cannot be had.

use std::io;
use std::path::PathBuf;

use migpipe_units::Bytes;
use thiserror::Error;

use super::window::MmioWindow;
use crate::console::ConsoleError;

/// Why a virtio device cannot be had, or what it needs cannot be taken.
#[derive(Debug, Error)]
pub enum VirtioError {
    /// What the command line or the description says of it makes no sense.
    #[error(transparent)]
    Spec(#[from] super::spec::VirtioSpecError),
    /// There are no more interrupt lines.
    #[error("a machine has at most {most} virtio devices", most = MmioWindow::MOST)]
    TooMany,
    /// The kernel gives no descriptor or thread.
    #[error("cannot set up {device}")]
    System {
        /// The device.
        device: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The disk image cannot be opened.
    #[error("{device}: cannot open the disk image {}", .path.display())]
    OpenImage {
        /// The device.
        device: String,
        /// The image.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The image has a length that no disk of this kind has.
    #[error(
        "{device}: the disk image {} has {} bytes, which is no multiple of {block}; make it longer", .path.display(), .bytes.0
    )]
    ImageLength {
        /// The device.
        device: String,
        /// The image.
        path: PathBuf,
        /// Its length.
        bytes: Bytes,
        /// What it must be a multiple of.
        block: u64,
    },
    /// The image is not the one that the guest had.
    #[error(
        "{device}: the disk image {} has {} bytes and the guest's has {}; name the right one with --disk",
        .path.display(), .here.0, .expected.0
    )]
    OtherImage {
        /// The device.
        device: String,
        /// The image.
        path: PathBuf,
        /// Its length.
        here: Bytes,
        /// The length on the source.
        expected: Bytes,
    },
    /// Somebody else uses the image.
    #[error(
        "{device}: the disk image {} is locked: another guest runs on it, or another program holds it",
        .path.display()
    )]
    Locked {
        /// The device.
        device: String,
        /// The image.
        path: PathBuf,
    },
    /// The file system gives no lock.
    #[error("{device}: cannot lock the disk image {}; does its file system have locks?", .path.display())]
    NoLock {
        /// The device.
        device: String,
        /// The image.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// What the guest has written does not get to stable storage.
    #[error("{device}: cannot flush the disk image {}", .path.display())]
    Flush {
        /// The device.
        device: String,
        /// The image.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The tap cannot be had.
    #[error(
        "{device}: cannot use the tap {tap}; make it for this user with: ip tuntap add {tap} mode tap user NAME"
    )]
    Tap {
        /// The device.
        device: String,
        /// The tap.
        tap: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The far end of the console cannot be had.
    #[error("cannot set up {device}")]
    Console {
        /// The device.
        device: String,
        /// What is wrong with it.
        #[source]
        source: ConsoleError,
    },
    /// The guest was offered things that this host's device has not.
    #[error(
        "{device}: the guest was offered virtio features {missing:#x}, which this host's device lacks"
    )]
    Features {
        /// The device.
        device: String,
        /// The bits.
        missing: u64,
    },
}
