//! Reads what the program has counted. Changes nothing.

use std::net::SocketAddr;

use lb_common::connection::TableCounters;
use lb_common::counters::Counters;
use lb_common::drop_reason::DropReason;
use lb_common::real::{RealServerEntry, ServerCounts};
use lb_common::service::Scheduler;

use super::XdpDatapath;
use super::places::Role;
use crate::datapath::DatapathError;
use crate::model::Service;

/// A virtual server and its counters.
#[derive(Clone, Debug)]
pub struct VirtualServerStatistics {
    /// Its identity.
    pub service: Service,
    /// How a new connection gets its real server.
    pub scheduler: Scheduler,
    /// Summed over the CPUs.
    pub counters: Counters,
    /// Its real servers by address, the sorry server last; also those that are removed and have connections
    /// ([`lb_common::real::real_flag::REMOVED`]).
    pub real_servers: Vec<RealServerStatistics>,
}

/// A real server and its counters.
#[derive(Clone, Debug)]
pub struct RealServerStatistics {
    /// Address and port.
    pub address: SocketAddr,
    /// Whether it is there for when no other takes a connection.
    pub is_sorry: bool,
    /// As it stands in the map.
    pub entry: RealServerEntry,
    /// Summed over the CPUs.
    pub counters: Counters,
    /// Its connections now.
    pub connections: ServerCounts,
}

impl XdpDatapath {
    /// Every virtual server with its real servers and their counters.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel.
    pub fn statistics(&self) -> Result<Vec<VirtualServerStatistics>, DatapathError> {
        let mut statistics = Vec::new();
        for (service, published) in self.slots.virtual_servers() {
            let mut real_servers = Vec::new();
            for (tenant, index) in self.slots.places.of(service) {
                real_servers.push(RealServerStatistics {
                    address: tenant.address,
                    is_sorry: tenant.role == Role::Sorry,
                    entry: self.real_server(index)?,
                    counters: self.maps.sum("rs_counters", index.into())?,
                    connections: self.counts(index)?,
                });
            }
            statistics.push(VirtualServerStatistics {
                service,
                scheduler: published.scheduler,
                counters: self.maps.sum("vs_counters", published.index)?,
                real_servers,
            });
        }
        Ok(statistics)
    }

    /// Dropped packets by reason, in the order of [`DropReason::ALL`].
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel.
    pub fn drops(&self) -> Result<Vec<(DropReason, u64)>, DatapathError> {
        DropReason::ALL.into_iter().map(|reason| Ok((reason, self.maps.sum("drops", reason as u32)?))).collect()
    }

    /// What became of newcomers to the connection table, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel.
    pub fn table_counters(&self) -> Result<TableCounters, DatapathError> {
        self.maps.sum("table_counters", 0)
    }
}
