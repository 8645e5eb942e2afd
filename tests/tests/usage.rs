//! Wrong usage is status 2, however late it is found out.

use migpipe_tests::{Guest, Host, needs_kvm, spec};

#[test]
fn names_that_cannot_be_names_are_wrong_usage_everywhere() {
    let host = Host::new();
    let kernel = spec(0, "0", 0);
    for (program, args) in [
        ("vmrun", &["--name", "a/b", "--kernel", &kernel][..]),
        ("vmrun", &["--name", "", "--kernel", &kernel]),
        ("mig-recv", &["--name", "a/b", "file:/dev/null"]),
        ("mig-recv", &["--vm", "", "file:/dev/null"]),
        ("mig-send", &["", "exec:true"]),
        ("mig-send", &["a b", "exec:true"]),
        ("vmctl", &["status", ""]),
        ("vmctl", &["quit", "-x"]),
        ("vmctl", &["info", "a b"]),
    ] {
        let done = host.run(program, args).expect(2);
        assert!(!done.stderr.is_empty(), "{program} {args:?}");
    }
    assert!(host.sockets().is_empty());
}

#[test]
fn what_only_makes_no_sense_together_is_wrong_usage_too() {
    let host = Host::new();
    for (program, args, words) in [
        ("mig-send", &["--resolve", "a", "file:a.mig"][..], "needs the destination"),
        ("vmctl", &["resolve", "a", "file:a.mig"], "needs the destination"),
        ("mig-send", &["a", "tcp:hostb:1", "--ssh-option", "Port=2222"], "ssh:HOST alone"),
        ("mig-send", &["a", "ssh:hostb/.b"], "name"),
        ("mig-recv", &["ssh:hostb"], "it is a destination"),
        ("mig-recv", &["--console", "stdio", "file:a.mig"], "no terminal"),
        ("vmrun", &["--name", "a", "--kernel", "builtin:nonsense"], "builtin"),
        ("vmrun", &["--name", "a", "--kernel", "builtin:dirty", "--initrd", "x"], "initrd"),
    ] {
        host.run(program, args).refused_as(2, &[words]);
    }
}

#[test]
fn a_device_that_is_written_wrongly_is_wrong_usage_too() {
    needs_kvm!();
    let host = Host::new();
    let kernel = spec(0, "0", 0);
    for args in [
        ["--console", "tape:x"],
        ["--virtio-console", "tape:x"],
        ["--disk", "a.raw,nonsense"],
        ["--net", "nonsense"],
        ["--cpu", "Skylake"],
    ] {
        let all = [&["--name", "a", "--kernel", &kernel][..], &args].concat();
        host.run("vmrun", &all).refused_as(2, &[args[1]]);
    }
    assert!(host.sockets().is_empty());
}

#[test]
fn a_channel_that_the_shell_did_not_open_is_wrong_usage_and_the_guest_runs_on() {
    needs_kvm!();
    let host = Host::new();
    let mut a = Guest::boot(&host, "a", &spec(64, "500", 1), &["--mem", "64M"]);
    for args in [&["a", "fd:99"][..], &["--return", "fd:98", "a", "exec:true"]] {
        host.run("mig-send", args).refused_as(2, &["was not passed", "a runs on here"]);
    }
    a.assert_runs();
}
