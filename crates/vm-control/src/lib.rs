#![warn(missing_docs)]
//! The Unix-socket protocol between vmrun and its clients
