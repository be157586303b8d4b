//! `table_origin`: written when maps are made, read by the daemon that finds them pinned.

use std::path::Path;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, Map, MapData, MapError};
use lb_common::origin::{ORIGIN_MAPS, TableOrigin};
use nix::time::{ClockId, clock_gettime};

use super::object::LoadOptions;

const MAP: &str = "table_origin";

/// Notes in the new maps of `ebpf` what they were made for; nothing where they are none of the balancer's.
///
/// # Errors
///
/// From the kernel.
pub fn write(ebpf: &mut Ebpf, options: &LoadOptions) -> Result<(), MapError> {
    let mut maps = [0; ORIGIN_MAPS];
    for (place, data) in maps.iter_mut().zip(ebpf.maps().filter_map(|(_, map)| shared(map))) {
        *place = data.info()?.id();
    }
    let Some(map) = ebpf.map_mut(MAP) else { return Ok(()) };
    let origin = TableOrigin {
        secret: options.secret,
        made_at: since_boot().as_secs(),
        connections_max: options.connections_max,
        reserved: 0,
        maps,
    };
    Array::try_from(map)?.set(0, origin, 0)
}

/// What is noted in the map that is pinned in `directory`, which must be of this version's shape.
///
/// # Errors
///
/// From the kernel.
pub fn read(directory: &Path) -> Result<TableOrigin, MapError> {
    let map = Map::from_map_data(MapData::from_pin(directory.join(MAP))?)?;
    Array::<MapData, TableOrigin>::try_from(map)?.get(&0, 0)
}

/// The time since the machine started, suspended or not: maps live no longer.
pub fn since_boot() -> Duration {
    // The clock is there since Linux 2.6.39; without it, everything is as old as it was.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// A map of a kind that the programs of several daemons may share.
fn shared(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::CpuMap(data)
        | Map::DevMap(data)
        | Map::HashMap(data)
        | Map::HashOfMaps(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data) => Some(data),
        // Program arrays and buffers are one program's own.
        _ => None,
    }
}
