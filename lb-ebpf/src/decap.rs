//! The real server's end of `tun`: strips the outer header of packets whose inner destination is a VIP, of either family in
//! either (IPIP, 6in4, 4in6, IP6IP6).
//!
//! For kernels without a tunnel device. Everything else passes untouched.
//!
//! A congestion mark on the outer header goes to the inner one; a packet whose sender would not understand it is dropped
//! (RFC 6040 §4.2).

use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum::Delta;
use lb_common::net::Address;

use crate::encap::{PROTOCOL_IPIP, PROTOCOL_IPV6};
use crate::maps;
use crate::packet::{
    self, ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4_LENGTH, IPV6_LENGTH, Ipv4, Ipv6,
};

/// Elements of `decap_counters`: outer header times two plus inner one, IPv4 as 0 and IPv6 as 1; then those dropped.
const IPV6_OUTSIDE: u32 = 2;
const IPV6_INSIDE: u32 = 1;
const CONGESTED: u32 = 4;

/// Congestion field of the traffic class (RFC 3168 §5): the sender knows no marks, or congestion was met.
const NOT_CAPABLE: u8 = 0;
const CONGESTION: u8 = 3;

/// What the outer header says.
struct Outer {
    /// Its bytes.
    length: usize,
    /// Its part of the counter's number.
    counter: u32,
    /// Number of what it carries.
    protocol: u8,
    /// Whether congestion was met on the way.
    is_congested: bool,
}

/// What is to be done with a tunnelled packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inner {
    /// It goes to its VIP.
    Ours,
    /// It carries a congestion mark that its sender would not hear of.
    Congested,
}

/// Unwraps the packet where it is one of ours. False where it must be dropped.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> bool {
    let Some(ethernet) = packet::read::<Ethernet>(ctx, 0) else { return true };
    let outer = match ethernet.ethertype {
        ETHERTYPE_IPV4 => outer_ipv4(ctx),
        ETHERTYPE_IPV6 => outer_ipv6(ctx),
        _ => None,
    };
    let Some(outer) = outer else { return true };
    let (inner, ethertype, counter) = match outer.protocol {
        PROTOCOL_IPIP => (inner_ipv4(ctx, &outer), ETHERTYPE_IPV4, outer.counter),
        PROTOCOL_IPV6 => (inner_ipv6(ctx, &outer), ETHERTYPE_IPV6, outer.counter + IPV6_INSIDE),
        _ => return true,
    };
    match inner {
        None => return true,
        Some(Inner::Congested) => {
            count(CONGESTED);
            return false;
        }
        Some(Inner::Ours) => {}
    }
    // SAFETY: the context is the program's own; all packet pointers are made anew afterwards.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, outer.length as i32) } != 0 {
        return true;
    }
    // The look at the inner header proved that this fits.
    let Some(()) = packet::write(ctx, 0, Ethernet { ethertype, ..ethernet }) else { return true };
    count(counter);
    true
}

#[inline(always)]
fn outer_ipv4(ctx: &XdpContext) -> Option<Outer> {
    let header = packet::read::<Ipv4>(ctx, ETHERNET_LENGTH)?;
    let is_whole = u16::from_be(header.fragment) & 0x3fff == 0;
    (header.version_ihl == 0x45 && is_whole).then_some(Outer {
        length: IPV4_LENGTH,
        counter: 0,
        protocol: header.protocol,
        is_congested: header.tos & CONGESTION == CONGESTION,
    })
}

#[inline(always)]
fn outer_ipv6(ctx: &XdpContext) -> Option<Outer> {
    let header = packet::read::<Ipv6>(ctx, ETHERNET_LENGTH)?;
    let class = (u32::from_be(header.version_class_label) >> 20) as u8;
    Some(Outer {
        length: IPV6_LENGTH,
        counter: IPV6_OUTSIDE,
        protocol: header.next_header,
        is_congested: class & CONGESTION == CONGESTION,
    })
}

/// Looks at an IPv4 packet in `outer`; moves a congestion mark inwards. `None` where it is not ours.
#[inline(always)]
fn inner_ipv4(ctx: &XdpContext, outer: &Outer) -> Option<Inner> {
    let inner = packet::at::<Ipv4>(ctx, ETHERNET_LENGTH + outer.length)?;
    // SAFETY: `at` has checked that the header lies in the packet.
    let inner = unsafe { &mut *inner };
    if inner.version_ihl >> 4 != 4 || !is_vip(Address::from_ipv4_word(inner.destination)) {
        return None;
    }
    if outer.is_congested {
        if inner.tos & CONGESTION == NOT_CAPABLE {
            return Some(Inner::Congested);
        }
        let old = u16::from_ne_bytes([inner.version_ihl, inner.tos]);
        inner.tos |= CONGESTION;
        let new = u16::from_ne_bytes([inner.version_ihl, inner.tos]);
        inner.checksum = Delta::NONE.replace16(old, new).apply(inner.checksum);
    }
    Some(Inner::Ours)
}

/// Looks at an IPv6 packet in `outer`; moves a congestion mark inwards. `None` where it is not ours.
#[inline(always)]
fn inner_ipv6(ctx: &XdpContext, outer: &Outer) -> Option<Inner> {
    /// The congestion field in the first word of the header.
    const FIELD: u32 = (CONGESTION as u32) << 20;
    let inner = packet::at::<Ipv6>(ctx, ETHERNET_LENGTH + outer.length)?;
    // SAFETY: `at` has checked that the header lies in the packet.
    let inner = unsafe { &mut *inner };
    let word = u32::from_be(inner.version_class_label);
    let destination = Address::from_words(inner.destination);
    // A mapped address on the wire is not the IPv4 address that it would match.
    if word >> 28 != 6 || destination.is_ipv4() || !is_vip(destination) {
        return None;
    }
    if outer.is_congested {
        if word & FIELD == 0 {
            return Some(Inner::Congested);
        }
        inner.version_class_label = (word | FIELD).to_be();
    }
    Some(Inner::Ours)
}

#[inline(always)]
fn is_vip(destination: Address) -> bool {
    // SAFETY: only the presence of the key matters.
    unsafe { maps::DECAP_VIPS.get(destination) }.is_some()
}

#[inline(always)]
fn count(counter: u32) {
    if let Some(counter) = maps::DECAP_COUNTERS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own element; nothing else writes it while the program runs.
        unsafe { *counter += 1 };
    }
}
