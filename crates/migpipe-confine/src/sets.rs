//! Tables that many filters are made of. The C libraries are those of Debian 12 and 13 (glibc 2.36
//! and 2.41); where one calls the newer and the other the older form of a call, both are here.
#![forbid(unsafe_code)]

use crate::call::{Call, Check};

/// No memory becomes code. PROT_EXEC is 4, in the third argument of mmap and mprotect.
const NO_EXEC: Check = Check::Bits { arg: 2, mask: libc::PROT_EXEC as u64, set: 0 };

/// clone(2) flags of a thread and not of a process. A new namespace cannot be asked for beside
/// them: the kernel refuses CLONE_NEWUSER with CLONE_THREAD, and the others are looked at here.
const THREAD: Check = Check::Bits {
    arg: 0,
    mask: (libc::CLONE_THREAD
        | libc::CLONE_VM
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET) as u64,
    set: (libc::CLONE_THREAD | libc::CLONE_VM) as u64,
};

const fn option(option: libc::c_int) -> Check {
    Check::Is(0, option as u32)
}

/// What any thread of a Rust program does: memory, locks, time, its own end, words on stderr.
pub const RUNTIME: &[Call] = crate::calls![
    SYS_brk;
    SYS_mmap(NO_EXEC);
    SYS_mprotect(NO_EXEC) => "the heap of a thread grows";
    SYS_munmap;
    SYS_mremap;
    SYS_madvise;
    SYS_futex;
    SYS_sched_yield;
    SYS_sched_getaffinity => "glibc counts the processors for its heaps, and looks at a stack";
    SYS_clock_gettime => "where the vDSO cannot tell the time";
    SYS_clock_nanosleep;
    SYS_nanosleep;
    SYS_restart_syscall => "a sleep that a signal or a debugger interrupted";
    SYS_getrandom => "the seeds of hash maps";
    SYS_write;
    SYS_writev;
    SYS_close;
    SYS_fcntl(Check::Is(1, libc::F_GETFD as u32)) => "a debug build looks before it closes";
    SYS_getpid;
    SYS_gettid;
    SYS_rt_sigprocmask;
    SYS_rt_sigreturn;
    SYS_rt_sigaction(option(libc::SIGSEGV)) => "a thread that hits a guard page dies of it";
    SYS_rt_sigaction(option(libc::SIGBUS)) => "likewise, where memory cannot be had";
    SYS_rt_sigaction(option(libc::SIGABRT)) => "abort(3)";
    SYS_sigaltstack => "the guard of a thread's stack";
    SYS_set_robust_list;
    SYS_rseq;
    SYS_prctl(option(libc::PR_SET_NAME));
    SYS_prctl(option(libc::PR_SET_VMA)) => "glibc names its mappings";
    SYS_tgkill(Check::ThisProcess(0)) => "threads call each other, and abort(3)";
    SYS_exit;
    SYS_exit_group;
];

/// Starting threads.
pub const THREADS: &[Call] = crate::calls![
    SYS_clone(THREAD);
    SYS_prlimit64(Check::Is(0, 0)) => "the size of a stack";
];

/// For a thread that starts others which confine themselves further.
pub const NARROWING: &[Call] = crate::calls![
    SYS_landlock_create_ruleset;
    SYS_landlock_restrict_self;
    SYS_prctl(option(libc::PR_SET_NO_NEW_PRIVS));
    SYS_seccomp;
];

/// Waiting for descriptors.
pub const POLL: &[Call] = crate::calls![
    SYS_poll;
    SYS_ppoll;
];

/// Not the commands of fcntl(2) that have signals sent to another process.
const NO_OWNER: Check = Check::Not(1, libc::F_SETOWN as u32);
/// F_SETOWN_EX of linux/fcntl.h.
const NO_OWNER_EX: Check = Check::Not(1, 15);

/// Copies of descriptors, locks, flags.
pub const DESCRIPTORS: &[Call] = crate::calls![SYS_fcntl(NO_OWNER, NO_OWNER_EX)];

/// Reading and writing what is open.
pub const OPEN_FILES: &[Call] = crate::calls![
    SYS_read;
    SYS_readv;
    SYS_lseek;
    SYS_pread64 => "the memory of a guest that gives pages back, whose holes are to stay holes";
    SYS_fcntl(NO_OWNER, NO_OWNER_EX);
    SYS_fstat;
    SYS_newfstatat => "fstat(3) of glibc";
    SYS_statx;
];

/// A connected socket.
pub const SOCKET: &[Call] = crate::calls![
    SYS_recvfrom;
    SYS_recvmsg;
    SYS_sendto;
    SYS_sendmsg;
    SYS_shutdown;
    SYS_getsockopt;
    SYS_setsockopt;
];

/// kill(2) into the process group of the caller.
const OWN_GROUP: Check = Check::Is(0, 0);

/// The end of an exec: tunnel, and of a broker.
pub const CHILDREN: &[Call] = crate::calls![
    SYS_wait4;
    SYS_waitid;
    SYS_getpgrp;
    SYS_ioctl(Check::Is(1, libc::TIOCGPGRP as u32)) => "the terminal comes back from the tunnel";
    SYS_ioctl(Check::Is(1, libc::TIOCSPGRP as u32));
    SYS_kill(OWN_GROUP, Check::Is(1, libc::SIGTSTP as u32)) => "Ctrl-Z in the tunnel is for both";
    SYS_kill(OWN_GROUP, Check::Is(1, libc::SIGTTIN as u32)) => "likewise, in the background";
    SYS_kill(OWN_GROUP, Check::Is(1, libc::SIGTTOU as u32));
];

/// Opening files; which, says [`crate::Files`].
pub const OPENING: &[Call] = crate::calls![
    SYS_open;
    SYS_openat;
];
