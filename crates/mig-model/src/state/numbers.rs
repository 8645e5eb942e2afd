//! How vmruns, tools and migrations are numbered.

use migpipe_units::MigrationId;

/// The vmrun that has the guest at first; the others wait for one, on the other host.
pub const SOURCE: usize = 0;
/// All vmruns.
pub const VMS: usize = 3;
/// Tools that speak to the source's vmrun: two senders, then two resolvers.
pub const SOURCE_TOOLS: usize = 4;
/// The first resolver among the source_tools.
pub const RESOLVER: usize = 2;
/// All tools: the source_tools, then one receiver for each waiting vmrun.
pub const TOOLS: usize = SOURCE_TOOLS + 2;
/// A step that no client waits for.
pub const NOBODY: u8 = u8::MAX;
/// Queries that may be on their way at once.
pub const QUERIES: usize = 2;
/// Hosts that a guest may come to.
pub const HOSTS: usize = 2;

/// The id of the migration that sender `number` runs.
pub const fn id_of(number: u8) -> MigrationId {
    MigrationId::from_bytes([number + 1; 16])
}

/// The number of the sender whose migration has this id.
pub fn number_of(id: MigrationId) -> usize {
    usize::from(id != id_of(0))
}

/// The vmrun that a tool speaks to.
pub const fn vm_of(tool: usize) -> usize {
    if tool < SOURCE_TOOLS { SOURCE } else { tool - SOURCE_TOOLS + 1 }
}
