//! Hosts of a fleet, and which guests move between them.

pub mod fingerprint;
pub mod made;

use std::fmt::Write;

use vm_cpu::{Model, Offer, Wanted};
use vm_state::compat::{Level, check, missing_msrs, vendor};
use vm_state::{CpuDescription, HostCapabilities};

/// One host.
pub struct Host {
    pub name: String,
    pub capabilities: HostCapabilities,
}

/// MSRs that KVM has held since before Linux 5.10 and lists only in later releases: IA32_DEBUGCTL and
/// IA32_XSS. A destination finds out by asking for them.
pub const HELD_UNLISTED: [u32; 2] = [0x1d9, 0xda0];

impl Host {
    pub fn vendor(&self) -> String {
        vendor(&self.capabilities.cpuid)
    }

    pub fn offer(&self) -> Offer {
        Offer::from(&self.capabilities)
    }

    /// The processor of a guest that begins here; `None` where it cannot be given.
    pub fn guest(&self, model: Model) -> Option<CpuDescription> {
        let wanted = Wanted { model, changes: Vec::new() };
        let processor = wanted.on(&self.capabilities).ok()?;
        let mut msrs = self.capabilities.msrs.clone();
        if let Some(most) = processor.msrs {
            msrs.retain(|msr| most.contains(msr));
        }
        Some(CpuDescription { msrs, ..processor.cpu })
    }

    pub fn takes(&self, guest: &CpuDescription) -> bool {
        let mut here = self.capabilities.clone();
        let asked_for = missing_msrs(guest, &here.msrs);
        here.msrs.extend(asked_for.iter().filter(|msr| HELD_UNLISTED.contains(msr)));
        check(guest, &here).is_ok()
    }
}

/// The baseline of hosts that have one.
pub fn baseline<'a>(hosts: impl IntoIterator<Item = &'a Host>) -> Option<Offer> {
    let mut offers = hosts.into_iter().map(Host::offer);
    let first = offers.next()?;
    offers.try_fold(first, |all, offer| all.common(&offer).ok())
}

/// The kinds of guest of the table, and what stands for each.
pub fn moving(from: &Host, to: &Host) -> String {
    let common = baseline([from, to]).map(|offer| Model::Baseline(Box::new(offer)));
    let levels = Level::ALL.into_iter().zip(["2", "3", "4"]);
    let kinds = [(Some(Model::Host), "h"), (common, "b")]
        .into_iter()
        .chain(levels.map(|(level, letter)| (Some(Model::Level(level)), letter)));
    kinds
        .filter(|(model, _)| {
            let guest = model.clone().and_then(|model| from.guest(model));
            guest.is_some_and(|guest| to.takes(&guest))
        })
        .map(|(_, letter)| letter)
        .collect()
}

/// A table of all pairs of hosts, as Markdown: from the host of the row to that of the column.
pub fn table(hosts: &[Host]) -> String {
    let mut text = String::from("| from \\ to |");
    (1..=hosts.len()).for_each(|number| write!(text, " {number} |").unwrap());
    text += "\n| --- |";
    text += &" --- |".repeat(hosts.len());
    for (number, from) in (1..).zip(hosts) {
        write!(text, "\n| {number} {} |", from.name).unwrap();
        for to in hosts {
            let moving = moving(from, to);
            write!(text, " {} |", if moving.is_empty() { "-" } else { &moving }).unwrap();
        }
    }
    text + "\n"
}
