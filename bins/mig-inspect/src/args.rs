//! The command line of mig-inspect.

use clap::Parser;

use crate::source::Source;

/// Reads a migration stream, checks every byte of it and says what is in it.
#[derive(Parser, Debug)]
#[command(name = "mig-inspect", version, after_help = EXAMPLES)]
pub struct Args {
    /// The stream: a file (PATH or file:PATH), or - for stdin
    #[arg(value_name = "SOURCE", default_value = "-")]
    pub source: Source,
    /// List every record in front of the summary
    #[arg(long)]
    pub records: bool,
    /// Print JSON: the summary on one line, with --records one line for each record before it
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub confinement: migpipe_cli::Confinement,
    #[command(flatten)]
    pub common: migpipe_cli::Common,
}

const EXAMPLES: &str = "\
Examples:
  mig-inspect web.mig                              what is in a saved guest?
  zstd -dc web.mig.zst | mig-inspect               the same, compressed
  mig-send web | tee web.mig | ssh hostb mig-recv; mig-inspect --records web.mig
  mig-inspect --json web.mig | jq .totals.pages

Exit status:
  0  the stream is whole
  1  it is damaged, cut short, given up by its sender, or cannot be read by this program
  2  wrong usage";

impl migpipe_cli::Program for Args {
    const FILTERS: &'static [migpipe_confine::Filter] = &[crate::confinement::FILTER];
    const MANUAL: migpipe_cli::Manual = migpipe_cli::Manual::OF_NO_HOST;

    fn common(&self) -> &migpipe_cli::Common {
        &self.common
    }

    fn json(&self) -> bool {
        self.json
    }
}
