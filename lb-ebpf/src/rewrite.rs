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

/// Sets address and port of one end, and takes one from the time to live.
#[inline(always)]
pub fn translate(ctx: &XdpContext, packet: &Packet, end: End, address: Address, port: Port) -> Result<(), DropReason> {
    let (old_address, old_port) = match end {
        End::Source => (packet.flow.source, packet.flow.source_port),
        End::Destination => (packet.flow.destination, packet.flow.destination_port),
    };
    let addresses = if packet.is_ipv4 {
        Delta::NONE.replace32(old_address.words()[3], address.words()[3])
    } else {
        Delta::NONE.replace128(old_address.words(), address.words())
    };
    let transport = addresses.replace16(old_port.to_wire(), port.to_wire());

    let ports = packet::at::<Ports>(ctx, packet.transport).ok_or(DropReason::Malformed)?;
    match packet.flow.protocol {
        Protocol::Tcp => {
            let field = packet::at::<u16>(ctx, packet.transport + 16).ok_or(DropReason::Malformed)?;
            // SAFETY: `at` has checked that the field lies in the packet.
            unsafe { *field = transport.apply(*field) };
        }
        Protocol::Udp => {
            let field = packet::at::<u16>(ctx, packet.transport + 6).ok_or(DropReason::Malformed)?;
            // SAFETY: as above.
            unsafe { *field = transport.apply_udp(*field) };
        }
    }
    // SAFETY: `at` has checked that both ports lie in the packet.
    unsafe {
        match end {
            End::Source => (*ports).source = port.to_wire(),
            End::Destination => (*ports).destination = port.to_wire(),
        }
    }
    if packet.is_ipv4 { set_ipv4(ctx, Some((end, address)), addresses) } else { set_ipv6(ctx, Some((end, address))) }
}

/// Takes one from the time to live or hop limit, as every router does (RFC 1812 §5.3.1, RFC 8200 §3).
#[inline(always)]
pub fn decrement_ttl(ctx: &XdpContext, packet: &Packet) -> Result<(), DropReason> {
    if packet.is_ipv4 { set_ipv4(ctx, None, Delta::NONE) } else { set_ipv6(ctx, None) }
}

#[inline(always)]
fn set_ipv4(ctx: &XdpContext, change: Option<(End, Address)>, addresses: Delta) -> Result<(), DropReason> {
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

#[inline(always)]
fn set_ipv6(ctx: &XdpContext, change: Option<(End, Address)>) -> Result<(), DropReason> {
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
