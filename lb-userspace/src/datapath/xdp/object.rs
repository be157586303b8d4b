//! The compiled XDP programs inside this binary, and their loading. Nothing is attached or pinned here.

use std::fs::File;
use std::io::{self, Read as _};

use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use lb_common::connection::{TICK_SHIFT, Timeouts, buckets_for};
use lb_common::fragment::FRAGMENT_SECONDS;
use lb_common::hash::Secret;
use lb_common::{REAL_PLACES_MAX, STAGE_EXCEPTIONAL, STAGE_EXCEPTIONAL_IPV6, STAGE_FRAGMENT};

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
    /// Rejections of packets without real server or connection that each CPU may send a second.
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
const STAGE_PROGRAMS: [(u32, &str); 3] =
    [(STAGE_EXCEPTIONAL, "exceptional"), (STAGE_EXCEPTIONAL_IPV6, "exceptional_ipv6"), (STAGE_FRAGMENT, "fragment")];

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
    let log_level = if options.packet_log { LOG_LEVEL_INFO } else { 0 };
    let (nat_replies, wide_tuples) = (u32::from(options.nat), u32::from(options.wide_tuples));
    let buckets = buckets_for(options.connections_max);
    let places = options.real_servers_max.clamp(LANES, REAL_PLACES_MAX).next_power_of_two();
    let rejects_per_tick = rejects_per_tick(options.reject_rate, jiffies_per_second());
    let (service_mask, reply_mask) = (SERVICE_BUCKETS - 1, REPLY_BUCKETS * places - 1);
    let mut ebpf = EbpfLoader::new()
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
        .map_max_entries("connections", connections)
        .map_max_entries("tuples", if options.wide_tuples { buckets } else { 1 })
        .map_max_entries("service_index", 2 * SERVICE_BUCKETS)
        .map_max_entries("reply_index", 2 * REPLY_BUCKETS * places)
        .map_max_entries("real_servers", places)
        .map_max_entries("rs_counters", places)
        .map_max_entries("server_loads", places / LANES)
        .map_max_entries("server_counts", places / LANES)
        .map_max_entries("scheduler_rings", options.ring_chunks.max(1))
        .map_max_entries("prefixes", options.prefix_lines.max(1))
        .load(object)
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
    if let Some(map) = ebpf.map_mut(TIMEOUTS) {
        let written = Array::try_from(map).and_then(|mut array| array.set(0, options.timeouts, 0));
        written.map_err(|source| LoadError::Maps(source.into()))?;
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
