//! `vmctl top`: the guests and their migrations on a terminal, as they change.

mod rows;
mod view;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::rows::{Collector, Rows};
use self::view::draw;

/// How often a key and new figures are looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Shows them, anew after each `interval`, until somebody has seen enough.
pub fn run(interval: Duration) -> anyhow::Result<()> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!(
            "top needs a terminal; vmctl list and vmctl info show once what it shows, vmctl events \
             what happens"
        );
    }
    // Before any other thread exists, so that one alone is told.
    let ended = end_signals().context("cannot wait for signals")?;
    let rows = collect(interval)?;
    let mut terminal = ratatui::try_init().context("cannot use this terminal")?;
    let shown = show(&mut terminal, &rows, &ended);
    // Whatever happened, the shell gets its terminal back.
    ratatui::try_restore().context("cannot give the terminal back")?;
    shown
}

/// True once somebody wants this program to end.
fn end_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    let ended = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ended);
    thread::Builder::new().name("signals".into()).spawn(move || {
        let _ = signals.wait();
        told.store(true, Ordering::Relaxed);
    })?;
    Ok(ended)
}

/// Looks in a thread of its own: a vmrun that does not answer holds nothing up that is seen.
fn collect(interval: Duration) -> anyhow::Result<Receiver<Rows>> {
    let (seen, rows) = channel();
    let look = move || {
        let mut collector = Collector::default();
        while seen.send(collector.look()).is_ok() {
            thread::sleep(interval);
        }
    };
    thread::Builder::new().name("collector".into()).spawn(look).context("cannot make a thread")?;
    Ok(rows)
}

fn show(
    terminal: &mut DefaultTerminal,
    rows: &Receiver<Rows>,
    ended: &AtomicBool,
) -> anyhow::Result<()> {
    let mut last = Rows::default();
    loop {
        loop {
            match rows.try_recv() {
                Ok(rows) => last = rows,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => bail!("the thread that looks has ended"),
            }
        }
        terminal.draw(|frame| draw(frame, &last)).context("cannot draw")?;
        if ended.load(Ordering::Relaxed) {
            return Ok(());
        }
        if event::poll(POLL_INTERVAL).context("cannot read keys")?
            && let Event::Key(key) = event::read().context("cannot read keys")?
            && ends(&key)
        {
            return Ok(());
        }
    }
}

fn ends(key: &KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('c') => control,
            KeyCode::Char('q') | KeyCode::Esc => true,
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_escape_and_ctrl_c_end_it_and_no_other_key_does() {
        let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
        for code in [KeyCode::Char('q'), KeyCode::Esc] {
            assert!(ends(&key(code)), "{code:?}");
        }
        assert!(ends(&KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        for code in [KeyCode::Char('c'), KeyCode::Char('x'), KeyCode::Enter, KeyCode::Down] {
            assert!(!ends(&key(code)), "{code:?}");
        }
    }
}
