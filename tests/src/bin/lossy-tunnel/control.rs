//! Where to stop and what to do there: as the command line says, or as a test says.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use migpipe_tests::faults::{Act, Plan, Point};

use crate::far::Far;

/// How late everything is that passes late.
const LATE: Duration = Duration::from_millis(20);

/// Tells what to do at the point.
enum Source {
    /// The command line.
    Fixed(Act),
    /// A test.
    Gate(BufReader<UnixStream>),
}

/// What this tunnel is to do, and what it does now.
pub struct Control {
    plan: Plan,
    source: Mutex<Source>,
    fired: AtomicBool,
    drops_forward: AtomicBool,
    drops_back: AtomicBool,
    stalls: AtomicBool,
    delays: AtomicBool,
    exits_late: AtomicBool,
}

impl Control {
    /// As the first argument says.
    pub fn new(how: &str) -> Result<Self, String> {
        let (plan, source) = match how.split_once('=') {
            Some((point, act)) if !how.contains('/') => {
                (Plan::Stop(point.parse()?), Source::Fixed(act.parse()?))
            }
            _ => ask(how)?,
        };
        Ok(Self {
            plan,
            source: Mutex::new(source),
            fired: AtomicBool::new(false),
            drops_forward: AtomicBool::new(false),
            drops_back: AtomicBool::new(false),
            stalls: AtomicBool::new(false),
            delays: AtomicBool::new(false),
            exits_late: AtomicBool::new(false),
        })
    }

    pub fn plan(&self) -> Plan {
        self.plan
    }

    pub fn exits_late(&self) -> bool {
        self.exits_late.load(Ordering::SeqCst)
    }

    pub fn drops_forward(&self) -> bool {
        self.drops_forward.load(Ordering::SeqCst)
    }

    pub fn drops_back(&self) -> bool {
        self.drops_back.load(Ordering::SeqCst)
    }

    /// Waits as long as nothing may pass.
    pub fn wait(&self) {
        while self.stalls.load(Ordering::SeqCst) {
            thread::park();
        }
        if self.delays.load(Ordering::SeqCst) {
            thread::sleep(LATE);
        }
    }

    /// Stops here, if this is the point, and does what is to be done.
    pub fn at(&self, point: Point, far: &Far) {
        if self.plan != Plan::Stop(point) || self.fired.swap(true, Ordering::SeqCst) {
            return;
        }
        let act = match &mut *self.source.lock().expect("no panic with it") {
            Source::Fixed(act) => *act,
            Source::Gate(gate) => {
                let said = writeln!(gate.get_mut(), "reached {point}");
                let act = said.ok().and_then(|()| line(gate).ok()?.parse().ok());
                let act = act.unwrap_or(Act::Cut);
                // A test counts what was really done.
                let _ = writeln!(gate.get_mut(), "doing {act}");
                act
            }
        };
        match act {
            Act::Pass => {}
            Act::Cut => std::process::exit(1),
            Act::ExitEarly => std::process::exit(0),
            Act::Partition => {
                let holder = far.hold();
                if let Source::Gate(gate) = &mut *self.source.lock().expect("no panic with it") {
                    let _ = writeln!(gate.get_mut(), "holder {holder}");
                }
                std::process::exit(1)
            }
            Act::CloseForward => {
                self.drops_forward.store(true, Ordering::SeqCst);
                far.close();
            }
            Act::CloseBack => {
                self.drops_back.store(true, Ordering::SeqCst);
                let null = std::fs::File::options().write(true).open("/dev/null").expect("null");
                nix::unistd::dup2_stdout(null).expect("stdout can be replaced");
            }
            Act::DropTail => self.drops_forward.store(true, Ordering::SeqCst),
            Act::Stall => self.stalls.store(true, Ordering::SeqCst),
            Act::Delay => self.delays.store(true, Ordering::SeqCst),
            Act::ExitLate => self.exits_late.store(true, Ordering::SeqCst),
        }
    }
}

fn ask(gate: &str) -> Result<(Plan, Source), String> {
    let failed = |error: std::io::Error| format!("no test at {gate}: {error}");
    let mut stream = UnixStream::connect(gate).map_err(failed)?;
    writeln!(stream, "start {}", std::process::id()).map_err(failed)?;
    let mut stream = BufReader::new(stream);
    Ok((line(&mut stream).map_err(failed)?.parse()?, Source::Gate(stream)))
}

fn line(from: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}
