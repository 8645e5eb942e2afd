//! What two hosts have in common, of any hosts.

#[allow(dead_code, reason = "each program that includes it uses a part of it")]
mod fleet;

use fleet::Host;
use fleet::made;
use proptest::prelude::*;
use vm_cpu::{Model, Offer, Wanted};
use vm_state::compat::{WORDS, check, has};
use vm_state::{CpuidLeaf, HostCapabilities};

/// Any host by one manufacturer: of each feature that Linux names it may have it or not, its XSAVE
/// area may be laid out in two ways, and it may lack leaves.
fn any_host() -> impl Strategy<Value = HostCapabilities> {
    let leaves = prop::collection::vec(any::<[bool; 4]>(), WORDS.len());
    let values = prop::collection::vec(any::<u32>(), WORDS.len());
    let sizes = (36..53_u32, any::<bool>(), any::<u64>(), any::<u64>());
    let tsc = (prop::sample::select(vec![2_000_000, 2_000_100, 3_000_000]), any::<bool>());
    let caches = prop::collection::vec(any::<[u8; 4]>(), 0..3);
    let msrs = prop::sample::subsequence(vec![0x10, 0x48, 0x10a, 0x1d9, 0x277, 0xd90, 0xda0], 0..7);
    (leaves, values, sizes, tsc, caches, msrs).prop_map(
        |(leaves, values, (bits, wide, xsave, arch_capabilities), tsc, caches, msrs)| {
            let xsave = xsave & 0xe_02ff | 3;
            let mut cpuid = made::cpuid("GenuineIntel", "", xsave, bits);
            for ((word, value), present) in WORDS.iter().zip(values).zip(leaves) {
                let at = (word.function, word.index);
                let value = value & word.named();
                let leaf = cpuid.iter_mut().find(|leaf| (leaf.function, leaf.index) == at);
                if let (Some(leaf), true) = (leaf, present != [false; 4]) {
                    *word.register.of_mut(leaf) |= value;
                }
            }
            // Many have what most components belong to.
            let with = ["xsave", "avx", "avx2", "avx512f", "sse", "sse2", "mpx", "pku", "avx10"];
            for name in with.iter().filter(|_| wide) {
                for word in WORDS {
                    let at = (word.function, word.index);
                    let leaf = cpuid.iter_mut().find(|leaf| (leaf.function, leaf.index) == at);
                    *word.register.of_mut(leaf.unwrap()) |= word.bit(name);
                }
            }
            for leaf in cpuid.iter_mut().filter(|leaf| leaf.function == 0xd && leaf.index > 4) {
                leaf.ebx += 64 * u32::from(wide);
            }
            cpuid.retain(|leaf| leaf.function != 4);
            for (index, regs) in (0..).zip(caches) {
                let [eax, ebx, ecx, edx] = regs.map(u32::from);
                cpuid.push(CpuidLeaf { function: 4, index, flags: 1, eax, ebx, ecx, edx });
            }
            let (tsc_khz, tsc_scaling) = tsc;
            HostCapabilities {
                cpuid,
                xsave_components: xsave,
                msrs,
                arch_capabilities,
                tsc_khz,
                tsc_scaling,
            }
        },
    )
}

fn common(a: &Offer, b: &Offer) -> Offer {
    a.common(b).unwrap()
}

proptest! {
    #[test]
    fn hosts_may_be_named_in_any_order_and_twice(a in any_host(), b in any_host(), c in any_host()) {
        let [a, b, c] = [a, b, c].map(|host| Offer::from(&host));
        prop_assert_eq!(common(&a, &b), common(&b, &a));
        prop_assert_eq!(common(&common(&a, &b), &c), common(&a, &common(&b, &c)));
        let both = common(&a, &b);
        prop_assert_eq!(&common(&both, &a), &both);
        prop_assert_eq!(&common(&both, &both), &both);
    }

    #[test]
    fn a_guest_of_a_baseline_is_taken_by_every_host_of_it(
        hosts in prop::collection::vec(any_host(), 1..5),
    ) {
        let named = |capabilities| Host { name: String::new(), capabilities };
        let hosts: Vec<_> = hosts.into_iter().map(named).collect();
        let offer = fleet::baseline(&hosts).unwrap();
        let together = offer.tsc.guest_khz().is_some();
        for from in &hosts {
            let guest = from.guest(Model::Baseline(Box::new(offer.clone())));
            prop_assert_eq!(guest.is_some(), together);
            let Some(guest) = guest else { continue };
            for to in &hosts {
                prop_assert_eq!(check(&guest, &to.capabilities), Ok(()));
            }
        }
    }

    #[test]
    fn a_host_takes_the_guests_that_it_makes(host in any_host()) {
        let cpu = Wanted::default().on(&host).unwrap().cpu;
        prop_assert_eq!(check(&cpu, &host), Ok(()));
        let all = cpu.xsave_components;
        prop_assert_eq!(has(&cpu.cpuid, "avx512f"), all & 0xe0 != 0);
        prop_assert_eq!(has(&cpu.cpuid, "avx"), all & 4 != 0);
        prop_assert_eq!(has(&cpu.cpuid, "pku"), all & 1 << 9 != 0);
    }
}
