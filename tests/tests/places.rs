//! Which guests a host shows, and to whom.

use std::fs;

use migpipe_tests::{Host, needs_kvm, run, spec};
use nix::unistd::geteuid;

#[test]
fn a_directory_of_sockets_that_cannot_be_read_is_an_error_and_not_an_empty_list() {
    let host = Host::new();
    host.run("vmctl", &["list"]).expect(0);
    fs::write(host.runtime_dir(), "").unwrap();
    host.run("vmctl", &["list"]).refused_with(&["cannot look for guests", "vmrun"]);
    host.run("vmctl", &["status", "web"]).refused_with(&["web.sock", "Not a directory"]);
}

#[test]
fn a_dead_socket_is_no_guest() {
    let host = Host::new();
    fs::create_dir(host.runtime_dir()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(host.runtime_dir().join("web.sock")).unwrap());
    let done = host.run("vmctl", &["list", "--json"]).expect(0);
    assert_eq!(done.stdout, "[]\n");
    assert_eq!(done.stderr, "");
}

/// What a unit starts and what root types in a login see one another: in a mount namespace whose
/// /run is empty.
#[test]
fn roots_login_finds_what_a_unit_started_and_takes_no_second_name() {
    needs_kvm!();
    if !geteuid().is_root() {
        println!("SKIPPED {}: needs root", module_path!());
        return;
    }
    let host = Host::new();
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/user/0 || exit 9
         unit() {{ env -u XDG_RUNTIME_DIR \"$@\"; }}
         login() {{ env XDG_RUNTIME_DIR=/run/user/0 \"$@\"; }}
         unit vmrun --log error --name web --mem 64M --kernel {} & unit=$!
         for i in $(seq 600); do unit vmctl status web >/dev/null 2>&1 && break; sleep .1; done
         login vmctl list --json
         login vmrun --name web --mem 64M --kernel builtin:dirty,pages=1 && exit 8
         login vmctl quit web && wait $unit",
        spec(64, "500", 1)
    );
    let mut shell = host.shell("exec unshare --mount bash -c \"$SCRIPT\"");
    let done = run(shell.env("SCRIPT", script));
    if done.status == Some(9) {
        println!("SKIPPED {}: no mount namespace ({})", module_path!(), done.stderr.trim());
        return;
    }
    let done = done.expect(0);
    assert!(done.stdout.contains("\"name\":\"web\""), "{done:#?}");
    assert!(done.stderr.contains("/run/vmrun/web.sock"), "{done:#?}");
}
