//! What is shown of each guest, and where it comes from.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use mig_engine::report::Progress;
use migpipe_units::Bytes;
use vm_control::{Client, ClientError, Status};

use crate::{LIST_TIMEOUT, NAME, is_nobody};

/// The ticks by which /proc tells processor time (proc(5), USER_HZ of x86).
const TICKS_PER_SECOND: f64 = 100.0;

/// All guests of this user, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    pub rows: Vec<Row>,
    /// Why nobody could be asked.
    pub problem: Option<String>,
}

/// One guest.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub name: String,
    pub state: String,
    pub vcpus: Option<u32>,
    pub memory: Option<Bytes>,
    /// Of one processor, in percent; several vCPUs may take more than 100.
    pub cpu: Option<f64>,
    pub throttle: u8,
    /// Where its migration is.
    pub progress: Option<Progress>,
}

/// Looks at all guests again and again.
#[derive(Debug, Default)]
pub struct Collector {
    /// When each vmrun was looked at last, and how much processor time it had taken.
    times: BTreeMap<u32, (Instant, f64)>,
}

impl Collector {
    /// How they are now.
    pub fn look(&mut self) -> Rows {
        let sockets = match vm_paths::all_sockets() {
            Ok(sockets) => sockets,
            Err(error) => {
                let problem = Some(migpipe_cli::one_line(&error.into()));
                return Rows { problem, rows: Vec::new() };
            }
        };
        let mut times = BTreeMap::new();
        let mut rows: Vec<_> =
            sockets.iter().filter_map(|socket| self.row(socket, &mut times)).collect();
        rows.sort_by(|one, other| one.name.cmp(&other.name));
        self.times = times;
        Rows { rows, problem: None }
    }

    fn row(&self, socket: &Path, times: &mut BTreeMap<u32, (Instant, f64)>) -> Option<Row> {
        match Client::connect_within(socket, NAME, LIST_TIMEOUT).and_then(|it| it.status()) {
            Ok(status) => {
                let now = (Instant::now(), processor_seconds(status.pid)?);
                let cpu = self.times.get(&status.pid).and_then(|before| share(*before, now));
                times.insert(status.pid, now);
                Some(Row::of(&status, cpu))
            }
            Err(ClientError::Connect { source, .. }) if is_nobody(&source) => None,
            Err(_) => Some(Row::silent(socket)),
        }
    }
}

impl Row {
    /// A guest whose vmrun has answered.
    pub fn of(status: &Status, cpu: Option<f64>) -> Self {
        Self {
            name: status.name.clone(),
            state: status.word().to_owned(),
            vcpus: Some(status.vcpus),
            memory: Some(status.memory),
            cpu,
            throttle: status.throttle,
            progress: status.progress.as_ref().and_then(|text| serde_json::from_str(text).ok()),
        }
    }

    /// One whose vmrun does not.
    fn silent(socket: &Path) -> Self {
        let name = socket.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self {
            name: migpipe_cli::printable(&name),
            state: "no answer".to_owned(),
            vcpus: None,
            memory: None,
            cpu: None,
            throttle: 0,
            progress: None,
        }
    }
}

/// The processor time of a process in seconds; nothing of one that has ended.
fn processor_seconds(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    seconds_of(&text)
}

/// utime and stime of /proc/PID/stat (proc(5)); the name in front may hold anything.
fn seconds_of(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn share(before: (Instant, f64), now: (Instant, f64)) -> Option<f64> {
    let time = now.0.saturating_duration_since(before.0).as_secs_f64();
    (time > 0.0).then(|| (now.1 - before.1).max(0.0) / time * 100.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn processor_time_is_told_from_any_name_of_a_process() {
        let stat = "4711 (a) b) 1 (c) S 1 4711 4711 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 5 0 1 2 3";
        assert_eq!(seconds_of(stat), Some(3.0));
        assert_eq!(seconds_of("4711 (vmrun) S 1"), None);
        assert!(processor_seconds(std::process::id()).is_some());
        let began = Instant::now();
        let later = began + Duration::from_secs(2);
        assert_eq!(share((began, 3.0), (later, 4.0)), Some(50.0));
        assert_eq!(share((began, 3.0), (began, 3.0)), None);
    }
}
