//! The real server's end of `tun`: strips the outer header of IPIP and IP6IP6 whose inner destination is a VIP.
//!
//! For kernels without a tunnel device. Everything else passes untouched.

use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use aya_ebpf::programs::XdpContext;
use lb_common::net::Address;

use crate::encap::{PROTOCOL_IPIP, PROTOCOL_IPV6};
use crate::maps;
use crate::packet::{
    self, ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4_LENGTH, IPV6_LENGTH, Ipv4, Ipv6,
};

/// Elements of `decap_counters`.
const IPIP: u32 = 0;
const IP6IP6: u32 = 1;

/// Unwraps the packet where it is one of ours; it passes either way.
#[inline(always)]
pub fn run(ctx: &XdpContext) {
    let Some(ethernet) = packet::read::<Ethernet>(ctx, 0) else { return };
    let (overhead, counter) = match ethernet.ethertype {
        ETHERTYPE_IPV4 if carries_ipv4(ctx) == Some(true) => (IPV4_LENGTH, IPIP),
        ETHERTYPE_IPV6 if carries_ipv6(ctx) == Some(true) => (IPV6_LENGTH, IP6IP6),
        _ => return,
    };
    // SAFETY: the context is the program's own; all packet pointers are made anew afterwards.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, overhead as i32) } != 0 {
        return;
    }
    // The look at the inner header proved that this fits.
    let Some(()) = packet::write(ctx, 0, ethernet) else { return };
    if let Some(counter) = maps::DECAP_COUNTERS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own element; nothing else writes it while the program runs.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
fn carries_ipv4(ctx: &XdpContext) -> Option<bool> {
    let outer = packet::read::<Ipv4>(ctx, ETHERNET_LENGTH)?;
    let whole = u16::from_be(outer.fragment) & 0x3fff == 0;
    if outer.version_ihl != 0x45 || outer.protocol != PROTOCOL_IPIP || !whole {
        return None;
    }
    let inner = packet::read::<Ipv4>(ctx, ETHERNET_LENGTH + IPV4_LENGTH)?;
    Some(inner.version_ihl >> 4 == 4 && is_vip(Address::from_ipv4_word(inner.destination)))
}

#[inline(always)]
fn carries_ipv6(ctx: &XdpContext) -> Option<bool> {
    let outer = packet::read::<Ipv6>(ctx, ETHERNET_LENGTH)?;
    if outer.next_header != PROTOCOL_IPV6 {
        return None;
    }
    let inner = packet::read::<Ipv6>(ctx, ETHERNET_LENGTH + IPV6_LENGTH)?;
    let version = u32::from_be(inner.version_class_label) >> 28;
    Some(version == 6 && is_vip(Address::from_words(inner.destination)))
}

#[inline(always)]
fn is_vip(destination: Address) -> bool {
    // SAFETY: only the presence of the key matters.
    unsafe { maps::DECAP_VIPS.get(destination) }.is_some()
}
