//! What each channel carries on this machine, in GB/s (10^9 bytes per second), with 1 MiB writes
//! and reads of memory that exists already.
//!
//!     cargo run --release -p mig-channel --example throughput
#![allow(clippy::print_stdout, reason = "it prints what it measured")]
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{Read, Write};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use mig_channel::{Endpoint, Interrupt, SenderChannel, open_sender, prepare_receiver};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

const WRITE: usize = 1 << 20;
const WRITES: usize = 2048;
const LONGEST: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn Error>> {
    let interrupt = Interrupt::new()?;
    let dir = tempfile::tempdir()?;
    for turn in 1..=3 {
        println!("run {turn}");
        let endpoint = "exec:cat >/dev/null".parse()?;
        report("exec:cat >/dev/null", send(open_sender(&endpoint, None, false, &interrupt)?)?);
        for endpoint in [Endpoint::Unix(dir.path().join("socket")), "tcp:127.0.0.1:0".parse()?] {
            let receiver = prepare_receiver(&endpoint, &interrupt)?;
            let address: Endpoint = receiver.listens_on().ok_or("no address")?.parse()?;
            let receiving = thread::spawn(move || {
                receiver.accept(Some(LONGEST)).map(|mut channel| drain(&mut channel.forward))
            });
            let started = Instant::now();
            send(open_sender(&address, None, false, &interrupt)?)?;
            receiving.join().map_err(|_| "the receiver panicked")???;
            report(&endpoint.to_string(), started.elapsed());
        }
        let (reader, writer) = std::io::pipe()?;
        let source = prepare_receiver(&passed(reader)?, &interrupt)?.accept(None)?;
        let mut forward = source.forward;
        let receiving = thread::spawn(move || drain(&mut forward));
        let started = Instant::now();
        send(open_sender(&passed(writer)?, None, false, &interrupt)?)?;
        receiving.join().map_err(|_| "the receiver panicked")??;
        report("pipe", started.elapsed());
    }
    Ok(())
}

fn report(name: &str, took: Duration) {
    let rate = (WRITE * WRITES) as f64 / took.as_secs_f64() / 1e9;
    println!("  {rate:5.2} GB/s  {name}");
}

fn passed(fd: impl Into<OwnedFd>) -> nix::Result<Endpoint> {
    let fd = fd.into();
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(Endpoint::Fd(fd.into_raw_fd()))
}

fn drain(reader: &mut impl Read) -> std::io::Result<()> {
    let mut buffer = vec![1; WRITE];
    while reader.read(&mut buffer)? > 0 {}
    Ok(())
}

fn send(mut channel: SenderChannel) -> Result<Duration, Box<dyn Error>> {
    let memory = vec![7; WRITE];
    let header = [1; 24];
    let started = Instant::now();
    for _ in 0..WRITES {
        channel.forward.write_all(&header)?;
        channel.forward.write_all(&memory)?;
    }
    channel.forward.close()?;
    if let Some(tunnel) = &mut channel.tunnel {
        tunnel.wait_for_success(LONGEST)?;
    }
    Ok(started.elapsed())
}
