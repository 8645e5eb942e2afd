//! The kernel command line in guest memory.
#![forbid(unsafe_code)]

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::layout::{COMMAND_LINE, COMMAND_LINE_MAX};
use crate::memory::Memory;

/// Writes `line` with a zero behind it to [`COMMAND_LINE`]. `most` is how many bytes the kernel
/// takes, without the zero.
pub(super) fn write(memory: &Memory, line: &str, most: usize) -> Result<(), BootError> {
    let most = most.min(COMMAND_LINE_MAX - 1);
    if line.len() > most {
        return Err(BootError::CommandLineTooLong { bytes: line.len(), most });
    }
    if line.contains('\0') {
        return Err(BootError::CommandLineZero);
    }
    let line = [line.as_bytes(), b"\0"].concat();
    memory
        .mapped()
        .write_slice(&line, GuestAddress(COMMAND_LINE))
        .map_err(|_| BootError::TooLittleMemory)
}
