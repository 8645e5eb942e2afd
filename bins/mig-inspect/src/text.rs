//! The summary as people read it.

use std::fmt;
use std::io::{self, Write};

use migpipe_cli::printable;
use migpipe_units::Bytes;
use vm_state::MachineDescription;

use crate::machine::processor;
use crate::summary::{Listed, Summary, Verdict};

/// Writes the whole summary.
pub fn write(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    let flags = &summary.flags;
    let format = &summary.format;
    let flag = |set, yes: &'static str, no: &'static str| if set { yes } else { no };
    writeln!(out, "{:12} {}", summary.kind, summary.guest)?;
    writeln!(out, "migration    {}", summary.migration)?;
    writeln!(out, "format       {}, readable from {} on", format.written, format.oldest_reader)?;
    writeln!(
        out,
        "flags        {}, {}{}{}{}{}",
        flag(flags.return_path, "both ways", "one way"),
        flag(flags.page_sums, "pages with checksums", "pages without checksums"),
        flag(flags.separate_commit, ", GO by another command", ""),
        flag(flags.verify, ", memory to be verified", ""),
        flag(flags.saved && !flags.snapshot, ", saved: the guest is in it alone", ""),
        flag(flags.snapshot, ", a snapshot: the guest ran on", ""),
    )?;
    if !summary.kind.is_query() {
        memory(out, summary)?;
        if let Some(description) = &summary.machine {
            machine(out, description)?;
        }
        rounds(out, summary)?;
        sections(out, summary)?;
        if let Some(digest) = &summary.memory_digest {
            writeln!(out, "\nmemory digest, by region: {digest}")?;
        }
        totals(out, summary)?;
    }
    verdict(out, summary)
}

fn memory(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    for region in &summary.regions {
        writeln!(
            out,
            "memory       {} at {:#x}, {}",
            region.id,
            region.base.address(),
            region.pages.bytes()
        )?;
    }
    if summary.extents.runs > 0 {
        let extents = &summary.extents;
        writeln!(
            out,
            "             of it {} in {} runs hold data",
            extents.pages.bytes(),
            extents.runs
        )?;
    }
    Ok(())
}

fn machine(out: &mut impl Write, machine: &MachineDescription) -> io::Result<()> {
    let cpu = &machine.cpu;
    let name = processor(cpu).unwrap_or_else(|| "of no name".into());
    let pages = if machine.hugetlb { ", memory in hugetlbfs pages" } else { "" };
    writeln!(out, "vCPUs        {}{pages}", machine.vcpus)?;
    writeln!(
        out,
        "cpu          {name}, TSC {:.3} GHz, XSAVE components {:#x} ({} bytes), {} CPUID leaves, \
         {} MSRs",
        f64::from(cpu.tsc_khz) / 1e6,
        cpu.xsave_components,
        cpu.xsave_bytes,
        cpu.cpuid.len(),
        cpu.msrs.len()
    )?;
    writeln!(out, "kernel       {}", machine.kernel)?;
    if let Some(boot) = &machine.boot {
        write!(out, "boots        {}", printable(&boot.kernel))?;
        if let Some(initrd) = &boot.initrd {
            write!(out, " with {}", printable(initrd))?;
        }
        let pages = if boot.small_pages { ", memory in pages of 4 KiB" } else { "" };
        writeln!(out, ", cpu {}, '{}'{pages}", printable(&boot.cpu), printable(&boot.cmdline))?;
    }
    for device in &machine.devices {
        write!(
            out,
            "device       {} {}, section version {}",
            printable(&device.kind),
            printable(&device.id),
            device.section_version
        )?;
        for (key, value) in &device.params {
            write!(out, ", {}={}", printable(key), printable(value))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn rounds(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    if summary.rounds.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\n{:>5} {:>12} {:>12} {:>10} {:>12} {:>10} {:>12}",
        "round", "pages", "filled", "bytes", "dirty next", "time", "rate"
    )?;
    for round in &summary.rounds {
        let time = round.duration;
        let rate = if time.is_zero() { "-".into() } else { round.bytes.per(time).to_string() };
        writeln!(
            out,
            "{:>5} {:>12} {:>12} {:>10} {:>12} {:>10} {:>12}",
            round.number,
            round.pages.0,
            round.filled.0,
            round.bytes,
            round.dirty_next.0,
            format!("{time:.1?}"),
            rate
        )?;
    }
    Ok(())
}

fn sections(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    if summary.sections.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{:24} {:>8} {:>8} {:>10}", "section", "instance", "version", "size")?;
    for section in &summary.sections {
        writeln!(
            out,
            "{:24} {:>8} {:>8} {:>10}",
            section.name, section.instance, section.version, section.bytes
        )?;
    }
    Ok(())
}

fn totals(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    let totals = &summary.totals;
    writeln!(
        out,
        "\ntotals       {} bytes in {} records: {} pages sent ({}), {} filled, {} sections",
        totals.bytes.0,
        totals.records,
        totals.pages.0,
        totals.pages.bytes(),
        totals.filled.0,
        totals.sections
    )?;
    if summary.skipped_records > 0 {
        writeln!(
            out,
            "             {} records of a newer format were skipped",
            summary.skipped_records
        )?;
    }
    writeln!(out, "digest       {}", totals.digest)
}

fn verdict(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    let query = summary.kind.is_query();
    let go = match (summary.go, summary.flags.return_path) {
        (true, _) => "; GO was given",
        (false, true) if !query => "; no GO is in it",
        _ => "",
    };
    match &summary.verdict {
        Verdict::Whole if !query && !summary.flags.page_sums => {
            writeln!(out, "verdict      whole, but for what is in the pages: no checksums{go}")
        }
        Verdict::Whole => writeln!(out, "verdict      whole{go}"),
        Verdict::Damaged(why) => writeln!(out, "verdict      cannot be received: {why}"),
    }
}

/// One line of `--records`.
pub struct RecordLine<'a>(pub &'a Listed);

impl fmt::Display for RecordLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listed { at, record, range, detail } = self.0;
        let Bytes(at) = at;
        write!(f, "{at:>14}  {record:9}")?;
        if let Some(range) = range {
            let last = range.first.saturating_add(range.count.0).saturating_sub(1);
            write!(f, " {} pages {:#x}-{last:#x} ({})", range.region, range.first, range.count.0)?;
        }
        if detail.is_empty() { Ok(()) } else { write!(f, " {detail}") }
    }
}
