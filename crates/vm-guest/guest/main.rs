//! The built-in guest: dirties memory at a given rate and proves, byte by byte, that none was
//! lost. `crates/vm-guest/src/lib.rs` says what it prints and what its options are.
//!
//! It runs at CPL 3 with interrupts off, on every vCPU that vmrun gave it, and talks to vmrun
//! through four ports and nothing else.
#![no_std]
#![no_main]

mod boot;
mod console;
mod fill;
mod hot;
mod memory;
mod options;
mod ports;
mod report;
mod runtime;
mod shared;
mod time;
mod work;

use core::sync::atomic::Ordering;

use options::Options;
use shared::SHARED;

/// Where `boot.rs` hands over: `start_info` is the address of the hvm_start_info, `cpu` the number
/// of this vCPU.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u32, cpu: u32) -> ! {
    let start = memory::StartInfo::at(start_info);
    let options = Options::parse(start.command_line());
    if cpu == 0 {
        match memory::lay_out(&start, &options) {
            Some(layout) => SHARED.publish(layout),
            None => {
                report::line(format_args!(
                    "ERROR memory: {} pages and {} MiB do not fit the guest's memory",
                    options.pages, options.fill_mb
                ));
                ports::stop();
            }
        }
    }
    let layout = SHARED.layout();
    let share = work::Share::of(cpu, options.cpus, layout, &options);
    share.fill();
    SHARED.filled.fetch_add(1, Ordering::Release);
    while SHARED.filled.load(Ordering::Acquire) < options.cpus {
        core::hint::spin_loop();
    }
    if cpu == 0 {
        report::ready(layout, &options);
    }
    work::run(share, &options)
}
