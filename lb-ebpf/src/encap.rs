//! Encapsulation for `tun`: either family in either, IPIP (RFC 2003), 6in4 (RFC 4213), 4in6 and IP6IP6 (RFC 2473).
//!
//! The outer header is of the family of the real server's address.

use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use aya_ebpf::programs::XdpContext;
use lb_common::drop_reason::DropReason;
use lb_common::hash;
use lb_common::real::{RealServerEntry, real_flag};

use crate::packet::{self, ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LENGTH, IPV6_LENGTH, Ipv4, Ipv6};
use crate::parse::Packet;

/// Protocol number of IPv4 in IP (RFC 2003 §3.1).
pub const PROTOCOL_IPIP: u8 = 4;
/// Protocol number of IPv6 in IP (RFC 2473 §5, RFC 4213 §3.5).
pub const PROTOCOL_IPV6: u8 = 41;

/// Time to live of the outer header: RFC 1340's recommendation, independent of the inner one (RFC 2003 §3.1).
const OUTER_TTL: u8 = 64;
/// "Don't fragment", as it lies in memory.
const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();
/// Bits of a flow label (RFC 8200 §3).
const FLOW_LABEL: u32 = 0xf_ffff;

/// Whether the outer header on the way to `real` is IPv6.
#[inline(always)]
fn is_ipv6(real: &RealServerEntry) -> bool {
    real.flags & real_flag::IPV6 != 0
}

/// Bytes that encapsulation for `real` adds to a packet.
#[inline(always)]
pub fn overhead(real: &RealServerEntry) -> u32 {
    if is_ipv6(real) { IPV6_LENGTH as u32 } else { IPV4_LENGTH as u32 }
}

/// The EtherType of a packet that has been wrapped for `real`.
#[inline(always)]
pub fn ethertype(real: &RealServerEntry) -> u16 {
    if is_ipv6(real) { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 }
}

/// What of the inner header shows on the outer one.
struct Inner {
    /// Version 6, class with congestion marks (RFC 6040 §4.1), flow label; network order.
    version_class_label: u32,
    /// As they lie in an IPv4 header.
    identification: u16,
    fragment: u16,
    protocol: u8,
}

/// Puts the outer header before the packet; the Ethernet header is left for the caller to write.
#[inline(always)]
pub fn wrap(ctx: &XdpContext, packet: &Packet, real: &RealServerEntry) -> Result<(), DropReason> {
    let inner = if packet.is_ipv4 { ipv4(ctx, packet, real)? } else { ipv6(ctx)? };
    let mut source = real.tunnel_source.words();
    if real.tunnel_spread != 0 {
        // The receiving network card spreads tunnelled packets by their outer addresses alone.
        source[3] |= flow(packet) & real.tunnel_spread;
    }
    if is_ipv6(real) {
        let outer = Ipv6 {
            version_class_label: inner.version_class_label,
            payload_length: (packet.length as u16).to_be(),
            next_header: inner.protocol,
            hop_limit: OUTER_TTL,
            source,
            destination: real.address.words(),
        };
        grow(ctx, IPV6_LENGTH)?;
        return packet::write(ctx, ETHERNET_LENGTH, outer).ok_or(DropReason::Malformed);
    }
    let mut outer = Ipv4 {
        version_ihl: 0x45,
        tos: (u32::from_be(inner.version_class_label) >> 20) as u8,
        total_length: (packet.length as u16 + IPV4_LENGTH as u16).to_be(),
        identification: inner.identification,
        fragment: inner.fragment,
        ttl: OUTER_TTL,
        protocol: inner.protocol,
        checksum: 0,
        source: source[3],
        destination: real.address.words()[3],
    };
    outer.checksum = outer.sum_of_header();
    grow(ctx, IPV4_LENGTH)?;
    packet::write(ctx, ETHERNET_LENGTH, outer).ok_or(DropReason::Malformed)
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, packet: &Packet, real: &RealServerEntry) -> Result<Inner, DropReason> {
    let header = packet::read::<Ipv4>(ctx, ETHERNET_LENGTH).ok_or(DropReason::Malformed)?;
    // There is no inner flow label to spread by (RFC 6438 §3).
    let label = if is_ipv6(real) { flow(packet) & FLOW_LABEL } else { 0 };
    Ok(Inner {
        version_class_label: (6 << 28 | u32::from(header.tos) << 20 | label).to_be(),
        // Where a router may fragment the outer packet it needs an identification; the inner one is at hand.
        identification: header.identification,
        fragment: header.fragment & DONT_FRAGMENT,
        protocol: PROTOCOL_IPIP,
    })
}

#[inline(always)]
fn ipv6(ctx: &XdpContext) -> Result<Inner, DropReason> {
    let header = packet::read::<Ipv6>(ctx, ETHERNET_LENGTH).ok_or(DropReason::Malformed)?;
    Ok(Inner {
        // The inner flow label spreads tunnelled flows over equal paths and queues (RFC 6438 §3).
        version_class_label: header.version_class_label,
        // No router fragments IPv6, so none may fragment what carries it; that needs no identification (RFC 6864 §4.1).
        identification: 0,
        fragment: DONT_FRAGMENT,
        protocol: PROTOCOL_IPV6,
    })
}

#[inline(always)]
fn flow(packet: &Packet) -> u32 {
    let ports = u32::from(packet.source_port.number()) | u32::from(packet.destination_port.number()) << 16;
    hash::flow(packet.source.halves(), ports)
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
