//! seccomp(2) itself.

use std::io;

use seccompiler::{BpfProgram, sock_filter};

/// struct sock_fprog of linux/filter.h.
#[repr(C)]
struct Program {
    len: libc::c_ushort,
    filter: *const sock_filter,
}

/// Makes `program` a filter of the calling thread, with what it refuses in the kernel's log.
/// `seccompiler` installs filters too, but without that log.
pub(crate) fn install(program: &BpfProgram) -> io::Result<()> {
    let len = program.len().try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = Program { len, filter: program.as_ptr() };
    // SAFETY: takes rights away and touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    // SAFETY: the kernel reads a struct sock_fprog and its `len` instructions, which live until
    // the call returns.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_LOG,
            &raw const program,
        )
    })
}

/// Whether this kernel can do it.
pub(crate) fn is_there() -> bool {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads one u32 (seccomp(2), SECCOMP_GET_ACTION_AVAIL, Linux 4.14).
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
    })
    .is_ok()
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
