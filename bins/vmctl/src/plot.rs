//! The figures of a report, as files.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use mig_engine::report::Report;
use mig_plot::Figure;

use crate::args::Format;

/// Draws the report in `file` and returns what was written, `PREFIX-FIGURE.svg` and
/// `PREFIX-FIGURE.png`.
pub fn draw(file: &Path, prefix: Option<&Path>, format: Format) -> anyhow::Result<Vec<PathBuf>> {
    let report = read(file)?;
    let prefix = prefix.map_or_else(|| beside(file), Path::to_owned);
    let mut written = Vec::new();
    for figure in Figure::ALL {
        let mut write = |extension: &str, contents: &[u8]| {
            let mut name = OsString::from(&prefix);
            name.push(format!("-{}.{extension}", figure.name()));
            let path = PathBuf::from(name);
            fs::write(&path, contents)
                .with_context(|| format!("cannot write {}", path.display()))?;
            written.push(path);
            anyhow::Ok(())
        };
        if format != Format::Png {
            write("svg", figure.svg(&report)?.as_bytes())?;
        }
        if format != Format::Svg {
            write("png", &figure.png(&report)?)?;
        }
    }
    Ok(written)
}

fn read(file: &Path) -> anyhow::Result<Report> {
    let shown = file.display();
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
    let value: serde_json::Value = serde_json::from_str(&text)
        .with_context(|| format!("{shown} is no report of mig-send --report"))?;
    // A later version may have other fields, so it is looked at before they are.
    let version = value["version"].as_u64().unwrap_or_default();
    ensure!(
        version <= u64::from(Report::VERSION),
        "{shown} is a report of version {version}, and this vmctl knows up to {}: use that of the \
         mig-send that wrote it",
        Report::VERSION
    );
    serde_json::from_value(value)
        .with_context(|| format!("{shown} is no report of mig-send --report"))
}

/// The report's own name, without what says that it is JSON.
fn beside(file: &Path) -> PathBuf {
    match file.extension() {
        Some(extension) if extension == "json" => file.with_extension(""),
        _ => file.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a migration wrote, of which the engine keeps a golden file.
    const REPORT: &str = include_str!("../../../crates/mig-engine/src/report/golden/migrated.json");

    fn report(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("r.json");
        fs::write(&file, text).unwrap();
        (dir, file)
    }

    fn names(written: &[PathBuf]) -> Vec<&str> {
        written.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
    }

    #[test]
    fn figures_are_written_beside_the_report() {
        let (_dir, file) = report(REPORT);
        let written = draw(&file, None, Format::Both).unwrap();
        assert_eq!(
            names(&written),
            [
                "r-rounds.svg",
                "r-rounds.png",
                "r-sent.svg",
                "r-sent.png",
                "r-downtime.svg",
                "r-downtime.png"
            ]
        );
        assert!(written.iter().all(|path| path.parent() == file.parent()));
        assert!(fs::read(&written[0]).unwrap().starts_with(b"<svg "));
        assert!(fs::read(&written[1]).unwrap().starts_with(b"\x89PNG"));
    }

    #[test]
    fn a_prefix_says_where_and_a_format_what() {
        let (dir, file) = report(REPORT);
        let prefix = dir.path().join("talk.v2");
        let written = draw(&file, Some(&prefix), Format::Svg).unwrap();
        assert_eq!(
            names(&written),
            ["talk.v2-rounds.svg", "talk.v2-sent.svg", "talk.v2-downtime.svg"]
        );
        let written = draw(&file, Some(&prefix), Format::Png).unwrap();
        assert_eq!(written.len(), 3);
        assert!(names(&written).iter().all(|name| name.ends_with(".png")));
    }

    #[test]
    fn what_is_no_report_is_named_in_one_line() {
        let said = |text: &str| {
            let (_dir, file) = report(text);
            migpipe_cli::one_line(&draw(&file, None, Format::Svg).unwrap_err())
        };
        assert!(said("a table").contains("r.json is no report of mig-send --report: "));
        assert!(said("{\"version\": 1}").contains("is no report of mig-send --report: "));
        let later = said("{\"version\": 2, \"guest\": {}}");
        assert!(later.contains("version 2, and this vmctl knows up to 1"), "{later}");
        let error = draw(Path::new("/nowhere/r.json"), None, Format::Svg).unwrap_err();
        assert!(
            migpipe_cli::one_line(&error).contains("cannot read /nowhere/r.json: No such file")
        );
    }
}
