//! The limits that more than one crate holds to.
//!
//! All of them bound what a peer can make a program hold before it is known whether the peer is
//! honest. A limit that one crate alone has stands there.
//!
//! | limit | of what | who checks it |
//! | --- | --- | --- |
//! | [`MAX_GUEST_NAME`] | a guest's name | the command lines, a stream's header |
//! | [`MAX_DESCRIPTION`] | a machine's description | a stream's header, the control socket |
//! | [`MAX_HEADER`] | a stream's header, description included | a stream's reader |
//! | [`MAX_SECTIONS`] | the sections of one machine | a stream's reader, the control socket, the loader |
//! | [`MAX_STATE`] | all those sections together | a stream's reader, the loader |
//! | [`MAX_FRAME`] | one message of the control socket | both of its ends |
//! | [`MAX_RELEASED`] | migrations that ended before their commit | a stream's header, vmrun |

/// The longest name of a guest (bytes). It is a file name, and leaves room for the directory in the
/// 108 bytes of a socket's address (unix(7)).
pub const MAX_GUEST_NAME: usize = 48;

/// The longest description of a machine (bytes, encoded).
pub const MAX_DESCRIPTION: usize = 1 << 20;

/// The longest header of a stream (bytes): a description, and as much again.
pub const MAX_HEADER: u32 = 2 << 20;

/// The most sections of one machine: a thousand vCPUs with room for their devices.
pub const MAX_SECTIONS: usize = 4096;

/// The most bytes in all sections of one machine together: a thousand vCPUs of some 20 KiB, and as
/// much again.
pub const MAX_STATE: usize = 32 << 20;

/// The longest message of the control socket (bytes): all sections of a machine are in one.
pub const MAX_FRAME: u32 = 64 << 20;

/// The most earlier migrations that a guest takes along (see the header of a stream).
pub const MAX_RELEASED: usize = 16;

const _: () = assert!(MAX_DESCRIPTION < MAX_HEADER as usize);
const _: () = assert!(MAX_STATE < MAX_FRAME as usize);
