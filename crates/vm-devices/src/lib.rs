#![warn(missing_docs)]
//! Devices of the machine, each with its own save, load and dirty log
