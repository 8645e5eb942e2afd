//! The broker of mig-recv: does for the confined process what that may not do any more. See
//! [`host`](crate::host).

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use mig_engine::ownership::Decision;
use migpipe_confine::broker;
use migpipe_units::MigrationId;
use serde_json::Value;
use vm_records::record::Records;

use crate::args::Args;
use crate::host::{Answer, END_TIMEOUT, Request};
use crate::launch::{self, Launched};
use crate::responder;

/// The broker itself.
pub fn serve(args: &Args) -> anyhow::Result<u8> {
    // What ps and the kernel's log call it.
    nix::sys::prctl::set_name(c"mig-broker").context("cannot set a name")?;
    let mut launched = None;
    broker::serve(|request| -> Answer<Value> {
        answer(args, request, &mut launched).map_err(|error| migpipe_cli::one_line(&error))
    })?;
    if let Some(launched) = &mut launched {
        launched.settle();
    }
    Ok(0)
}

/// What the record of a migration says. A vmrun that has just ended holds that of a restore for a
/// moment longer.
fn decision(id: MigrationId, records: &Records) -> anyhow::Result<Option<Decision>> {
    let began = Instant::now();
    loop {
        let decision = records.read(id)?.map(|record| record.decision);
        if decision != Some(Decision::Restoring) {
            return Ok(decision);
        }
        if records.is_free(id)? {
            return Ok(None);
        }
        if began.elapsed() > END_TIMEOUT {
            return Ok(decision);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Removes records that nobody needs any more. That it cannot be done is in nobody's way, and
/// whoever needs the records says what is wrong with them.
fn tidy(records: &Records) {
    match records.tidy() {
        Ok(tidied) if tidied.is_empty() => {}
        Ok(tidied) => tracing::info!("{} records of old migrations removed", tidied.len()),
        Err(error) => tracing::info!("{}", migpipe_cli::one_line(&error.into())),
    }
}

fn answer(args: &Args, request: Request, launched: &mut Option<Launched>) -> anyhow::Result<Value> {
    let value = match request {
        Request::Start { .. } if launched.is_some() => anyhow::bail!("a vmrun runs already"),
        Request::Start { name, guest } => {
            vm_paths::check_name(&name)?;
            vm_paths::check_name(&guest)?;
            tidy(&Records::of_this_host());
            let launched = launched.insert(Launched::start(args, &name, &guest)?);
            serde_json::to_value(launched.started())
        }
        Request::Examine { name, guest } => {
            vm_paths::check_name(&name)?;
            vm_paths::check_name(&guest)?;
            serde_json::to_value(launch::examine(args, &name, &guest)?)
        }
        Request::AwaitEnd => {
            if let Some(launched) = launched {
                launched.await_end();
            }
            Ok(Value::Null)
        }
        Request::LastWords => {
            let launched = launched.as_mut().context("no vmrun was started")?;
            serde_json::to_value(launched.last_words())
        }
        Request::Decision(id) => serde_json::to_value(decision(id, &Records::of_this_host())?),
        Request::Resolve(query) => {
            let records = Records::of_this_host();
            tidy(&records);
            serde_json::to_value(responder::resolve(query, &records)?)
        }
        Request::Forget(released) => {
            responder::forget(&released, &Records::of_this_host());
            Ok(Value::Null)
        }
        Request::ShortMemory => {
            let records = Records::of_this_host();
            serde_json::to_value(records.end_with_the_boot().then(|| records.dir().to_owned()))
        }
    };
    value.context("an answer that cannot be written")
}
