//! docs/tunnels.md and scripts/tunnels have the same rows.

use std::path::Path;
use std::process::Command;

/// The rows of a table of the page, which are those that the script lists; how many cells they have is
/// in the readme.
fn rows(options: &[&str], number: usize) -> Vec<Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let script = root.join("scripts/tunnels");
    let listed = Command::new(script).args(options).output().expect("bash");
    assert!(listed.status.success(), "{listed:?}");
    let listed = String::from_utf8(listed.stdout).expect("text");
    let page = std::fs::read_to_string(root.join("docs/tunnels.md")).expect("the page");
    let head = "| tunnel | one way | both ways | --commit |\n";
    let table = page.split(head).nth(number).expect("it");
    let cells =
        |line: &str| line.trim_matches('|').split('|').map(|it| it.trim().to_owned()).collect();
    let lines = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let rows: Vec<Vec<String>> = lines.map(cells).collect();
    let names: Vec<_> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), names);
    let readme = std::fs::read_to_string(root.join("README.md")).expect("the readme");
    assert!(readme.contains(&format!("{} cells", rows.len() * 3)), "{} rows", rows.len());
    rows
}

#[test]
fn the_table_of_failures_has_a_row_for_each_and_no_guest_was_lost() {
    for row in rows(&["--failures", "--list"], 2) {
        assert_eq!(row.len(), 4, "{row:?}");
        for cell in &row[1..] {
            // Theirs is for whoever reads their stdout, and one way nobody does.
            let is_beside = ["ssh prints", "socat prints"].contains(&row[0].as_str());
            let lets_through = is_beside && cell.starts_with("moved, ");
            assert!(["stays", "resolved"].contains(&cell.as_str()) || lets_through, "{row:?}");
        }
    }
}

#[test]
fn the_table_has_a_row_for_each_tunnel_and_none_of_them_failed() {
    for row in rows(&["--list"], 1) {
        assert_eq!(row.len(), 4, "{row:?}");
        for cell in &row[1..] {
            assert!(
                cell.starts_with("moved, ") || ["named", "stays"].contains(&cell.as_str()),
                "{row:?}"
            );
        }
        let stays = row[0].split(", ").any(|program| program == "nc");
        assert!(row[1].starts_with("moved") && row[3].starts_with("moved") != stays, "{row:?}");
    }
}
