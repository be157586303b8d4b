//! The kernel's routing table, for the ways that user space has not resolved.
//!
//! Asked for single packets only: a look-up costs ten times what forwarding a packet does otherwise.

use aya_ebpf::bindings::{bpf_fib_lookup as FibLookup, xdp_md};
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use aya_ebpf::programs::XdpContext;
use lb_common::INTERFACES_LENGTH;
use lb_common::net::{Address, MacAddress};
use lb_common::service::ForwardingMethod;

use crate::forward::Egress;
use crate::packet::{self, ETHERNET_LENGTH, ETHERTYPE_IPV4, Ethernet, Ipv4, Ipv6};
use crate::{arrival, maps, service};

/// Answers of the functions below: `BPF_FIB_LKUP_RET_*`, and one of our own.
pub mod answer {
    pub const SUCCESS: u32 = 0;
    pub const BLACKHOLE: u32 = 1;
    pub const UNREACHABLE: u32 = 2;
    pub const PROHIBIT: u32 = 3;
    /// Local, or no route.
    pub const NOT_FORWARDED: u32 = 4;
    pub const FORWARDING_DISABLED: u32 = 5;
    pub const NO_NEIGHBOUR: u32 = 7;
    pub const FRAGMENTATION_NEEDED: u32 = 8;
    /// Out of an interface without the program.
    pub const NOT_PERMITTED: u32 = 100;
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The way to real server `index` for the packet, which is `length` bytes long then. One of [`answer`]; the way itself is
/// [`found`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn route_to_server(ctx: *mut xdp_md, index: u32, length: u32) -> u32 {
    let Some(real) = maps::REAL_SERVERS.get(index) else { return answer::NOT_FORWARDED };
    let source = match real.forwarding {
        ForwardingMethod::Nat | ForwardingMethod::Dr => addresses(ctx).map(|(source, _)| source),
        ForwardingMethod::Tun => Some(real.tunnel_source),
    };
    let Some(source) = source else { return answer::NOT_FORWARDED };
    look_up(ctx, &source, &real.address, length)
}

pub use route_to_server as to_real_server;

/// The way to the client that the packet is for, once virtual server `index` is its source. As [`route_to_server`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn route_to_client(ctx: *mut xdp_md, index: u32, length: u32) -> u32 {
    let Some(service) = service::by_index(index) else { return answer::NOT_FORWARDED };
    let Some((_, client)) = addresses(ctx) else { return answer::NOT_FORWARDED };
    look_up(ctx, &service.key.vip, &client, length)
}

pub use route_to_client as to_client;

/// What this packet's last look-up has found.
#[inline(always)]
pub fn found() -> Option<Egress> {
    let hop = maps::ROUTE.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element; nothing else writes it while the program runs.
    Some(unsafe { *hop })
}

/// The MTU of the way that this packet's last look-up has found too narrow.
#[inline(always)]
pub fn mtu() -> u32 {
    found().map_or(0, |egress| egress.mtu)
}

/// Source and destination of the packet.
#[inline(always)]
fn addresses(ctx: *mut xdp_md) -> Option<(Address, Address)> {
    let ctx = XdpContext::new(ctx);
    let ethernet = packet::read::<Ethernet>(&ctx, 0)?;
    if ethernet.ethertype == ETHERTYPE_IPV4 {
        let header = packet::read::<Ipv4>(&ctx, ETHERNET_LENGTH)?;
        return Some((Address::from_ipv4_word(header.source), Address::from_ipv4_word(header.destination)));
    }
    let header = packet::read::<Ipv6>(&ctx, ETHERNET_LENGTH)?;
    Some((Address::from_words(header.source), Address::from_words(header.destination)))
}

#[inline(always)]
fn look_up(ctx: *mut xdp_md, source: &Address, destination: &Address, length: u32) -> u32 {
    // SAFETY: a struct of integers, of which all zero is a value.
    let mut query: FibLookup = unsafe { core::mem::zeroed() };
    let (from, to) = (source.words(), destination.words());
    query.ifindex = arrival::ifindex(ctx);
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
    let answer = answer as u32;
    if answer != answer::SUCCESS && answer != answer::FRAGMENTATION_NEEDED {
        return answer;
    }
    if answer == answer::SUCCESS && !is_permitted(ctx, query.ifindex) {
        return answer::NOT_PERMITTED;
    }
    let Some(hop) = maps::ROUTE.get_ptr_mut(0) else { return answer::NOT_FORWARDED };
    // SAFETY: with these two answers the kernel has put the route's MTU in the place of the length (Linux 5.12).
    let mtu = u32::from(unsafe { query.__bindgen_anon_1.mtu_result });
    let egress = Egress {
        ifindex: query.ifindex,
        mtu,
        destination: MacAddress { octets: query.dmac },
        source: MacAddress { octets: query.smac },
    };
    // SAFETY: this CPU's own element; nothing else writes it while the program runs.
    unsafe { *hop = egress };
    answer
}

/// Redirects only to interfaces that have the program: a driver is only sure to take redirected frames then, and one that
/// does not take them drops them where nobody counts.
#[inline(always)]
fn is_permitted(ctx: *mut xdp_md, ifindex: u32) -> bool {
    // SAFETY: the context is valid for as long as the program runs.
    if ifindex == unsafe { (*ctx).ingress_ifindex } {
        return true;
    }
    maps::INTERFACES.get(ifindex % INTERFACES_LENGTH).is_some_and(|interface| interface.ifindex == ifindex)
}
