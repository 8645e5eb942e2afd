#![warn(missing_docs)]
//! The wire format of a migration: records in, records out
