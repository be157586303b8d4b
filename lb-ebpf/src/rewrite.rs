//! Changes in place: addresses and ports for `nat`, the time to live for every method, and the checksums over them.
//!
//! Everything is checked before the first byte changes, so that a packet is rewritten whole or not at all.

use aya_ebpf::programs::XdpContext;
use lb_common::checksum::Delta;
use lb_common::drop_reason::DropReason;
use lb_common::net::{Address, Port, Protocol};

use crate::packet::{self, ETHERNET_LENGTH, Ipv4, Ipv6, Ports};
use crate::parse::Packet;

/// Which end of the five-tuple changes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// What one end of the five-tuple becomes, and what that does to checksums.
#[derive(Clone, Copy)]
pub struct Translation {
    pub end: End,
    pub address: Address,
    pub port: Port,
    /// By the address alone: the IPv4 header's.
    pub addresses: Delta,
    /// By address and port: the transport header's.
    pub transport: Delta,
}

/// Sets address and port of one end, and takes one from the time to live.
#[inline(always)]
pub fn translate(ctx: &XdpContext, packet: &Packet, to: &Translation) -> Result<(), DropReason> {
    let ports = packet::at::<Ports>(ctx, packet.transport).ok_or(DropReason::Malformed)?;
    match packet.protocol {
        Protocol::Tcp => {
            let field = packet::at::<u16>(ctx, packet.transport + 16).ok_or(DropReason::Malformed)?;
            // SAFETY: `at` has checked that the field lies in the packet.
            unsafe { *field = to.transport.apply(*field) };
        }
        Protocol::Udp => {
            let field = packet::at::<u16>(ctx, packet.transport + 6).ok_or(DropReason::Malformed)?;
            // SAFETY: as above.
            unsafe { *field = to.transport.apply_udp(*field) };
        }
        // User space refuses it: the checksum, a CRC over all of the packet, would have to be made anew.
        Protocol::Sctp => return Err(DropReason::Malformed),
    }
    // SAFETY: `at` has checked that both ports lie in the packet.
    unsafe {
        match to.end {
            End::Source => (*ports).source = to.port.to_wire(),
            End::Destination => (*ports).destination = to.port.to_wire(),
        }
    }
    let change = Some((to.end, to.address));
    if packet.is_ipv4 { set_ipv4(ctx, change, to.addresses) } else { set_ipv6(ctx, change) }
}

/// Sets both addresses and takes one from the time to live: what there is to do to a fragment without transport header.
#[inline(always)]
pub fn readdress(ctx: &XdpContext, packet: &Packet, source: &Address, destination: &Address) -> Result<(), DropReason> {
    if packet.is_ipv4 {
        let (from, to) = (packet.source.words()[3], packet.destination.words()[3]);
        let delta = Delta::NONE.replace32(from, source.words()[3]).replace32(to, destination.words()[3]);
        set_ipv4(ctx, Some((End::Source, *source)), delta)?;
        let header = packet::at::<Ipv4>(ctx, ETHERNET_LENGTH).ok_or(DropReason::Malformed)?;
        // SAFETY: `at` has checked that the header lies in the packet.
        unsafe { (*header).destination = destination.words()[3] };
    } else {
        set_ipv6(ctx, Some((End::Source, *source)))?;
        let header = packet::at::<Ipv6>(ctx, ETHERNET_LENGTH).ok_or(DropReason::Malformed)?;
        // SAFETY: as above.
        unsafe { (*header).destination = destination.words() };
    }
    Ok(())
}

/// Takes one from the time to live or hop limit, as every router does (RFC 1812 §5.3.1, RFC 8200 §3).
#[inline(always)]
pub fn decrement_ttl(ctx: &XdpContext, packet: &Packet) -> Result<(), DropReason> {
    if packet.is_ipv4 { set_ipv4(ctx, None, Delta::NONE) } else { set_ipv6(ctx, None) }
}

/// Takes one from the time to live, and sets the address of one end, which does `addresses` to the header's checksum.
#[inline(always)]
pub fn set_ipv4(ctx: &XdpContext, change: Option<(End, Address)>, addresses: Delta) -> Result<(), DropReason> {
    let header = packet::at::<Ipv4>(ctx, ETHERNET_LENGTH).ok_or(DropReason::Malformed)?;
    // SAFETY: `at` has checked that the header lies in the packet.
    let header = unsafe { &mut *header };
    let old = u16::from_ne_bytes([header.ttl, header.protocol]);
    header.ttl = header.ttl.wrapping_sub(1);
    let new = u16::from_ne_bytes([header.ttl, header.protocol]);
    header.checksum = addresses.replace16(old, new).apply(header.checksum);
    match change {
        Some((End::Source, address)) => header.source = address.words()[3],
        Some((End::Destination, address)) => header.destination = address.words()[3],
        None => {}
    }
    Ok(())
}

/// Takes one from the hop limit, and sets the address of one end.
#[inline(always)]
pub fn set_ipv6(ctx: &XdpContext, change: Option<(End, Address)>) -> Result<(), DropReason> {
    let header = packet::at::<Ipv6>(ctx, ETHERNET_LENGTH).ok_or(DropReason::Malformed)?;
    // SAFETY: `at` has checked that the header lies in the packet.
    let header = unsafe { &mut *header };
    header.hop_limit = header.hop_limit.wrapping_sub(1);
    match change {
        Some((End::Source, address)) => header.source = address.words(),
        Some((End::Destination, address)) => header.destination = address.words(),
        None => {}
    }
    Ok(())
}
