//! Where on this host the files of a guest that arrives may be.
//!
//! Its description names a console file and disk images, and whoever sends it has written that.

use std::fs;
use std::path::{Path, PathBuf};

use vm_devices::{ConsoleSpec, VirtioKind, VirtioSpec};

use crate::error::MachineError;

/// Directories, and single files. Without any, a file may be anywhere.
#[derive(Clone, Debug, Default)]
pub struct Places(Vec<PathBuf>);

impl Places {
    /// These alone, resolved as they are now; anywhere if there are none. One that does not exist
    /// is no place, unless it is a file yet to be made.
    pub fn new(paths: &[PathBuf]) -> Self {
        Self(paths.iter().map(|path| resolve(path).unwrap_or_else(|| path.clone())).collect())
    }

    /// All of them; nothing if a file may be anywhere.
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }

    /// That the console and the virtio devices of a guest are at such places.
    pub(crate) fn check(
        &self,
        console: &ConsoleSpec,
        specs: &[VirtioSpec],
    ) -> Result<(), MachineError> {
        if let Some(path) = console.path() {
            self.allow("its serial console", path, "--console")?;
        }
        for spec in specs {
            if let Some(path) = spec.path() {
                let option = match spec.kind {
                    VirtioKind::Console => "--virtio-console",
                    _ => "--disk",
                };
                self.allow(&spec.to_string(), &path, option)?;
            }
        }
        Ok(())
    }

    fn allow(&self, device: &str, path: &Path, option: &'static str) -> Result<(), MachineError> {
        let inside = |path: PathBuf| self.0.iter().any(|place| path.starts_with(place));
        if self.0.is_empty() || resolve(path).is_some_and(inside) {
            return Ok(());
        }
        Err(MachineError::Place { device: device.to_owned(), path: path.to_owned(), option })
    }
}

/// Where `path` leads; for a file that is yet to be made, where it will be. A link that leads
/// nowhere is no such file: opening it would make what it names.
fn resolve(path: &Path) -> Option<PathBuf> {
    if let Ok(path) = fs::canonicalize(path) {
        return Some(path);
    }
    if path.symlink_metadata().is_ok() {
        return None;
    }
    let directory = match path.parent()? {
        here if here.as_os_str().is_empty() => Path::new("."),
        directory => directory,
    };
    Some(fs::canonicalize(directory).ok()?.join(path.file_name()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory that is a place, one that is none, and a question about paths below them.
    fn asked(path: impl Fn(&Path, &Path) -> PathBuf) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        for dir in [&inside, &outside] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("there"), "").unwrap();
        }
        let places = Places::new(&[inside.clone(), outside.join("one")]);
        places.allow("block disk0", &path(&inside, &outside), "--disk").is_ok()
    }

    #[test]
    fn what_is_in_a_directory_is_allowed_whether_it_exists_or_not() {
        assert!(asked(|inside, _| inside.join("there")));
        assert!(asked(|inside, _| inside.join("new")));
        assert!(asked(|_, outside| outside.join("../in/there")));
    }

    #[test]
    fn a_single_file_is_allowed_and_its_neighbours_are_not() {
        assert!(asked(|_, outside| outside.join("one")));
        assert!(!asked(|_, outside| outside.join("there")));
        assert!(!asked(|_, outside| outside.join("new")));
        assert!(!asked(|_, outside| outside.to_owned()));
    }

    #[test]
    fn dots_and_links_do_not_lead_out() {
        assert!(!asked(|inside, _| inside.join("../out/there")));
        assert!(!asked(|inside, _| inside.join("no-such/../../out/there")));
        let linked = |to: &'static str| {
            move |inside: &Path, outside: &Path| {
                symlink(outside.join(to), inside.join("link")).unwrap();
                inside.join("link")
            }
        };
        assert!(!asked(linked("there")));
        assert!(!asked(linked("new")), "opening it would make it");
        assert!(!asked(|inside, outside| {
            symlink(outside, inside.join("link")).unwrap();
            inside.join("link/new")
        }));
    }

    #[test]
    fn a_name_that_only_begins_alike_is_another() {
        assert!(!asked(|inside, _| {
            let other = inside.with_file_name("inner");
            fs::create_dir(&other).unwrap();
            other.join("new")
        }));
    }

    #[test]
    fn without_places_a_file_may_be_anywhere() {
        assert!(Places::default().allow("block disk0", Path::new("/no/such"), "--disk").is_ok());
    }

    #[test]
    fn what_is_refused_is_named_with_what_to_do() {
        let places = Places::new(&["/no/such/place".into()]);
        let console = "file:/etc/profile".parse().unwrap();
        let text = places.check(&console, &[]).unwrap_err().to_string();
        for word in ["serial console", "/etc/profile", "--console", "--files-in"] {
            assert!(text.contains(word), "{text}");
        }
        let disk = VirtioSpec::disk("/etc/passwd", 0).unwrap();
        let text = places.check(&ConsoleSpec::Null, &[disk]).unwrap_err().to_string();
        assert!(text.contains("block disk0") && text.contains("--disk"), "{text}");
        let console = VirtioSpec::console(&"unix:/run/x".parse().unwrap());
        let text = places.check(&ConsoleSpec::Null, &[console]).unwrap_err().to_string();
        assert!(text.contains("--virtio-console"), "{text}");
        let rest = [VirtioSpec::rng(), VirtioSpec::balloon()];
        assert!(places.check(&ConsoleSpec::Stdio, &rest).is_ok());
    }
}
