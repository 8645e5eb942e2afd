//! `fd:` and `file:` channels: pipes and files.

use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::thread;

use mig_channel::{Endpoint, Interrupt, OpenError, ReturnPath, open_receiver, open_sender};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

fn passed(fd: impl Into<OwnedFd>) -> Endpoint {
    let fd = fd.into();
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    Endpoint::Fd(fd.into_raw_fd())
}

fn is_nonblocking(fd: impl AsFd) -> bool {
    OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK)
}

fn pipe_size(fd: impl AsFd) -> u64 {
    fcntl(fd, FcntlArg::F_GETPIPE_SZ).unwrap() as u64
}

/// Writes all of `slices`, however few of their bytes one call takes.
fn write_slices<'a>(to: &mut impl Write, slices: impl IntoIterator<Item = IoSlice<'a>>) {
    let mut slices: Vec<_> = slices.into_iter().collect();
    let mut left = &mut slices[..];
    // Empty ones in front are left out, so that what is left is empty when all are written.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        let count = to.write_vectored(left).unwrap();
        assert_ne!(count, 0);
        IoSlice::advance_slices(&mut left, count);
    }
}

#[test]
fn a_shared_pipe_keeps_its_flags_and_gets_large() {
    let (reader, writer) = io::pipe().unwrap();
    let (shared_reader, shared_writer) = (reader.try_clone().unwrap(), writer.try_clone().unwrap());
    let interrupt = Interrupt::new().unwrap();
    let sender = open_sender(&passed(writer), None, false, &interrupt).unwrap();
    let receiver = open_receiver(&passed(reader), None, &interrupt).unwrap();
    assert!(!is_nonblocking(&shared_reader));
    assert!(!is_nonblocking(&shared_writer));
    assert!(is_nonblocking(sender.forward.as_pipe_fd().unwrap()));
    let largest: u64 =
        fs::read_to_string("/proc/sys/fs/pipe-max-size").unwrap().trim().parse().unwrap();
    drop(receiver);
    assert_eq!(pipe_size(&shared_writer), largest.min(1 << 20));
}

#[test]
fn one_write_takes_half_a_pipe_at_most() {
    let (reader, writer) = io::pipe().unwrap();
    let interrupt = Interrupt::new().unwrap();
    let mut channel = open_sender(&passed(writer), None, false, &interrupt).unwrap();
    let half = pipe_size(&reader) as usize / 2;
    let (header, payload) = (vec![1; 24], vec![2; 2 * half]);
    let slices = [IoSlice::new(&header), IoSlice::new(&payload)];
    assert_eq!(channel.forward.write_vectored(&slices).unwrap(), half);
}

#[test]
fn headers_and_payloads_arrive_in_order_whatever_their_sizes() {
    let (reader, writer) = io::pipe().unwrap();
    let interrupt = Interrupt::new().unwrap();
    let mut sender = open_sender(&passed(writer), None, false, &interrupt).unwrap();
    let mut receiver = open_receiver(&passed(reader), None, &interrupt).unwrap();
    assert!(!sender.is_both_ways());
    let sizes = [0, 1, 24, 4096, 65_535, 65_536, 1 << 20, 3_000_001, 7];
    let records: Vec<Vec<u8>> = sizes
        .iter()
        .map(|&size| (0..size).map(|n: usize| (n / 5 + size) as u8).collect())
        .collect();
    let copy = records.clone();
    let writing = thread::spawn(move || {
        for record in &copy {
            let length = (record.len() as u64).to_le_bytes();
            let slices = [&[], &length[..], record, &[]].map(IoSlice::new);
            write_slices(&mut sender.forward, slices);
        }
        // More slices than one system call takes.
        let bytes: Vec<u8> = (0..3000_u32).map(|n| n as u8).collect();
        write_slices(&mut sender.forward, bytes.chunks(1).map(IoSlice::new));
        sender.forward.close().unwrap();
        sender.forward.close().unwrap();
        assert!(sender.forward.write(b"late").is_err());
    });
    for record in &records {
        let mut length = [0; 8];
        receiver.forward.read_exact(&mut length).unwrap();
        assert_eq!(u64::from_le_bytes(length), record.len() as u64);
        let mut payload = vec![0; record.len()];
        receiver.forward.read_exact(&mut payload).unwrap();
        assert!(payload == *record);
    }
    let mut rest = Vec::new();
    receiver.forward.read_to_end(&mut rest).unwrap();
    assert!(rest.iter().enumerate().all(|(n, &byte)| byte == n as u8));
    assert_eq!(rest.len(), 3000);
    writing.join().unwrap();
}

#[test]
fn a_reader_that_goes_away_is_told_apart_from_other_failures() {
    let (reader, writer) = io::pipe().unwrap();
    let interrupt = Interrupt::new().unwrap();
    let mut channel = open_sender(&passed(writer), None, false, &interrupt).unwrap();
    channel.forward.write_all(b"x").unwrap();
    drop(reader);
    let error = channel.forward.write_all(b"x").unwrap_err();
    assert!(error.to_string().contains("the reader of the stream went away"), "{error}");
}

#[test]
fn a_pipe_whose_reader_left_before_it_was_opened_fails_at_the_first_write() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let interrupt = Interrupt::new().unwrap();
    let mut channel = open_sender(&passed(writer), None, false, &interrupt).unwrap();
    let error = channel.forward.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_pipe_whose_writer_left_before_it_was_opened_still_gives_its_bytes() {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(b"late").unwrap();
    drop(writer);
    let interrupt = Interrupt::new().unwrap();
    let mut channel = open_receiver(&passed(reader), None, &interrupt).unwrap();
    let mut text = String::new();
    channel.forward.read_to_string(&mut text).unwrap();
    assert_eq!(text, "late");
}

#[test]
fn a_return_path_may_be_any_descriptor() {
    let (forward_reader, forward_writer) = io::pipe().unwrap();
    let (back_reader, mut back_writer) = io::pipe().unwrap();
    let Endpoint::Fd(back) = passed(back_reader) else {
        unreachable!("passed() makes descriptors")
    };
    let interrupt = Interrupt::new().unwrap();
    let return_path = Some(ReturnPath::Fd(back));
    let mut channel = open_sender(&passed(forward_writer), return_path, false, &interrupt).unwrap();
    back_writer.write_all(b"ready").unwrap();
    let mut answer = [0; 5];
    channel.back.as_mut().unwrap().read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ready");
    drop(channel);
    assert_eq!(io::read_to_string(forward_reader).unwrap(), "");
}

#[test]
fn a_descriptor_that_the_parent_did_not_pass_is_refused() {
    let interrupt = Interrupt::new().unwrap();
    let own = File::open("/dev/null").unwrap();
    for fd in [own.as_raw_fd(), 900_000] {
        let refused = open_receiver(&Endpoint::Fd(fd), None, &interrupt);
        assert!(matches!(refused, Err(OpenError::NotPassed { .. })), "{refused:?}");
    }
    let stderr = open_sender(&Endpoint::Fd(2), None, false, &interrupt).unwrap_err();
    assert!(stderr.to_string().contains("stderr"), "{stderr}");
}

#[test]
fn a_descriptor_is_refused_where_it_goes_the_wrong_way_or_is_no_stream() {
    let (reader, writer) = io::pipe().unwrap();
    let interrupt = Interrupt::new().unwrap();
    for (result, reason) in [
        (open_sender(&passed(reader), None, false, &interrupt).err(), "reading only"),
        (open_receiver(&passed(writer), None, &interrupt).err(), "writing only"),
        (open_receiver(&passed(File::open("/").unwrap()), None, &interrupt).err(), "directory"),
    ] {
        let error = result.unwrap().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_saved_guest_appears_whole_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.mig");
    let endpoint = Endpoint::File(path.clone());
    let interrupt = Interrupt::new().unwrap();
    let mut channel = open_sender(&endpoint, None, false, &interrupt).unwrap();
    assert!(!channel.is_both_ways());
    let saved = vec![5; 3 << 20];
    channel.forward.write_all(&saved).unwrap();
    assert!(!path.exists());
    channel.forward.close().unwrap();
    assert_eq!(dir.path().read_dir().unwrap().count(), 1);

    let mut channel = open_receiver(&endpoint, None, &interrupt).unwrap();
    let mut loaded = Vec::new();
    channel.forward.read_to_end(&mut loaded).unwrap();
    assert!(loaded == saved);
    let no_answers = channel.back.take().unwrap_err();
    assert!(matches!(no_answers, OpenError::NoWayBack { .. }));
}

#[test]
fn a_save_that_was_given_up_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::File(dir.path().join("web.mig"));
    let interrupt = Interrupt::new().unwrap();
    let mut channel = open_sender(&endpoint, None, false, &interrupt).unwrap();
    channel.forward.write_all(b"half of it").unwrap();
    drop(channel);
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_said_with_the_file_and_the_cause() {
    let interrupt = Interrupt::new().unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut channel = open_sender(&passed(full), None, false, &interrupt).unwrap();
    let error = channel.forward.write_all(b"page").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(error.to_string().contains("writing to fd:"), "{error}");
}
