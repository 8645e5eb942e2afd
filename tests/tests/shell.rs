//! What a shell and man(1) are given: completions and manual pages.

use std::fs;
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

/// Whether this shell is there; says so loudly if not.
fn has(shell: &str) -> bool {
    let there = Command::new(shell).arg("--version").output().is_ok();
    if !there {
        println!("SKIPPED completion in {shell}: it is not installed");
    }
    there
}

/// What fish offers for the last word of `line`.
fn offered_by_fish(host: &Host, line: &str) -> Vec<String> {
    let script = r#"fish --no-config -c '
        for program in vmrun mig-send mig-recv vmctl mig-inspect
            $program --completions fish | source; or exit 9
        end
        complete --do-complete $argv[1]' "$1""#;
    let done = run(host.shell(script).arg("bash").arg(line)).expect(0);
    assert_eq!(done.stderr, "", "{line}");
    // A description is behind a tab.
    done.stdout.lines().filter_map(|line| Some(line.split('\t').next()?.to_owned())).collect()
}

/// Presses TAB behind `$2` in a zsh on a terminal of its own, and shows what the line is then. `$1`
/// is a directory for functions, from where completions are loaded when they are wanted first.
const ZSH: &str = r#"
    for program in vmrun mig-send mig-recv vmctl mig-inspect; do
        $program --completions zsh >$1/_$program || exit 9
    done
    zmodload zsh/zpty || exit 8
    zpty shell zsh -f -i
    zpty -w shell "PS1=; fpath=($1 \$fpath); autoload -U compinit && compinit -u -D
        show() { print -r -- \"line <\$BUFFER>\"; BUFFER=; zle accept-line }
        zle -N show; bindkey '^X' show; echo is-''up"
    zpty -r -m shell seen '*is-up*'
    for turn in first again; do
        zpty -w -n shell "$2"$'\t\x18'
        zpty -r -m shell seen '*line <*>*'
        print -r -- $seen
    done
    zpty -d shell"#;

/// What zsh makes of a line at a TAB; the second time its completions are loaded already.
fn completed_by_zsh(host: &Host, line: &str) -> String {
    let dir = host.path("functions");
    fs::create_dir_all(&dir).unwrap();
    let mut zsh = host.shell("exec zsh -f -c \"$1\" zsh \"$2\" \"$3\"");
    let done = run(zsh.arg("bash").arg(ZSH).arg(&dir).arg(line)).expect(0);
    assert_eq!(done.stderr, "", "{line}");
    let mut lines = done.stdout.split("line <").skip(1).map(|rest| rest.split('>').next().unwrap());
    let first = lines.next().unwrap().to_owned();
    assert_eq!(lines.next(), Some(&*first), "{}", done.stdout);
    first
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
fn a_tab_does_the_same_in_fish_and_in_zsh() {
    needs_kvm!();
    let host = Host::new();
    let _web = Guest::boot(&host, "web", &spec(64, "500", 1), &["--mem", "64M"]);
    // The line up to its last word, what is typed of that, and what it becomes.
    for (line, typed, whole) in [
        ("mig-send ", "we", "web"),
        ("vmctl status ", "we", "web"),
        ("mig-recv --vm ", "we", "web"),
        ("mig-send ", "--max-down", "--max-downtime"),
        ("mig-send --on-stall ", "thr", "throttle"),
        ("mig-recv --confine ", "e", "enforce"),
        ("vmctl events --until ", "pa", "paused"),
        ("vmctl ", "cance", "cancel"),
        ("vmrun ", "--hugep", "--hugepages"),
        ("mig-inspect ", "--js", "--json"),
        // Not for people.
        ("mig-recv ", "--br", ""),
        ("vmrun ", "--control", ""),
    ] {
        let typed = format!("{line}{typed}");
        if has("fish") {
            let offered = offered_by_fish(&host, &typed);
            assert_eq!(
                offered,
                [whole].into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>()
            );
        }
        if has("zsh") {
            let completed = completed_by_zsh(&host, &typed);
            match whole {
                "" => assert_eq!(completed, typed),
                whole => assert_eq!(completed.trim_end(), format!("{line}{whole}")),
            }
        }
    }
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
