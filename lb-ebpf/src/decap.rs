//! The real server's end of `tun`: strips the outer header of IPIP and IP6IP6 whose inner destination is a VIP.
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

/// Elements of `decap_counters`.
const IPIP: u32 = 0;
const IP6IP6: u32 = 1;
const CONGESTED: u32 = 2;

/// Congestion field of the traffic class (RFC 3168 §5): the sender knows no marks, or congestion was met.
const NOT_CAPABLE: u8 = 0;
const CONGESTION: u8 = 3;

/// What is to be done with a packet.
enum Found {
    /// Not tunnelled, or not for us.
    Other,
    /// Tunnelled for us: bytes of the outer header, and which counter it goes to.
    Tunnelled(usize, u32),
    /// Tunnelled for us, but with a congestion mark that its sender would not hear of.
    Congested,
}

/// Unwraps the packet where it is one of ours. False where it must be dropped.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> bool {
    let Some(ethernet) = packet::read::<Ethernet>(ctx, 0) else { return true };
    let found = match ethernet.ethertype {
        ETHERTYPE_IPV4 => ipv4(ctx).unwrap_or(Found::Other),
        ETHERTYPE_IPV6 => ipv6(ctx).unwrap_or(Found::Other),
        _ => Found::Other,
    };
    let (overhead, counter) = match found {
        Found::Other => return true,
        Found::Tunnelled(overhead, counter) => (overhead, counter),
        Found::Congested => {
            count(CONGESTED);
            return false;
        }
    };
    // SAFETY: the context is the program's own; all packet pointers are made anew afterwards.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, overhead as i32) } != 0 {
        return true;
    }
    // The look at the inner header proved that this fits.
    let Some(()) = packet::write(ctx, 0, ethernet) else { return true };
    count(counter);
    true
}

/// Looks at an IPv4 packet; moves a congestion mark inwards.
#[inline(always)]
fn ipv4(ctx: &XdpContext) -> Option<Found> {
    let outer = packet::read::<Ipv4>(ctx, ETHERNET_LENGTH)?;
    let whole = u16::from_be(outer.fragment) & 0x3fff == 0;
    if outer.version_ihl != 0x45 || outer.protocol != PROTOCOL_IPIP || !whole {
        return None;
    }
    let inner = packet::at::<Ipv4>(ctx, ETHERNET_LENGTH + IPV4_LENGTH)?;
    // SAFETY: `at` has checked that the header lies in the packet.
    let inner = unsafe { &mut *inner };
    if inner.version_ihl >> 4 != 4 || !is_vip(Address::from_ipv4_word(inner.destination)) {
        return None;
    }
    if outer.tos & CONGESTION == CONGESTION {
        if inner.tos & CONGESTION == NOT_CAPABLE {
            return Some(Found::Congested);
        }
        let old = u16::from_ne_bytes([inner.version_ihl, inner.tos]);
        inner.tos |= CONGESTION;
        let new = u16::from_ne_bytes([inner.version_ihl, inner.tos]);
        inner.checksum = Delta::NONE.replace16(old, new).apply(inner.checksum);
    }
    Some(Found::Tunnelled(IPV4_LENGTH, IPIP))
}

/// Looks at an IPv6 packet; moves a congestion mark inwards.
#[inline(always)]
fn ipv6(ctx: &XdpContext) -> Option<Found> {
    /// The congestion field in the first word of the header.
    const FIELD: u32 = (CONGESTION as u32) << 20;
    let outer = packet::read::<Ipv6>(ctx, ETHERNET_LENGTH)?;
    if outer.next_header != PROTOCOL_IPV6 {
        return None;
    }
    let inner = packet::at::<Ipv6>(ctx, ETHERNET_LENGTH + IPV6_LENGTH)?;
    // SAFETY: `at` has checked that the header lies in the packet.
    let inner = unsafe { &mut *inner };
    let word = u32::from_be(inner.version_class_label);
    if word >> 28 != 6 || !is_vip(Address::from_words(inner.destination)) {
        return None;
    }
    if u32::from_be(outer.version_class_label) & FIELD == FIELD {
        if word & FIELD == 0 {
            return Some(Found::Congested);
        }
        inner.version_class_label = (word | FIELD).to_be();
    }
    Some(Found::Tunnelled(IPV6_LENGTH, IP6IP6))
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
