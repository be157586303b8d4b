//! The way out: interface, Ethernet addresses and MTU of the next hop.
//!
//! User space keeps the way to each real server in `real_servers`, and `client_hops` remembers ways back to clients; the
//! kernel's routing table is asked only where neither knows.

use aya_ebpf::bindings::{bpf_fib_lookup as FibLookup, xdp_md};
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use aya_ebpf::programs::XdpContext;
use lb_common::drop_reason::DropReason;
use lb_common::net::{Address, MacAddress};
use lb_common::real::{NextHop, NextHopState, RealServerEntry};
use lb_common::service::ForwardingMethod;
use lb_common::INTERFACES_LENGTH;

use crate::encap;
use crate::maps;
use crate::packet::{self, Ethernet};
use crate::parse::Packet;
use crate::verdict::Verdict;

/// Where and how a frame leaves.
#[derive(Clone, Copy)]
pub struct Egress {
    pub ifindex: u32,
    /// Largest IP packet that goes this way.
    pub mtu: u32,
    pub destination: MacAddress,
    pub source: MacAddress,
}

impl Egress {
    const NOWHERE: Self = Self { ifindex: 0, mtu: 0, destination: MacAddress::ZERO, source: MacAddress::ZERO };
}

/// Where a packet goes next.
#[derive(Clone, Copy)]
pub enum Way {
    /// Out of an interface.
    Out(Egress),
    /// Up to this host, which is the real server itself.
    Up,
}

/// The way to `real` for a packet that is forwarded by its method.
#[inline(always)]
pub fn to_real_server(ctx: &XdpContext, packet: &Packet, real: &RealServerEntry) -> Result<Way, DropReason> {
    let (source, length) = match real.forwarding {
        ForwardingMethod::Nat | ForwardingMethod::Dr => (&packet.source, packet.length),
        // Without a route, user space knows no address of ours that the outer header could carry.
        ForwardingMethod::Tun if real.tunnel_source.halves() == [0; 2] => return Err(DropReason::NoRoute),
        ForwardingMethod::Tun => (&real.tunnel_source, packet.length + encap::overhead(packet.is_ipv4)),
    };
    let hop = &real.next_hop;
    match hop.state {
        NextHopState::Resolved if length > hop.mtu => Err(DropReason::PacketTooBig),
        NextHopState::Resolved => Ok(Way::Out(known(hop))),
        NextHopState::Unresolved => {
            let mut egress = Egress::NOWHERE;
            // A copy, because what a function of its own is given a pointer to would lie on the stack for every packet.
            let source = *source;
            match route(ctx.ctx, &source, &real.address, length, &mut egress) {
                answer::SUCCESS if is_permitted(ctx.ctx, egress.ifindex) => Ok(Way::Out(egress)),
                answer::SUCCESS => Err(DropReason::UnlistedInterface),
                answer::FRAGMENTATION_NEEDED => Err(DropReason::PacketTooBig),
                answer::NO_NEIGHBOUR => Err(DropReason::NoNeighbour),
                answer::FORWARDING_DISABLED => Err(DropReason::ForwardingDisabled),
                _ => Err(DropReason::NoRoute),
            }
        }
        NextHopState::Unusable => Err(DropReason::NoRoute),
        NextHopState::Unlisted => Err(DropReason::UnlistedInterface),
        NextHopState::Local => Ok(Way::Up),
    }
}

#[inline(always)]
fn known(hop: &NextHop) -> Egress {
    Egress { ifindex: hop.ifindex, mtu: hop.mtu, destination: hop.destination, source: hop.source }
}

/// The way to a client by the routing table; `None` where that knows no next hop.
#[inline(always)]
pub fn by_route(ctx: *mut xdp_md, vip: &Address, packet: &Packet) -> Result<Option<Egress>, DropReason> {
    let mut egress = Egress::NOWHERE;
    let (source, destination) = (*vip, packet.destination);
    match route(ctx, &source, &destination, packet.length, &mut egress) {
        answer::SUCCESS => Ok(is_permitted(ctx, egress.ifindex).then_some(egress)),
        answer::FRAGMENTATION_NEEDED => Err(DropReason::PacketTooBig),
        answer::BLACKHOLE | answer::UNREACHABLE | answer::PROHIBIT => Err(DropReason::NoRoute),
        _ => Ok(None), // local, no route, no neighbour, forwarding off
    }
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
pub fn is_permitted(ctx: *mut xdp_md, ifindex: u32) -> bool {
    // SAFETY: the context is valid for as long as the program runs.
    if ifindex == unsafe { (*ctx).ingress_ifindex } {
        return true;
    }
    maps::INTERFACES.get(ifindex % INTERFACES_LENGTH).is_some_and(|interface| interface.ifindex == ifindex)
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
    // SAFETY: on success the kernel has put the route's MTU in the place of the length (Linux 5.12).
    egress.mtu = u32::from(unsafe { query.__bindgen_anon_1.mtu_result });
    answer
}
