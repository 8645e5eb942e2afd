//! The processor that a host gives to a guest, word by word.

#[allow(dead_code, reason = "each program that includes it uses a part of it")]
mod fleet;

use fleet::made;
use vm_cpu::{CpuError, CpuSpec, Model, Offer, Processor, Wanted};
use vm_state::HostCapabilities;
use vm_state::compat::{Level, address_bits, arch_capability, has};

/// Intel with AVX-512 and an old kernel.
fn intel() -> HostCapabilities {
    made::hosts().remove(1).capabilities
}

/// Intel with AMX.
fn amx() -> HostCapabilities {
    made::hosts().remove(2).capabilities
}

fn on(host: &HostCapabilities, text: &str) -> Result<Processor, CpuError> {
    text.parse::<CpuSpec>().unwrap().read().unwrap().on(host)
}

fn refused(host: &HostCapabilities, text: &str) -> String {
    on(host, text).unwrap_err().to_string()
}

#[test]
fn what_needs_a_feature_goes_with_it() {
    let cpu = on(&intel(), "host,-avx512f").unwrap().cpu;
    for feature in ["avx512f", "avx512bw", "avx512vl"] {
        assert!(!has(&cpu.cpuid, feature), "{feature}");
    }
    assert!(has(&cpu.cpuid, "avx2") && has(&cpu.cpuid, "pku"));
    assert_eq!(cpu.xsave_components, 0b10_0000_0111);
    let leaves =
        |component| cpu.cpuid.iter().any(|leaf| (leaf.function, leaf.index) == (0xd, component));
    assert!(leaves(2) && leaves(9) && !leaves(5) && !leaves(7));
    // As long as the last component that is left.
    let area = cpu.cpuid.iter().find(|leaf| (leaf.function, leaf.index) == (0xd, 0)).unwrap();
    assert_eq!((area.eax, area.ecx), (0x207, 2688 + 8));

    let cpu = on(&intel(), "host,-xsave").unwrap().cpu;
    assert!(!has(&cpu.cpuid, "avx") && !has(&cpu.cpuid, "xsaves") && has(&cpu.cpuid, "aes"));
    assert_eq!(cpu.xsave_components, 3);
}

#[test]
fn a_feature_comes_with_what_it_needs() {
    let cpu = on(&intel(), "x86-64-v3,+avx512bw").unwrap().cpu;
    assert!(has(&cpu.cpuid, "avx512f") && has(&cpu.cpuid, "avx512bw"));
    assert!(!has(&cpu.cpuid, "avx512vl"));
    assert_eq!(cpu.xsave_components, 0b1110_0111);
    // The last word counts.
    let cpu = on(&intel(), "x86-64-v3,+avx512bw,-avx512f").unwrap_err().to_string();
    assert!(cpu.contains("cannot give a guest avx512bw"), "{cpu}");
    let cpu = on(&intel(), "host,-aes,+aes").unwrap().cpu;
    assert!(has(&cpu.cpuid, "aes"));
    let cpu = on(&intel(), "host,+aes,-aes").unwrap().cpu;
    assert!(!has(&cpu.cpuid, "aes"));
}

#[test]
fn what_a_host_lacks_is_named() {
    let sha = refused(&intel(), "host,+sha_ni");
    assert_eq!(sha, "this host cannot give a guest sha_ni: vmctl cpu lists what it can");
    let amx = refused(&intel(), "host,+amx_int8");
    assert!(amx.contains("cannot give a guest amx_int8, which needs xfd:"), "{amx}");
    assert!(refused(&intel(), "host,+its_no").contains("cannot give a guest its_no"));
    let old = made::hosts().remove(0).capabilities;
    let below = refused(&old, "x86-64-v4");
    assert!(below.starts_with("this host has not all of x86-64-v4: it lacks avx512f, "), "{below}");
}

#[test]
fn a_level_is_the_same_on_each_host() {
    let features = |host: &HostCapabilities, level: Level| {
        let model = Model::Level(level);
        let cpu = Wanted { model, changes: Vec::new() }.on(host).unwrap().cpu;
        assert_eq!((cpu.arch_capabilities, address_bits(&cpu.cpuid)), (Some(0), 46));
        assert!(level.features().all(|feature| has(&cpu.cpuid, feature)));
        let mut features = vm_state::compat::feature_names(&cpu.cpuid);
        features.sort();
        (features, cpu.xsave_components)
    };
    for level in Level::ALL {
        assert_eq!(features(&intel(), level), features(&amx(), level), "{level}");
        let (names, components) = features(&amx(), level);
        assert!(!names.iter().any(|it| it == "spec_ctrl" || it == "aes" || it == "invtsc"));
        let expected = [(Level::V2, 3), (Level::V3, 7), (Level::V4, 0xe7)];
        assert!(expected.contains(&(level, components)), "{level}: {components:#x}");
    }
}

#[test]
fn bits_of_arch_capabilities_are_features_too() {
    let value = |text: &str| on(&amx(), text).unwrap().cpu.arch_capabilities.unwrap();
    let bit = |name: &str| arch_capability(name).unwrap();
    let all = bit("rdcl_no") | bit("mds_no") | bit("rrsba") | bit("its_no");
    assert_eq!(value("host"), all);
    assert_eq!(value("host,-its_no"), all & !bit("its_no"));
    assert_eq!(value("host,-rrsba"), all, "a guest is told what its processor does worse");
    assert_eq!(value("host,-arch_capabilities"), 0);
    assert_eq!(value("x86-64-v3,+arch_capabilities"), bit("rrsba"));
    let with = value("x86-64-v3,+arch_capabilities,+rdcl_no");
    assert_eq!(with, bit("rrsba") | bit("rdcl_no"));
    let without = refused(&amx(), "x86-64-v3,+rdcl_no");
    assert!(without.contains("rdcl_no is a bit of IA32_ARCH_CAPABILITIES"), "{without}");
}

#[test]
fn a_baseline_of_other_hosts_is_refused_with_what_is_lacking() {
    let model = |host: &HostCapabilities| Model::Baseline(Box::new(Offer::from(host)));
    let wanted = |host| Wanted { model: model(host), changes: Vec::new() };
    let error = wanted(&amx()).on(&intel()).unwrap_err();
    assert!(error.to_string().starts_with("the baseline is not of this host too"), "{error}");
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert!(why.contains("avx512_fp16") && why.contains("its_no"), "{why}");
}

#[test]
fn the_tsc_of_a_baseline_is_that_of_the_host_which_cannot_scale_it() {
    let [fixed, scales] = [0, 1].map(|at| made::hosts().remove(at).capabilities);
    let both = Offer::from(&fixed).common(&Offer::from(&scales)).unwrap();
    let wanted = Wanted { model: Model::Baseline(Box::new(both.clone())), changes: Vec::new() };
    for host in [&fixed, &scales] {
        let Processor { cpu, msrs } = wanted.on(host).unwrap();
        assert_eq!((cpu.tsc_khz, msrs.as_ref()), (2_100_000, Some(&both.msrs)));
    }
    assert_eq!(on(&scales, "host").unwrap().cpu.tsc_khz, 2_900_000);
}

#[test]
fn a_baseline_may_be_added_to() {
    let [old, new] = [0, 1].map(|at| made::hosts().remove(at).capabilities);
    let both = Offer::from(&old).common(&Offer::from(&new)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fleet.json");
    std::fs::write(&file, both.to_json()).unwrap();
    let cpu = on(&new, &format!("baseline:{},+avx512f,-aes", file.display())).unwrap().cpu;
    assert!(has(&cpu.cpuid, "avx512f") && !has(&cpu.cpuid, "aes") && !has(&cpu.cpuid, "mpx"));
    assert_eq!(cpu.xsave_components, 0xe7);
}
