//! Receives a guest from a byte stream
fn main() {}
