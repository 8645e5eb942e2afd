//! Where on this host the files of a guest that arrives may be.
//!
//! Its description names a console file and disk images, and whoever sends it has written that.

use std::fs;
use std::path::{Path, PathBuf};

use vm_devices::{ConsoleSpec, VirtioKind, VirtioSpec};

use crate::error::MachineError;

/// Directories, and single files.
#[derive(Clone, Debug, Default)]
pub struct AllowedPaths {
    /// Anywhere, if not these.
    allowed: Option<Vec<PathBuf>>,
    /// Where a console goes that is elsewhere.
    consoles: Option<PathBuf>,
}

impl AllowedPaths {
    /// A file may be wherever this user may open it.
    pub fn anywhere() -> Self {
        Self::default()
    }

    /// These alone, resolved as they are now. One that does not exist is no place, unless it is a
    /// file yet to be made.
    pub fn new(paths: &[PathBuf]) -> Self {
        let allowed = paths.iter().map(|path| resolve(path).unwrap_or_else(|| path.clone()));
        Self { allowed: Some(allowed.collect()), consoles: None }
    }

    /// A console that is elsewhere goes to a file in `dir`, which is one of the allowed. Where a
    /// guest's console is says its source, and that is no reason for the guest to stay there.
    #[must_use]
    pub fn with_consoles_in(mut self, dir: &Path) -> Self {
        self.consoles = resolve(dir);
        self
    }

    /// All of them; nothing if a file may be anywhere.
    pub fn paths(&self) -> Option<&[PathBuf]> {
        self.allowed.as_deref()
    }

    /// Puts the consoles of a guest that is called `name` here where they may be, if there is such a
    /// place for them.
    pub(crate) fn move_consoles(
        &self,
        name: &str,
        serial: (&str, &mut ConsoleSpec),
        specs: &mut [VirtioSpec],
    ) {
        let Some(dir) = &self.consoles else { return };
        let elsewhere = |path: Option<&Path>| path.is_some_and(|path| !self.allows(path));
        let file = |id: &str| ConsoleSpec::File(dir.join(format!("{name}.{id}.log")));
        let (id, console) = serial;
        if elsewhere(console.path()) {
            *console = file(id);
        }
        for spec in specs.iter_mut().filter(|spec| spec.kind == VirtioKind::Console) {
            if elsewhere(spec.path().as_deref()) {
                let there = file(&spec.id).to_string();
                spec.params.insert(VirtioSpec::CONSOLE_PARAM.to_owned(), there);
            }
        }
    }

    /// That the console and the virtio devices of a guest are at such allowed.
    pub(crate) fn check(
        &self,
        console: &ConsoleSpec,
        specs: &[VirtioSpec],
    ) -> Result<(), MachineError> {
        self.check_console(console)?;
        specs.iter().try_for_each(|spec| self.check_device(spec))
    }

    /// The same of the serial console alone.
    pub(crate) fn check_console(&self, console: &ConsoleSpec) -> Result<(), MachineError> {
        match console.path() {
            Some(path) => self.allow("its serial console", path, "--console"),
            None => Ok(()),
        }
    }

    /// The same of one virtio device.
    pub(crate) fn check_device(&self, spec: &VirtioSpec) -> Result<(), MachineError> {
        let Some(path) = spec.path() else { return Ok(()) };
        let option = match spec.kind {
            VirtioKind::Console => "--virtio-console",
            _ => "--disk",
        };
        self.allow(&spec.to_string(), &path, option)
    }

    fn allow(&self, device: &str, path: &Path, option: &'static str) -> Result<(), MachineError> {
        if self.allows(path) {
            return Ok(());
        }
        Err(MachineError::Place { device: device.to_owned(), path: path.to_owned(), option })
    }

    /// Whether a file may be at `path`.
    pub fn allows(&self, path: &Path) -> bool {
        let Some(allowed) = &self.allowed else { return true };
        match resolve(path) {
            Some(leads) => allowed.iter().any(|place| leads.starts_with(place)),
            // It cannot be opened, which is for whoever has named it to hear.
            None => allowed.iter().any(|place| place == path),
        }
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
        let allowed = AllowedPaths::new(&[inside.clone(), outside.join("one")]);
        allowed.allow("block disk0", &path(&inside, &outside), "--disk").is_ok()
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
    fn a_console_that_is_elsewhere_goes_to_a_file_of_its_guest() {
        let dir = tempfile::tempdir().unwrap();
        let (own, named) = (dir.path().join("guests"), dir.path().join("named"));
        fs::create_dir(&own).unwrap();
        let allowed = AllowedPaths::new(&[own.clone(), named.clone()]).with_consoles_in(&own);
        let own = fs::canonicalize(own).unwrap();
        let placed = |serial: &str, virtio: &str| {
            let mut serial: ConsoleSpec = serial.parse().unwrap();
            let mut specs = [
                VirtioSpec::disk("/etc/passwd", 0).unwrap(),
                VirtioSpec::console(&virtio.parse().unwrap()),
            ];
            allowed.move_consoles("web", ("serial0", &mut serial), &mut specs);
            assert_eq!(specs[0], VirtioSpec::disk("/etc/passwd", 0).unwrap(), "no disk");
            let [_, console] = specs;
            (serial.to_string(), console.params[VirtioSpec::CONSOLE_PARAM].clone())
        };
        let inside = format!("file:{}/web.log", own.display());
        let file = format!("file:{}", named.display());
        assert_eq!(placed(&inside, &file), (inside, file));
        assert_eq!(placed("null", "stdio"), ("null".into(), "stdio".into()));
        let there = |id: &str| format!("file:{}/web.{id}.log", own.display());
        let elsewhere = placed("file:/etc/profile", "unix:/run/web");
        assert_eq!(elsewhere, (there("serial0"), there("console0")));
    }

    #[test]
    fn what_was_named_and_cannot_be_there_is_not_refused_for_its_place() {
        let missing = Path::new("/no/such/console");
        assert!(
            AllowedPaths::new(&[missing.into()]).allow("console", missing, "--console").is_ok()
        );
        let below = missing.join("more");
        assert!(
            AllowedPaths::new(&[missing.into()]).allow("console", &below, "--console").is_err()
        );
    }

    #[test]
    fn anywhere_is_anywhere_and_an_empty_list_allows_nothing() {
        assert!(
            AllowedPaths::new(&[])
                .allow("block disk0", Path::new("/etc/passwd"), "--disk")
                .is_err()
        );
        assert!(
            AllowedPaths::anywhere().allow("block disk0", Path::new("/no/such"), "--disk").is_ok()
        );
    }

    #[test]
    fn what_is_refused_is_named_with_what_to_do() {
        let allowed = AllowedPaths::new(&["/no/such/place".into()]);
        let console = "file:/etc/profile".parse().unwrap();
        let text = allowed.check(&console, &[]).unwrap_err().to_string();
        for word in ["serial console", "/etc/profile", "--console", "--files-in"] {
            assert!(text.contains(word), "{text}");
        }
        let disk = VirtioSpec::disk("/etc/passwd", 0).unwrap();
        let text = allowed.check(&ConsoleSpec::Null, &[disk]).unwrap_err().to_string();
        assert!(text.contains("block disk0") && text.contains("--disk"), "{text}");
        let console = VirtioSpec::console(&"unix:/run/x".parse().unwrap());
        let text = allowed.check(&ConsoleSpec::Null, &[console]).unwrap_err().to_string();
        assert!(text.contains("--virtio-console"), "{text}");
        let rest = [VirtioSpec::rng(), VirtioSpec::balloon()];
        assert!(allowed.check(&ConsoleSpec::Stdio, &rest).is_ok());
    }
}
