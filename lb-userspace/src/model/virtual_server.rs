//! What clients address, and who answers for it.

use lb_common::service::Scheduler;

use super::{RealServer, Service};

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// The operator's name for it, of 1..=64 characters; unique in a configuration.
    pub name: Option<String>,
    /// Its identity.
    pub service: Service,
    /// How a new connection gets its real server.
    pub scheduler: Scheduler,
    /// In the order of the file, each address once; never empty when it comes from a configuration.
    pub real_servers: Vec<RealServer>,
}
