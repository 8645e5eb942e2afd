//! A broker that is not what it should be.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use migpipe_confine::broker::{Broker, BrokerError};

#[test]
fn one_that_does_not_answer_is_waited_for_once_and_left_alone_then() {
    const SLEEPS: Duration = Duration::from_secs(300);
    let mut command = Command::new("sleep");
    // It outlives this test.
    command.arg(SLEEPS.as_secs().to_string()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut broker = Broker::start(command, Duration::from_millis(100)).unwrap();
    let began = Instant::now();
    assert!(matches!(broker.ask::<()>(&"?"), Err(BrokerError::Silent)));
    assert!(matches!(broker.ask::<()>(&"?"), Err(BrokerError::Lost(_))));
    assert!(!broker.has_ended());
    drop(broker);
    assert!(began.elapsed() < SLEEPS, "{:?}", began.elapsed());
}

#[test]
fn one_that_is_gone_is_lost() {
    let mut broker = Broker::start(Command::new("true"), Duration::from_secs(60)).unwrap();
    assert!(matches!(broker.ask::<()>(&"?"), Err(BrokerError::Lost(_))));
    while !broker.has_ended() {}
}
