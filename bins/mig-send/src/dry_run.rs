//! What would be sent.

use mig_stream::MAX_RUN;
use migpipe_cli::output;
use migpipe_units::{PAGE_SIZE, Pages};
use page_bitmap::GuestBitmap;
use vm_control::Client;

use crate::args::Args;
use crate::pages;

/// `mig-send -n`: says what a migration would send, and touches nothing.
pub fn run(args: &Args, client: &Client) -> anyhow::Result<u8> {
    let machine = client.describe()?;
    let memory = client.map_memory(&machine)?;
    let existing = GuestBitmap::new(machine.region_pages());
    pages::existing(&memory, &existing)?;
    let mut buffer = vec![0; MAX_RUN.bytes().0 as usize];
    let (mut raw, mut fills) = (Pages(0), Pages(0));
    for range in existing.iter().flat_map(|bitmap| bitmap.runs(MAX_RUN)) {
        for page in memory.copy_pages(range, &mut buffer).chunks_exact(PAGE_SIZE as usize) {
            match pages::pattern_of(page) {
                Some(_) => fills += Pages(1),
                None => raw += Pages(1),
            }
        }
    }
    let holes = machine.pages() - raw - fills;
    output::say(format!(
        "{}: {} of memory for {} vCPU{}, to {}",
        machine.name,
        machine.pages().bytes(),
        machine.vcpus,
        if machine.vcpus == 1 { "" } else { "s" },
        args.destination
    ));
    output::say(format!(
        "  round 0 would send  {:>10} as they are ({raw})",
        raw.bytes().to_string()
    ));
    output::say(format!("  as one pattern each {:>10} ({fills})", fills.bytes().to_string()));
    output::say(format!("  holes, not sent     {:>10} ({holes})", holes.bytes().to_string()));
    if let Some(limit) = args.bandwidth() {
        let time = limit.time_for(raw.bytes()).as_secs_f64();
        output::say(format!("  at {limit} that takes {time:.1} s"));
    }
    Ok(0)
}
