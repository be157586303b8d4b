//! What the fast parser leaves: fragments, packets with IPv6 extension headers, other protocols than TCP and UDP.
//!
//! The program that `balance` jumps to. Of a virtual server, SCTP is served here; other packets are dropped with a reason as far
//! as their ports can be read. All others pass.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::STAGE_EXCEPTIONAL;
use lb_common::net::{Address, Protocol};

use crate::packet::{self, ETHERNET_LENGTH, IPV6_LENGTH, Ports};
use crate::parse::{self, Obstacle, Packet, Version};
use crate::verdict::{Stop, Verdict};
use crate::{maps, pipeline, service, word};

/// Leaves the packet to the program [`run`] is in. Returns only where the map of programs has been emptied, which takes its
/// pin and the daemon's descriptor; the packet passes then, since most of this kind are the host's.
#[inline(always)]
pub fn enter(ctx: &XdpContext) -> Verdict {
    // SAFETY: context and map are valid.
    unsafe { maps::STAGES.tail_call(ctx, STAGE_EXCEPTIONAL) };
    Verdict::PASS
}

/// Decides what becomes of the packet, and prepares it for that.
///
/// Without closures, which LLVM may leave functions of their own that return by the caller's stack; the verifier refuses that.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Result<Verdict, Stop> {
    // No closures, which are functions that LLVM may leave as they are.
    match parse::version(ctx) {
        Some(Version::Ipv4) => match ipv4(ctx) {
            Some(packet) => pipeline::serve(ctx, &packet),
            None => Ok(Verdict::PASS),
        },
        Some(Version::Ipv6) => match ipv6(ctx) {
            Some(packet) => pipeline::serve(ctx, &packet),
            None => Ok(Verdict::PASS),
        },
        None => Ok(Verdict::PASS),
    }
}

/// An SCTP packet of interest, or the first fragment of one with ports.
#[inline(always)]
pub fn ipv4(ctx: &XdpContext) -> Option<Packet> {
    let (header, transport) = parse::ipv4_header(ctx)?;
    if !is_of_interest(&Address::from_ipv4_word(header.destination)) || u16::from_be(header.fragment) & 0x1fff != 0 {
        return None; // a later fragment has no ports
    }
    let protocol = Protocol::from_number(header.protocol)?;
    let ports = packet::read::<Ports>(ctx, transport)?;
    let obstacle = if parse::is_fragment(&header) { Obstacle::Fragment } else { Obstacle::None };
    Some(parse::ipv4_packet(&header, protocol, ports, transport, obstacle))
}

/// An SCTP packet of interest, or one with ports behind extension headers.
#[inline(always)]
pub fn ipv6(ctx: &XdpContext) -> Option<Packet> {
    let header = parse::ipv6_header(ctx)?;
    if !is_of_interest(&Address::from_words(header.destination)) {
        return None;
    }
    if let Some(protocol) = Protocol::from_number(header.next_header) {
        let transport = ETHERNET_LENGTH + IPV6_LENGTH;
        let ports = packet::read::<Ports>(ctx, transport)?;
        return Some(parse::ipv6_packet(&header, protocol, ports, transport, Obstacle::None));
    }
    if !is_extension_header(header.next_header) {
        return None;
    }
    let walked = Walked(walk_extension_headers(ctx.ctx, u32::from(header.next_header)));
    let (protocol, ports, transport) = (walked.protocol()?, walked.ports(), walked.transport());
    Some(parse::ipv6_packet(&header, protocol, ports, transport, walked.obstacle()))
}

/// Whether a packet to `destination` may be one of a virtual server: one of a client, or a reply.
#[inline(always)]
fn is_of_interest(destination: &Address) -> bool {
    maps::NAT_REPLIES.load() != 0 || service::lookups().is_some_and(|lookups| service::is_vip(destination, lookups))
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

/// What [`walk_extension_headers`] found, packed into the one word that a function of its own may return: ports in bits
/// 0..32, protocol in 32..40, bit 40 for a fragment, the transport header's offset in 48..64. Zero: nothing of ours.
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

    /// At most [`OFFSET_MAX`]; masked for the verifier, which knows no packet beyond 65,535 bytes.
    #[inline(always)]
    fn transport(&self) -> usize {
        word::fourteen_bits(self.0 >> 48)
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
            return u64::from(ports) | u64::from(next) << 32 | fragment | (offset as u64) << 48;
        }
    }
    0
}
