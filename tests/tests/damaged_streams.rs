//! Whatever is missing from the stream of a real guest, and whichever bit of it is wrong: it is
//! refused before the guest runs, one way and with a return path.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use mig_stream::{Record, StreamReader};
use migpipe_tests::{Console, Guest, Host, Numbers, finish, needs_kvm, saved_guest, wait};

/// Cuts, and flipped bits, of each form that a real mig-recv is given.
const SAMPLE: usize = 20;

/// How long a guest that is whole and has no GO waits.
const GO_TIMEOUT: &str = "0.2";

/// What came over the forward path of a migration with a return path, to its last byte.
fn recorded_handover(host: &Host) -> Vec<u8> {
    let mut guest = Guest::boot(host, "web", "builtin:idle,tick-ms=20", &["--mem", "16M"]);
    let (file, other) = (host.path("handover.mig"), Host::new());
    let receiver = other.remote("mig-recv --quiet --console null");
    let tunnel = format!("exec:tee {} | {receiver}", file.display());
    host.run("mig-send", &["-q", "web", &tunnel]).expect(0);
    assert_eq!(guest.ended(), Some(0));
    fs::read(file).unwrap()
}

/// Reads a stream as mig-recv does. Whether a guest would run at the end of it.
fn would_run(bytes: &[u8], payload: &mut [u8]) -> bool {
    let Ok(mut reader) = StreamReader::open(bytes) else { return false };
    let both_ways = reader.preamble().flags.return_path;
    let (mut end, mut go) = (false, false);
    loop {
        match reader.next_record() {
            Ok(Some(Record::Pages(range))) => {
                if reader.read_payload(&mut payload[..range.len().0 as usize]).is_err() {
                    return false;
                }
            }
            Ok(Some(Record::End(_))) => end = true,
            Ok(Some(Record::Go { .. })) => go = true,
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(_) => return false,
        }
    }
    end && (go || !both_ways) && reader.expect_eof().is_ok()
}

/// The stream with each of these bits wrong, and cut at each of these bytes, one after the other.
fn none_runs(
    stream: &[u8],
    bits: impl Iterator<Item = usize>,
    cuts: impl Iterator<Item = usize>,
) -> usize {
    let mut bytes = stream.to_vec();
    let mut payload = vec![0; 1 << 20];
    let mut tried = 0;
    for bit in bits {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(!would_run(&bytes, &mut payload), "bit {bit} of {}", stream.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        tried += 1;
    }
    for length in cuts {
        assert!(!would_run(&stream[..length], &mut payload), "cut at {length}");
        tried += 1;
    }
    tried
}

#[test]
fn no_flipped_bit_and_no_cut_of_a_real_stream_would_let_the_guest_run() {
    needs_kvm!();
    let host = Host::new();
    let saved = fs::read(saved_guest(&host)).unwrap();
    let handover = recorded_handover(&host);
    let mut payload = vec![0; 1 << 20];
    for (form, stream) in [("one way", &saved), ("both ways", &handover)] {
        assert!(would_run(stream, &mut payload), "{form}: the whole stream");
        let began = Instant::now();
        let (bits, cuts) = (stream.len() * 8, stream.len());
        // Every bit and every cut, on two processors.
        let tried: usize = thread::scope(|scope| {
            let halves = [0, 1].map(|half| {
                let (bits, cuts) = ((half..bits).step_by(2), (half..cuts).step_by(2));
                scope.spawn(move || none_runs(stream, bits, cuts))
            });
            halves.into_iter().map(|half| half.join().unwrap()).sum()
        });
        assert_eq!(tried, bits + cuts);
        println!("{form}: {bits} bits and {cuts} cuts, {:.1?}", began.elapsed());
    }
}

/// Has a mig-recv on a host of its own read `stream`, and checks that the guest did not run there,
/// that it says why in one line, and that nothing is left.
fn refused(what: &str, stream: &[u8]) {
    let host = Host::new();
    let (file, console) = (host.path("stream"), host.path("console"));
    fs::write(&file, stream).unwrap();
    let mut command = host.command("mig-recv");
    command
        .args(["--go-timeout", GO_TIMEOUT])
        .arg(format!("--console=file:{}", console.display()))
        .stdin(Stdio::from(File::open(&file).unwrap()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let done = finish(command.spawn().unwrap(), Instant::now());
    // 4: the guest is whole and GO is not. Its vmrun refuses it when nobody resolves it.
    assert!(matches!(done.status, Some(1 | 4)), "{what}: {done:#?}");
    assert_eq!(done.stderr.trim().lines().count(), 1, "{what}: {done:#?}");
    wait("the end of everything", || host.processes().is_empty());
    assert!(host.sockets().is_empty(), "{what}: a socket is left over");
    assert!(ticks(&console) == 0, "{what}: the guest ran");
}

fn ticks(console: &Path) -> usize {
    Console::at(console).ticks().len()
}

#[test]
fn a_receiver_refuses_every_cut_and_every_flipped_bit_before_the_guest_runs() {
    needs_kvm!();
    let host = Host::new();
    let saved = fs::read(saved_guest(&host)).unwrap();
    let handover = recorded_handover(&host);
    let mut numbers = Numbers(7);
    let began = Instant::now();
    for (form, stream) in [("one way", &saved), ("both ways", &handover)] {
        for number in 0..SAMPLE {
            // The last bytes are the ones that decide: End, and Go.
            let tail = 150.min(stream.len());
            let reach = if number % 2 == 0 { stream.len() } else { tail };
            let at = stream.len() - 1 - numbers.below(reach);
            refused(&format!("{form}, cut at {at}"), &stream[..at]);
            let at = stream.len() - 1 - numbers.below(reach);
            let bit = numbers.below(8);
            let mut bytes = stream.clone();
            bytes[at] ^= 1 << bit;
            refused(&format!("{form}, bit {bit} of byte {at}"), &bytes);
        }
    }
    println!("{} streams, {:.1?}", 4 * SAMPLE, began.elapsed());
    // That all this was refused says something only if the whole stream is not.
    let other = Host::new();
    let console = other.path("console");
    let source = format!("file:{}", host.path("web.mig").display());
    let to_file = format!("--console=file:{}", console.display());
    other.run("mig-recv", &["-q", &to_file, &source]).expect(0);
    wait("ticks of the whole guest", || ticks(&console) > 2);
}
