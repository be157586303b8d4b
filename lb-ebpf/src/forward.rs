//! The way out: interface, Ethernet addresses and MTU of the next hop.
//!
//! User space keeps the way to each real server in `real_servers`; the kernel's routing table is asked only where it
//! could not, and for replies to clients.

use aya_ebpf::bindings::{bpf_fib_lookup as FibLookup, xdp_md};
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use aya_ebpf::programs::XdpContext;
use lb_common::INTERFACES_LENGTH;
use lb_common::connection::ConnectionEntry;
use lb_common::drop_reason::DropReason;
use lb_common::net::{Address, MacAddress};
use lb_common::real::{NextHopState, RealServerEntry};

use crate::maps;
use crate::packet::{self, Ethernet};
use crate::parse::Packet;
use crate::verdict::Verdict;

/// Where and how a frame leaves.
#[derive(Clone, Copy)]
pub struct Egress {
    pub ifindex: u32,
    pub destination: MacAddress,
    pub source: MacAddress,
}

impl Egress {
    const NOWHERE: Self = Self { ifindex: 0, destination: MacAddress::ZERO, source: MacAddress::ZERO };
}

/// The way to `real` for an IP packet of `length` bytes, encapsulation included, from address `source`.
///
/// Not inlined, like its neighbours, to spare the caller's stack.
#[inline(never)]
pub fn to_real_server(
    ctx: *mut xdp_md,
    real: &RealServerEntry,
    source: &Address,
    length: u32,
) -> Result<Egress, DropReason> {
    let hop = &real.next_hop;
    let egress = match hop.state {
        NextHopState::Resolved if length > hop.mtu => return Err(DropReason::PacketTooBig),
        NextHopState::Resolved => Egress { ifindex: hop.ifindex, destination: hop.destination, source: hop.source },
        NextHopState::Unusable => return Err(DropReason::NoRoute),
        NextHopState::Unresolved => {
            let mut egress = Egress::NOWHERE;
            match route(ctx, source, &real.address, length, &mut egress) {
                answer::SUCCESS => egress,
                answer::FRAGMENTATION_NEEDED => return Err(DropReason::PacketTooBig),
                answer::NO_NEIGHBOUR => return Err(DropReason::NoNeighbour),
                answer::FORWARDING_DISABLED => return Err(DropReason::ForwardingDisabled),
                _ => return Err(DropReason::NoRoute),
            }
        }
    };
    permitted(ctx, egress)
}

/// The way to the client of a `nat` reply: by the routing table, else back to where its packets came from.
#[inline(never)]
pub fn to_client(ctx: *mut xdp_md, packet: &Packet, entry: &ConnectionEntry) -> Result<Egress, DropReason> {
    let mut egress = Egress::NOWHERE;
    match route(ctx, &entry.vip, &packet.flow.destination, packet.length, &mut egress) {
        answer::SUCCESS => {
            if let Ok(egress) = permitted(ctx, egress) {
                return Ok(egress);
            }
        }
        answer::FRAGMENTATION_NEEDED => return Err(DropReason::PacketTooBig),
        answer::BLACKHOLE | answer::UNREACHABLE | answer::PROHIBIT => return Err(DropReason::NoRoute),
        _ => {} // local, no route, no neighbour, forwarding off
    }
    let back = Egress { ifindex: entry.client_ifindex, destination: entry.client_mac, source: entry.director_mac };
    permitted(ctx, back)
}

/// Writes the Ethernet header for `egress` and sends the frame there.
#[inline(always)]
pub fn send(ctx: &XdpContext, egress: &Egress, ethertype: u16) -> Result<Verdict, DropReason> {
    let header = Ethernet { destination: egress.destination, source: egress.source, ethertype };
    packet::write(ctx, 0, header).ok_or(DropReason::Malformed)?;
    if egress.ifindex == ctx.ingress_ifindex() as u32 {
        return Ok(Verdict::Transmit);
    }
    Ok(Verdict::Redirect(egress.ifindex))
}

/// Redirects only to interfaces that have the program: a driver is only sure to take redirected frames then, and one that
/// does not take them drops them where nobody counts.
#[inline(always)]
fn permitted(ctx: *mut xdp_md, egress: Egress) -> Result<Egress, DropReason> {
    // SAFETY: the context is valid for as long as the program runs.
    if egress.ifindex == unsafe { (*ctx).ingress_ifindex } {
        return Ok(egress);
    }
    match maps::INTERFACES.get(egress.ifindex % INTERFACES_LENGTH) {
        Some(interface) if interface.ifindex == egress.ifindex => Ok(egress),
        _ => Err(DropReason::UnlistedInterface),
    }
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Return values of `bpf_fib_lookup` (`BPF_FIB_LKUP_RET_*`).
mod answer {
    pub const SUCCESS: i64 = 0;
    pub const BLACKHOLE: i64 = 1;
    pub const UNREACHABLE: i64 = 2;
    pub const PROHIBIT: i64 = 3;
    pub const FORWARDING_DISABLED: i64 = 5;
    pub const NO_NEIGHBOUR: i64 = 7;
    pub const FRAGMENTATION_NEEDED: i64 = 8;
}

/// Not inlined: the query would otherwise lie on the caller's stack once for each use.
#[inline(never)]
fn route(ctx: *mut xdp_md, source: &Address, destination: &Address, length: u32, egress: &mut Egress) -> i64 {
    // SAFETY: a struct of integers, of which all zero is a value.
    let mut query: FibLookup = unsafe { core::mem::zeroed() };
    let (from, to) = (source.words(), destination.words());
    // SAFETY: the context is valid for as long as the program runs.
    query.ifindex = unsafe { (*ctx).ingress_ifindex };
    query.__bindgen_anon_1.tot_len = length as u16;
    if destination.is_ipv4() {
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = from[3];
        query.__bindgen_anon_4.ipv4_dst = to[3];
    } else {
        query.family = AF_INET6;
        query.__bindgen_anon_3.ipv6_src = from;
        query.__bindgen_anon_4.ipv6_dst = to;
    }
    // SAFETY: context and query are valid, the length is the query's.
    let answer = unsafe { bpf_fib_lookup(ctx.cast(), (&raw mut query).cast(), size_of::<FibLookup>() as i32, 0) };
    egress.ifindex = query.ifindex;
    egress.destination.octets = query.dmac;
    egress.source.octets = query.smac;
    answer
}
