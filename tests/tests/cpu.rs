//! The processor of a guest: `vmrun --cpu`, `vmctl cpu`, and what a destination says to it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use mig_stream::StreamReader;
use migpipe_tests::{Guest, Host, assert_one_story, needs_kvm, spec};
use serde_json::Value;
use vm_state::MachineDescription;
use vm_state::compat::has;

/// What this host can give, in a file.
fn own(host: &Host) -> (PathBuf, Value) {
    let text = host.run("vmctl", &["cpu"]).expect(0).stdout;
    let file = host.path("host.json");
    fs::write(&file, &text).unwrap();
    (file, serde_json::from_str(&text).unwrap())
}

/// What the guest in a file was given.
fn given(file: &Path) -> MachineDescription {
    let stream = StreamReader::open(File::open(file).unwrap()).unwrap();
    let header = stream.header();
    MachineDescription::decode(&header.machine, &header.regions).unwrap()
}

#[test]
fn a_guest_of_a_baseline_runs_and_moves() {
    needs_kvm!();
    let host = Host::new();
    let (file, page) = own(&host);
    // Another host of the fleet: it has no CLWB.
    let mut other = page;
    for leaf in other["cpuid"].as_array_mut().unwrap() {
        if leaf["function"] == "0x7" && leaf["index"] == "0x0" {
            let ebx = leaf["ebx"].as_str().unwrap().trim_start_matches("0x");
            let ebx = u32::from_str_radix(ebx, 16).unwrap();
            leaf["ebx"] = format!("{:#x}", ebx & !(1 << 24)).into();
        }
    }
    let other_file = host.path("other.json");
    fs::write(&other_file, other.to_string()).unwrap();
    let [file, other_file] = [&file, &other_file].map(|file| file.to_str().unwrap());
    let fleet = host.run("vmctl", &["cpu", "baseline", file, other_file]).expect(0).stdout;
    let fleet_file = host.path("fleet.json");
    fs::write(&fleet_file, fleet).unwrap();

    let cpu = format!("baseline:{}", fleet_file.display());
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 16), &["--mem", "64M", "--cpu", &cpu]);
    let b = a.console_of("b");
    host.run("mig-send", &["a", &b.as_destination("b")]).expect(0);
    assert_eq!(a.ended(), Some(0));
    b.wait_ticks(5);
    assert_one_story(&[&a.console, &b]);

    let saved = host.path("b.mig");
    host.run("mig-send", &["-q", "b", &format!("file:{}", saved.display())]).expect(0);
    let cpu = given(&saved).cpu;
    assert!(!has(&cpu.cpuid, "clwb"), "it did not come with the guest");
    assert!(has(&cpu.cpuid, "sse2"));
}

#[test]
fn a_feature_that_was_taken_away_is_not_given() {
    needs_kvm!();
    let host = Host::new();
    let (_, page) = own(&host);
    let features = |feature: &str| page["features"].as_array().unwrap().contains(&feature.into());
    let given_with = |cpu: &str| {
        let name = cpu.replace([',', '+'], "");
        let kernel = "builtin:idle,tick-ms=20";
        let mut guest = Guest::boot(&host, &name, kernel, &["--mem", "16M", "--cpu", cpu]);
        let file = host.path(&format!("{name}.mig"));
        host.run("mig-send", &["-q", &name, &format!("file:{}", file.display())]).expect(0);
        assert_eq!(guest.ended(), Some(0));
        given(&file).cpu.cpuid
    };
    let cpuid = given_with("host");
    assert_eq!(has(&cpuid, "clwb"), features("clwb"));
    assert!(!has(&given_with("host,-clwb"), "clwb"));
    if page["level"].is_null() {
        println!("SKIPPED a guest of a level: this host's KVM has not all of x86-64-v2");
        return;
    }
    let cpuid = given_with("x86-64-v2");
    assert!(has(&cpuid, "sse4_2") && !has(&cpuid, "avx"));
    if features("clwb") {
        assert!(has(&given_with("x86-64-v2,+clwb"), "clwb"));
    }
}

#[test]
fn what_this_host_cannot_give_is_refused_by_name() {
    needs_kvm!();
    let host = Host::new();
    let (_, page) = own(&host);
    let kernel = spec(0, "0", 0);
    let boot = |cpu: &str| host.run("vmrun", &["--name", "a", "--kernel", &kernel, "--cpu", cpu]);
    let features = page["features"].as_array().unwrap();
    match ["lwp", "3dnow"].iter().find(|it| !features.contains(&(**it).into())) {
        Some(lacking) => drop(boot(&format!("host,+{lacking}")).refused_with(&[lacking])),
        None => println!("SKIPPED a feature that this host lacks: it has all"),
    }
    boot("baseline:/nowhere/fleet.json").refused_with(&["/nowhere/fleet.json"]);
    let text = host.path("text.json");
    fs::write(&text, "flags: avx\n").unwrap();
    let said = format!("{} is not from vmctl cpu", text.display());
    boot(&format!("baseline:{}", text.display())).refused_with(&[&said]);
    // What a baseline has and this host has not.
    let mut other = page.clone();
    for leaf in other["cpuid"].as_array_mut().unwrap() {
        if leaf["function"] == "0x80000001" {
            // 3dnow, which no processor has any more.
            leaf["edx"] = "0xffffffff".into();
        }
    }
    fs::write(&text, other.to_string()).unwrap();
    boot(&format!("baseline:{}", text.display()))
        .refused_with(&["the baseline is not of this host too", "3dnow"]);
    assert!(host.sockets().is_empty());
}
