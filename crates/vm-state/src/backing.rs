//! What guest memory is made of on one host. It does not travel: each host uses the best it has.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where the pages of guest memory come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryBacking {
    /// Huge pages that the administrator has set apart (hugetlbfs).
    HugeTlb,
    /// A file of a tmpfs that gives transparent huge pages to who asks for them.
    HugeTmpfs,
    /// A memfd: huge pages where `shmem_enabled` gives them to who asks, else pages of 4 KiB.
    Memfd {
        /// Whether this host gives huge pages to a memfd.
        huge: bool,
    },
}

impl fmt::Display for MemoryBacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HugeTlb => "hugetlbfs, pages of 2 MiB",
            Self::HugeTmpfs => "a private tmpfs, transparent huge pages",
            Self::Memfd { huge: true } => "a memfd, transparent huge pages",
            Self::Memfd { huge: false } => "a memfd, pages of 4 KiB",
        })
    }
}
