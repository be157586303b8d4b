//! The forwarding engines behind one trait: the XDP program now, kernel IPVS beside it later.
//!
//! An engine installs what it is told; what should be installed is decided in [`crate::reconcile`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_common::connection::{TICK_SHIFT, TIMEOUT_MAX};
use lb_common::service::{ForwardingMethod, Refusal, Scheduler};

use crate::model::{self, AccessList, Removal, Service, Thresholds, VirtualServer, Weight};
use crate::schedule::index::IndexError;

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
    /// How it treats new and lost connections.
    pub policy: Policy,
    /// Which clients it serves; `None`: all.
    pub access: Option<Clients>,
    /// Real servers by address; round robin goes through them in this order.
    pub real_servers: BTreeMap<SocketAddr, Settings>,
    /// Who takes connections that would find no real server.
    pub sorry_server: Option<(SocketAddr, ForwardingMethod)>,
}

/// How a virtual server treats new and lost connections: [`model::Policy`] as far as a data path knows of it.
///
/// Slow start is done by whoever sets the weights.
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
    /// What a new connection is told that finds no real server.
    pub no_real_server: Refusal,
    /// What a TCP segment of an unknown connection is told.
    pub unknown_connection: Refusal,
    /// What becomes of the TCP connections of a real server that is removed.
    pub removed_real_server: Removal,
}

/// Which clients are served.
#[derive(Clone, Debug)]
pub struct Clients {
    /// [`AccessList::digest`].
    pub digest: u64,
    /// What they are; `None` where that was read back, since the kernel's form does not tell it.
    pub list: Option<Arc<AccessList>>,
}

impl PartialEq for Clients {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Clients {}

/// That a client's connections go to one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// For how long after a template was last seen in use, in coarse ticks of 256 jiffies, 1..=[`TIMEOUT_MAX`]. Longer than
    /// configured where the template could not be renewed in that time.
    pub ticks: u16,
    /// Clients that share this many leading bits of their address are one; 1..=32 for IPv4, 1..=128 for IPv6.
    pub prefix_length: u8,
}

/// What may change of a real server without making it another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its share of new connections.
    pub weight: Weight,
    /// How packets reach it.
    pub forwarding: ForwardingMethod,
    /// How many connections it takes.
    pub thresholds: Thresholds,
}

impl Servers {
    /// What stands behind `server`, on a kernel with `hz` jiffies a second.
    pub fn new(server: &VirtualServer, hz: u32) -> Self {
        let VirtualServer { name: _, service: _, policy, access, real_servers, sorry_server } = server;
        let settings = |real: &model::RealServer| {
            let model::RealServer { address, weight, forwarding, thresholds } = *real;
            (address, Settings { weight, forwarding, thresholds })
        };
        Self {
            policy: Policy::new(policy, hz),
            access: access.as_ref().map(|list| Clients { digest: list.digest(), list: Some(Arc::clone(list)) }),
            real_servers: real_servers.iter().map(settings).collect(),
            sorry_server: sorry_server.map(|real| (real.address, real.forwarding)),
        }
    }
}

impl Policy {
    /// What the data path knows of `policy`, on a kernel with `hz` jiffies a second.
    pub fn new(policy: &model::Policy, hz: u32) -> Self {
        let model::Policy {
            scheduler,
            hash_port,
            hash_fallback,
            persistence,
            one_packet,
            sloppy_tcp,
            stateless_replies,
            slow_start: _,
            no_real_server,
            unknown_connection,
            removed_real_server,
        } = *policy;
        let persistence = persistence.map(|model::Persistence { timeout, prefix_length }| Persistence {
            ticks: ticks(template_timeout(timeout), hz),
            prefix_length,
        });
        Self {
            scheduler,
            hash_port,
            hash_fallback,
            persistence,
            one_packet,
            sloppy_tcp,
            stateless_replies,
            no_real_server,
            unknown_connection,
            removed_real_server,
        }
    }
}

/// How long a persistence template lives that is to hold for `timeout` after its client's last connection has ended.
///
/// The data path renews the template of a live connection every eighth of its time, but no more often than it goes through all
/// of them: [`RENEWAL`]. So what is left when the last connection ends is 7/8 of `timeout` or more, however short that is.
fn template_timeout(timeout: Duration) -> Duration {
    timeout.max(timeout / 8 * 7 + RENEWAL)
}

/// The longest that a live connection's template waits to be renewed: the 4 s of a round of the table's scan, and half of that
/// again for a machine that is busy.
const RENEWAL: Duration = Duration::from_secs(6);

/// `span` in coarse ticks on a kernel with `hz` jiffies a second: rounded up, 1..=[`TIMEOUT_MAX`].
pub fn ticks(span: Duration, hz: u32) -> u16 {
    let tick = Duration::from_secs(1 << TICK_SHIFT).as_nanos() / u128::from(hz.max(1));
    let ticks = span.as_nanos().div_ceil(tick.max(1));
    u16::try_from(ticks).unwrap_or(TIMEOUT_MAX).clamp(1, TIMEOUT_MAX)
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
        /// What to do, and why there is no room where that is not plain.
        remedy: Cow<'static, str>,
    },
    /// An index has no place for a key.
    #[error("cannot enter {service} into map {map}")]
    Index {
        /// The map's name.
        map: &'static str,
        /// The virtual server.
        service: Service,
        /// Why.
        #[source]
        source: IndexError,
    },
    /// The kernel's tables hold what this version did not write.
    #[error("map {map} holds {found}, which this version did not write; run `evenkeel cleanup` and start again")]
    Foreign {
        /// The map's name.
        map: &'static str,
        /// What was found there.
        found: String,
    },
    /// A list of clients is not known any more.
    #[error("the list of clients of {service} is not known; reload the configuration")]
    UnknownClients {
        /// The virtual server.
        service: Service,
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

impl DatapathError {
    /// Whether it could be applied if less were installed.
    pub fn is_want_of_room(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Index { .. } => true,
            Self::Foreign { .. } | Self::UnknownClients { .. } | Self::Map { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::net::Protocol;

    use super::*;

    #[test]
    fn five_minutes_at_250_hz_are_293_ticks() {
        // 300 s * 250 / 256 = 292.97
        assert_eq!(ticks(Duration::from_secs(300), 250), 293);
        assert_eq!(ticks(Duration::from_secs(256), 1000), 1000);
        assert_eq!(ticks(Duration::from_millis(1), 100), 1);
        assert_eq!(ticks(Duration::from_secs(1_000_000), 1000), TIMEOUT_MAX);
    }

    #[test]
    fn a_short_persistence_lasts_until_its_template_is_renewed() {
        let seconds = |timeout| template_timeout(Duration::from_secs(timeout)).as_millis();
        // 7/8 of a second and a round of 6; from 48 seconds on, an eighth of it is as long as a round.
        assert_eq!(seconds(1), 6875);
        assert_eq!(seconds(40), 41_000);
        assert_eq!([48, 300].map(seconds), [48_000, 300_000]);
        let mut policy = model::Policy::new(Scheduler::Rr);
        policy.persistence = Some(model::Persistence { timeout: Duration::from_secs(1), prefix_length: 32 });
        // 6.875 s * 250 / 256 = 6.7
        assert_eq!(Policy::new(&policy, 250).persistence.map(|persistence| persistence.ticks), Some(7));
    }

    #[test]
    fn a_virtual_server_loses_its_name_its_order_and_its_slow_start() {
        let real = |n: u8, weight| model::RealServer {
            address: ([10, 0, 1, n], 80).into(),
            weight: Weight::new(weight),
            forwarding: ForwardingMethod::Dr,
            thresholds: Thresholds { upper: 10, lower: 5 },
        };
        let mut policy = model::Policy::new(Scheduler::Wlc);
        policy.slow_start = Duration::from_secs(30);
        policy.persistence = Some(model::Persistence { timeout: Duration::from_secs(256), prefix_length: 24 });
        let server = VirtualServer {
            name: Some("web".to_owned()),
            service: Service { address: ([10, 0, 0, 1], 80).into(), protocol: Protocol::Tcp },
            policy,
            access: None,
            real_servers: vec![real(2, 5), real(1, 3)],
            sorry_server: Some(real(9, 1)),
        };
        let servers = Servers::new(&server, 100);
        assert_eq!(servers.policy.persistence, Some(Persistence { ticks: 100, prefix_length: 24 }));
        let weights: Vec<u16> = servers.real_servers.values().map(|settings| settings.weight.get()).collect();
        assert_eq!(weights, [3, 5]);
        assert_eq!(servers.sorry_server, Some((([10, 0, 1, 9], 80).into(), ForwardingMethod::Dr)));
    }
}
