//! Runs one KVM guest and owns it
fn main() {}
