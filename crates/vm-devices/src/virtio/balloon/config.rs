//! The configuration space of a balloon (VIRTIO 1.2, 5.5.4): the two numbers by which its operator
//! and its driver talk.

use std::sync::atomic::{AtomicU32, Ordering};

use migpipe_units::Pages;

/// How large a balloon is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonSize {
    /// What its driver was asked for.
    pub asked: Pages,
    /// What its driver says it has given. It is the guest's word: it may be any number.
    pub given: Pages,
}

/// Both numbers, each complete in itself. The device's lock orders a change of them with the
/// interrupt that tells of it.
#[derive(Debug, Default)]
pub(in crate::virtio) struct BalloonConfig {
    num_pages: AtomicU32,
    actual: AtomicU32,
}

impl BalloonConfig {
    pub(in crate::virtio) fn size(&self) -> BalloonSize {
        BalloonSize { asked: Pages(self.num_pages().into()), given: Pages(self.actual().into()) }
    }

    /// Asks the driver for so many pages. Returns whether that is another number than before.
    pub(in crate::virtio) fn ask(&self, pages: Pages) -> bool {
        let asked = u32::try_from(pages.0).unwrap_or(u32::MAX);
        self.num_pages.swap(asked, Ordering::Relaxed) != asked
    }

    /// struct virtio_balloon_config, as far as the features go.
    pub(super) fn bytes(&self) -> Vec<u8> {
        [self.num_pages().to_le_bytes(), self.actual().to_le_bytes()].concat()
    }

    pub(super) fn num_pages(&self) -> u32 {
        self.num_pages.load(Ordering::Relaxed)
    }

    pub(super) fn actual(&self) -> u32 {
        self.actual.load(Ordering::Relaxed)
    }

    pub(super) fn set_num_pages(&self, pages: u32) {
        self.num_pages.store(pages, Ordering::Relaxed);
    }

    pub(super) fn set_actual(&self, pages: u32) {
        self.actual.store(pages, Ordering::Relaxed);
    }
}
