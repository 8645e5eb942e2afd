//! The command line of vmrun.

use std::path::PathBuf;

use clap::Parser;
use migpipe_units::Bytes;

/// Runs one KVM guest and owns it: its memory, its state, and the right to run it.
#[derive(Parser, Debug)]
#[command(name = "vmrun", version, after_help = EXAMPLES)]
pub struct Args {
    /// What the guest is called; its control socket is NAME.sock in $XDG_RUNTIME_DIR/vmrun, or in
    /// /run/vmrun (root's, also in a login that sets XDG_RUNTIME_DIR)
    #[arg(long, value_name = "NAME", value_parser = vm_paths::name)]
    pub name: String,
    /// A Linux kernel (bzImage, or vmlinux: any ELF file with a note of Linux), an ELF kernel with a
    /// PVH note, or
    /// builtin:dirty,pages=N,rate=R|max,fill=random|zero|pattern,fill-mb=M,seed=S
    #[arg(long, value_name = "KERNEL", required_unless_present = "incoming")]
    pub kernel: Option<String>,
    /// The initial RAM disk of a Linux kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "", conflicts_with = "incoming")]
    pub append: String,
    /// How much memory the guest has
    #[arg(long, value_name = "SIZE", default_value = "512M", conflicts_with = "incoming")]
    pub mem: Bytes,
    /// How many vCPUs the guest has
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "incoming",
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// The processor of the guest: all that this host has and that migrates (host), what all hosts of
    /// a fleet have (baseline:FILE, from vmctl cpu baseline), or a level of x86-64 (x86-64-v2, -v3,
    /// -v4). Features are added and taken away by the names that /proc/cpuinfo has. An arriving guest
    /// keeps its own
    #[arg(
        long,
        value_name = "host|baseline:FILE|x86-64-vN[,+FEATURE,-FEATURE]",
        default_value = "host",
        conflicts_with = "incoming"
    )]
    pub cpu: String,
    /// Print what this host can give to a guest, and end; vmctl cpu uses it
    #[arg(long, hide = true, requires = "incoming")]
    pub host_cpu: bool,
    /// Where the guest's serial console goes: stdio, file:PATH (also a FIFO), unix:PATH or null
    #[arg(long, value_name = "CONSOLE", default_value = "null")]
    pub console: String,
    /// Give the guest a second console, a virtio one (Linux: hvc0), that goes to one of the same
    /// places. stdio is for one of the two
    #[arg(long, value_name = "CONSOLE")]
    pub virtio_console: Option<String>,
    /// A disk of the guest; once for each
    #[arg(long = "disk", value_name = vm_machine::DISK_FORM, conflicts_with = "incoming")]
    pub disks: Vec<String>,
    /// A network card of the guest on a tap of this host; once for each
    #[arg(long = "net", value_name = vm_machine::NET_FORM, conflicts_with = "incoming")]
    pub nets: Vec<String>,
    /// Give the guest randomness from this host
    #[arg(long, conflicts_with = "incoming")]
    pub rng: bool,
    /// Give the guest a balloon: memory that it does not use goes back to this host, by itself or
    /// when vmctl balloon asks for it
    #[arg(long, conflicts_with_all = ["incoming", "hugepages"])]
    pub balloon: bool,
    /// Back the memory with hugetlbfs pages
    #[arg(long, conflicts_with = "incoming")]
    pub hugepages: bool,
    /// Keep the memory in pages of 4 KiB. Without this it has transparent huge pages where the host
    /// gives any: the guest and its moves are faster, and what it gives back comes in larger pieces
    #[arg(long, conflicts_with = "hugepages")]
    pub small_pages: bool,
    /// Do not start the guest: vmctl resume does
    #[arg(long, conflicts_with = "incoming")]
    pub paused: bool,
    /// Start the guest though one of its name has moved away from this host, or was saved to a file.
    /// Without this it is held back, for if it is the same guest two would run: vmctl resume starts
    /// it
    #[arg(long, conflicts_with = "incoming")]
    pub again: bool,
    /// Wait for a guest that mig-recv brings
    #[arg(long, conflicts_with = "kernel")]
    pub incoming: bool,
    /// Where the console and the disk images may be that an arriving guest names: a directory and
    /// what is below it, or one file; once for each. Without it, guests in the state directory
    /// (/var/lib/vmrun or ~/.local/state/vmrun), and a console that is elsewhere goes to a file there
    #[arg(long, value_name = "PATH", requires = "incoming")]
    pub files_in: Vec<PathBuf>,
    /// Let the console and the disk images of an arriving guest be wherever this user may open them.
    /// Whoever can send a guest here can then have any file of this user
    #[arg(long, requires = "incoming", conflicts_with = "files_in")]
    pub files_anywhere: bool,
    /// A file that the user has named, beside those; mig-recv uses it for what its own command line
    /// names
    #[arg(long, value_name = "PATH", requires = "incoming", hide = true)]
    pub named: Vec<PathBuf>,
    /// Refuse a guest that is here, whole, and has waited for GO this long, in seconds; or never.
    /// If its source has committed and its host crashed, that throws the only whole copy away
    #[arg(long, value_name = "SECONDS", default_value = "never")]
    pub go_timeout: migpipe_cli::Limit,
    /// Serve a control connection on stdin too, and end with it if it closes before a guest is
    /// prepared; mig-recv uses it for the vmrun that it starts
    #[arg(long, hide = true, requires = "incoming")]
    pub control_stdin: bool,
    /// Say what of the guest on stdin, as JSON, this host could not take, and end; mig-recv uses it
    #[arg(long, hide = true, requires = "incoming")]
    pub examine: bool,
    /// Be started by a service manager for a guest that mig-recv brings, which it is given the
    /// control connection of; mig-recv uses it where guests are units
    #[arg(long, hide = true, requires = "incoming", conflicts_with = "control_stdin")]
    pub arrival: bool,
    /// Listen on this control socket instead
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Say what went wrong as one JSON object on stderr, when it ends
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub confinement: migpipe_cli::Confinement,
    #[command(flatten)]
    pub common: migpipe_cli::Common,
}

const EXAMPLES: &str = "\
Examples:
  vmrun --name web --kernel builtin:dirty,pages=1024,rate=2000,fill=random,fill-mb=400
  vmrun --name web --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --console stdio
  vmrun --name test --kernel ./unikernel.elf --mem 1G --cpus 2 --console stdio
  vmrun --name web --kernel vmlinuz --cpu baseline:fleet.json     (vmctl cpu baseline makes it)
  vmrun --name web --incoming --console file:web.log     (then: mig-recv --vm web < web.mig)

Exit status:
  0  the guest powered off, was ended by vmctl quit, or runs on another host now
  1  it failed, or an incoming guest was refused
  2  wrong usage
  3  the guest asked for a reset: start it again";

impl migpipe_cli::Program for Args {
    const FILTERS: &'static [migpipe_confine::Filter] = crate::confinement::FILTERS;

    fn common(&self) -> &migpipe_cli::Common {
        &self.common
    }

    fn json(&self) -> bool {
        self.json
    }

    fn guest(&self) -> Option<&str> {
        Some(&self.name)
    }
}
