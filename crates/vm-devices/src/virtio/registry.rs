//! Which code is behind which kind of device.

use std::collections::BTreeMap;
use std::sync::Arc;

use vm_state::{DeviceDescription, Snapshot};

use super::backend::Backend;
use super::balloon::{Balloon, BalloonConfig, BalloonState};
use super::block::{Block, BlockState, DiskFile};
use super::console::{ConsoleState, VirtioConsole};
use super::error::VirtioError;
use super::net::{Net, NetState};
use super::rng::{Rng, RngState};
use super::spec::{VirtioKind, VirtioSpec};

/// What others than its driver have to do with a device of one kind.
pub(super) enum HostSide {
    None,
    /// An image that is written, and so is flushed before its guest leaves.
    Disk(Arc<DiskFile>),
    Balloon(Arc<BalloonConfig>),
}

impl VirtioKind {
    /// The name of its section.
    pub(super) const fn section(self) -> &'static str {
        match self {
            Self::Block => BlockState::NAME,
            Self::Rng => RngState::NAME,
            Self::Net => NetState::NAME,
            Self::Console => ConsoleState::NAME,
            Self::Balloon => BalloonState::NAME,
        }
    }

    /// The newest version of its section that this program reads.
    pub const fn section_version(self) -> u16 {
        match self {
            Self::Block => BlockState::VERSION,
            Self::Rng => RngState::VERSION,
            Self::Net => NetState::VERSION,
            Self::Console => ConsoleState::VERSION,
            Self::Balloon => BalloonState::VERSION,
        }
    }
}

impl VirtioSpec {
    /// The device of a machine description, if it is a virtio device of a kind and version that
    /// this program has.
    pub fn of(description: &DeviceDescription) -> Option<Self> {
        let kind = VirtioKind::of(&description.kind)?;
        (description.section_version <= kind.section_version()).then(|| Self {
            kind,
            id: description.id.clone(),
            params: description.params.clone(),
        })
    }
}

/// Opens what is behind a device, and writes into `params` what a destination must know too.
pub(super) fn open(
    spec: &VirtioSpec,
    params: &mut BTreeMap<String, String>,
) -> Result<(Box<dyn Backend>, HostSide), VirtioError> {
    Ok(match spec.kind {
        VirtioKind::Block => {
            let block = Block::open(spec, params)?;
            let host_side = block.written_disk().map_or(HostSide::None, HostSide::Disk);
            (Box::new(block), host_side)
        }
        VirtioKind::Rng => (Box::new(Rng::open(spec)?), HostSide::None),
        VirtioKind::Net => (Box::new(Net::open(spec, params)?), HostSide::None),
        VirtioKind::Console => (Box::new(VirtioConsole::open(spec)?), HostSide::None),
        VirtioKind::Balloon => {
            let balloon = Balloon::default();
            let host_side = HostSide::Balloon(balloon.shared_config());
            (Box::new(balloon), host_side)
        }
    })
}

/// As [`open`], without what makes something on this host: nothing for a console, whose file or socket
/// would be made.
pub(super) fn examine(spec: &VirtioSpec) -> Result<Option<Box<dyn Backend>>, VirtioError> {
    if spec.kind == VirtioKind::Console {
        VirtioConsole::examine(spec)?;
        return Ok(None);
    }
    Ok(Some(open(spec, &mut spec.params.clone())?.0))
}
