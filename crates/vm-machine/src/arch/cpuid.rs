//! CPUID: what KVM offers, the topology of a guest with so many vCPUs, and how a vCPU is given it.
//! Which features a guest has is decided in `vm-cpu`.
//!
//! Every guest sees one package of single-threaded cores that share the last-level cache, and its
//! APIC ids are its vCPU ids (KVM sets them so when it creates a vCPU).
#![forbid(unsafe_code)]

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vm_state::{CpuDescription, CpuidLeaf};

use super::ioctl::{IoctlError, Named};

/// KVM_CPUID_FLAG_SIGNIFCANT_INDEX: ECX counts.
const INDEX_COUNTS: u32 = 1;

/// Leaf 1 ecx.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const XSAVE: u32 = 1 << 26;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 edx.
const HTT: u32 = 1 << 28;
/// x87 and SSE, which a processor without XSAVE has as well.
const XCR0_LEGACY: u64 = 0b11;
/// Leaf 0x80000001 ecx.
const CMP_LEGACY: u32 = 1 << 1;

fn leaves(cpuid: &CpuId) -> Vec<CpuidLeaf> {
    cpuid
        .as_slice()
        .iter()
        .map(|entry| CpuidLeaf {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        })
        .collect()
}

/// What this host's KVM can give to a guest. KVM_GET_SUPPORTED_CPUID leaves three bits to user
/// space that depend on the interrupt controller being in the kernel, as ours is.
pub(crate) fn offered(kvm: &Kvm) -> Result<Vec<CpuidLeaf>, IoctlError> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let mut offered = leaves(&supported.named("KVM_GET_SUPPORTED_CPUID")?);
    for leaf in offered.iter_mut().filter(|leaf| leaf.function == 1) {
        leaf.ecx |= HYPERVISOR | X2APIC;
        if kvm.check_extension(Cap::TscDeadlineTimer) {
            leaf.ecx |= TSC_DEADLINE;
        }
        // The id of whichever processor this thread happened to run on.
        leaf.ebx &= 0x00ff_ffff;
    }
    Ok(offered)
}

/// What this vCPU was given (KVM_GET_CPUID2).
pub(crate) fn of_vcpu(vcpu: &VcpuFd) -> Result<Vec<CpuidLeaf>, IoctlError> {
    let mut given = leaves(&vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).named("KVM_GET_CPUID2")?);
    // Linux 6.1 does not say how many it filled in (it leaves `nent` alone); no leaf is all zeros.
    let nothing = |l: &CpuidLeaf| {
        [l.function, l.index, l.flags, l.eax, l.ebx, l.ecx, l.edx].iter().all(|&word| word == 0)
    };
    while given.last().is_some_and(nothing) {
        given.pop();
    }
    Ok(given)
}

/// The XSAVE components that a guest with this CPUID may enable (XCR0 bits).
pub(crate) fn xsave_components(cpuid: &[CpuidLeaf]) -> u64 {
    let find = |function| cpuid.iter().find(|l| l.function == function && l.index == 0);
    match (find(1), find(0xd)) {
        (Some(one), Some(xsave)) if one.ecx & XSAVE != 0 => {
            u64::from(xsave.edx) << 32 | u64::from(xsave.eax)
        }
        _ => XCR0_LEGACY,
    }
}

/// The CPUID of vCPU 0 of a guest with `vcpus` vCPUs that was given these features.
pub(crate) fn for_guest(mut cpuid: Vec<CpuidLeaf>, vcpus: u32) -> Vec<CpuidLeaf> {
    set_topology(&mut cpuid, vcpus);
    set_apic_id(&mut cpuid, 0);
    cpuid
}

/// How many bits of an APIC id number the cores of a package.
fn id_bits(vcpus: u32) -> u32 {
    vcpus.max(1).next_power_of_two().trailing_zeros()
}

/// One package of `vcpus` cores (Intel SDM vol. 2A CPUID leaves 1, 4, 0xb; AMD APM vol. 3 leaves
/// 0x80000001, 0x80000008, 0x8000001d, 0x8000001e).
fn set_topology(cpuid: &mut Vec<CpuidLeaf>, vcpus: u32) {
    let amd = vm_state::compat::is_amd(cpuid);
    let ids = 1 << id_bits(vcpus);
    // Level 3 and up are shared by all, the others belong to one core.
    let sharing = |eax: u32| if eax >> 5 & 7 >= 3 { ids - 1 } else { 0 };
    for leaf in cpuid.iter_mut() {
        match leaf.function {
            1 => {
                leaf.ebx = leaf.ebx & 0xff00_ffff | vcpus.min(255) << 16;
                leaf.edx = if vcpus > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
            }
            // A cache type of 0 ends the list of caches.
            4 if leaf.eax & 0x1f != 0 => {
                leaf.eax = leaf.eax & 0x3fff | sharing(leaf.eax) << 14 | (ids - 1).min(63) << 26;
            }
            0x8000_0001 if amd => {
                leaf.ecx = if vcpus > 1 { leaf.ecx | CMP_LEGACY } else { leaf.ecx & !CMP_LEGACY };
            }
            0x8000_0008 if amd => {
                let counts = id_bits(vcpus) << 12 | (vcpus.max(1) - 1).min(255);
                leaf.ecx = leaf.ecx & 0xffff_0f00 | counts;
            }
            0x8000_001d if leaf.eax & 0x1f != 0 => {
                leaf.eax = leaf.eax & 0x3fff | sharing(leaf.eax) << 14;
            }
            _ => {}
        }
    }
    let has_topology_leaf = cpuid.iter().any(|leaf| leaf.function == 0 && leaf.eax >= 0xb);
    if has_topology_leaf {
        /// Kinds of level in ecx: a thread, a core.
        const THREAD: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        let levels = [(0, 1, THREAD), (id_bits(vcpus), vcpus, CORE | 1), (0, 0, 2)];
        for (index, (eax, ebx, ecx)) in (0..).zip(levels) {
            let function = 0xb;
            cpuid.push(CpuidLeaf { function, index, flags: INDEX_COUNTS, eax, ebx, ecx, edx: 0 });
        }
    }
}

/// Writes an APIC id wherever CPUID shows it.
fn set_apic_id(cpuid: &mut [CpuidLeaf], id: u32) {
    for leaf in cpuid {
        match leaf.function {
            1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | id << 24,
            0xb => leaf.edx = id,
            // Extended APIC id, core (of one thread), node 0 of one.
            0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
}

/// Gives vCPU `id` its CPUID (KVM_SET_CPUID2): that of the description with its own APIC id. To be
/// called on every vCPU right after its creation, before any other state: KVM decides by it which
/// bits of control registers and which MSRs it takes.
///
/// # Errors
/// [`IoctlError`] if KVM refuses the CPUID; [`vm_state::compat::check`] says why beforehand.
pub(crate) fn set_cpuid(vcpu: &VcpuFd, cpu: &CpuDescription, id: u32) -> Result<(), IoctlError> {
    set(vcpu, &cpu.cpuid, id)
}

pub(crate) fn set(vcpu: &VcpuFd, cpuid: &[CpuidLeaf], id: u32) -> Result<(), IoctlError> {
    let mut own = cpuid.to_vec();
    set_apic_id(&mut own, id);
    let entries: Vec<_> = own
        .iter()
        .map(|leaf| kvm_cpuid_entry2 {
            function: leaf.function,
            index: leaf.index,
            flags: leaf.flags,
            eax: leaf.eax,
            ebx: leaf.ebx,
            ecx: leaf.ecx,
            edx: leaf.edx,
            ..Default::default()
        })
        .collect();
    let entries = CpuId::from_entries(&entries).map_err(|_| IoctlError {
        call: "KVM_SET_CPUID2 with more leaves than KVM takes",
        source: kvm_ioctls::Error::new(libc::E2BIG),
    })?;
    vcpu.set_cpuid2(&entries).named("KVM_SET_CPUID2")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidLeaf {
        CpuidLeaf { function, index, flags: 0, eax, ebx, ecx, edx }
    }

    fn offered(vendor: [u32; 3]) -> Vec<CpuidLeaf> {
        vec![
            leaf(0, 0, [0x1f, vendor[0], vendor[1], vendor[2]]),
            leaf(1, 0, [0, 0x0700_0800, XSAVE | 1, 0x1]),
            leaf(4, 0, [0xfc00_4121, 0, 0, 0]),
            leaf(4, 3, [0xfc00_4163, 0, 0, 0]),
            leaf(4, 4, [0, 0, 0, 0]),
            leaf(0xd, 0, [0xe7, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, 1, 0]),
            leaf(0x8000_0008, 0, [0x3030, 0, 0x7001, 0]),
            leaf(0x8000_001d, 3, [0x4163, 0, 0, 0]),
            leaf(0x8000_001e, 0, [9, 9, 9, 0]),
        ]
    }

    const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];
    const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];

    fn find(cpuid: &[CpuidLeaf], function: u32, index: u32) -> CpuidLeaf {
        *cpuid.iter().find(|l| (l.function, l.index) == (function, index)).unwrap()
    }

    #[test]
    fn the_topology_is_one_package_of_cores() {
        let guest = for_guest(offered(INTEL), 3);
        assert_eq!(find(&guest, 1, 0).ebx, 0x0003_0800);
        assert_ne!(find(&guest, 1, 0).edx & HTT, 0);
        // The private cache is shared by no one, the last level by all four possible ids.
        assert_eq!(find(&guest, 4, 0).eax, 3 << 26 | 0x121);
        assert_eq!(find(&guest, 4, 3).eax, 3 << 26 | 3 << 14 | 0x163);
        assert_eq!(find(&guest, 4, 4).eax, 0);
        let levels = [0, 1, 2].map(|index| find(&guest, 0xb, index));
        assert_eq!(
            levels.map(|l| (l.eax, l.ebx, l.ecx)),
            [(0, 1, 0x100), (2, 3, 0x201), (0, 0, 2)]
        );
    }

    #[test]
    fn amd_says_the_topology_in_its_own_leaves_too() {
        let guest = for_guest(offered(AMD), 4);
        assert_eq!(find(&guest, 0x8000_0008, 0).ecx, 0x2003);
        assert_ne!(find(&guest, 0x8000_0001, 0).ecx & CMP_LEGACY, 0);
        assert_eq!(find(&guest, 0x8000_001d, 3).eax, 3 << 14 | 0x163);
        let e = find(&guest, 0x8000_001e, 0);
        assert_eq!((e.eax, e.ebx, e.ecx), (0, 0, 0));
    }

    #[test]
    fn a_single_vcpu_is_no_multiprocessor() {
        let guest = for_guest(offered(AMD), 1);
        assert_eq!(find(&guest, 1, 0).edx & HTT, 0);
        assert_eq!(find(&guest, 0x8000_0001, 0).ecx & CMP_LEGACY, 0);
        assert_eq!(find(&guest, 0xb, 1).eax, 0);
    }

    #[test]
    fn every_vcpu_sees_its_own_id_everywhere() {
        let mut own = for_guest(offered(AMD), 4);
        set_apic_id(&mut own, 3);
        assert_eq!(find(&own, 1, 0).ebx >> 24, 3);
        assert_eq!([0, 1, 2].map(|index| find(&own, 0xb, index).edx), [3, 3, 3]);
        assert_eq!(find(&own, 0x8000_001e, 0).eax, 3);
        assert_eq!(find(&own, 0x8000_001e, 0).ebx, 3);
    }

    #[test]
    fn without_xsave_there_is_x87_and_sse() {
        let mut cpuid = offered(AMD);
        assert_eq!(xsave_components(&cpuid), 0xe7);
        cpuid[1].ecx &= !XSAVE;
        assert_eq!(xsave_components(&cpuid), 3);
    }
}
