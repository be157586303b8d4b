//! The compiled XDP programs inside this binary, and their loading. Nothing is attached or pinned here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use aya::maps::{Array, MapError, MapInfo, MapType, ProgramArray};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_obj::generated::bpf_map_type;
use lb_common::connection::{TICK_SHIFT, Timeouts, buckets_for};
use lb_common::fragment::FRAGMENT_SECONDS;
use lb_common::hash::Secret;
use lb_common::{REAL_PLACES_MAX, STAGE_EXCEPTIONAL, STAGE_EXCEPTIONAL_IPV6, STAGE_FRAGMENT, STAGE_ICMP};

use super::origin;
use crate::host::jiffies_per_second;

/// What is fixed when the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Live connections with which the connection table is [`lb_common::connection::FILL_PERCENT`] full.
    pub connections_max: u32,
    /// Places for real servers, raised to a power of two, 8..=16384. Each virtual server takes them by eights.
    pub real_servers_max: u32,
    /// Room for rings, in units of [`lb_common::service::RING_CHUNK`] elements.
    pub ring_chunks: u32,
    /// Lines of `prefixes`: room for lists of clients.
    pub prefix_lines: u32,
    /// Whether any real server is reached by NAT, so that replies must be looked for.
    pub nat: bool,
    /// Whether connections are kept in full beside the table: needed to list those of IPv6 and of virtual servers that serve
    /// all ports.
    pub wide_tuples: bool,
    /// Rejections of packets without real server or connection that each CPU may send a second, and as many answers to
    /// packets that are too big.
    pub reject_rate: u32,
    /// Whether the program logs its decisions.
    pub packet_log: bool,
    /// How long idle connections are remembered.
    pub timeouts: Timeouts,
    /// What makes places in the connection table unpredictable.
    pub secret: Secret,
}

impl LoadOptions {
    /// The smallest tables for the balancer, for programs that have no use for them.
    pub const SMALLEST: Self = Self {
        connections_max: 1,
        real_servers_max: 1,
        ring_chunks: 1,
        prefix_lines: 1,
        nat: false,
        wide_tuples: false,
        reject_rate: 0,
        packet_log: false,
        timeouts: Timeouts::ipvs_defaults(1),
        secret: Secret { words: [0; 2] },
    };
}

/// A new secret.
///
/// # Errors
///
/// When the kernel's random numbers cannot be read.
pub fn random_secret() -> io::Result<Secret> {
    let mut bytes = [[0; 8]; 2];
    File::open("/dev/urandom")?.read_exact(bytes.as_flattened_mut())?;
    Ok(Secret { words: bytes.map(u64::from_ne_bytes) })
}

/// Why the programs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The binary was built without them.
    #[error(
        "this binary was built without the XDP programs, so backend \"xdp\" cannot run; \
         install the eBPF tools and build with `cargo xtask setup && cargo xtask build --release`"
    )]
    NotEmbedded,
    /// The kernel refused a map or the object is broken.
    #[error("cannot create the maps of the XDP programs")]
    Maps(#[source] EbpfError),
    /// The object cannot be read.
    #[error("the embedded object with the XDP programs is broken")]
    Broken(#[source] aya_obj::ParseError),
    /// The kernel says nothing about a map.
    #[error("cannot read what map {name} is like")]
    Shape {
        /// The map's name.
        name: String,
        /// The kernel's answer.
        #[source]
        source: MapError,
    },
    /// The object lacks a program.
    #[error("the embedded object has no XDP program {0}; build again with `cargo xtask build --release`")]
    Missing(&'static str),
    /// The kernel refused a program.
    #[error("the kernel refused XDP program {name}")]
    Program {
        /// The program's name.
        name: &'static str,
        /// The kernel's answer, with the verifier's log.
        #[source]
        source: ProgramError,
    },
}

/// `INFO` of `aya_log`: the packet log's level.
const LOG_LEVEL_INFO: u8 = 3;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/evenkeel.bpf.o"));

/// Whether the XDP programs are in this binary.
pub fn is_embedded() -> bool {
    !OBJECT.is_empty()
}

/// Buckets of a copy of `service_index`: four places for each virtual server that there may be.
const SERVICE_BUCKETS: u32 = lb_common::VIRTUAL_SERVERS_MAX * 4;
/// Buckets of a copy of `reply_index` for each place in `real_servers`.
const REPLY_BUCKETS: u32 = 4;
#[expect(clippy::cast_possible_truncation, reason = "it is 8")]
const LANES: u32 = lb_common::real::LANES as u32;

/// The timeouts once more, for readers of the connection table that did not load the program.
const TIMEOUTS: &str = "timeouts";

/// The programs that `balance` jumps to.
const STAGES: &str = "stages";
/// What is in `stages`: place and program.
const STAGE_PROGRAMS: [(u32, &str); 4] = [
    (STAGE_EXCEPTIONAL, "exceptional"),
    (STAGE_EXCEPTIONAL_IPV6, "exceptional_ipv6"),
    (STAGE_FRAGMENT, "fragment"),
    (STAGE_ICMP, "icmp"),
];

/// Creates the maps and loads the program `name`, which keeps those of `maps`; the rest, other programs', are freed.
/// Where `stages` is one of `maps`, the programs in it are loaded, too.
///
/// # Errors
///
/// As [`LoadError`] tells.
pub fn load(name: &'static str, maps: &[&str], options: &LoadOptions) -> Result<Ebpf, LoadError> {
    if !is_embedded() {
        return Err(LoadError::NotEmbedded);
    }
    load_object(OBJECT, buckets_for(options.connections_max), name, maps, options)
}

/// As [`load`], but with the maps that are pinned in `pins`, which must have the [`shapes`] for these options; nothing is
/// written into them. A program array is not shared: it is made anew.
///
/// # Errors
///
/// As [`LoadError`] tells.
pub fn load_onto(pins: &Path, name: &'static str, maps: &[&str], options: &LoadOptions) -> Result<Ebpf, LoadError> {
    let connections = buckets_for(options.connections_max);
    load_build(&Build { object: OBJECT, connections, pins: Some(pins) }, name, maps, options)
}

/// What a map is like, as far as a program and its kernel care.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Its type.
    pub kind: MapType,
    /// In bytes.
    pub key_size: u32,
    /// In bytes.
    pub value_size: u32,
    /// Most entries; all of them in an array.
    pub entries: u32,
    /// The flags that it was made with.
    pub flags: u32,
}

impl Shape {
    /// That of a map in the kernel.
    ///
    /// # Errors
    ///
    /// For a type that is not known here.
    pub fn of(info: &MapInfo) -> Result<Self, MapError> {
        Ok(Self {
            kind: info.map_type()?,
            key_size: info.key_size(),
            value_size: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        })
    }
}

/// What those of `maps` would be like that [`load`] makes for these options, but for program arrays.
///
/// # Errors
///
/// When the object cannot be read.
pub fn shapes(maps: &[&str], options: &LoadOptions) -> Result<BTreeMap<String, Shape>, LoadError> {
    if !is_embedded() {
        return Err(LoadError::NotEmbedded);
    }
    let sizes = BTreeMap::from(sizes(options, buckets_for(options.connections_max)));
    let object = aya_obj::Object::parse(OBJECT).map_err(LoadError::Broken)?;
    let mut shapes = BTreeMap::new();
    for (name, map) in object.maps.iter().filter(|(name, _)| maps.contains(&name.as_str())) {
        let kind = bpf_map_type::try_from(map.map_type()).ok().and_then(|kind| MapType::try_from(kind).ok());
        let kind = kind.ok_or_else(|| LoadError::Shape {
            name: name.clone(),
            source: MapError::InvalidMapType { map_type: map.map_type() },
        })?;
        if kind == MapType::ProgramArray {
            continue;
        }
        let entries = sizes.get(name.as_str()).copied().unwrap_or(map.max_entries());
        let (key_size, value_size, flags) = (map.key_size(), map.value_size(), map.map_flags());
        shapes.insert(name.clone(), Shape { kind, key_size, value_size, entries, flags });
    }
    Ok(shapes)
}

/// As [`load`], but another build of the programs, whose map `connections` gets `connections` entries: for comparisons.
///
/// # Errors
///
/// As [`LoadError`] tells.
pub fn load_object(
    object: &[u8],
    connections: u32,
    name: &'static str,
    maps: &[&str],
    options: &LoadOptions,
) -> Result<Ebpf, LoadError> {
    let mut ebpf = load_build(&Build { object, connections, pins: None }, name, maps, options)?;
    if let Some(map) = ebpf.map_mut(TIMEOUTS) {
        let written = Array::try_from(map).and_then(|mut array| array.set(0, options.timeouts, 0));
        written.map_err(|source| LoadError::Maps(source.into()))?;
    }
    origin::write(&mut ebpf, options).map_err(|source| LoadError::Maps(source.into()))?;
    Ok(ebpf)
}

/// The maps whose size depends on the configuration, with `connections` entries for the connection table.
fn sizes(options: &LoadOptions, connections: u32) -> [(&'static str, u32); 10] {
    let places = places(options);
    [
        ("connections", connections),
        ("tuples", if options.wide_tuples { buckets_for(options.connections_max) } else { 1 }),
        ("service_index", 2 * SERVICE_BUCKETS),
        ("reply_index", 2 * REPLY_BUCKETS * places),
        ("real_servers", places),
        ("rs_counters", places),
        ("server_loads", places / LANES),
        ("server_counts", places / LANES),
        ("scheduler_rings", options.ring_chunks.max(1)),
        ("prefixes", options.prefix_lines.max(1)),
    ]
}

/// Places for real servers.
fn places(options: &LoadOptions) -> u32 {
    options.real_servers_max.clamp(LANES, REAL_PLACES_MAX).next_power_of_two()
}

/// A build of the programs, and where its maps come from.
struct Build<'a> {
    object: &'a [u8],
    /// Entries of `connections`.
    connections: u32,
    /// Where they are pinned; `None`: they are made.
    pins: Option<&'a Path>,
}

fn load_build(build: &Build<'_>, name: &'static str, maps: &[&str], options: &LoadOptions) -> Result<Ebpf, LoadError> {
    let log_level = if options.packet_log { LOG_LEVEL_INFO } else { 0 };
    let (nat_replies, wide_tuples) = (u32::from(options.nat), u32::from(options.wide_tuples));
    let buckets = buckets_for(options.connections_max);
    let rejects_per_tick = rejects_per_tick(options.reject_rate, jiffies_per_second());
    let (service_mask, reply_mask) = (SERVICE_BUCKETS - 1, REPLY_BUCKETS * places(options) - 1);
    let mut loader = EbpfLoader::new();
    for (map, entries) in sizes(options, build.connections) {
        loader.map_max_entries(map, entries);
    }
    let shared = build.pins.map_or_else(|| Ok(BTreeMap::new()), |_| shapes(maps, options))?;
    for (map, pins) in shared.keys().zip(build.pins.iter().cycle()) {
        loader.map_pin_path(map, pins.join(map));
    }
    let mut ebpf = loader
        .override_global("AYA_LOG_LEVEL", &log_level, true)
        .override_global("NAT_REPLIES", &nat_replies, true)
        .override_global("TIMEOUTS", &options.timeouts, true)
        .override_global("SECRET", &options.secret, true)
        .override_global("BUCKETS", &buckets, true)
        .override_global("SERVICE_INDEX_MASK", &service_mask, true)
        .override_global("REPLY_INDEX_MASK", &reply_mask, true)
        .override_global("WIDE_TUPLES", &wide_tuples, true)
        .override_global("REJECTS_PER_TICK", &rejects_per_tick, true)
        .override_global("FRAGMENT_TICKS", &fragment_ticks(jiffies_per_second()), true)
        .load(build.object)
        .map_err(LoadError::Maps)?;
    program(&mut ebpf, name)?.load().map_err(|source| LoadError::Program { name, source })?;
    if maps.contains(&STAGES) {
        load_stages(&mut ebpf)?;
    }
    // The packet log's buffer is no program's own.
    let is_other = |map: &String| map != "AYA_LOGS" && !maps.contains(&map.as_str());
    let others: Vec<String> = ebpf.maps().map(|(map, _)| map.to_owned()).filter(is_other).collect();
    for map in others {
        drop(ebpf.take_map(&map));
    }
    Ok(ebpf)
}

fn load_stages(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    for (place, name) in STAGE_PROGRAMS {
        let refused = |source| LoadError::Program { name, source };
        let stage = program(ebpf, name)?;
        stage.load().map_err(refused)?;
        let stage = stage.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(refused)?;
        if let Some(map) = ebpf.map_mut(STAGES) {
            let entered = ProgramArray::try_from(map).and_then(|mut stages| stages.set(place, &stage, 0));
            entered.map_err(|source| LoadError::Maps(source.into()))?;
        }
    }
    Ok(())
}

/// The XDP program `name` of a loaded object.
///
/// # Errors
///
/// [`LoadError::Missing`] where there is none.
pub fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, LoadError> {
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(LoadError::Missing(name))
}

/// Rejections in a coarse tick for so many a second, rounded up, on a kernel with `hz` jiffies a second.
fn rejects_per_tick(rate: u32, hz: u32) -> u32 {
    let a_tick = (u64::from(rate) << TICK_SHIFT).div_ceil(u64::from(hz.max(1)));
    u32::try_from(a_tick).unwrap_or(u32::MAX)
}

/// [`FRAGMENT_SECONDS`] in coarse ticks, rounded up, on a kernel with `hz` jiffies a second.
const fn fragment_ticks(hz: u32) -> u32 {
    (FRAGMENT_SECONDS * hz).div_ceil(1 << TICK_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_seconds_are_thirty_ticks_at_250_hz() {
        // 7500 jiffies are 29.3 ticks.
        assert_eq!(fragment_ticks(250), 30);
    }

    #[test]
    fn a_thousand_rejections_a_second_are_1024_in_a_tick_at_250_hz() {
        // A tick of 256 jiffies is 1.024 s.
        assert_eq!(rejects_per_tick(1000, 250), 1024);
        assert_eq!(rejects_per_tick(1, 1000), 1);
        assert_eq!(rejects_per_tick(0, 100), 0);
    }

    #[test]
    fn no_two_secrets_are_the_same() {
        assert_ne!(random_secret().unwrap(), random_secret().unwrap());
    }
}
