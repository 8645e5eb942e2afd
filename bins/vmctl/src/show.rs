//! Guests, migrations and events as text for people, or JSON for scripts.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use mig_engine::ownership::State;
use mig_engine::report::Progress;
use serde_json::{Value, json};
use vm_control::{Event, Status};

/// The version of the JSON that is printed here.
pub const VERSION: u32 = 1;

/// One line per guest.
pub fn list(guests: &[Status], as_json: bool) -> anyhow::Result<String> {
    if as_json {
        let all: Vec<_> = guests.iter().map(value).collect();
        return Ok(line(&Value::Array(all)));
    }
    let width = guests.iter().map(|guest| guest.name.len()).max().unwrap_or(0).max(4);
    let mut text =
        format!("{:width$}  {:>8}  {:>5}  {:>9}  STATE\n", "NAME", "PID", "VCPUS", "MEMORY");
    for guest in guests {
        writeln!(
            text,
            "{:width$}  {:>8}  {:>5}  {:>9}  {}",
            guest.name,
            guest.pid,
            guest.vcpus,
            guest.memory.to_string(),
            guest.word()
        )?;
    }
    Ok(text)
}

/// A guest in full.
pub fn status(guest: &Status, as_json: bool) -> anyhow::Result<String> {
    if as_json {
        return Ok(line(&value(guest)));
    }
    let mut text = String::new();
    writeln!(text, "name       {}", guest.name)?;
    writeln!(text, "state      {}", guest.word())?;
    writeln!(text, "ownership  {}", guest.ownership)?;
    writeln!(text, "vmrun      {}", guest.pid)?;
    writeln!(text, "vcpus      {}", guest.vcpus)?;
    match guest.backing {
        Some(backing) => writeln!(text, "memory     {} ({backing})", guest.memory)?,
        None => writeln!(text, "memory     {}", guest.memory)?,
    }
    if let Some(balloon) = guest.balloon {
        let (target, actual) = (balloon.target, balloon.actual);
        writeln!(text, "balloon    the guest has {actual}, and was asked to do with {target}")?;
    }
    if guest.throttle > 0 {
        writeln!(text, "throttle   {}%", guest.throttle)?;
    }
    if let Some(progress) = progress(guest)? {
        writeln!(text, "migration  {}", progress.line())?;
    }
    if let Some(next) = what_next(guest) {
        writeln!(text, "next       {next}")?;
    }
    Ok(text)
}

/// What the operator can do about a guest that waits for an answer from the other host.
fn what_next(guest: &Status) -> Option<String> {
    match guest.ownership {
        State::Owned if guest.held.is_some() => guest.held.clone(),
        State::HandedOver(_) if guest.progress.is_none() => Some(match destination(guest) {
            Some(destination) => {
                format!(
                    "it was sent to {destination}; mig-send --resolve {} goes on from there",
                    guest.name
                )
            }
            None => format!(
                "mig-send --resolve {} DEST asks the destination what became of it",
                guest.name
            ),
        }),
        State::Prepared(_) => {
            Some("it waits for its source's GO; mig-send --resolve on the source brings it".into())
        }
        _ => None,
    }
}

/// Where a guest that was handed over can be asked for, as `mig-send` was told.
fn destination(guest: &Status) -> Option<String> {
    let handover = guest.handover.as_ref()?;
    Some(migpipe_cli::printable(handover.destination.first()?))
}

/// The migration of a guest.
pub fn migration(guest: &Status, as_json: bool) -> anyhow::Result<String> {
    let progress = progress(guest)?.with_context(|| {
        format!("{} is {}: no migration is under way", guest.name, guest.word())
    })?;
    if as_json {
        let mut value = serde_json::to_value(progress)?;
        value["version"] = VERSION.into();
        return Ok(line(&value));
    }
    Ok(format!("{}: {}\n", guest.name, progress.line()))
}

/// An event.
pub fn event(event: &Event, as_json: bool) -> anyhow::Result<String> {
    let detail = match event {
        Event::Resumed | Event::Paused => None,
        Event::Ownership(state) => Some(state.to_string()),
        Event::Ended(why) => Some(why.clone()),
    };
    Ok(match (as_json, detail) {
        (true, detail) => {
            line(&json!({ "version": VERSION, "event": event.name(), "detail": detail }))
        }
        (false, Some(detail)) => format!("{} {detail}\n", event.name()),
        (false, None) => format!("{}\n", event.name()),
    })
}

/// Files that were written.
pub fn files(paths: &[PathBuf], as_json: bool) -> String {
    let names = paths.iter().map(|path| path.display().to_string());
    if as_json {
        return line(&names.collect());
    }
    names.map(|name| name + "\n").collect()
}

fn progress(guest: &Status) -> anyhow::Result<Option<Progress>> {
    let read = |text: &String| serde_json::from_str(text).context("mig-send is another release");
    guest.progress.as_ref().map(read).transpose()
}

fn value(guest: &Status) -> Value {
    let id = match guest.ownership {
        State::Migrating(id)
        | State::HandedOver(id)
        | State::Receiving(id)
        | State::Prepared(id)
        | State::Refused(id) => Some(id.to_string()),
        State::Owned | State::Incoming | State::Finished => None,
    };
    let progress: Option<Value> =
        guest.progress.as_ref().and_then(|text| serde_json::from_str(text).ok());
    json!({
        "version": VERSION,
        "name": guest.name,
        "pid": guest.pid,
        "state": guest.word(),
        "running": guest.running,
        "migration": id,
        "destination": destination(guest),
        "vcpus": guest.vcpus,
        "memory_bytes": guest.memory.0,
        "memory_backing": guest.backing.map(|backing| backing.to_string()),
        "throttle_percent": guest.throttle,
        "balloon": guest.balloon.map(|balloon| json!({
            "target_bytes": balloon.target.0,
            "actual_bytes": balloon.actual.0,
        })),
        "progress": progress,
        "held": guest.held,
    })
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use migpipe_units::{Bytes, MigrationId};
    use vm_control::{Handover, MemoryBacking};
    use vm_state::Balloon;

    fn guest(ownership: State, running: bool) -> Status {
        Status {
            name: "web".into(),
            pid: 4711,
            ownership,
            running,
            vcpus: 2,
            memory: Bytes(512 << 20),
            backing: Some(MemoryBacking::HugeTmpfs),
            throttle: 0,
            progress: None,
            balloon: None,
            held: None,
            handover: None,
            released: Vec::new(),
        }
    }

    #[test]
    fn a_listing_is_a_table() {
        let text = list(&[guest(State::Owned, true)], false).unwrap();
        assert_eq!(
            text,
            "NAME       PID  VCPUS     MEMORY  STATE\n\
             web       4711      2    512 MiB  running\n"
        );
    }

    #[test]
    fn scripts_find_the_id_of_a_handover() {
        let id = MigrationId::from_bytes([7; 16]);
        let text = status(&guest(State::HandedOver(id), false), true).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["migration"], id.to_string());
        assert_eq!(value["state"], "handed-over");
    }

    #[test]
    fn a_guest_that_nobody_resolves_says_how() {
        let id = MigrationId::from_bytes([7; 16]);
        let mut guest = guest(State::HandedOver(id), false);
        assert!(status(&guest, false).unwrap().contains("mig-send --resolve web DEST"));
        let known = Handover {
            taken_by: None,
            age: Duration::ZERO,
            destination: vec!["ssh:hostb".into(), "--ssh-option=Port=1".into()],
        };
        let known = Status { handover: Some(known), ..guest.clone() };
        let text = status(&known, false).unwrap();
        assert!(text.contains("it was sent to ssh:hostb; mig-send --resolve web"), "{text}");
        guest.progress = serde_json::to_string(&Progress::default()).ok();
        assert!(!status(&guest, false).unwrap().contains("--resolve"), "mig-send is at it");
    }

    #[test]
    fn a_balloon_is_shown_where_there_is_one() {
        let without = guest(State::Owned, true);
        assert!(!status(&without, false).unwrap().contains("balloon"));
        let sizes = Balloon { target: Bytes(256 << 20), actual: Bytes(300 << 20) };
        let with = Status { balloon: Some(sizes), ..without };
        let text = status(&with, false).unwrap();
        let line = text.lines().find(|line| line.starts_with("balloon")).unwrap();
        assert!(line.contains("has 300 MiB") && line.contains("with 256 MiB"), "{line}");
        let value: Value = serde_json::from_str(&status(&with, true).unwrap()).unwrap();
        assert_eq!(value["balloon"]["target_bytes"], 256 << 20);
    }

    #[test]
    fn no_migration_is_said_with_the_state() {
        let error = migration(&guest(State::Owned, false), false).unwrap_err();
        assert_eq!(error.to_string(), "web is paused: no migration is under way");
    }
}
