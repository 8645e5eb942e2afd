//! Which guests move between which hosts of a fleet: one that was made up, and the real hosts whose
//! fingerprints are in the folder that MIGPIPE_FINGERPRINTS names.
#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]

mod fleet;

use std::path::{Path, PathBuf};
use std::{env, fs};

use fleet::{Host, baseline, fingerprint, made, moving, table};
use vm_cpu::Model;
use vm_state::compat::{Level, WORDS, arch_capability_names, feature_names, has};

/// The real hosts, where this machine has their data.
fn real() -> Vec<Host> {
    let Some(folder) = env::var_os("MIGPIPE_FINGERPRINTS") else {
        println!("SKIPPED real hosts: MIGPIPE_FINGERPRINTS names no folder of CPU fingerprints");
        return Vec::new();
    };
    let hosts = fingerprint::hosts(&PathBuf::from(folder));
    assert!(!hosts.is_empty(), "no fingerprint in the folder of MIGPIPE_FINGERPRINTS");
    hosts
}

fn pairs(hosts: &[Host]) -> impl Iterator<Item = (&Host, &Host)> {
    let all = hosts.iter().flat_map(|from| hosts.iter().map(move |to| (from, to)));
    all.filter(|(from, to)| from.vendor() == to.vendor())
}

fn every_fleet(of: impl Fn(&[Host])) {
    of(&made::hosts());
    of(&real());
}

#[test]
fn with_the_baseline_of_two_hosts_of_one_vendor_guests_move_both_ways() {
    every_fleet(|hosts| {
        for (one, other) in pairs(hosts) {
            let offer = baseline([one, other]).expect("one vendor has a baseline");
            for from in [one, other] {
                let guest = from.guest(Model::Baseline(Box::new(offer.clone())));
                let guest = guest.unwrap_or_else(|| panic!("{} gives no baseline", from.name));
                let names = (&from.name, &one.name, &other.name);
                assert!(one.takes(&guest) && other.takes(&guest), "{names:?}");
            }
        }
    });
}

#[test]
fn with_the_baseline_of_all_hosts_of_one_vendor_guests_move_between_all() {
    every_fleet(|hosts| {
        for first in hosts {
            let fleet = || hosts.iter().filter(|host| host.vendor() == first.vendor());
            let offer = Box::new(baseline(fleet()).expect("one vendor has a baseline"));
            let guest = first.guest(Model::Baseline(offer)).expect("it is of this host too");
            fleet().for_each(|to| assert!(to.takes(&guest), "{} to {}", first.name, to.name));
            assert!(has(&guest.cpuid, "avx2"), "{}", first.name);
        }
    });
}

#[test]
fn a_guest_of_a_level_moves_between_all_hosts_of_one_vendor_that_have_it() {
    every_fleet(|hosts| {
        let scales = |host: &&Host| host.capabilities.tsc_scaling;
        for (from, to) in pairs(hosts).filter(|(_, to)| scales(to)) {
            let has =
                |level| [from, to].map(|host| Level::of(&host.capabilities.cpuid) >= Some(level));
            for level in Level::ALL.into_iter().filter(|&level| has(level) == [true, true]) {
                let guest = from.guest(Model::Level(level)).expect("it has the level");
                assert!(to.takes(&guest), "{level} from {} to {}", from.name, to.name);
            }
        }
        assert!(hosts.iter().all(|host| Level::of(&host.capabilities.cpuid) >= Some(Level::V3)));
    });
}

#[test]
fn guests_of_two_vendors_do_not_meet() {
    every_fleet(|hosts| {
        for from in hosts {
            for to in hosts.iter().filter(|to| to.vendor() != from.vendor()) {
                assert_eq!(moving(from, to), "");
                assert_eq!(baseline([from, to]), None);
            }
        }
    });
}

#[test]
fn what_migrates_badly_is_given_to_no_guest() {
    every_fleet(|hosts| {
        for host in hosts {
            let guest = host.guest(Model::Host).expect("a host gives what it has");
            for feature in ["shstk", "ibt", "dtes64", "dts", "ds_cpl", "vmx", "svm", "amx_tile"] {
                assert!(!has(&guest.cpuid, feature), "{} gives {feature}", host.name);
            }
            assert!(guest.cpuid.iter().all(|leaf| !matches!(leaf.function, 0x12 | 0x8000_001f)));
            assert_eq!(guest.xsave_components & 1 << 18, 0, "{}", host.name);
            assert!(has(&guest.cpuid, "avx2") && has(&guest.cpuid, "xsaves"), "{}", host.name);
            assert!(host.takes(&guest));
        }
    });
}

#[test]
fn a_guest_that_asks_for_amx_is_given_it() {
    every_fleet(|hosts| {
        for host in hosts.iter().filter(|host| has(&host.capabilities.cpuid, "amx_tile")) {
            let wanted = "host,+amx_tile".parse::<vm_cpu::CpuSpec>().unwrap().read().unwrap();
            let cpu = wanted.on(&host.capabilities).unwrap().cpu;
            assert!(has(&cpu.cpuid, "amx_tile") && has(&cpu.cpuid, "xfd"), "{}", host.name);
            assert!(!has(&cpu.cpuid, "amx_int8"), "{}", host.name);
            assert_eq!(cpu.xsave_components >> 17, 0b11, "{}", host.name);
            assert!(cpu.xsave_bytes > 8192, "{}", host.name);
        }
    });
}

#[test]
fn a_host_whose_kernel_says_spec_ctrl_no_more_takes_its_guests() {
    let hosts = made::hosts();
    let (says, says_not) = (&hosts[3], &hosts[4]);
    assert!(has(&says.guest(Model::Host).unwrap().cpuid, "spec_ctrl"));
    assert!(!has(&says_not.capabilities.cpuid, "spec_ctrl"));
    assert!(moving(says, says_not).starts_with('h'));
    let real = real();
    let named = |name: &str| real.iter().find(|host| host.name == name);
    if let (Some(from), Some(to)) = (named("Milan 6.1"), named("Milan 6.18")) {
        assert!(!has(&to.capabilities.cpuid, "spec_ctrl"));
        assert!(moving(from, to).starts_with('h'));
    }
}

#[test]
fn what_a_processor_does_worse_is_in_the_baseline() {
    let hosts = made::hosts();
    let offer = baseline(&hosts[1..3]).unwrap();
    assert_eq!(arch_capability_names(offer.arch_capabilities), ["rdcl_no", "mds_no", "rrsba"]);
}

#[test]
fn all_bits_of_real_hosts_have_names() {
    for host in real() {
        let unnamed = feature_names(&host.capabilities.cpuid);
        let unnamed = unnamed.into_iter().filter(|name| name.starts_with("CPUID"));
        // Linux 5.10 passes on what a processor has there, though nobody has named it.
        let unnamed: Vec<_> =
            unnamed.filter(|name| !name.starts_with("CPUID 0x80000021.0")).collect();
        assert!(unnamed.is_empty(), "{}: {unnamed:?}", host.name);
        let bits = arch_capability_names(host.capabilities.arch_capabilities);
        assert!(bits.iter().all(|name| !name.starts_with("bit")), "{}: {bits:?}", host.name);
        assert!(WORDS.iter().any(|word| word.of(&host.capabilities.cpuid) != 0));
    }
}

#[test]
fn the_page_has_the_table_of_the_real_hosts() {
    let hosts = real();
    if hosts.is_empty() {
        return;
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cpu.md");
    let page = fs::read_to_string(page).expect("the page");
    assert!(page.contains(&table(&hosts)), "make the table of docs/cpu.md again, as it says there");
}

#[test]
fn a_table_has_a_row_and_a_column_for_each_host() {
    let hosts = made::hosts();
    let table = table(&hosts);
    let rows: Vec<_> = table.lines().collect();
    assert_eq!(rows.len(), hosts.len() + 2);
    assert_eq!(rows[0], "| from \\ to | 1 | 2 | 3 | 4 | 5 |");
    // The first cannot scale its TSC, and the second can: only the baseline of both goes both ways.
    assert!(rows[2].ends_with("| hb23 | b23 | b23 | - | - |"), "{}", rows[2]);
    assert!(rows[3].ends_with("| b | hb234 | b234 | - | - |"), "{}", rows[3]);
    assert!(rows[5].ends_with("| - | - | - | hb23 | hb23 |"), "{}", rows[5]);
}
