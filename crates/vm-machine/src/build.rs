//! Building a machine, for a guest that begins here or one that arrives.

use std::sync::{Arc, OnceLock};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use migpipe_units::Bytes;
use vm_devices::{ConsoleSpec, VirtioSpec};
use vm_state::MachineDescription;

use crate::arch::{IoctlError, cpu_of_guest, set_cpu};
use crate::arrival::{Arrival, check_devices};
use crate::boot;
use crate::config::{IncomingConfig, MachineConfig};
use crate::devices::OpenedDevices;
use crate::dirty::DirtyLog;
use crate::error::MachineError;
use crate::events::Events;
use crate::host::Host;
use crate::layout::{self, KVM_IDENTITY_MAP, KVM_TSS};
use crate::machine::{LoadState, Machine};
use crate::memory::{Memory, MemoryError, MemorySource};
use crate::ports::Ports;
use crate::vcpu::Vcpus;

impl Machine {
    /// Builds a machine and boots it; it is paused at the first instruction, and its disk images
    /// are locked.
    ///
    /// # Errors
    /// [`MachineError`] names what is missing.
    pub fn boot(config: &MachineConfig) -> Result<Self, MachineError> {
        config.kernel.check_host()?;
        let kvm = Kvm::new().map_err(MachineError::NoKvm)?;
        let cpu = cpu_of_guest(&kvm, &config.cpu, config.cpus)?;
        let pages = config.mem.pages();
        if config.mem != pages.bytes() || pages.0 == 0 {
            return Err(MemoryError::Size {
                asked: config.mem,
                page: Bytes(migpipe_units::PAGE_SIZE),
            }
            .into());
        }
        let description = MachineDescription {
            name: config.name.clone(),
            vcpus: config.cpus,
            memory: layout::regions(config.mem),
            hugetlb: config.memory.is_hugetlb(),
            cpu,
            devices: Vec::new(),
            kernel: config.kernel.kind(),
            boot: None,
        };
        let (console, devices) = (&config.console, &config.devices);
        let parts = Parts::new(&kvm, description, &config.memory, console, devices)?;
        let tsc_khz = parts.description.cpu.tsc_khz;
        let (memory, vcpus) = (&parts.memory, &parts.vcpus);
        let windows = parts.devices.windows();
        boot::boot(&config.kernel, &config.cmdline, memory, vcpus, &windows, tsc_khz)?;
        let machine = parts.assemble(|devices| LoadState::Loaded(devices.power_on()))?;
        machine.acquire_disks()?;
        Ok(machine)
    }

    /// Builds the machine of a guest that arrives. It is paused, its memory is zeros, and it cannot
    /// run before [`Self::load`]. The check of the host comes first of all.
    ///
    /// # Errors
    /// [`MachineError`] names what this host or program lacks.
    pub fn incoming(
        description: &MachineDescription,
        here: &IncomingConfig,
        host: &Host,
    ) -> Result<Machine, MachineError> {
        let arrival = Arrival { description, here, host };
        arrival.check_host()?;
        let devices = arrival.devices()?;
        here.allowed_paths.check(&devices.console, &devices.specs)?;
        arrival.check_memory_left()?;
        let mut description = description.clone();
        description.devices = devices.descriptions;
        if let Some(name) = &here.name {
            description.name.clone_from(name);
        }
        let memory = arrival.memory_source();
        Parts::new(&host.kvm, description, memory, &devices.console, &devices.specs)?
            .assemble(LoadState::AwaitingState)
    }
}

/// A machine without its threads.
struct Parts {
    description: MachineDescription,
    vcpus: Vec<VcpuFd>,
    devices: OpenedDevices,
    dirty: DirtyLog,
    vm: VmFd,
    memory: Memory,
}

fn named<T>(call: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, MachineError> {
    result.map_err(|source| MachineError::Build(IoctlError { call, source }))
}

impl Parts {
    /// Memory, chips, vCPUs with their CPUID, devices: in the order in which KVM wants them (the
    /// chips before the vCPUs, whose local APICs they make).
    fn new(
        kvm: &Kvm,
        mut description: MachineDescription,
        memory: &MemorySource,
        console: &ConsoleSpec,
        specs: &[VirtioSpec],
    ) -> Result<Self, MachineError> {
        check_devices(console, specs, description.hugetlb)?;
        let memory = Memory::new(&description.memory, memory)?;
        let vm = named("KVM_CREATE_VM", kvm.create_vm())?;
        named("KVM_SET_TSS_ADDR", vm.set_tss_address(KVM_TSS as usize))?;
        let identity_map = vm.set_identity_map_address(KVM_IDENTITY_MAP);
        named("KVM_SET_IDENTITY_MAP_ADDR", identity_map)?;
        named("KVM_CREATE_IRQCHIP", vm.create_irq_chip())?;
        let pit = kvm_pit_config {
            // Linux calibrates by the speaker's port, which KVM then serves without an exit.
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        };
        named("KVM_CREATE_PIT2", vm.create_pit2(pit))?;
        let dirty = DirtyLog::new(&vm, &memory)?;
        let mut vcpus = Vec::new();
        for id in 0..description.vcpus {
            let vcpu = named("KVM_CREATE_VCPU", vm.create_vcpu(id.into()))?;
            set_cpu(&vcpu, &description.cpu, id).map_err(MachineError::Build)?;
            vcpus.push(vcpu);
        }
        let devices = OpenedDevices::open(console, specs, &vm, &memory)?;
        description.devices = devices.describe();
        Ok(Self { description, vcpus, devices, dirty, vm, memory })
    }

    fn assemble(
        self,
        state: impl FnOnce(OpenedDevices) -> LoadState,
    ) -> Result<Machine, MachineError> {
        let events = Arc::new(Events::default());
        let bus = Arc::new(OnceLock::new());
        let ports = Ports { memory: self.memory.mapped().clone(), devices: Arc::clone(&bus) };
        let vcpus = Vcpus::start(self.vcpus, &ports, &events)?;
        let state = state(self.devices);
        if let LoadState::Loaded(devices) = &state {
            bus.get_or_init(|| devices.clone());
        }
        Ok(Machine {
            vcpus,
            state,
            bus,
            dirty: self.dirty,
            vm: self.vm,
            memory: self.memory,
            description: self.description,
            events,
            resumed_at: None,
        })
    }
}
