//! The figures of a migration that took place.

use std::fs;

use migpipe_tests::{Guest, Host, needs_kvm, report, spec};

#[test]
fn a_migration_is_drawn_from_its_report() {
    needs_kvm!();
    let host = Host::new();
    let _a = Guest::boot(&host, "a", &spec(256, "2000", 32), &["--mem", "64M"]);
    let file = host.path("r.json");
    let name = file.to_str().unwrap();
    host.run("mig-send", &["-q", "--report", name, "a", "exec:mig-recv --quiet --name b"])
        .expect(0);
    let written = host.run("vmctl", &["plot", name]).expect(0).stdout;
    let expected = ["rounds", "sent", "downtime"].map(|figure| {
        let path = |extension: &str| host.path(&format!("r-{figure}.{extension}"));
        [path("svg"), path("png")]
    });
    let expected: Vec<_> = expected.into_iter().flatten().collect();
    let names: Vec<_> = expected.iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(written.lines().collect::<Vec<_>>(), names);
    for path in &expected {
        let begins: &[u8] = match path.extension().unwrap().to_str() {
            Some("png") => b"\x89PNG\r\n\x1a\n",
            _ => b"<svg ",
        };
        assert!(fs::read(path).unwrap().starts_with(begins), "{}", path.display());
    }

    // What the figures say is what the report says.
    let report = report(&file);
    let text = |figure: &str| fs::read_to_string(host.path(&format!("r-{figure}.svg"))).unwrap();
    assert!(text("rounds").contains("a: migrated, both ways"), "{}", text("rounds"));
    for (phase, time) in report.downtime.phases() {
        assert!(time.is_some(), "{phase} was not measured");
        assert!(text("downtime").contains(phase), "{phase} is not in {}", text("downtime"));
    }
    assert!(text("sent").contains("1x"), "{}", text("sent"));
}

#[test]
fn figures_need_neither_a_guest_nor_a_font_nor_a_home() {
    let host = Host::new();
    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../crates/mig-engine/src/report/golden/migrated.json"
    );
    let out = host.path("talk");
    let mut vmctl = host.command("vmctl");
    vmctl.env_clear().args(["plot", golden, "--format", "png", "--out"]).arg(&out);
    let done = migpipe_tests::run(&mut vmctl).expect(0);
    assert_eq!(done.stdout.lines().count(), 3, "{}", done.stdout);
    assert!(host.path("talk-sent.png").metadata().unwrap().len() > 1_000);
    assert!(!host.path("talk-sent.svg").exists());
    host.run("vmctl", &["plot", "/nowhere.json"]).refused_with(&["cannot read /nowhere.json"]);
}
