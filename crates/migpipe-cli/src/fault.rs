//! What went wrong, for a script: one JSON object on stderr in place of the lines for people.

use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::json;

/// The version of the object.
const VERSION: u32 = 1;

/// Set where the program was started with `--json`.
static FAULT: OnceLock<Mutex<Fault>> = OnceLock::new();

#[derive(Debug, Default)]
struct Fault {
    what: Vec<String>,
    guest: Option<String>,
    guest_is_at: Option<&'static str>,
}

/// From now on what is complained of is collected for [`print`].
pub(crate) fn collect() {
    let _ = FAULT.set(Mutex::default());
}

fn with<T>(use_it: impl FnOnce(&mut Fault) -> T) -> Option<T> {
    let fault = FAULT.get()?;
    Some(use_it(&mut fault.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// Whether this program speaks to a script.
pub fn is_json() -> bool {
    FAULT.get().is_some()
}

/// Notes whom a failure concerns, and who has that guest where it is known: `source` or
/// `destination`.
pub fn guest_is_at(guest: &str, at: Option<&'static str>) {
    with(|fault| (fault.guest, fault.guest_is_at) = (Some(guest.to_owned()), at));
}

/// Takes a complaint; false where people are to read it.
pub(crate) fn take(what: &str) -> bool {
    with(|fault| fault.what.push(what.to_owned())).is_some()
}

/// Prints the object if there is something to be said: a status other than 0, or a complaint.
pub(crate) fn print(program: &str, status: u8) {
    let line =
        with(|fault| (status != 0 || !fault.what.is_empty()).then(|| line(program, status, fault)));
    if let Some(line) = line.flatten() {
        crate::output::say(line);
    }
}

fn line(program: &str, status: u8, fault: &Fault) -> String {
    json!({
        "version": VERSION,
        "program": program,
        "code": status,
        "what": fault.what.join("; "),
        "guest": fault.guest,
        "guest_is_at": fault.guest_is_at,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_is_one_line_whatever_was_said() {
        let fault = Fault {
            what: vec!["a \"disk\" is full".into(), "the report was not written".into()],
            guest: Some("web".into()),
            guest_is_at: Some("source"),
        };
        let line = line("mig-send", 1, &fault);
        assert!(!line.contains('\n'));
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["what"], "a \"disk\" is full; the report was not written");
        assert_eq!((&read["code"], &read["guest_is_at"]), (&json!(1), &json!("source")));
    }
}
