//! What Evenkeel's integration tests and its demo share: the lab, a small network of namespaces with real servers and clients.
//!
//! It knows nothing of Evenkeel itself: the daemon is one more program that a test starts in the director's namespace.

pub mod bpf;
pub mod lab;
