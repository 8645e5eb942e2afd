//! docs/tunnels.md and scripts/tunnels have the same rows.

use std::path::Path;
use std::process::Command;

#[test]
fn the_table_has_a_row_for_each_tunnel_and_none_of_them_failed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let listed = Command::new(root.join("scripts/tunnels")).arg("--list").output().expect("bash");
    assert!(listed.status.success(), "{listed:?}");
    let listed = String::from_utf8(listed.stdout).expect("text");
    let page = std::fs::read_to_string(root.join("docs/tunnels.md")).expect("the page");
    let table = page.split("| tunnel | one way | both ways | --commit |\n").nth(1).expect("it");
    let rows: Vec<Vec<&str>> = table
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(
        listed.lines().collect::<Vec<_>>(),
        rows.iter().map(|row| row[0]).collect::<Vec<_>>()
    );
    let readme = std::fs::read_to_string(root.join("README.md")).expect("the readme");
    assert!(readme.contains(&format!("{} cells", rows.len() * 3)));
    for row in rows {
        assert_eq!(row.len(), 4, "{row:?}");
        for cell in &row[1..] {
            assert!(cell.starts_with("moved, ") || ["named", "stays"].contains(cell), "{row:?}");
        }
        let stays = row[0].split(", ").any(|program| program == "nc");
        assert!(row[1].starts_with("moved") && row[3].starts_with("moved") != stays, "{row:?}");
    }
}
