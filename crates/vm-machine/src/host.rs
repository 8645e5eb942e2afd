//! KVM, and what it can do on this host.

use kvm_ioctls::Kvm;
use vm_cpu::Offer;
use vm_state::{CpuDescription, HostCapabilities, compat};

use crate::arch::{find_msrs, host_capabilities};
use crate::error::MachineError;

/// KVM, and what it can do on this host. To find that out takes a machine of its own, and longer
/// than to build the one that is wanted: so it is done before anybody waits.
#[derive(Debug)]
pub struct Host {
    pub(crate) kvm: Kvm,
    capabilities: HostCapabilities,
}

impl Host {
    /// Asks KVM.
    ///
    /// # Errors
    /// [`MachineError`] if there is none, or it lacks what the machine needs.
    pub fn probe() -> Result<Self, MachineError> {
        let kvm = Kvm::new().map_err(MachineError::NoKvm)?;
        let capabilities = host_capabilities(&kvm)?;
        Ok(Self { kvm, capabilities })
    }

    /// What it can give to a guest.
    pub fn offer(&self) -> Offer {
        Offer::from(&self.capabilities)
    }

    /// Whether it can take a guest with this processor.
    pub(crate) fn check(&self, cpu: &CpuDescription) -> Result<(), MachineError> {
        let mut capabilities = self.capabilities.clone();
        find_msrs(&self.kvm, cpu, &mut capabilities)?;
        Ok(compat::check(cpu, &capabilities)?)
    }
}
