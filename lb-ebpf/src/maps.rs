//! Every map and load-time constant, and nothing else.
//!
//! `#[btf_map]` carries the types of `lb-common` into the kernel, so that `bpftool map dump` prints field names.

use aya_ebpf::Global;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use lb_common::connection::{ConnectionEntry, FlowKey, Timeouts};
use lb_common::counters::Counters;
use lb_common::drop_reason::DropReason;
use lb_common::interface::InterfaceEntry;
use lb_common::net::Address;
use lb_common::real::RealServerEntry;
use lb_common::service::{ServiceKey, VirtualServerEntry};
use lb_common::{INTERFACES_LENGTH, REAL_SERVERS_MAX, SCHEDULER_RINGS_LENGTH, VIRTUAL_SERVERS_MAX};

/// `BPF_F_MMAPABLE`: page-aligned values, so that a power-of-two entry does not straddle cache lines.
const MMAPABLE: usize = 1 << 10;

/// Placeholder size of `connections`; user space sets the configured one at load.
const CONNECTIONS_DEFAULT: usize = 65536;

/// Layout version of all maps, in element 0.
#[btf_map(name = "abi_version")]
pub static ABI: Array<u32, 1> = Array::new();

/// Virtual servers by (VIP, port, protocol).
#[btf_map(name = "virtual_servers")]
pub static VIRTUAL_SERVERS: HashMap<ServiceKey, VirtualServerEntry, { VIRTUAL_SERVERS_MAX as usize }> = HashMap::new();

/// Real servers by index.
#[btf_map(name = "real_servers")]
pub static REAL_SERVERS: Array<RealServerEntry, { REAL_SERVERS_MAX as usize }, MMAPABLE> = Array::new();

/// Indexes into `real_servers`, one run of them a virtual server.
#[btf_map(name = "scheduler_rings")]
pub static SCHEDULER_RINGS: Array<u32, { SCHEDULER_RINGS_LENGTH as usize }, MMAPABLE> = Array::new();

/// How many connections each virtual server has scheduled: its place in the ring.
#[btf_map(name = "rr_cursors")]
pub static RR_CURSORS: Array<u64, { VIRTUAL_SERVERS_MAX as usize }, MMAPABLE> = Array::new();

/// Flows and their real servers.
#[btf_map(name = "connections")]
pub static CONNECTIONS: LruHashMap<FlowKey, ConnectionEntry, CONNECTIONS_DEFAULT> = LruHashMap::new();

/// Counters by the index of a virtual server.
#[btf_map(name = "vs_counters")]
pub static VS_COUNTERS: PerCpuArray<Counters, { VIRTUAL_SERVERS_MAX as usize }> = PerCpuArray::new();

/// Counters by the index of a real server.
#[btf_map(name = "rs_counters")]
pub static RS_COUNTERS: PerCpuArray<Counters, { REAL_SERVERS_MAX as usize }> = PerCpuArray::new();

/// Dropped packets by reason.
#[btf_map(name = "drops")]
pub static DROPS: PerCpuArray<u64, { DropReason::ALL.len() }> = PerCpuArray::new();

/// The interfaces that `balance` is attached to.
#[btf_map(name = "interfaces")]
pub static INTERFACES: Array<InterfaceEntry, { INTERFACES_LENGTH as usize }, MMAPABLE> = Array::new();

/// Destinations whose tunnelled packets `decapsulate` unwraps.
#[btf_map(name = "decap_vips")]
pub static DECAP_VIPS: HashMap<Address, u32, 256> = HashMap::new();

/// Packets that `decapsulate` unwrapped: element 0 IPIP, element 1 IP6IP6; element 2 those dropped for a congestion mark.
#[btf_map(name = "decap_counters")]
pub static DECAP_COUNTERS: PerCpuArray<u64, 3> = PerCpuArray::new();

/// Idle times after which an entry of `connections` is void.
#[unsafe(no_mangle)]
pub static TIMEOUTS: Global<Timeouts> = Global::new(Timeouts::ipvs_defaults(250));

/// Non-zero when a real server is reached by `nat`; zero lets the verifier remove the look-up of replies.
#[unsafe(no_mangle)]
pub static NAT_REPLIES: Global<u32> = Global::new(1);
