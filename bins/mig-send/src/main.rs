//! Sends a running guest to another host as a byte stream
fn main() {}
