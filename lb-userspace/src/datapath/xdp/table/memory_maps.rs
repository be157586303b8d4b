//! The tables in the kernel's memory: of a loaded program, or pinned by a daemon that may be dead.

use std::os::fd::AsFd as _;
use std::path::Path;

use aya::Pod;
use aya::maps::{Array, Map, MapData, MapError};
use lb_common::ABI_VERSION;
use lb_common::connection::{Bucket, Timeouts, TupleBucket};
use lb_common::real::{ClientHop, CountChunk, LoadChunk, RealServerEntry};
use lb_common::service::VirtualServerEntry;

use super::words::Tables;
use crate::datapath::DatapathError;
use crate::datapath::xdp::XdpDatapath;
use crate::datapath::xdp::mapped::Mapped;

/// The maps behind [`Tables`], mapped until it is dropped.
pub struct MappedTables {
    connections: Mapped<Bucket>,
    tuples: Mapped<TupleBucket>,
    real_servers: Mapped<RealServerEntry>,
    services: Mapped<VirtualServerEntry>,
    counts: Mapped<CountChunk>,
    loads: Mapped<LoadChunk>,
    client_hops: Mapped<ClientHop>,
}

impl MappedTables {
    /// The maps of `datapath`.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel.
    pub fn of(datapath: &XdpDatapath) -> Result<Self, DatapathError> {
        let maps = &datapath.maps;
        Ok(Self {
            connections: maps.mapped("connections")?,
            tuples: maps.mapped("tuples")?,
            real_servers: maps.mapped("real_servers")?,
            services: maps.mapped("services")?,
            counts: maps.mapped("server_counts")?,
            loads: maps.mapped("server_loads")?,
            client_hops: maps.mapped("client_hops")?,
        })
    }

    /// The maps that are pinned in `directory`.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Foreign`] where they are of another version, [`DatapathError::Map`] from the kernel.
    pub fn pinned(directory: &Path) -> Result<Self, DatapathError> {
        let version: u32 = element(directory, "abi_version")?;
        if version != ABI_VERSION {
            return Err(DatapathError::Foreign { map: "abi_version", found: version.to_string() });
        }
        Ok(Self {
            connections: map(directory, "connections")?,
            tuples: map(directory, "tuples")?,
            real_servers: map(directory, "real_servers")?,
            services: map(directory, "services")?,
            counts: map(directory, "server_counts")?,
            loads: map(directory, "server_loads")?,
            client_hops: map(directory, "client_hops")?,
        })
    }

    /// The maps as words.
    pub fn tables(&self) -> Tables<'_> {
        let Self { connections, tuples, real_servers, services, counts, loads, client_hops } = self;
        Tables {
            connections: connections.words(),
            tuples: tuples.words(),
            real_servers: real_servers.words(),
            services: services.words(),
            counts: counts.words(),
            loads: loads.words(),
            client_hops: client_hops.words(),
        }
    }
}

/// The timeouts of the program whose maps are pinned in `directory`.
///
/// # Errors
///
/// [`DatapathError::Map`] from the kernel.
pub fn pinned_timeouts(directory: &Path) -> Result<Timeouts, DatapathError> {
    element(directory, "timeouts")
}

/// The first element of a pinned array.
fn element<V: Pod>(directory: &Path, name: &'static str) -> Result<V, DatapathError> {
    array(directory, name)?.get(&0, 0).map_err(failed("read", name))
}

fn map<V: Pod>(directory: &Path, name: &'static str) -> Result<Mapped<V>, DatapathError> {
    let length = array::<V>(directory, name)?.len();
    let data = MapData::from_pin(directory.join(name)).map_err(failed("open", name))?;
    Mapped::new(name, data.fd().as_fd(), length)
}

fn array<V: Pod>(directory: &Path, name: &'static str) -> Result<Array<MapData, V>, DatapathError> {
    let data = MapData::from_pin(directory.join(name)).map_err(failed("open", name))?;
    Map::from_map_data(data).and_then(Array::try_from).map_err(failed("open", name))
}

fn failed(action: &'static str, map: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |source| DatapathError::Map { action, map, source }
}
