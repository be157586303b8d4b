//! Puts together what `evenkeel status` shows, from configuration, maps and next hops. Changes nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use lb_common::connection::TableCounters;
use lb_common::real::{NextHopState, real_flag};
use lb_common::service::ForwardingMethod;

use crate::config::Config;
use crate::control::protocol::{ConnectionTable, Interface, NextHop, RealServer, Status, VirtualServer};
use crate::datapath::DatapathError;
use crate::datapath::xdp::XdpDatapath;
use crate::datapath::xdp::attach::Attachment;
use crate::datapath::xdp::statistics::{RealServerStatistics, VirtualServerStatistics};
use crate::datapath::xdp::table::scanner::Report;
use crate::datapath::xdp::table::sweep::Census;
use crate::model::Service;
use crate::nexthop::{Found, Resolution};
use crate::reconcile::desired::Desired;

/// Where the status comes from.
pub struct Sources<'a> {
    /// For names and paths.
    pub config: &'a Config,
    /// The instance's folder of pins.
    pub pins: &'a Path,
    /// The interfaces.
    pub attachments: &'a [Attachment],
    /// The counters.
    pub datapath: &'a XdpDatapath,
    /// What the scan of the connection table has found.
    pub scan: Report,
    /// The next hops.
    pub resolution: &'a Resolution,
    /// What operators have drained.
    pub desired: &'a Desired,
    /// The time.
    pub now: Instant,
    /// How long the daemon has been serving.
    pub uptime: Duration,
    /// Whether an earlier daemon has made the tables.
    pub is_adopted: bool,
    /// How long ago the tables were made.
    pub tables_age: Duration,
}

impl Sources<'_> {
    /// Reads everything now.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn collect(&self) -> Result<Status, DatapathError> {
        let interface = |a: &Attachment| Interface { name: a.interface.clone(), mode: a.state().to_owned() };
        let statistics = self.datapath.statistics()?;
        let drops = self.datapath.drops()?;
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.config.global.instance.clone(),
            pid: std::process::id(),
            uptime_seconds: self.uptime.as_secs(),
            adopted: self.is_adopted,
            tables_seconds: self.tables_age.as_secs(),
            backend: self.config.global.backend.name().to_owned(),
            pin_directory: self.pins.display().to_string(),
            interfaces: self.attachments.iter().map(interface).collect(),
            connection_table: self.connection_table(&statistics)?,
            virtual_servers: statistics.into_iter().map(|server| self.virtual_server(server)).collect(),
            drops: drops.into_iter().map(|(reason, count)| (reason.name().to_owned(), count)).collect(),
        })
    }

    fn connection_table(&self, statistics: &[VirtualServerStatistics]) -> Result<ConnectionTable, DatapathError> {
        let connections = statistics.iter().flat_map(|server| &server.real_servers).map(|real| real.connections);
        let Report { census, rounds: _, expired, repaired } = self.scan;
        let Census { half_open, closing, established, templates } = census;
        let TableCounters {
            inserted,
            reclaimed,
            evicted_half_open,
            evicted_closing,
            evicted_established,
            refused,
            lost_races,
        } = self.datapath.table_counters()?;
        Ok(ConnectionTable {
            connections: connections.map(|counts| u64::from(counts.active) + u64::from(counts.inactive)).sum(),
            connections_max: self.config.xdp.connections_max,
            half_open,
            closing,
            established,
            templates,
            inserted,
            expired: expired + reclaimed,
            reclaimed,
            evicted_half_open,
            evicted_closing,
            evicted_established,
            refused,
            lost_races,
            repaired,
        })
    }

    fn virtual_server(&self, statistics: VirtualServerStatistics) -> VirtualServer {
        let VirtualServerStatistics { service, scheduler, counters, real_servers } = statistics;
        let configured = self.config.virtual_servers.iter().find(|server| server.service == service);
        VirtualServer {
            name: configured.and_then(|server| server.name.clone()),
            protocol: service.protocol.name().to_owned(),
            address: service.address,
            scheduler: self.desired.shown_scheduler(service, scheduler).name().to_owned(),
            counters: counters.into(),
            denied: configured.and_then(|server| server.access.as_ref()).map(|_| counters.denied),
            real_servers: real_servers.into_iter().map(|real| self.real_server(service, &real)).collect(),
        }
    }

    fn real_server(&self, service: Service, statistics: &RealServerStatistics) -> RealServer {
        let RealServerStatistics { address, is_sorry, entry, counters, connections } = statistics;
        let member = (service, *address);
        let drained = self.desired.drained(&member).filter(|_| !is_sorry);
        let role = match (is_sorry, entry.flags & real_flag::REMOVED != 0) {
            (true, _) => "sorry",
            (false, true) => "removed",
            (false, false) => "serving",
        };
        RealServer {
            address: *address,
            forwarding: entry.forwarding.name().to_owned(),
            weight: self.desired.shown_weight(&member, entry.weight),
            rising: self.desired.is_rising(&member) && !is_sorry,
            drained: drained.is_some(),
            drained_for_seconds: drained.flatten().map(|end| end.saturating_duration_since(self.now).as_secs()),
            role: role.to_owned(),
            active: connections.active,
            inactive: connections.inactive,
            counters: (*counters).into(),
            next_hop: match entry.next_hop.state {
                NextHopState::Unusable => NextHop::Unresolved { reason: unusable(entry.forwarding).to_owned() },
                NextHopState::Unlisted => {
                    NextHop::Unresolved { reason: "by an interface not in xdp.interfaces".to_owned() }
                }
                NextHopState::Local => NextHop::Local,
                NextHopState::Resolved | NextHopState::Unresolved => next_hop(self.resolution.found.get(&address.ip())),
            },
        }
    }
}

/// Why a real server that has a way cannot be reached by it.
fn unusable(forwarding: ForwardingMethod) -> &'static str {
    match forwarding {
        ForwardingMethod::Dr => "behind a router, unfit for dr",
        ForwardingMethod::Nat => "address of this host, unfit for nat",
        ForwardingMethod::Tun => "address of this host, unfit for tun",
    }
}

fn next_hop(found: Option<&Found>) -> NextHop {
    let unresolved = |reason: String| NextHop::Unresolved { reason };
    match found {
        Some(Found::Way(route, hop)) => NextHop::Resolved {
            interface: route.interface.name.clone(),
            mac: hop.destination.to_string(),
            gateway: route.gateway,
            mtu: hop.mtu,
        },
        Some(Found::NoNeighbour(route)) => unresolved(match route.gateway {
            Some(gateway) => format!("gateway {gateway} does not answer on {}", route.interface.name),
            None => format!("does not answer on {}", route.interface.name),
        }),
        Some(Found::Local) => unresolved("address of this host".to_owned()),
        Some(Found::NoRoute) | None => unresolved("no route".to_owned()),
    }
}
