//! What clients address, and who answers for it.

use std::sync::Arc;
use std::time::Duration;

use lb_common::service::{Refusal, Scheduler};

use super::{AccessList, RealServer, Service};

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualServer {
    /// The operator's name for it, of 1..=64 characters; unique in a configuration.
    pub name: Option<String>,
    /// Its identity.
    pub service: Service,
    /// How it treats new and lost connections.
    pub policy: Policy,
    /// Which clients it serves; without a list all.
    pub access: Option<Arc<AccessList>>,
    /// In the order of the file, each address once; never empty when it comes from a configuration.
    pub real_servers: Vec<RealServer>,
    /// Who takes connections that would find no real server; its weight and thresholds mean nothing.
    pub sorry_server: Option<RealServer>,
}

/// How a virtual server treats new and lost connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How a new connection gets its real server.
    pub scheduler: Scheduler,
    /// `sh` and `mh`: by the client's port too.
    pub hash_port: bool,
    /// `sh`, `dh` and `mh`: to another real server where theirs takes no new connection.
    pub hash_fallback: bool,
    /// Whether a client's connections go to one real server.
    pub persistence: Option<Persistence>,
    /// UDP: each datagram is scheduled for itself.
    pub one_packet: bool,
    /// Whether a TCP segment of an unknown connection is scheduled.
    pub sloppy_tcp: bool,
    /// Whether replies of its real servers behind `nat` are rewritten without a connection too.
    pub stateless_replies: bool,
    /// How long a real server that is new or has come back takes to reach its full weight; zero: at once.
    pub slow_start: Duration,
    /// What a new connection is told that finds no real server.
    pub no_real_server: Refusal,
    /// What a TCP segment of an unknown connection is told.
    pub unknown_connection: Refusal,
    /// What becomes of the TCP connections of a real server that is removed.
    pub removed_real_server: Removal,
}

impl Policy {
    /// `scheduler`, and everything else as where the configuration says nothing.
    pub const fn new(scheduler: Scheduler) -> Self {
        Self {
            scheduler,
            hash_port: false,
            hash_fallback: false,
            persistence: None,
            one_packet: false,
            sloppy_tcp: false,
            stateless_replies: false,
            slow_start: Duration::ZERO,
            no_real_server: Refusal::Reject,
            unknown_connection: Refusal::Reject,
            removed_real_server: Removal::Keep,
        }
    }
}

/// That a client's connections go to one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// For how long after the last of them began or ended.
    pub timeout: Duration,
    /// Clients that share this many leading bits of their address are one; 1..=32 for IPv4, 1..=128 for IPv6.
    pub prefix_length: u8,
}

/// What becomes of the TCP connections of a real server that is removed; UDP is scheduled anew at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// They go on until they end.
    Keep,
    /// They end: their next segment is one of an unknown connection.
    Expire,
}
