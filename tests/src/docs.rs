//! That what the documentation says of files is so.

use std::path::Path;

#[test]
fn a_pages_way_is_described_by_files_that_exist_in_order_and_fourteen_at_most() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let text = std::fs::read_to_string(root.join("docs/architecture.md")).expect("the page");
    let way = text.split("## A page's way").nth(1).expect("the section");
    let way = way.split("\n## ").next().expect("its text");
    let rows: Vec<Vec<&str>> = way
        .lines()
        .map(|line| line.split('|').map(str::trim).collect())
        .filter(|row: &Vec<&str>| row.len() == 5 && row[1].parse::<usize>().is_ok())
        .collect();
    for (number, row) in (1..).zip(&rows) {
        assert_eq!(row[1], number.to_string());
        assert!(root.join(row[2].trim_matches('`')).is_file(), "{} is no file", row[2]);
    }
    assert!((1..=14).contains(&rows.len()), "{} files", rows.len());
}
