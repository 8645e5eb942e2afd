#![warn(missing_docs)]
//! Byte channels named as <protocol>:<params>: stdin/stdout, exec, tcp, unix, file, fd
