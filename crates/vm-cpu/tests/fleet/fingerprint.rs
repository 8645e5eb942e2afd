//! Hosts from the CPU fingerprints of Firecracker (`tools/` and `docs/cpu_templates` there): what its
//! guests see of CPUID and MSRs on one model of host with one kernel.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vm_state::{CpuidLeaf, HostCapabilities};

use super::Host;

/// MSRs of every KVM, which fingerprints leave out because their values change all the time.
const ALWAYS: [u32; 8] = [0x10, 0x1b, 0x2ff, 0x6e0, 0xc000_0080, 0xc000_0100, 0xc000_0101, 0x17a];

/// A number as fingerprints write it: 0x1f, 0b101.
fn number(value: &Value) -> u64 {
    let text = value.as_str().expect("a number as a string");
    match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
        (Some(hex), _) => u64::from_str_radix(hex, 16).expect("hexadecimal"),
        (_, Some(binary)) => u64::from_str_radix(binary, 2).expect("binary"),
        _ => text.parse().expect("a number"),
    }
}

fn host(file: &Path) -> Host {
    let text = fs::read_to_string(file).expect("a fingerprint");
    let all: Value = serde_json::from_str(&text).expect("a fingerprint is JSON");
    let config = &all["guest_cpu_config"];
    let leaf = |leaf: &Value| {
        let register = |name: &str| {
            let all = leaf["modifiers"].as_array().expect("registers");
            let found = all.iter().find(|register| register["register"] == name);
            found.map_or(0, |register| number(&register["bitmap"]) as u32)
        };
        CpuidLeaf {
            function: number(&leaf["leaf"]) as u32,
            index: number(&leaf["subleaf"]) as u32,
            flags: leaf["flags"].as_u64().expect("flags") as u32,
            eax: register("eax"),
            ebx: register("ebx"),
            ecx: register("ecx"),
            edx: register("edx"),
        }
    };
    let cpuid: Vec<_> =
        config["cpuid_modifiers"].as_array().expect("CPUID").iter().map(leaf).collect();
    let values = config["msr_modifiers"].as_array().expect("MSRs");
    let values = values.iter().map(|msr| (number(&msr["addr"]) as u32, number(&msr["bitmap"])));
    let values: Vec<(u32, u64)> = values.collect();
    let arch_capabilities =
        values.iter().find(|(msr, _)| *msr == 0x10a).map_or(0, |(_, value)| *value);
    let msrs = values.iter().map(|(msr, _)| *msr).chain(ALWAYS).collect();
    let xsave = cpuid.iter().find(|leaf| (leaf.function, leaf.index) == (0xd, 0));
    let xsave_components = xsave.map_or(3, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
    Host {
        name: name(file),
        // Fingerprints do not have the TSC; each of these models scales it.
        capabilities: HostCapabilities {
            cpuid,
            xsave_components,
            msrs,
            arch_capabilities,
            tsc_khz: 2_500_000,
            tsc_scaling: true,
        },
    }
}

/// `Sapphire Rapids 6.18` of fingerprint_INTEL_SAPPHIRE_RAPIDS_6.18host.json.
fn name(file: &Path) -> String {
    let stem = file.file_stem().expect("a name").to_string_lossy();
    let words = stem.trim_start_matches("fingerprint_").trim_end_matches("host").split('_').skip(1);
    let capital = |word: &str| match word.split_at_checked(1) {
        Some((first, rest)) => first.to_owned() + &rest.to_lowercase(),
        None => String::new(),
    };
    words.map(capital).collect::<Vec<_>>().join(" ").replace("lake", " Lake")
}

/// All fingerprints in a folder: by model, and by kernel from the oldest to the newest.
pub fn hosts(folder: &Path) -> Vec<Host> {
    let entries = fs::read_dir(folder).expect("a folder of fingerprints");
    let files = entries.map(|entry| entry.expect("an entry").path());
    let is_one = |file: &std::path::PathBuf| file.extension().is_some_and(|end| end == "json");
    let mut hosts: Vec<_> = files.filter(is_one).map(|file| host(&file)).collect();
    let order = |host: &Host| {
        let (model, kernel) = host.name.rsplit_once(' ').expect("a kernel behind a model");
        let kernel: Vec<u32> = kernel.split('.').map(|it| it.parse().expect("a version")).collect();
        (host.vendor(), model.to_owned(), kernel)
    };
    hosts.sort_by_key(order);
    hosts
}
