//! Whether the maps that an earlier daemon has pinned are such that a new one can go on with them. Changes nothing, and reads
//! nothing but what maps are like until their version is known to be this one's.

use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use aya::programs::{ProgramError, loaded_programs};
use lb_common::ABI_VERSION;
use lb_common::origin::TableOrigin;
use lb_common::service::ForwardingMethod;

use super::capacity::Capacity;
use super::object::{self, LoadError, LoadOptions, Shape};
use super::origin;
use super::pins::{MAPS, Pins};
use super::table::memory_maps::MappedTables;
use crate::datapath::ServiceTable;

/// What is pinned for an instance.
#[derive(Debug)]
pub enum Pinned {
    /// Nothing that a daemon could go on with, and nothing that could be lost.
    Nothing,
    /// Maps that fit.
    Fit(Box<Fit>),
    /// Maps that do not fit.
    Unfit(Unfit),
}

/// Maps to go on with.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    /// What the program is to be loaded with.
    pub options: LoadOptions,
    /// What the maps have room for.
    pub capacity: Capacity,
    /// When the maps were made, in seconds since the machine started.
    pub made_at: u64,
}

/// Why the maps cannot be gone on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// Each difference, with what is there and what is needed.
    pub differences: Vec<String>,
    /// Connections in them; `None` where they cannot be counted.
    pub connections: Option<u64>,
}

/// Why it could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum ExamineError {
    /// What is needed is not known.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel does not tell of its programs.
    #[error("cannot read which programs are loaded")]
    Programs(#[source] ProgramError),
}

/// Compares what is pinned in `pins` with what a program needs that is to be loaded with `options` and to serve `table`.
///
/// Maps may be larger than `options` ask for, and hold more, but for the connection table.
///
/// # Errors
///
/// As [`ExamineError`] tells.
pub fn examine(pins: &Pins, options: &LoadOptions, table: &ServiceTable) -> Result<Pinned, ExamineError> {
    let directory = pins.directory();
    let pinned: Vec<&str> = MAPS.into_iter().filter(|name| directory.join(name).exists()).collect();
    if pinned.is_empty() {
        return Ok(Pinned::Nothing);
    }
    let unfit = |differences, connections| Ok(Pinned::Unfit(Unfit { differences, connections }));
    match version(directory) {
        Ok(ABI_VERSION) => {}
        Ok(other) => {
            return unfit(vec![format!("the maps have layout version {other}, this one needs {ABI_VERSION}")], None);
        }
        Err(error) => return unfit(vec![format!("the maps' layout version cannot be read: {}", text(&error))], None),
    }
    let (fitting, capacity) = fitting(directory, options);
    let origin = match origin_of(directory, &fitting)? {
        Ok(origin) => origin,
        Err(difference) => return unfit(vec![difference], None),
    };
    let mut differences = Vec::new();
    if origin.connections_max != options.connections_max {
        let (old, new) = (origin.connections_max, options.connections_max);
        differences.push(format!("xdp.connections_max was {old}, is {new}"));
    }
    let of_maps = of_maps(directory, &LoadOptions { connections_max: origin.connections_max, ..fitting }, &origin)?;
    let is_readable = of_maps.is_empty();
    differences.extend(of_maps);
    if options.wide_tuples && !capacity.wide_tuples {
        differences.push("no virtual server had an IPv6 address or all ports, now one has".to_owned());
    }
    if !capacity.has_room_for(table) {
        let Capacity { real_servers_max, ring_chunks, prefix_lines, nat: _, wide_tuples: _ } = capacity;
        differences.push(format!(
            "the tables have room for {real_servers_max} places of real servers, {ring_chunks} chunks of rings and \
             {prefix_lines} lines of clients' prefixes, \
             the configuration needs more"
        ));
    }
    if !is_in_use(pins, id_of(directory, "connections")).map_err(ExamineError::Programs)? {
        differences.push("no attached program uses the maps".to_owned());
    }
    if !differences.is_empty() {
        return unfit(differences, is_readable.then(|| connections(directory)).flatten());
    }
    let options = LoadOptions { secret: origin.secret, ..fitting };
    Ok(Pinned::Fit(Box::new(Fit { options, capacity, made_at: origin.made_at })))
}

/// `options` with the sizes of the maps that are there, and what these have room for.
fn fitting(directory: &Path, options: &LoadOptions) -> (LoadOptions, Capacity) {
    let entries = |name: &str| MapInfo::from_pin(directory.join(name)).map_or(0, |info| info.max_entries());
    let capacity = Capacity {
        real_servers_max: entries("real_servers"),
        ring_chunks: entries("scheduler_rings"),
        prefix_lines: entries("prefixes"),
        nat: options.nat || has_nat(directory),
        wide_tuples: entries("tuples") > 1,
    };
    let Capacity { real_servers_max, ring_chunks, prefix_lines, nat, wide_tuples } = capacity;
    (LoadOptions { real_servers_max, ring_chunks, prefix_lines, nat, wide_tuples, ..*options }, capacity)
}

/// What differs between the maps and those that would be made for `options`.
fn of_maps(directory: &Path, options: &LoadOptions, origin: &TableOrigin) -> Result<Vec<String>, LoadError> {
    let shape =
        |name: &str| MapInfo::from_pin(directory.join(name)).and_then(|info| Ok((info.id(), Shape::of(&info)?)));
    let mut differences = Vec::new();
    for (name, needed) in object::shapes(&MAPS, options)? {
        match shape(&name) {
            Err(error) => differences.push(format!("map {name} cannot be read: {}", text(&error))),
            Ok((_, found)) if found != needed => differences.extend(compare(&name, &found, &needed)),
            Ok((id, _)) if !origin.maps.contains(&id) => {
                differences.push(format!("map {name} is another one than the daemon had made (id {id})"));
            }
            Ok(_) => {}
        }
    }
    Ok(differences)
}

/// What `table_origin` holds, or what is wrong with the map.
fn origin_of(directory: &Path, options: &LoadOptions) -> Result<Result<TableOrigin, String>, LoadError> {
    const MAP: &str = "table_origin";
    let needed = object::shapes(&[MAP], options)?.remove(MAP);
    let found = MapInfo::from_pin(directory.join(MAP)).and_then(|info| Shape::of(&info));
    Ok(match (found, needed) {
        (Ok(found), Some(needed)) if found == needed => {
            origin::read(directory).map_err(|error| format!("map {MAP} cannot be read: {}", text(&error)))
        }
        (Ok(found), Some(needed)) => Err(compare(MAP, &found, &needed).join(", ")),
        (Err(error), _) => Err(format!("map {MAP} cannot be read: {}", text(&error))),
        (Ok(_), None) => Err(format!("this version has no map {MAP}")),
    })
}

/// Each property of a map that differs, in words.
fn compare(name: &str, found: &Shape, needed: &Shape) -> Vec<String> {
    let Shape { kind, key_size, value_size, entries, flags } = *found;
    let mut differences = Vec::new();
    if kind != needed.kind {
        differences.push(format!("map {name} is of type {kind:?}, needed is {:?}", needed.kind));
    }
    let numbers = [
        ("bytes a key", key_size, needed.key_size),
        ("bytes a value", value_size, needed.value_size),
        ("entries", entries, needed.entries),
        ("as flags", flags, needed.flags),
    ];
    let differing = numbers.into_iter().filter(|(_, found, needed)| found != needed);
    differences
        .extend(differing.map(|(what, found, needed)| format!("map {name} has {found} {what}, needed are {needed}")));
    differences
}

fn version(directory: &Path) -> Result<u32, MapError> {
    let map = Map::from_map_data(MapData::from_pin(directory.join("abi_version"))?)?;
    Array::<MapData, u32>::try_from(map)?.get(&0, 0)
}

fn id_of(directory: &Path, name: &str) -> Option<u32> {
    MapInfo::from_pin(directory.join(name)).ok().map(|info| info.id())
}

/// Whether the programs behind all pinned links, at least one, use the map with this id.
fn is_in_use(pins: &Pins, map: Option<u32>) -> Result<bool, ProgramError> {
    let (ours, Some(map)) = (pins.programs(), map) else { return Ok(false) };
    let mut used = 0;
    // One of somebody else's may have gone meanwhile.
    for program in loaded_programs().filter_map(Result::ok) {
        if ours.contains(&program.id()) {
            match program.map_ids()? {
                Some(ids) if ids.contains(&map) => used += 1,
                _ => return Ok(false),
            }
        }
    }
    Ok(used > 0)
}

/// Whether a real server is reached by NAT, also one that is removed and has connections. True where that cannot be told.
fn has_nat(directory: &Path) -> bool {
    let Ok(tables) = MappedTables::pinned(directory) else { return true };
    let tables = tables.tables();
    let places = u16::try_from(tables.real_server_count()).unwrap_or(u16::MAX);
    let mut real_servers = (0..places).filter_map(|index| tables.real_server(index));
    real_servers.any(|entry| entry.generation() != 0 && entry.forwarding() == Some(ForwardingMethod::Nat))
}

/// The connections that are counted in maps of this version.
fn connections(directory: &Path) -> Option<u64> {
    let tables = MappedTables::pinned(directory).ok()?;
    let tables = tables.tables();
    let places = u16::try_from(tables.real_server_count()).unwrap_or(u16::MAX);
    let totals = (0..places).filter_map(|index| tables.counts(index)).map(|counts| counts.total());
    u64::try_from(totals.filter(|total| *total > 0).sum::<i64>()).ok()
}

fn text(error: &MapError) -> String {
    crate::error::chain(error)
}
