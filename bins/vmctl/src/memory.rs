//! What a host remembers of migrations and of guests that left it.

use std::fmt::Write;

use anyhow::bail;
use mig_engine::ownership::Decision;
use migpipe_units::MigrationId;
use serde_json::{Value, json};
use vm_records::departure::Departures;
use vm_records::record::{Entry, Records};

use crate::show;

/// Shows all of it, after removing what can go if `tidy` says so.
pub fn records(tidy: bool, as_json: bool) -> anyhow::Result<String> {
    let records = Records::of_this_host();
    let tidied = if tidy { records.tidy()? } else { Vec::new() };
    let entries = records.all()?;
    let departures = Departures::of_this_host();
    let mut left = Vec::new();
    for name in departures.names()? {
        left.push((name.clone(), departures.read(&name)));
    }
    if as_json {
        let entries: Vec<_> = entries.iter().map(value).collect();
        let left: Vec<_> = left
            .iter()
            .map(|(name, departure)| match departure {
                Ok(departure) => json!({ "name": name, "departure": departure }),
                Err(error) => json!({ "name": name, "error": error.to_string() }),
            })
            .collect();
        let tidied: Vec<_> = tidied.iter().map(ToString::to_string).collect();
        let all = json!({
            "version": show::VERSION,
            "records": entries,
            "left": left,
            "tidied": tidied,
        });
        return Ok(format!("{all}\n"));
    }
    let mut text = String::new();
    if tidy {
        writeln!(text, "{} records removed", tidied.len())?;
    }
    writeln!(text, "{:36}  {:>8}  {:10}  NAME", "MIGRATION", "AGE", "DECISION")?;
    for (id, record) in &entries {
        match record {
            Ok(record) => {
                let age = format!("{} h", record.age().as_secs() / 3600);
                let name = migpipe_cli::printable(&record.name);
                writeln!(text, "{id}  {age:>8}  {:10}  {name}", word(record.decision))?;
            }
            Err(error) => writeln!(text, "{id}  {error}")?,
        }
    }
    for (name, departure) in &left {
        match departure {
            Ok(Some(departure)) => writeln!(text, "{name} left: {departure}")?,
            // It came back meanwhile.
            Ok(None) => {}
            Err(error) => writeln!(text, "{name} left: {error}")?,
        }
    }
    Ok(text)
}

const fn word(decision: Decision) -> &'static str {
    match decision {
        Decision::Restoring => "restoring",
        Decision::MayRun => "may-run",
        Decision::Ran => "ran",
        Decision::Refused => "refused",
    }
}

fn value((id, record): &Entry) -> Value {
    match record {
        Ok(record) => json!({
            "migration": id.to_string(),
            "decision": word(record.decision),
            "name": record.name,
            "socket": record.socket,
            "saved": record.saved,
            "age_s": record.age().as_secs(),
        }),
        Err(error) => json!({ "migration": id.to_string(), "error": error.to_string() }),
    }
}

/// Forgets a guest that left, or the record of a migration.
pub fn forget(what: &str) -> anyhow::Result<()> {
    let forgotten = match what.parse::<MigrationId>() {
        Ok(id) => Records::of_this_host().forget(id)?,
        Err(_) => Departures::of_this_host().forget(what)?,
    };
    if !forgotten {
        bail!("this host remembers nothing of {what}: vmctl records shows what there is");
    }
    Ok(())
}
