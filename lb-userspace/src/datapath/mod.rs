//! The forwarding engines behind one trait: the XDP program now, kernel IPVS beside it later.
//!
//! An engine installs what it is told; what should be installed is decided in [`crate::reconcile`].

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::service::{ForwardingMethod, Scheduler};

use crate::model::{Service, VirtualServer, Weight};

pub mod xdp;

/// A forwarding engine: the XDP program or kernel IPVS.
pub trait Datapath {
    /// Reads back what is installed now, from the kernel and not from memory.
    ///
    /// # Errors
    ///
    /// When the kernel's tables cannot be read, or hold what this version did not write.
    fn installed(&mut self) -> Result<ServiceTable, DatapathError>;

    /// Installs one change. Applying the same change twice is not an error.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it or a table is full; what was installed before then still stands.
    fn apply(&mut self, change: &Change) -> Result<(), DatapathError>;
}

/// Virtual servers by identity.
pub type ServiceTable = BTreeMap<Service, Servers>;

/// What stands behind a virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Servers {
    /// How a new connection gets its real server.
    pub scheduler: Scheduler,
    /// Real servers by address; round robin goes through them in this order.
    pub real_servers: BTreeMap<SocketAddr, Settings>,
}

/// What may change of a real server without making it another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its share of new connections.
    pub weight: Weight,
    /// How packets reach it.
    pub forwarding: ForwardingMethod,
}

impl From<&VirtualServer> for Servers {
    fn from(server: &VirtualServer) -> Self {
        let VirtualServer { name: _, service: _, scheduler, real_servers } = server;
        let real_servers = real_servers
            .iter()
            .map(|real| (real.address, Settings { weight: real.weight, forwarding: real.forwarding }))
            .collect();
        Self { scheduler: *scheduler, real_servers }
    }
}

/// One step from what is installed to what should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes or changes a virtual server as a whole: real servers first, publication last.
    Put(Service, Servers),
    /// Withdraws a virtual server, then its real servers.
    Remove(Service),
}

impl Change {
    /// The virtual server that changes.
    pub fn service(&self) -> Service {
        match self {
            Self::Put(service, _) | Self::Remove(service) => *service,
        }
    }
}

/// Why a data path could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// A table of fixed size has no room.
    #[error("{table} is full at {capacity} entries; {remedy}")]
    Full {
        /// The table, as operators know it.
        table: &'static str,
        /// Its size.
        capacity: u32,
        /// What to do.
        remedy: &'static str,
    },
    /// The kernel's tables hold what this version did not write.
    #[error("map {map} holds {found}, which this version did not write; run `evenkeel cleanup` and start again")]
    Foreign {
        /// The map's name.
        map: &'static str,
        /// What was found there.
        found: String,
    },
    /// A map operation failed.
    #[error("cannot {action} map {map}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// The map's name.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        source: aya::maps::MapError,
    },
}
