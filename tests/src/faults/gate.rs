//! The test's end of its tunnels: what each is to do, and where it is.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::wire::{Act, Plan};

/// What the next tunnels are told.
#[derive(Debug, Default)]
struct Plans {
    next: Vec<Plan>,
    down: bool,
}

/// Every tunnel of one test asks here.
#[derive(Debug)]
pub struct Gate {
    path: PathBuf,
    plans: Arc<Mutex<Plans>>,
    reached: Receiver<Stopped>,
}

/// A tunnel that is at its point and waits to be told what to do.
#[derive(Debug)]
pub struct Stopped {
    /// Its process.
    pub pid: i32,
    stream: BufReader<UnixStream>,
}

impl Stopped {
    /// Tells it.
    pub fn tell(&mut self, act: Act) {
        // One that was killed meanwhile hears nothing.
        let _ = writeln!(self.stream.get_mut(), "{act}");
    }

    /// Whether the tunnel says that it does so now: one that is stopped or dead does not.
    pub fn does(&mut self, act: Act) -> bool {
        line(&mut self.stream).is_some_and(|line| line == format!("doing {act}"))
    }

    /// The process that keeps the far end from noticing, of a tunnel that was told to leave one.
    pub fn holder(&mut self) -> Option<i32> {
        let line = line(&mut self.stream)?;
        line.strip_prefix("holder ")?.parse().ok()
    }
}

impl Gate {
    /// Listens at `path`.
    pub fn new(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let plans = Arc::<Mutex<Plans>>::default();
        let (sender, reached) = channel();
        let shared = Arc::clone(&plans);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (plans, sender) = (Arc::clone(&shared), sender.clone());
                thread::spawn(move || serve(stream, &plans, &sender));
            }
        });
        Self { path: path.to_owned(), plans, reached }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the next tunnel does, and the one after it, and so on.
    pub fn plan(&self, plans: &[Plan]) {
        self.lock().next = plans.iter().rev().copied().collect();
    }

    /// Whether tunnels that have no plan find no network.
    pub fn set_down(&self, down: bool) {
        self.lock().down = down;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Plans> {
        self.plans.lock().expect("no panic with it")
    }

    /// Waits until a tunnel is at its point.
    pub fn wait(&self, within: Duration) -> Option<Stopped> {
        self.reached.recv_timeout(within).ok()
    }
}

fn serve(stream: UnixStream, plans: &Mutex<Plans>, reached: &Sender<Stopped>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let pid = line(&mut stream)?.strip_prefix("start ")?.parse().ok()?;
    let plan = {
        let mut plans = plans.lock().expect("no panic with it");
        let otherwise = if plans.down { Plan::Down } else { Plan::Carry };
        plans.next.pop().unwrap_or(otherwise)
    };
    writeln!(stream.get_mut(), "{plan}").ok()?;
    line(&mut stream)?.strip_prefix("reached ")?;
    reached.send(Stopped { pid, stream }).ok()
}

fn line(from: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    match from.read_line(&mut line) {
        Ok(1..) => Some(line.trim_end().to_owned()),
        _ => None,
    }
}
