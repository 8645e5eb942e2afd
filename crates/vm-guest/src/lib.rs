#![warn(missing_docs)]
//! The built-in guest: a small bare-metal program that dirties memory and proves that none was lost
