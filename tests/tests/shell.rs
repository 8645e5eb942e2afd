//! What a shell and man(1) are given: completions and manual pages.

use std::process::Command;

use migpipe_tests::{Guest, Host, needs_kvm, run, spec};

const PROGRAMS: [&str; 5] = ["vmrun", "mig-send", "mig-recv", "vmctl", "mig-inspect"];

/// What bash offers for the last of `words`.
fn offered(host: &Host, words: &[&str]) -> Vec<String> {
    let script = r#"
        . <("$1" --completions bash) || exit 9
        COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
        function=$(complete -p "$1" | sed 's/.*-F \([^ ]*\).*/\1/')
        "$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        for word in "${COMPREPLY[@]}"; do echo "<$word>"; done"#;
    let done = run(host.shell(script).arg("bash").args(words)).expect(0);
    let words = done.stdout.lines().filter_map(|line| line.strip_prefix('<')?.strip_suffix('>'));
    words.map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

#[test]
fn a_tab_offers_the_words_that_an_option_takes() {
    let host = Host::new();
    assert_eq!(offered(&host, &["mig-send", "--on-stall", ""]), ["throttle", "stop", "abort"]);
    assert_eq!(offered(&host, &["mig-recv", "--confine", "e"]), ["enforce"]);
    assert_eq!(offered(&host, &["vmctl", "events", "--until", "pa"]), ["paused"]);
    assert_eq!(offered(&host, &["mig-send", "--max-down"]), ["--max-downtime"]);
}

#[test]
fn a_tab_offers_nothing_that_is_not_for_people() {
    let host = Host::new();
    for (program, word) in
        [("mig-send", "--br"), ("mig-send", "--ask"), ("mig-recv", "--br"), ("vmrun", "--control")]
    {
        assert_eq!(offered(&host, &[program, word]), [""; 0], "{program} {word}");
    }
}

#[test]
fn a_tab_offers_the_guests_that_there_are() {
    needs_kvm!();
    let host = Host::new();
    assert_eq!(offered(&host, &["vmctl", "status", "we"]), [""; 0]);
    let _web = Guest::boot(&host, "web", &spec(64, "500", 1), &["--mem", "64M"]);
    for words in [&["mig-send", "we"][..], &["vmctl", "status", "we"], &["mig-recv", "--vm", "we"]]
    {
        assert_eq!(offered(&host, words), ["web"], "{words:?}");
    }
}

#[test]
fn every_manual_page_has_its_sections_and_no_fault_that_a_formatter_finds() {
    let host = Host::new();
    let formatter = Command::new("mandoc").arg("-V").output().is_ok();
    if !formatter {
        println!("SKIPPED the check by mandoc: it is not installed");
    }
    for program in PROGRAMS {
        let page = host.run(program, &["--man"]).expect(0).stdout;
        for section in ["SYNOPSIS", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"] {
            let heading = [format!(".SH {section}"), format!(".SH \"{section}\"")];
            assert!(
                page.lines().any(|line| heading.iter().any(|it| it == line)),
                "{program}: {section}"
            );
        }
        if formatter {
            let script = format!("{program} --man | mandoc -Tlint -W warning");
            let done = host.sh(&script).expect(0);
            assert_eq!(done.stdout + &done.stderr, "", "{program}");
        }
    }
    let page = host.run("vmctl", &["--man"]).expect(0).stdout;
    assert!(page.contains("\\-\\-force"), "{page}");
    for program in PROGRAMS {
        let page = host.run(program, &["--man"]).expect(0).stdout;
        for internal in ["broker", "control\\-stdin"] {
            assert!(!page.contains(&format!("\\-\\-{internal}")), "{program}: {internal}");
        }
    }
}
