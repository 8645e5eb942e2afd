//! mig-inspect reads a migration stream, checks every byte of it and says what is in it. It needs
//! no KVM and touches nothing.
#![forbid(unsafe_code)]

mod args;
mod confinement;
mod inspect;
mod machine;
mod source;
mod summary;
mod text;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use anyhow::Context;

use crate::args::Args;
use crate::inspect::Inspection;
use crate::text::RecordLine;

const CANNOT_PRINT: &str = "cannot print what was found";

fn main() -> ExitCode {
    migpipe_cli::main(run)
}

fn run(args: Args) -> anyhow::Result<u8> {
    if args.source.is_terminal() {
        migpipe_cli::complain(
            "mig-inspect",
            &anyhow::anyhow!("stdin is a terminal: name a file, or pipe a stream in (see --help)"),
        );
        return Ok(migpipe_cli::USAGE);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let result = report(&args, &mut out);
    out.flush().context(CANNOT_PRINT)?;
    result.map(|()| 0).with_context(|| args.source.to_string())
}

/// Prints what is in the stream as far as it is whole, then says what is wrong with it.
fn report(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let stream = args.source.open()?;
    confinement::enter(&args.confinement)?;
    let mut inspection = Inspection::open(stream)?;
    let checked = loop {
        match inspection.next() {
            Ok(Some(record)) if args.records && args.json => {
                serde_json::to_writer(&mut *out, &record).context(CANNOT_PRINT)?;
                writeln!(out).context(CANNOT_PRINT)?;
            }
            Ok(Some(record)) if args.records => {
                writeln!(out, "{}", RecordLine(&record)).context(CANNOT_PRINT)?;
            }
            Ok(Some(_)) => {}
            Ok(None) => break inspection.judge(),
            Err(error) => break Err(error),
        }
    };
    let summary = inspection.into_summary(checked.as_ref().err());
    if args.json {
        serde_json::to_writer(&mut *out, &summary).context(CANNOT_PRINT)?;
        writeln!(out).context(CANNOT_PRINT)?;
    } else {
        if args.records {
            writeln!(out).context(CANNOT_PRINT)?;
        }
        text::write(out, &summary).context(CANNOT_PRINT)?;
    }
    Ok(checked?)
}
