//! The monitor of running guests and migrations
fn main() {}
