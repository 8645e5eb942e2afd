//! What the lab's tests see with: it runs inside a Linux guest, or beside one, and says whether
//! time, disk and network stayed whole while the guest moved.
//!
//! `clock`, `answer` and `storm` run in the guest, `ask` on a host.

#![forbid(unsafe_code)]

mod blocks;
mod clock;
mod dialogue;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Sees whether a moving guest stays whole; for the lab's tests")]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// In the guest: print what the clocks say, and whether one of them ever goes back
    Clock {
        /// Between two lines, in milliseconds
        #[arg(long, default_value_t = 200)]
        every: u64,
    },
    /// In the guest: answer each line of stdin with the clocks
    Answer,
    /// In the guest: keep a disk's queue full until STOP exists, and see that no write is lost or repeated
    Storm {
        /// The disk, whose blocks are zero
        #[arg(long)]
        disk: PathBuf,
        /// The file that ends it
        #[arg(long)]
        stop: PathBuf,
        /// Requests at the disk at any time
        #[arg(long, default_value_t = 256)]
        writers: usize,
        /// How many blocks of 4 KiB are written, again and again
        #[arg(long, default_value_t = 8192)]
        blocks: u64,
    },
    /// On a host: talk to `answer` through one connection until STOP exists
    Ask {
        /// The file that ends it
        #[arg(long)]
        stop: PathBuf,
        /// Where every exchange is written down
        #[arg(long)]
        log: PathBuf,
        /// How far the guest's clock may stray from this host's, in milliseconds
        #[arg(long, default_value_t = 100)]
        tolerance: u64,
        /// The command that leads to `lab-witness answer`, such as ssh
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().role {
        Role::Clock { every } => clock::watch(Duration::from_millis(every)),
        Role::Answer => dialogue::answer(),
        Role::Storm { disk, stop, writers, blocks } => blocks::storm(&disk, writers, blocks, &stop),
        Role::Ask { stop, log, tolerance, command } => {
            dialogue::ask(&command, &stop, &log, Duration::from_millis(tolerance))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            println!("ERROR {problem}");
            ExitCode::FAILURE
        }
    }
}
