//! What a host remembers of migrations when its processes have ended.
//!
//! | module | what is kept | where |
//! | --- | --- | --- |
//! | [`record`] | the outcome of each migration that arrived here | one file a migration, `migrations/` |
//! | [`identity`] | the host's random id, and since when it keeps records | `migrations/host-id` |
//! | [`departure`] | where a guest went that left this host | one file a guest, `departures/` |
//! | [`known_files`] | the files that an operator gave a guest on this host | one file a guest, `files/` |
//!
//! All are below [`vm_paths::state_dir`] and are written as [`vm_paths::durable`] says: a file is on
//! the disk, complete, before anything follows from it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod departure;
pub mod identity;
pub mod known_files;
pub mod record;
