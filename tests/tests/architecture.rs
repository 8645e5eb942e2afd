//! The structure that docs/architecture.md draws is that of the code: which crate imports which, and
//! that no file imports one that imports it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

fn packages() -> Vec<PathBuf> {
    let below = |dir: &str| {
        let entries = fs::read_dir(root().join(dir)).expect("a folder of packages");
        entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    };
    let mut packages = [below("crates"), below("bins")].concat();
    packages.retain(|package| package.join("Cargo.toml").exists());
    packages.sort();
    packages
}

fn name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

/// What each package of the workspace imports of it, by its manifest.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let packages = packages();
    let names: BTreeSet<_> = packages.iter().map(|package| name(package)).collect();
    let of = |package: &PathBuf| {
        let manifest = fs::read_to_string(package.join("Cargo.toml")).expect("a manifest");
        let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
        let section = section.split("\n[").next().unwrap_or_default();
        let keys = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
        let ours = keys.filter(|key| names.contains(*key)).map(str::to_owned).collect();
        (name(package), ours)
    };
    packages.iter().map(of).collect()
}

#[test]
fn the_page_of_the_architecture_says_what_each_crate_imports() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).expect("the page");
    let mut said = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        if let [package, _, imports] = cells[..] {
            let words = imports.split(',').map(|word| word.trim().trim_matches('`').to_owned());
            let imports: BTreeSet<_> = words.filter(|word| !word.is_empty()).collect();
            said.insert(package.trim_matches('`').to_owned(), imports);
        }
    }
    let found = imports();
    for (package, imports) in &found {
        assert_eq!(said.get(package), Some(imports), "docs/architecture.md, of {package}");
    }
    assert_eq!(said.len(), found.len(), "docs/architecture.md names what is not there");
}

#[test]
fn nothing_below_the_machine_knows_kvm_and_nothing_of_a_migration_knows_devices() {
    for package in packages() {
        let manifest = fs::read_to_string(package.join("Cargo.toml")).expect("a manifest");
        let uses = |library: &str| manifest.lines().any(|line| line.starts_with(library));
        let name = name(&package);
        let may = ["vm-machine", "vmrun", "fuzz-targets"].contains(&name.as_str());
        assert!(may || !uses("kvm-"), "{name} names KVM");
        if name.starts_with("mig-") {
            assert!(!uses("vm-devices") && !uses("vm-machine"), "{name} names devices");
        }
    }
}

/// The modules of one package: the path of each below the crate's root, and its file.
fn modules(src: &Path) -> BTreeMap<Vec<String>, PathBuf> {
    fn visit(dir: &Path, at: &[String], found: &mut BTreeMap<Vec<String>, PathBuf>) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries {
            let path = entry.expect("an entry").path();
            let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let inside = [at, std::slice::from_ref(&stem)].concat();
            if path.is_dir() {
                visit(&path, &inside, found);
            } else if path.extension().is_none_or(|end| end != "rs") {
                // Golden files and the like.
            } else if matches!(stem.as_str(), "mod" | "lib" | "main") {
                found.insert(at.to_vec(), path);
            } else if !stem.ends_with("tests") {
                found.insert(inside, path);
            }
        }
    }
    let mut found = BTreeMap::new();
    visit(src, &[], &mut found);
    found
}

/// The program text without comments and without the tests in it.
fn text(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a source file");
    let program = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = program.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join(" ")
}

/// The paths in `tree`, the tree of a `use`, behind `before`.
fn expand(before: &str, tree: &str, paths: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, inner)) = tree.split_once('{') else {
        paths.push(format!("{before}{tree}"));
        return;
    };
    let inner = inner.trim_end().trim_end_matches('}');
    let (mut depth, mut start) = (0, 0);
    for (at, character) in inner.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&format!("{before}{head}"), &inner[start..at], paths);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        expand(&format!("{before}{head}"), &inner[start..], paths);
    }
}

/// The paths that begin at this crate in a file.
fn paths_in(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut rest = text;
    let starts =
        |word: &str| ["crate::", "super::", "self::"].iter().any(|it| word.starts_with(it));
    while let Some(at) =
        ["crate::", "super::", "self::"].iter().filter_map(|it| rest.find(it)).min()
    {
        let is_use = rest[..at].trim_end().ends_with("use");
        let found = &rest[at..];
        let end = match is_use {
            true => found.find(';').unwrap_or(found.len()),
            false => found
                .find(|it: char| !(it.is_alphanumeric() || it == '_' || it == ':'))
                .unwrap_or(found.len()),
        };
        if starts(found) {
            expand("", &found[..end], &mut paths);
        }
        rest = &found[end.max(1)..];
    }
    paths
}

fn files_of(src: &Path) -> BTreeMap<PathBuf, BTreeSet<PathBuf>> {
    let modules = modules(src);
    let mut graph = BTreeMap::new();
    for (at, file) in &modules {
        let mut imports = BTreeSet::new();
        for path in paths_in(&text(file)) {
            let mut words: Vec<_> = path.split("::").map(str::trim).collect();
            let mut base = at.clone();
            match words.remove(0) {
                "crate" => base.clear(),
                "super" => drop(base.pop()),
                _ => {}
            }
            while words.first() == Some(&"super") {
                words.remove(0);
                base.pop();
            }
            base.extend(words.into_iter().map(str::to_owned));
            // The longest beginning that is a module; the rest is an item in it.
            let target = (1..=base.len()).rev().find_map(|length| modules.get(&base[..length]));
            imports.extend(target.filter(|target| *target != file).cloned());
        }
        graph.insert(file.clone(), imports);
    }
    graph
}

/// A way from `from` back to it.
fn circle(graph: &BTreeMap<PathBuf, BTreeSet<PathBuf>>, from: &Path) -> Option<Vec<PathBuf>> {
    let mut before: BTreeMap<&Path, &Path> = BTreeMap::new();
    let mut open = vec![from];
    while let Some(at) = open.pop() {
        for next in graph.get(at).into_iter().flatten() {
            if next == from {
                let mut way = vec![at.to_owned()];
                let mut at = at;
                while at != from {
                    at = before[at];
                    way.push(at.to_owned());
                }
                return Some(way);
            }
            if !before.contains_key(next.as_path()) {
                before.insert(next, at);
                open.push(next);
            }
        }
    }
    None
}

#[test]
fn no_file_imports_one_that_imports_it() {
    let mut circles = Vec::new();
    for package in packages() {
        let graph = files_of(&package.join("src"));
        assert!(!graph.is_empty(), "{}", package.display());
        circles.extend(graph.keys().filter_map(|file| circle(&graph, file)));
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_circle_is_found() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
    write("lib.rs", "mod a; mod b; mod c;");
    write("a.rs", "use crate::{b::{self, X}, c};\n// use crate::a;");
    write("b.rs", "fn f() { super::c::g() }");
    write("c.rs", "fn g() {}");
    let graph = files_of(dir.path());
    assert_eq!(graph[&dir.path().join("a.rs")].len(), 2);
    assert!(graph.keys().all(|file| circle(&graph, file).is_none()));
    write("c.rs", "fn g() { crate::a::h() }");
    let graph = files_of(dir.path());
    assert_eq!(graph.keys().filter(|file| circle(&graph, file).is_some()).count(), 3);
}
