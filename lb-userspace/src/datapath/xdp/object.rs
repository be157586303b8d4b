//! The compiled XDP programs inside this binary, and their loading. Nothing is attached or pinned here.

use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use lb_common::connection::Timeouts;

/// What is fixed when the programs are loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Entries of the connection table.
    pub connections_max: u32,
    /// Places for real servers, and for their counters.
    pub real_servers_max: u32,
    /// Whether any real server is reached by NAT, so that replies must be looked for.
    pub nat: bool,
    /// Whether the program logs its decisions.
    pub packet_log: bool,
    /// How long idle connections are remembered.
    pub timeouts: Timeouts,
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

/// Creates the maps and loads the program `name`, which keeps those of `maps`; the rest, other programs', are freed.
///
/// # Errors
///
/// As [`LoadError`] tells.
pub fn load(name: &'static str, maps: &[&str], options: &LoadOptions) -> Result<Ebpf, LoadError> {
    if !is_embedded() {
        return Err(LoadError::NotEmbedded);
    }
    let log_level = if options.packet_log { LOG_LEVEL_INFO } else { 0 };
    let nat_replies = u32::from(options.nat);
    let mut ebpf = EbpfLoader::new()
        .override_global("AYA_LOG_LEVEL", &log_level, true)
        .override_global("NAT_REPLIES", &nat_replies, true)
        .override_global("TIMEOUTS", &options.timeouts, true)
        .map_max_entries("connections", options.connections_max)
        .map_max_entries("real_servers", options.real_servers_max)
        .map_max_entries("rs_counters", options.real_servers_max)
        .load(OBJECT)
        .map_err(LoadError::Maps)?;
    program(&mut ebpf, name)?.load().map_err(|source| LoadError::Program { name, source })?;
    // The packet log's buffer is no program's own.
    let is_other = |map: &String| map != "AYA_LOGS" && !maps.contains(&map.as_str());
    let others: Vec<String> = ebpf.maps().map(|(map, _)| map.to_owned()).filter(is_other).collect();
    for map in others {
        drop(ebpf.take_map(&map));
    }
    Ok(ebpf)
}

/// The XDP program `name` of a loaded object.
///
/// # Errors
///
/// [`LoadError::Missing`] where there is none.
pub fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, LoadError> {
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(LoadError::Missing(name))
}
