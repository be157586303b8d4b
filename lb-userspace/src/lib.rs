//! Evenkeel's user space: configuration, the reconciled data path, and what the command line talks to.

pub mod config;
pub mod model;
