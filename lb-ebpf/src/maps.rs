//! Every map and load-time constant, and nothing else.
//!
//! `#[btf_map]` carries the types of `lb-common` into the kernel, so that `bpftool map dump` prints field names. User space
//! sets the sizes of those that depend on the configuration.

use aya_ebpf::Global;
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, ProgramArray};
use aya_ebpf::macros::btf_map;
#[cfg(not(feature = "lru"))]
use lb_common::connection::Bucket;
use lb_common::connection::{TableCounters, Timeouts, TupleBucket};
use lb_common::counters::Counters;
use lb_common::drop_reason::DropReason;
use lb_common::hash::Secret;
use lb_common::interface::InterfaceEntry;
use lb_common::net::Address;
use lb_common::origin::TableOrigin;
use lb_common::prefix::PrefixLine;
use lb_common::real::{ClientHop, CountChunk, LoadChunk, RealServerEntry};
use lb_common::service::{IndexBucket, Lookups, RingChunk, ServiceKey, VirtualServerEntry};
use lb_common::{
    CLIENT_HOPS_LENGTH, INTERFACES_LENGTH, OWN_ADDRESSES_MAX, REAL_PLACES_MAX, STAGES_LENGTH, VIRTUAL_SERVERS_MAX,
};

use crate::forward::Egress;

/// `BPF_F_MMAPABLE`: page-aligned values, so that a power-of-two entry does not straddle cache lines.
const MMAPABLE: usize = 1 << 10;

/// `BPF_F_NO_PREALLOC`: memory for what is in the map, not for what may be.
const NO_PREALLOC: usize = 1;

/// Layout version of all maps, in element 0.
#[btf_map(name = "abi_version")]
pub static ABI: Array<u32, 1> = Array::new();

/// Virtual servers by (VIP, port, protocol): for people, and for a daemon that takes over. Packets use the two below.
#[btf_map(name = "virtual_servers")]
pub static VIRTUAL_SERVERS: HashMap<ServiceKey, VirtualServerEntry, { VIRTUAL_SERVERS_MAX as usize }> = HashMap::new();

/// The same by index.
#[btf_map(name = "services")]
pub static SERVICES: Array<VirtualServerEntry, { VIRTUAL_SERVERS_MAX as usize }, MMAPABLE> = Array::new();

/// From (VIP, port, protocol) to an index into `services`, in one memory access.
#[btf_map(name = "service_index")]
pub static SERVICE_INDEX: Array<IndexBucket, 2, MMAPABLE> = Array::new();

/// From (address, port, protocol) of a real server behind `nat` to an index into `real_servers`.
#[btf_map(name = "reply_index")]
pub static REPLY_INDEX: Array<IndexBucket, 2, MMAPABLE> = Array::new();

/// Which copies of the two indexes are valid.
#[btf_map(name = "lookups")]
pub static LOOKUPS: Array<Lookups, 1, MMAPABLE> = Array::new();

/// Real servers by index.
#[btf_map(name = "real_servers")]
pub static REAL_SERVERS: Array<RealServerEntry, { REAL_PLACES_MAX as usize }, MMAPABLE> = Array::new();

/// How loaded each real server is, in the measure of its scheduler.
#[btf_map(name = "server_loads")]
pub static SERVER_LOADS: Array<LoadChunk, { REAL_PLACES_MAX as usize / 8 }, MMAPABLE> = Array::new();

/// Active and inactive connections of each real server.
#[btf_map(name = "server_counts")]
pub static SERVER_COUNTS: Array<CountChunk, { REAL_PLACES_MAX as usize / 8 }, MMAPABLE> = Array::new();

/// Runs of real servers, and of chunks of `server_loads`, for the virtual servers' schedulers.
#[btf_map(name = "scheduler_rings")]
pub static SCHEDULER_RINGS: Array<RingChunk, 1, MMAPABLE> = Array::new();

/// Which clients the virtual servers serve.
#[btf_map(name = "prefixes")]
pub static PREFIXES: Array<PrefixLine, 1, MMAPABLE> = Array::new();

/// How many turns each virtual server's scheduler has taken.
#[btf_map(name = "rr_cursors")]
pub static RR_CURSORS: Array<u64, { VIRTUAL_SERVERS_MAX as usize }, MMAPABLE> = Array::new();

/// Connections and their real servers.
#[cfg(not(feature = "lru"))]
#[btf_map(name = "connections")]
pub static CONNECTIONS: Array<Bucket, 1, MMAPABLE> = Array::new();

/// The control that the connection table is measured against: the same words in a map of the kernel's own.
#[cfg(feature = "lru")]
#[btf_map(name = "connections")]
pub static CONNECTIONS: aya_ebpf::btf_maps::LruHashMap<[u64; 2], u64, 1> = aya_ebpf::btf_maps::LruHashMap::new();

/// What of a connection its fingerprint does not tell, by place.
#[btf_map(name = "tuples")]
pub static TUPLES: Array<TupleBucket, 1, MMAPABLE> = Array::new();

/// Ways back to clients.
#[btf_map(name = "client_hops")]
pub static CLIENT_HOPS: Array<ClientHop, { CLIENT_HOPS_LENGTH as usize }, MMAPABLE> = Array::new();

/// This host's own addresses, to which no reply is rewritten.
#[btf_map(name = "own_addresses")]
pub static OWN_ADDRESSES: HashMap<Address, u32, { OWN_ADDRESSES_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// Counters by the index of a virtual server.
#[btf_map(name = "vs_counters")]
pub static VS_COUNTERS: PerCpuArray<Counters, { VIRTUAL_SERVERS_MAX as usize }> = PerCpuArray::new();

/// Counters by the index of a real server.
#[btf_map(name = "rs_counters")]
pub static RS_COUNTERS: PerCpuArray<Counters, { REAL_PLACES_MAX as usize }> = PerCpuArray::new();

/// Packets that were not forwarded, by reason.
#[btf_map(name = "drops")]
pub static DROPS: PerCpuArray<u64, { DropReason::ALL.len() }> = PerCpuArray::new();

/// What became of newcomers to the connection table.
#[btf_map(name = "table_counters")]
pub static TABLE_COUNTERS: PerCpuArray<TableCounters, 1> = PerCpuArray::new();

/// Of each kind of answer: the tick of this CPU's last one in the high half, how many there were in it in the low half.
#[btf_map(name = "reject_budget")]
pub static REJECT_BUDGET: PerCpuArray<u64, { budget::KINDS }> = PerCpuArray::new();

/// What has a share of its own of the answers that are given, as indexes of [`REJECT_BUDGET`].
pub mod budget {
    /// Whoever is refused, or whose packet has come too far.
    pub const REFUSED: u32 = 0;
    /// Whose packet is too big. Without it transfers stand still, so that nobody else's packets may use up its share.
    pub const TOO_BIG: u32 = 1;
    /// How many there are.
    pub const KINDS: usize = 2;
}

/// What the routing table has answered to this CPU's last question.
#[btf_map(name = "route")]
pub static ROUTE: PerCpuArray<Egress, 1> = PerCpuArray::new();

/// Idle times after which a connection is void, in element 0: [`TIMEOUTS`] once more, for user space.
#[btf_map(name = "timeouts")]
pub static TIMEOUTS_IN_FORCE: Array<Timeouts, 1> = Array::new();

/// What the maps were made for, in element 0: for a daemon that takes over. No packet reads it.
#[btf_map(name = "table_origin")]
pub static TABLE_ORIGIN: Array<TableOrigin, 1> = Array::new();

/// The interfaces that `balance` is attached to.
#[btf_map(name = "interfaces")]
pub static INTERFACES: Array<InterfaceEntry, { INTERFACES_LENGTH as usize }, MMAPABLE> = Array::new();

/// Programs that `balance` jumps to. The kernel empties it when no descriptor and no pin of it is left.
#[btf_map(name = "stages")]
pub static STAGES: ProgramArray<{ STAGES_LENGTH as usize }> = ProgramArray::new();

/// Destinations whose tunnelled packets `decapsulate` unwraps.
#[btf_map(name = "decap_vips")]
pub static DECAP_VIPS: HashMap<Address, u32, 256> = HashMap::new();

/// Packets that `decapsulate` unwrapped: element 0 IPIP, 1 6in4, 2 4in6, 3 IP6IP6; element 4 those dropped for a congestion mark.
#[btf_map(name = "decap_counters")]
pub static DECAP_COUNTERS: PerCpuArray<u64, 5> = PerCpuArray::new();

/// Idle times after which a connection is void.
#[unsafe(no_mangle)]
pub static TIMEOUTS: Timeouts = Timeouts::ipvs_defaults(250);

/// What makes places in `connections` unpredictable.
#[unsafe(no_mangle)]
pub static SECRET: Global<Secret> = Global::new(Secret { words: [0, 0] });

/// Elements of `connections`.
#[unsafe(no_mangle)]
pub static BUCKETS: Global<u32> = Global::new(1);

/// Buckets of one copy of `service_index`, less one; a power of two less one.
#[unsafe(no_mangle)]
pub static SERVICE_INDEX_MASK: Global<u32> = Global::new(0);

/// Buckets of one copy of `reply_index`, less one; a power of two less one.
#[unsafe(no_mangle)]
pub static REPLY_INDEX_MASK: Global<u32> = Global::new(0);

/// Non-zero when `tuples` is as long as `connections`.
#[unsafe(no_mangle)]
pub static WIDE_TUPLES: Global<u32> = Global::new(0);

/// Rejections that a CPU may send in one tick.
#[unsafe(no_mangle)]
pub static REJECTS_PER_TICK: Global<u32> = Global::new(0);

/// Non-zero when a real server is reached by `nat`; zero lets the verifier remove the look-up of replies.
#[unsafe(no_mangle)]
pub static NAT_REPLIES: Global<u32> = Global::new(1);
