//! Evenkeel's user space: configuration, the reconciled data path, and what the command line talks to.

pub mod cli;
pub mod config;
pub mod model;
