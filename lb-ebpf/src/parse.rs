//! From bytes to a [`Packet`]: Ethernet, IPv4 or IPv6, and the ports of TCP or UDP.
//!
//! Says nothing of whom the packet is for; what it cannot read is not ours and yields `None`.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::drop_reason::DropReason;
use lb_common::net::{Address, Port, Protocol};

use crate::packet::{self, ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV6_LENGTH, Ipv4, Ipv6, Ports};
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
    /// Offset of the transport header in the frame; at most 74.
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
    if packet.ttl <= 1 {
        return Err(DropReason::TtlExpired);
    }
    Ok(())
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

/// Reads an IPv4 packet; `None` for what is not TCP or UDP with ports.
#[inline(always)]
pub fn ipv4(ctx: &XdpContext) -> Option<Packet> {
    let header = packet::read::<Ipv4>(ctx, ETHERNET_LENGTH)?;
    let header_length = usize::from(header.version_ihl & 0x0f) * 4;
    if header.version_ihl >> 4 != 4 || header_length < packet::IPV4_LENGTH {
        return None;
    }
    let fragment = u16::from_be(header.fragment);
    if fragment & 0x1fff != 0 {
        return None; // a later fragment has no ports
    }
    let protocol = Protocol::from_number(header.protocol)?;
    let transport = ETHERNET_LENGTH + header_length;
    let ports = packet::read::<Ports>(ctx, transport)?;
    Some(Packet {
        source: Address::from_ipv4_word(header.source),
        destination: Address::from_ipv4_word(header.destination),
        source_port: Port::from_wire(ports.source),
        destination_port: Port::from_wire(ports.destination),
        protocol,
        is_ipv4: true,
        transport,
        length: u32::from(u16::from_be(header.total_length)),
        ttl: header.ttl,
        obstacle: if fragment & 0x2000 != 0 { Obstacle::Fragment } else { Obstacle::None },
    })
}

/// Reads an IPv6 packet; `None` for what is not TCP or UDP with ports.
#[inline(always)]
pub fn ipv6(ctx: &XdpContext) -> Option<Packet> {
    let header = packet::read::<Ipv6>(ctx, ETHERNET_LENGTH)?;
    if u32::from_be(header.version_class_label) >> 28 != 6 {
        return None;
    }
    let (source, destination) = (Address::from_words(header.source), Address::from_words(header.destination));
    if source.is_ipv4() || destination.is_ipv4() {
        return None; // a mapped address on the wire is not the IPv4 address that it would match
    }
    let transport = ETHERNET_LENGTH + IPV6_LENGTH;
    let (protocol, ports, obstacle) = match Protocol::from_number(header.next_header) {
        Some(protocol) => (protocol, packet::read::<Ports>(ctx, transport)?, Obstacle::None),
        None if is_extension_header(header.next_header) => {
            let walked = Walked(walk_extension_headers(ctx.ctx, u32::from(header.next_header)));
            (walked.protocol()?, walked.ports(), walked.obstacle())
        }
        None => return None,
    };
    Some(Packet {
        source,
        destination,
        source_port: Port::from_wire(ports.source),
        destination_port: Port::from_wire(ports.destination),
        protocol,
        is_ipv4: false,
        transport,
        length: IPV6_LENGTH as u32 + u32::from(u16::from_be(header.payload_length)),
        ttl: header.hop_limit,
        obstacle,
    })
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

#[inline(always)]
const fn is_extension_header(number: u8) -> bool {
    matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// What [`walk_extension_headers`] found, packed into the one word that a function of its own may return:
/// ports in bits 0..32, protocol in 32..40, bit 40 for a fragment. Zero: nothing of ours.
struct Walked(u64);

impl Walked {
    const FRAGMENT: u64 = 1 << 40;

    #[inline(always)]
    fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number((self.0 >> 32) as u8)
    }

    #[inline(always)]
    fn ports(&self) -> Ports {
        Ports { source: self.0 as u16, destination: (self.0 >> 16) as u16 }
    }

    #[inline(always)]
    fn obstacle(&self) -> Obstacle {
        if self.0 & Self::FRAGMENT != 0 { Obstacle::Fragment } else { Obstacle::ExtensionHeader }
    }
}

/// Most extension headers that are followed: as many of the shortest as fit into 1500 bytes, so that none gets past us.
const EXTENSION_HEADERS_MAX: u32 = 184;
/// Offset beyond which no header is looked for; larger than any frame that XDP sees in one buffer.
const OFFSET_MAX: usize = 9_216;

/// Follows the extension headers (RFC 8200 §4) to the ports, so that a packet of a virtual server is known as such.
///
/// A function of its own, verified once and alone, because the loop would multiply the states of the pipeline.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_extension_headers(ctx: *mut xdp_md, first: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let mut next = first as u8;
    let mut offset = ETHERNET_LENGTH + IPV6_LENGTH;
    let mut fragment = 0;
    for _ in 0..EXTENSION_HEADERS_MAX {
        let Some([following, length]) = packet::read::<[u8; 2]>(&ctx, offset) else { return 0 };
        let length = match next {
            FRAGMENT => {
                let Some(field) = packet::read::<u16>(&ctx, offset + 2) else { return 0 };
                if u16::from_be(field) & 0xfff8 != 0 {
                    return 0; // a later fragment has no ports
                }
                if u16::from_be(field) & 1 != 0 {
                    fragment = Walked::FRAGMENT;
                }
                8
            }
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (usize::from(length) + 1) * 8,
            _ => return 0,
        };
        offset += length;
        if offset > OFFSET_MAX {
            return 0;
        }
        next = following;
        if Protocol::from_number(next).is_some() {
            let Some(ports) = packet::read::<u32>(&ctx, offset) else { return 0 };
            return u64::from(ports) | u64::from(next) << 32 | fragment;
        }
    }
    0
}
