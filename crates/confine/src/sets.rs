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
    SYS_clock_gettime => "where the vDSO cannot tell the time";
    SYS_clock_nanosleep;
    SYS_nanosleep;
    SYS_restart_syscall => "a sleep that a signal or a debugger interrupted";
    SYS_getrandom => "the seeds of hash maps";
    SYS_write;
    SYS_writev;
    SYS_close;
    SYS_getpid;
    SYS_gettid;
    SYS_rt_sigprocmask;
    SYS_rt_sigreturn;
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
    SYS_sched_getaffinity => "glibc looks at the stack and the processors";
    SYS_prlimit64(Check::Is(0, 0)) => "the size of a stack";
];

/// Waiting for descriptors.
pub const POLL: &[Call] = crate::calls![
    SYS_poll;
    SYS_ppoll;
];

/// Reading and writing what is open.
pub const OPEN_FILES: &[Call] = crate::calls![
    SYS_read;
    SYS_readv;
    SYS_lseek;
    SYS_pread64 => "the memory of a guest that gives pages back, whose holes are to stay holes";
    SYS_fcntl;
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

/// Opening files; which, says [`crate::Files`].
pub const OPENING: &[Call] = crate::calls![
    SYS_open;
    SYS_openat;
];
