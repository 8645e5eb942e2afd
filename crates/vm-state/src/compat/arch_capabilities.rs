//! The bits of IA32_ARCH_CAPABILITIES (Intel SDM vol. 4, MSR 0x10a), by the names of Linux
//! (`ARCH_CAP_*` in `msr-index.h`).
//!
//! KVM takes any value of this MSR from user space, also one that says more than its processor can,
//! so nobody but this check stops a guest that was told that it needs no mitigation from going where
//! it needs one.

/// The names of bits 0 to 62, `-` where a bit has none.
const NAMES: &str = "rdcl_no ibrs_all rsba skip_vmentry_l1dflush ssb_no mds_no pschange_mc_no \
    tsx_ctrl_msr taa_no mcu_control misc_package_ctls energy_filtering_ctl doitm sbdr_ssdp_no \
    fbsdp_no psdp_no mcu_enumeration fb_clear fb_clear_ctrl rrsba bhi_no xapic_disable - \
    overclocking pbrsb_no gds_ctrl gds_no rfds_no rfds_clear ign_umonitor mon_umon_mitg \
    - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - its_no";

/// Bits that say what a processor does worse: RSBA and RRSBA, a return may be predicted from
/// elsewhere than the return stack. A guest has to be told of them wherever it may run.
pub const WORSE: u64 = 1 << 2 | 1 << 19;

/// The names of the bits that are set in `value`; `bit 22` of one without a name.
pub fn arch_capability_names(value: u64) -> Vec<String> {
    let names: Vec<_> = NAMES.split_ascii_whitespace().collect();
    let name = |bit: usize| match names.get(bit) {
        Some(&"-") | None => format!("bit {bit}"),
        Some(name) => (*name).to_owned(),
    };
    (0..64).filter(|bit| value & 1 << bit != 0).map(name).collect()
}

/// The bit of this name.
pub fn arch_capability(name: &str) -> Option<u64> {
    let at = NAMES.split_ascii_whitespace().position(|known| known == name && known != "-")?;
    Some(1 << at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_known_bits_have_their_names() {
        assert_eq!(NAMES.split_ascii_whitespace().count(), 63);
        for (bit, name) in [
            (0, "rdcl_no"),
            (5, "mds_no"),
            (8, "taa_no"),
            (13, "sbdr_ssdp_no"),
            (17, "fb_clear"),
            (19, "rrsba"),
            (26, "gds_no"),
            (28, "rfds_clear"),
            (62, "its_no"),
        ] {
            assert_eq!(arch_capability(name), Some(1 << bit), "{name}");
            assert_eq!(arch_capability_names(1 << bit), [name]);
        }
        assert_eq!(arch_capability_names(1 << 22 | 1 << 63), ["bit 22", "bit 63"]);
        assert_eq!((arch_capability("-"), arch_capability("avx")), (None, None));
        assert_eq!(arch_capability_names(WORSE), ["rsba", "rrsba"]);
    }
}
