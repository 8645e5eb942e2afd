//! What a confined thread tries in vain. Each test confines a thread of its own, in a process whose
//! calls outside are answered with ENOSYS; the one that is killed is a process of its own.
#![allow(clippy::print_stdout, reason = "what a test says is for whoever runs it")]

use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::thread;

use migpipe_confine::sets::{OPEN_FILES, OPENING, RUNTIME, SOCKET, THREADS};
use migpipe_confine::{Access, Check, Files, Filter, Mode, ViolationAction, calls};

/// All that a parser of hostile bytes may do at most; files are a matter of landlock.
const READER: Filter =
    Filter { thread: "reader", tables: &[RUNTIME, THREADS, OPEN_FILES, OPENING, SOCKET] };

/// As [`READER`], and it may do everything with files and sockets that landlock lets it.
const FREE: Filter = Filter {
    thread: "free",
    tables: &[
        RUNTIME,
        OPEN_FILES,
        OPENING,
        SOCKET,
        calls![SYS_socket; SYS_connect; SYS_unlink; SYS_rename],
    ],
};

fn confined<T: Send>(filter: &Filter, files: &Files, what: impl FnOnce() -> T + Send) -> T {
    migpipe_confine::begin(Mode::Enforce, ViolationAction::NoSuchCall);
    thread::scope(|scope| {
        let confined = scope.spawn(|| {
            migpipe_confine::enter(filter, &[], files).unwrap();
            what()
        });
        confined.join().unwrap()
    })
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// Whether this kernel can do it; TCP is a matter of landlock since 6.7.
fn has_landlock(since: (u32, u32)) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).filter_map(|part| part.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= since && migpipe_confine::restricts_files() {
        return true;
    }
    println!("SKIPPED: this kernel ({}) has no landlock that does this", release.trim());
    false
}

#[test]
fn no_file_is_opened_but_those_that_were_named() {
    if !has_landlock((5, 13)) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (kept, other) = (dir.path().join("kept"), dir.path().join("other"));
    fs::create_dir(&kept).unwrap();
    fs::write(&other, "other").unwrap();
    let before = File::open("/etc/passwd").unwrap();
    let files = Files::none().and(&kept, Access::Keep).and("/dev/null", Access::ReadWrite);
    confined(&FREE, &files, || {
        assert_eq!(errno(File::open("/etc/passwd")), Some(libc::EACCES));
        assert_eq!(errno(File::open(&other)), Some(libc::EACCES));
        assert_eq!(errno(File::create(dir.path().join("new"))), Some(libc::EACCES));
        assert_eq!(errno(fs::remove_file(&other)), Some(libc::EACCES));
        assert_eq!(errno(fs::rename(&other, kept.join("taken"))), Some(libc::EACCES));
        // What was named, and what was open, is there.
        fs::write(kept.join("draft"), "a record").unwrap();
        fs::rename(kept.join("draft"), kept.join("record")).unwrap();
        File::open(&kept).unwrap();
        File::options().write(true).open("/dev/null").unwrap();
        assert!(before.metadata().unwrap().len() > 0);
    });
    assert_eq!(fs::read_to_string(kept.join("record")).unwrap(), "a record");
}

#[test]
fn nothing_is_started() {
    confined(&READER, &Files::none(), || {
        assert_eq!(errno(Command::new("/bin/true").status()), Some(libc::ENOSYS));
    });
}

#[test]
fn a_thread_can_be_started_and_is_confined_too() {
    confined(&READER, &Files::none(), || {
        let started = thread::spawn(|| errno(UnixStream::connect("/run/no-such-socket")));
        assert_eq!(started.join().unwrap(), Some(libc::ENOSYS));
    });
}

#[test]
fn nobody_is_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    confined(&READER, &Files::none(), || {
        assert_eq!(errno(TcpStream::connect(address)), Some(libc::ENOSYS));
    });
    if has_landlock((6, 7)) {
        confined(&FREE, &Files::none(), || {
            assert_eq!(errno(TcpStream::connect(address)), Some(libc::EACCES));
        });
    }
}

#[test]
fn memory_does_not_become_code_and_no_other_process_is_touched() {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::{Pid, getppid};
    let parent = getppid();
    confined(&READER, &Files::none(), || {
        let length = 4096.try_into().unwrap();
        let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let code = unsafe { mmap_anonymous(None, length, all, MapFlags::MAP_PRIVATE) };
        assert_eq!(code.err(), Some(nix::Error::ENOSYS));
        assert_eq!(nix::sys::ptrace::attach(parent), Err(nix::Error::ENOSYS));
        assert_eq!(kill(Pid::this(), None::<Signal>), Err(nix::Error::ENOSYS));
        assert_eq!(
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS),
            Err(nix::Error::ENOSYS)
        );
    });
}

#[test]
fn of_a_checked_call_only_the_checked_arguments_pass() {
    const ONE_SIGNAL: Filter = Filter {
        thread: "one signal",
        tables: &[RUNTIME, calls![SYS_kill(Check::ThisProcess(0), Check::Is(1, 0)) => "itself"]],
    };
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::{Pid, getppid};
    let parent = getppid();
    confined(&ONE_SIGNAL, &Files::none(), || {
        assert_eq!(kill(Pid::this(), None::<Signal>), Ok(()));
        assert_eq!(kill(Pid::this(), Signal::SIGCONT), Err(nix::Error::ENOSYS));
        assert_eq!(kill(parent, None::<Signal>), Err(nix::Error::ENOSYS));
    });
}

#[test]
fn nobody_else_is_sent_a_signal_by_way_of_a_descriptor() {
    use std::os::fd::AsRawFd;
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let parent = nix::unistd::getppid().as_raw();
    confined(&READER, &Files::none(), || {
        // SAFETY: passes numbers alone.
        let set = unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_SETOWN, parent) };
        assert_eq!((set, errno_now()), (-1, libc::ENOSYS));
        // SAFETY: as above.
        assert!(unsafe { libc::fcntl(ours.as_raw_fd(), libc::F_GETFL) } >= 0);
    });
}

fn errno_now() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap()
}

#[test]
fn a_tool_is_killed_at_the_first_call_outside() {
    const ROLE: &str = "CONFINE_TEST_ROLE";
    const NAME: &str = "a_tool_is_killed_at_the_first_call_outside";
    if std::env::var_os(ROLE).is_some() {
        migpipe_confine::begin(Mode::Enforce, ViolationAction::Killed);
        migpipe_confine::enter(&READER, &[], &Files::none()).unwrap();
        let _ = UnixStream::connect("/run/no-such-socket");
        println!("still here");
        return;
    }
    let mut tool = Command::new(std::env::current_exe().unwrap());
    let done = tool.args(["--exact", NAME, "--nocapture"]).env(ROLE, "tool").output().unwrap();
    assert_eq!(done.status.signal(), Some(libc::SIGSYS), "{done:?}");
    assert!(!String::from_utf8_lossy(&done.stdout).contains("still here"));
}

#[test]
fn a_filter_without_files_lets_the_c_library_go_on_without_them() {
    const NO_FILES: Filter = Filter { thread: "no files", tables: &[RUNTIME] };
    confined(&NO_FILES, &Files::none(), || {
        assert_eq!(errno(File::open("/dev/null")), Some(libc::ENOSYS));
    });
}

#[test]
fn the_kernel_says_that_a_confined_thread_is() {
    let status = confined(
        &READER,
        &Files::none().and("/proc/thread-self", Access::Read).and("/proc", Access::Read),
        || fs::read_to_string("/proc/thread-self/status").unwrap(),
    );
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
}
