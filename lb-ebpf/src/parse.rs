//! From bytes to a [`Packet`]: Ethernet, IPv4 or IPv6, and the ports of TCP or UDP.
//!
//! Says nothing of whom the packet is for; what it cannot read is not ours and yields `None`.

use aya_ebpf::programs::XdpContext;
use lb_common::drop_reason::DropReason;
use lb_common::net::{Address, Port, Protocol};

use crate::packet::{self, ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV6_LENGTH, Ipv4, Ipv6, Ports};
use crate::verdict::Stop;
use crate::{maps, sctp};

/// TCP header flags, RFC 9293 §3.1.
pub mod tcp_flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// What makes a packet unfit to be forwarded although its ports could be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    None,
    Fragment,
    ExtensionHeader,
}

/// A TCP or UDP packet addressed to one of our interfaces.
#[derive(Clone, Copy)]
pub struct Packet {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// Transport protocol.
    pub protocol: Protocol,
    /// IPv4, else IPv6.
    pub is_ipv4: bool,
    /// Offset of the transport header in the frame; at most 74, unless extension headers lie before it.
    pub transport: usize,
    /// Length of the IP packet as its header states it, in bytes.
    pub length: u32,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Whether it can be forwarded.
    pub obstacle: Obstacle,
}

/// An IP version that frames to us carry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Version {
    Ipv4,
    Ipv6,
}

/// The IP version of a frame to this host's Ethernet address; `None` for other frames.
#[inline(always)]
pub fn version(ctx: &XdpContext) -> Option<Version> {
    let ethernet = packet::read::<Ethernet>(ctx, 0)?;
    if !is_for_us(ctx, &ethernet) {
        return None;
    }
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => Some(Version::Ipv4),
        ETHERTYPE_IPV6 => Some(Version::Ipv6),
        _ => None,
    }
}

/// Checks the lengths of a packet that belongs to a virtual server, and that nothing stands against forwarding it.
#[inline(always)]
pub fn validate(ctx: &XdpContext, packet: &Packet) -> Result<(), DropReason> {
    match packet.obstacle {
        Obstacle::None => {}
        Obstacle::Fragment => return Err(DropReason::Fragment),
        Obstacle::ExtensionHeader => return Err(DropReason::ExtensionHeader),
    }
    let header: u64 = match packet.protocol {
        Protocol::Tcp => 20,
        Protocol::Udp => 8,
        Protocol::Sctp => (sctp::HEADER_LENGTH + sctp::CHUNK_LENGTH) as u64,
    };
    let end = ETHERNET_LENGTH as u64 + u64::from(packet.length);
    if packet.transport as u64 + header > end || end > packet::frame_length(ctx) {
        return Err(DropReason::Malformed);
    }
    Ok(())
}

/// Whether a packet of virtual server `service` lives long enough to be sent on. One that goes up to this host need not.
#[inline(always)]
pub fn check_ttl(packet: &Packet, service: u32) -> Result<(), Stop> {
    if packet.ttl <= 1 { Err(Stop::expired(service)) } else { Ok(()) }
}

/// The flags of a TCP segment; what they would be for SCTP; zero for UDP.
#[inline(always)]
pub fn tcp_flags(ctx: &XdpContext, packet: &Packet) -> Result<u8, DropReason> {
    match packet.protocol {
        Protocol::Tcp => packet::read::<u8>(ctx, packet.transport + 13).ok_or(DropReason::Malformed),
        Protocol::Udp => Ok(0),
        Protocol::Sctp => Ok(sctp::flags(ctx, packet)),
    }
}

/// A switch floods what it does not know where to send; only frames to the interface's own address are ours.
#[inline(always)]
fn is_for_us(ctx: &XdpContext, ethernet: &Ethernet) -> bool {
    let ifindex = ctx.ingress_ifindex() as u32;
    let Some(interface) = maps::INTERFACES.get(ifindex % lb_common::INTERFACES_LENGTH) else { return false };
    interface.ifindex == ifindex && interface.mac.words() == ethernet.destination.words()
}

/// Reads a TCP or UDP packet in one piece; `None` for what else there is, which is left to [`crate::exceptional`].
#[inline(always)]
pub fn ipv4(ctx: &XdpContext) -> Option<Packet> {
    let (header, transport) = ipv4_header(ctx)?;
    if is_fragment(&header) {
        return None;
    }
    let protocol = frequent(header.protocol)?;
    let ports = packet::read::<Ports>(ctx, transport)?;
    Some(ipv4_packet(&header, protocol, ports, transport, Obstacle::None))
}

/// Reads a TCP or UDP packet without extension headers; `None` for what else there is, which is left to
/// [`crate::exceptional`].
#[inline(always)]
pub fn ipv6(ctx: &XdpContext) -> Option<Packet> {
    let header = ipv6_header(ctx)?;
    let protocol = frequent(header.next_header)?;
    let transport = ETHERNET_LENGTH + IPV6_LENGTH;
    let ports = packet::read::<Ports>(ctx, transport)?;
    Some(ipv6_packet(&header, protocol, ports, transport, Obstacle::None))
}

/// TCP or UDP; SCTP is rare enough to be left to [`crate::exceptional`].
#[inline(always)]
const fn frequent(number: u8) -> Option<Protocol> {
    match number {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        _ => None,
    }
}

/// The IPv4 header, and the offset of what follows it.
#[inline(always)]
pub fn ipv4_header(ctx: &XdpContext) -> Option<(Ipv4, usize)> {
    let header = packet::read::<Ipv4>(ctx, ETHERNET_LENGTH)?;
    let length = usize::from(header.version_ihl & 0x0f) * 4;
    if header.version_ihl >> 4 != 4 || length < packet::IPV4_LENGTH {
        return None;
    }
    Some((header, ETHERNET_LENGTH + length))
}

/// Whether a packet is not whole: more fragments follow, or this is not the first.
#[inline(always)]
pub fn is_fragment(header: &Ipv4) -> bool {
    u16::from_be(header.fragment) & 0x3fff != 0
}

/// The IPv6 header.
#[inline(always)]
pub fn ipv6_header(ctx: &XdpContext) -> Option<Ipv6> {
    let header = packet::read::<Ipv6>(ctx, ETHERNET_LENGTH)?;
    if u32::from_be(header.version_class_label) >> 28 != 6 {
        return None;
    }
    let (source, destination) = (Address::from_words(header.source), Address::from_words(header.destination));
    // A mapped address on the wire is not the IPv4 address that it would match.
    (!source.is_ipv4() && !destination.is_ipv4()).then_some(header)
}

/// A packet with this header and what was found behind it.
#[inline(always)]
pub fn ipv4_packet(header: &Ipv4, protocol: Protocol, ports: Ports, transport: usize, obstacle: Obstacle) -> Packet {
    Packet {
        source: Address::from_ipv4_word(header.source),
        destination: Address::from_ipv4_word(header.destination),
        source_port: Port::from_wire(ports.source),
        destination_port: Port::from_wire(ports.destination),
        protocol,
        is_ipv4: true,
        transport,
        length: u32::from(u16::from_be(header.total_length)),
        ttl: header.ttl,
        obstacle,
    }
}

/// As [`ipv4_packet`].
#[inline(always)]
pub fn ipv6_packet(header: &Ipv6, protocol: Protocol, ports: Ports, transport: usize, obstacle: Obstacle) -> Packet {
    Packet {
        source: Address::from_words(header.source),
        destination: Address::from_words(header.destination),
        source_port: Port::from_wire(ports.source),
        destination_port: Port::from_wire(ports.destination),
        protocol,
        is_ipv4: false,
        transport,
        length: IPV6_LENGTH as u32 + u32::from(u16::from_be(header.payload_length)),
        ttl: header.hop_limit,
        obstacle,
    }
}
