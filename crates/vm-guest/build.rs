//! Compiles the guest program in `guest/` into a freestanding ELF that `src/lib.rs` embeds.
//!
//! It is built for the host's own Linux target and linked without a libc, so that no second target
//! has to be installed: what makes it bare-metal is the linker script and the missing runtime.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-env-changed=RUSTC");
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let image = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("guest.elf");
    let rustc = env::var_os("RUSTC").expect("cargo sets it");
    let script = here.join("guest/linker.ld");
    let mut command = Command::new(rustc);
    command
        .args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "guest"])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .args(["-C", "opt-level=3", "-C", "panic=abort", "-C", "codegen-units=1"])
        .args(["-C", "relocation-model=static", "-C", "code-model=small"])
        .args(["-C", "debuginfo=0", "-C", "strip=symbols"])
        // Checks stay on: a wrong sum in the program that proves others right must not pass.
        .args(["-C", "overflow-checks=on", "-D", "warnings"])
        .args(["-C", "link-self-contained=no", "-C", "linker-features=-lld"])
        .args(["-C", "link-args=-nostartfiles -nostdlib -static -no-pie -Wl,--build-id=none"])
        .arg("-C")
        .arg(format!("link-arg=-Wl,-T,{}", script.display()))
        .arg("-o")
        .arg(&image)
        .arg(here.join("guest/main.rs"));
    let status = command.status().expect("rustc can be started");
    assert!(status.success(), "the built-in guest does not compile: {status}");
}
