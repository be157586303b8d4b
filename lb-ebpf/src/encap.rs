//! Encapsulation for `tun`: IPIP (RFC 2003) and IP6IP6 (RFC 2473).

use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use aya_ebpf::programs::XdpContext;
use lb_common::drop_reason::DropReason;
use lb_common::real::RealServerEntry;

use crate::packet::{self, ETHERNET_LENGTH, IPV4_LENGTH, IPV6_LENGTH, Ipv4, Ipv6};
use crate::parse::Packet;

/// Protocol number of IPv4 in IP (RFC 2003 §3.1).
pub const PROTOCOL_IPIP: u8 = 4;
/// Next header number of IPv6 in IPv6 (RFC 2473 §5).
pub const PROTOCOL_IPV6: u8 = 41;

/// Time to live of the outer header: RFC 1340's recommendation, independent of the inner one (RFC 2003 §3.1).
const OUTER_TTL: u8 = 64;
/// "Don't fragment", as it lies in memory.
const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();

/// Bytes that encapsulation adds to a packet.
#[inline(always)]
pub const fn overhead(is_ipv4: bool) -> u32 {
    if is_ipv4 { IPV4_LENGTH as u32 } else { IPV6_LENGTH as u32 }
}

/// Puts the outer header before the packet; the Ethernet header is left for the caller to write.
#[inline(always)]
pub fn wrap(ctx: &XdpContext, packet: &Packet, real: &RealServerEntry) -> Result<(), DropReason> {
    if packet.is_ipv4 { wrap_ipv4(ctx, packet, real) } else { wrap_ipv6(ctx, packet, real) }
}

#[inline(always)]
fn wrap_ipv4(ctx: &XdpContext, packet: &Packet, real: &RealServerEntry) -> Result<(), DropReason> {
    let inner = packet::read::<Ipv4>(ctx, ETHERNET_LENGTH).ok_or(DropReason::Malformed)?;
    let mut outer = Ipv4 {
        version_ihl: 0x45,
        tos: inner.tos, // class and congestion marks, RFC 6040 §4.1
        total_length: (packet.length as u16 + IPV4_LENGTH as u16).to_be(),
        // Where a router may fragment the outer packet it needs an identification; the inner one is at hand.
        identification: inner.identification,
        fragment: inner.fragment & DONT_FRAGMENT,
        ttl: OUTER_TTL,
        protocol: PROTOCOL_IPIP,
        checksum: 0,
        source: real.tunnel_source.words()[3],
        destination: real.address.words()[3],
    };
    outer.checksum = outer.sum_of_header();
    grow(ctx, IPV4_LENGTH)?;
    packet::write(ctx, ETHERNET_LENGTH, outer).ok_or(DropReason::Malformed)
}

#[inline(always)]
fn wrap_ipv6(ctx: &XdpContext, packet: &Packet, real: &RealServerEntry) -> Result<(), DropReason> {
    let inner = packet::read::<Ipv6>(ctx, ETHERNET_LENGTH).ok_or(DropReason::Malformed)?;
    let outer = Ipv6 {
        // The inner flow label spreads tunnelled flows over equal paths and queues (RFC 6438 §3).
        version_class_label: inner.version_class_label,
        payload_length: (packet.length as u16).to_be(),
        next_header: PROTOCOL_IPV6,
        hop_limit: OUTER_TTL,
        source: real.tunnel_source.words(),
        destination: real.address.words(),
    };
    grow(ctx, IPV6_LENGTH)?;
    packet::write(ctx, ETHERNET_LENGTH, outer).ok_or(DropReason::Malformed)
}

/// Moves the packet's start `bytes` forward into the headroom.
#[inline(always)]
fn grow(ctx: &XdpContext, bytes: usize) -> Result<(), DropReason> {
    // SAFETY: the context is the program's own; all packet pointers are made anew afterwards.
    match unsafe { bpf_xdp_adjust_head(ctx.ctx, -(bytes as i32)) } {
        0 => Ok(()),
        _ => Err(DropReason::NoHeadroom),
    }
}
