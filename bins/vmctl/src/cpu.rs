//! The processors that hosts can give to guests.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use vm_cpu::Offer;

use crate::program;

/// What this host can give, as its vmrun finds out: no other program opens /dev/kvm.
pub fn of_this_host() -> anyhow::Result<String> {
    // No guest is waited for, and none has this name.
    let mut vmrun = program("vmrun");
    let answer = vmrun.args(["--name", "cpu", "--incoming", "--host-cpu"]).output();
    let answer = answer.context("cannot run vmrun, which knows what this host can give")?;
    if !answer.status.success() {
        let said = String::from_utf8_lossy(&answer.stderr);
        bail!("{}", migpipe_cli::printable(said.trim()));
    }
    String::from_utf8(answer.stdout).context("vmrun is of another release: use both from one")
}

/// What all hosts can give, of which these are the files.
pub fn baseline(files: &[PathBuf]) -> anyhow::Result<String> {
    let mut common: Option<Offer> = None;
    for file in files {
        let offer = Offer::read(file)?;
        common = Some(match common {
            None => offer,
            Some(others) => others.common(&offer).with_context(|| no_baseline(file))?,
        });
    }
    let common = common.context("a baseline is of one host at least")?;
    if common.tsc.guest_khz().is_none() {
        bail!(
            "the TSCs of these hosts run at {} to {} kHz and the hosts cannot scale them: no guest \
             can move between all of them",
            common.tsc.min_khz,
            common.tsc.max_khz
        );
    }
    Ok(common.to_json())
}

fn no_baseline(file: &Path) -> String {
    format!("{} has no baseline with the files before it", file.display())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What a host with AVX2 and this TSC says of itself.
    fn host(vendor: &str, tsc_khz: u32, scaling: bool) -> String {
        let word = |at: usize| {
            let bytes: [u8; 4] = vendor.as_bytes()[at..at + 4].try_into().unwrap();
            format!("{:#x}", u32::from_le_bytes(bytes))
        };
        let leaf = |function: &str, [eax, ebx, ecx, edx]: [&str; 4]| {
            serde_json::json!({
                "function": function, "index": "0x0", "flags": 0,
                "eax": eax, "ebx": ebx, "ecx": ecx, "edx": edx,
            })
        };
        let page = serde_json::json!({
            "version": 1,
            "cpuid": [
                leaf("0x0", ["0x7", &word(0), &word(8), &word(4)]),
                leaf("0x7", ["0x0", "0x20", "0x0", "0x0"]),
            ],
            "xsave_components": "0x7",
            "arch_capabilities": "0x0",
            "msrs": ["0x10"],
            "tsc_min_khz": tsc_khz,
            "tsc_max_khz": tsc_khz,
            "tsc_scaling": scaling,
        });
        page.to_string()
    }

    fn of(hosts: &[String]) -> anyhow::Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> =
            (0..hosts.len()).map(|number| dir.path().join(format!("{number}.json"))).collect();
        for (file, host) in files.iter().zip(hosts) {
            fs::write(file, host).unwrap();
        }
        baseline(&files)
    }

    const INTEL: &str = "GenuineIntel";

    #[test]
    fn a_baseline_is_printed_as_it_is_read() {
        let hosts = [host(INTEL, 2_000_000, true), host(INTEL, 3_000_000, true)];
        let both = of(&hosts).unwrap();
        let page: serde_json::Value = serde_json::from_str(&both).unwrap();
        assert_eq!(
            (&page["features"][0], &page["tsc_max_khz"]),
            (&"avx2".into(), &3_000_000.into())
        );
        // And is one of the hosts of another.
        assert_eq!(of(&[both.clone(), hosts[0].clone()]).unwrap(), both);
        assert_eq!(of(std::slice::from_ref(&both)).unwrap(), both);
    }

    #[test]
    fn hosts_that_have_nothing_in_common_are_named() {
        let said = |hosts: &[String]| migpipe_cli::one_line(&of(hosts).unwrap_err());
        let vendors = said(&[host(INTEL, 1, true), host("AuthenticAMD", 1, true)]);
        assert!(vendors.contains("1.json has no baseline with the files before it: "), "{vendors}");
        assert!(vendors.contains("by GenuineIntel and by AuthenticAMD"), "{vendors}");
        let clocks = said(&[host(INTEL, 2_000_000, false), host(INTEL, 3_000_000, false)]);
        assert!(clocks.contains("2000000 to 3000000 kHz"), "{clocks}");
        assert!(said(&["{}".to_owned()]).contains("0.json is not from vmctl cpu"));
    }
}
