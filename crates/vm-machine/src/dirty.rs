//! The dirty log: which pages the guest and the devices have written. KVM keeps a bitmap of the
//! former, guest memory one of what this process writes through it ([`TrackedMemory`]); a harvest
//! merges both into the bitmap of whoever asks, which is the one copy that is made of them.
//!
//! [`TrackedMemory`]: page_bitmap::TrackedMemory
//!
//! Where the host has manual dirty-log protection, a harvest copies the bitmap (KVM_GET_DIRTY_LOG)
//! and then clears and write-protects exactly the pages in it (KVM_CLEAR_DIRTY_LOG): a page that is
//! written in between stays set or is reported, and whoever reads a page after the harvest reads
//! the write too. While the guest is paused nothing can become dirty by itself, so the clearing is
//! put off until the guest runs again: it is not part of the blackout, and never done at all when
//! the guest runs somewhere else afterwards. Elsewhere KVM_GET_DIRTY_LOG does both at once.

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use migpipe_units::{Pages, RegionId};
use page_bitmap::{GuestBitmap, PageBitmap};
use thiserror::Error;
use vm_memory::MmapRegion;
use vm_state::MemoryRegion;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::memory::Memory;

ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// How many pages one KVM_CLEAR_DIRTY_LOG is given (1 GiB): KVM holds the lock of its page tables
/// meanwhile, and the guest waits for that lock.
const CLEAR_PAGES: u64 = 1 << 18;

/// Why the dirty log cannot be had.
#[derive(Debug, Error)]
pub enum DirtyLogError {
    /// KVM refuses a call.
    #[error("{call} failed for {region}")]
    Kvm {
        /// The call, by its name in the KVM API.
        call: &'static str,
        /// The region.
        region: RegionId,
        /// What the kernel says.
        #[source]
        source: errno::Error,
    },
    /// It is not on.
    #[error("the dirty log is off; start it first")]
    Off,
    /// It is on already.
    #[error("the dirty log is on already, for another migration perhaps; stop it first")]
    On,
    /// The bitmap is that of another guest.
    #[error("the bitmap to harvest into is not one of the guest's regions")]
    OtherRegions,
}

/// The dirty log of one guest.
#[derive(Debug)]
pub struct DirtyLog {
    slots: Vec<Slot>,
    /// Whether KVM leaves the clearing to us.
    manual: bool,
    on: bool,
}

#[derive(Debug)]
struct Slot {
    region: MemoryRegion,
    map: Arc<MmapRegion<PageBitmap>>,
    /// What was harvested from KVM and not cleared there yet.
    uncleared: Option<Vec<u64>>,
}

impl Slot {
    /// What this process has written.
    fn written(&self) -> &PageBitmap {
        self.map.bitmap()
    }

    fn set(&self, vm: &VmFd, flags: u32) -> Result<(), DirtyLogError> {
        let region = kvm_userspace_memory_region {
            slot: u32::from(self.region.id.0),
            flags,
            guest_phys_addr: self.region.base.address(),
            memory_size: self.region.pages.bytes().0,
            userspace_addr: self.map.as_ptr() as u64,
        };
        // SAFETY: the range is one mapping of `Memory`, which the machine keeps for as long as the
        // VM lives, and the slots do not overlap.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(|source| self.failed("KVM_SET_USER_MEMORY_REGION", source))
    }

    const fn failed(&self, call: &'static str, source: errno::Error) -> DirtyLogError {
        DirtyLogError::Kvm { call, region: self.region.id, source }
    }

    /// Clears the bits of `words`, which are those of this slot.
    fn clear(&self, vm: &VmFd, words: &[u64]) -> Result<(), DirtyLogError> {
        let mut first_page = 0;
        for words in words.chunks((CLEAR_PAGES / 64) as usize) {
            let pages = (self.region.pages.0 - first_page).min(CLEAR_PAGES);
            if words.iter().any(|&word| word != 0) {
                let order = kvm_clear_dirty_log {
                    slot: u32::from(self.region.id.0),
                    num_pages: pages as u32,
                    first_page,
                    __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                        dirty_bitmap: words.as_ptr().cast_mut().cast(),
                    },
                };
                // SAFETY: the kernel reads one bit for each of `pages` pages, which `words` has,
                // and writes nothing.
                let ret = unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &order) };
                if ret != 0 {
                    return Err(self.failed("KVM_CLEAR_DIRTY_LOG", errno::Error::last()));
                }
            }
            first_page += pages;
        }
        Ok(())
    }
}

impl DirtyLog {
    /// Gives `memory` to `vm`, one slot per region, with the log off.
    ///
    /// # Errors
    /// [`DirtyLogError::Kvm`] if KVM refuses the memory.
    pub fn new(vm: &VmFd, memory: &Memory) -> Result<Self, DirtyLogError> {
        let mut slots = Vec::new();
        for (region, map) in memory.mappings() {
            let slot = Slot { region: *region, map, uncleared: None };
            slot.set(vm, 0)?;
            slots.push(slot);
        }
        let manual = enable_manual_protect(vm);
        tracing::debug!(manual, "dirty log");
        Ok(Self { slots, manual, on: false })
    }

    /// Switches the log on; it is empty then.
    ///
    /// # Errors
    /// [`DirtyLogError`] if it is on already or KVM refuses; it is off then.
    pub fn start(&mut self, vm: &VmFd) -> Result<(), DirtyLogError> {
        if self.on {
            return Err(DirtyLogError::On);
        }
        // What was written until now is in memory, which a migration reads after this.
        self.slots.iter().for_each(|slot| slot.written().clear());
        self.on = true;
        let started = self.start_kvm(vm);
        if started.is_err() {
            // What remains of the failed start is cleared away; the first error is what counts.
            let _ = self.stop(vm);
        }
        started
    }

    fn start_kvm(&self, vm: &VmFd) -> Result<(), DirtyLogError> {
        for slot in &self.slots {
            slot.set(vm, KVM_MEM_LOG_DIRTY_PAGES)?;
            if self.manual {
                // With all bits set from the start, switching on is quick whatever the size;
                // clearing then write-protects in pieces, while the guest runs.
                slot.clear(vm, &vec![u64::MAX; slot.written().words().count()])?;
            }
        }
        Ok(())
    }

    /// Adds to `bitmap` what became dirty since the last harvest, and returns how many pages that
    /// is. Each dirty bit is handed out once. `paused` says that no vCPU can run before
    /// [`Self::before_resume`].
    ///
    /// Pages that are added and for which KVM fails afterwards are in `bitmap` all the same.
    ///
    /// # Errors
    /// [`DirtyLogError`] if the log is off, the bitmap is not of this guest or KVM refuses.
    pub fn harvest(
        &mut self,
        vm: &VmFd,
        bitmap: &GuestBitmap,
        paused: bool,
    ) -> Result<Pages, DirtyLogError> {
        if !self.on {
            return Err(DirtyLogError::Off);
        }
        let regions = self.slots.iter().map(|slot| (slot.region.id, slot.region.pages));
        if !regions.eq(bitmap.iter().map(|region| (region.region(), region.pages()))) {
            return Err(DirtyLogError::OtherRegions);
        }
        self.before_resume(vm)?;
        let mut dirty = Pages(0);
        for (slot, bitmap) in self.slots.iter_mut().zip(bitmap.iter()) {
            let bytes = slot.region.pages.bytes().0 as usize;
            let by_guest = vm
                .get_dirty_log(u32::from(slot.region.id.0), bytes)
                .map_err(|source| slot.failed("KVM_GET_DIRTY_LOG", source))?;
            let by_devices = slot.written().take_words();
            let both = by_guest.iter().zip(by_devices).map(|(guest, device)| guest | device);
            dirty += bitmap.merge(both);
            match (self.manual, paused) {
                (true, true) => slot.uncleared = Some(by_guest),
                (true, false) => slot.clear(vm, &by_guest)?,
                (false, _) => {}
            }
        }
        Ok(dirty)
    }

    /// Does what a harvest in a pause has put off.
    ///
    /// # Errors
    /// [`DirtyLogError::Kvm`] if KVM refuses.
    pub fn before_resume(&mut self, vm: &VmFd) -> Result<(), DirtyLogError> {
        self.slots.iter_mut().try_for_each(|slot| match slot.uncleared.take() {
            Some(words) => slot.clear(vm, &words),
            None => Ok(()),
        })
    }

    /// Switches the log off and forgets what is in it. Does nothing if it is off.
    ///
    /// # Errors
    /// [`DirtyLogError::Kvm`] if KVM refuses; the log counts as off all the same.
    pub fn stop(&mut self, vm: &VmFd) -> Result<(), DirtyLogError> {
        if !self.on {
            return Ok(());
        }
        self.on = false;
        self.slots.iter_mut().for_each(|slot| slot.uncleared = None);
        let results: Vec<_> = self.slots.iter().map(|slot| slot.set(vm, 0)).collect();
        results.into_iter().collect()
    }
}

/// Asks for manual protection with all bits set at the start; false where the host lacks either.
fn enable_manual_protect(vm: &VmFd) -> bool {
    let wanted = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
    let has = vm.check_extension_raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.into());
    if has as u32 & wanted != wanted {
        return false;
    }
    let mut cap =
        kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, ..kvm_enable_cap::default() };
    cap.args[0] = u64::from(wanted);
    vm.enable_cap(&cap).is_ok()
}
