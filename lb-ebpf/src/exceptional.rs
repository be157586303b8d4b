//! What the fast parser leaves: fragments, IPv4 options and IPv6 extension headers, frames in several buffers, other
//! protocols than TCP and UDP.
//!
//! The program that `balance` jumps to. It serves what belongs to a virtual server; all others pass.

use aya_ebpf::programs::XdpContext;
use lb_common::STAGE_FRAGMENT;
use lb_common::fragment::IPV6_FRAGMENT;
use lb_common::net::{Address, Protocol};

use crate::extension;
use crate::packet::{self, ETHERNET_LENGTH, IPV4_LENGTH, Ports};
use crate::parse::{self, Marks, Packet, Version};
use crate::verdict::{Stop, Verdict};
use crate::{fragment, maps, pipeline, service};

/// Leaves the packet to the program that [`run`] or [`run_ipv6`] is in: its place in the map of programs is `stage`. Returns
/// only where that map has been emptied, which takes its pin and the daemon's descriptor; the packet passes then, since most of
/// this kind are the host's.
#[inline(always)]
pub fn enter(ctx: &XdpContext, stage: u32) -> Verdict {
    // SAFETY: context and map are valid.
    unsafe { maps::STAGES.tail_call(ctx, stage) };
    Verdict::PASS
}

/// Decides what becomes of an IPv4 packet, and prepares it for that.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Result<Verdict, Stop> {
    fragment::begin();
    // No closure, which LLVM might make a function that takes pointers.
    match ipv4(ctx) {
        Some(packet) => serve(ctx, &packet),
        None => Ok(Verdict::PASS),
    }
}

/// Decides what becomes of an IPv6 packet, and prepares it for that.
#[inline(always)]
pub fn run_ipv6(ctx: &XdpContext) -> Result<Verdict, Stop> {
    fragment::begin();
    match ipv6(ctx) {
        Some(packet) => serve(ctx, &packet),
        None => Ok(Verdict::PASS),
    }
}

#[inline(always)]
fn serve(ctx: &XdpContext, packet: &Packet) -> Result<Verdict, Stop> {
    if packet.marks.has(Marks::LATER | Marks::TINY) {
        return Ok(enter(ctx, STAGE_FRAGMENT));
    }
    pipeline::serve(ctx, packet)
}

/// Decides what becomes of a fragment without ports, and prepares it for that.
#[inline(always)]
pub fn run_fragment(ctx: &XdpContext) -> Result<Verdict, Stop> {
    let packet = match parse::version(ctx) {
        Some(Version::Ipv4) => ipv4(ctx),
        Some(Version::Ipv6) => ipv6(ctx),
        None => None,
    };
    match packet {
        Some(packet) if packet.marks.has(Marks::LATER) => fragment::follow(ctx, &packet),
        Some(packet) if packet.marks.has(Marks::TINY) => fragment::refuse_tiny(&packet),
        Some(_) | None => Ok(Verdict::PASS),
    }
}

/// A TCP or UDP packet of interest, or a part of one.
#[inline(always)]
fn ipv4(ctx: &XdpContext) -> Option<Packet> {
    let (header, transport) = parse::ipv4_header(ctx)?;
    let protocol = Protocol::from_number(header.protocol)?;
    if !is_of_interest(&Address::from_ipv4_word(header.destination)) {
        return None;
    }
    let field = u16::from_be(header.fragment);
    let mut marks = 0;
    if field & OFFSET != 0 {
        let overlaps = protocol == Protocol::Tcp && (field & OFFSET) * 8 < TCP_LENGTH;
        marks = Marks::LATER | if overlaps { Marks::OVERLAPPING } else { 0 };
    } else if field & MORE_FRAGMENTS != 0 {
        marks = Marks::FIRST;
    }
    if transport > ETHERNET_LENGTH + IPV4_LENGTH {
        marks |= extension::look_at_options(ctx.ctx, transport as u32);
    }
    let end = packet::end_of(u16::from_be(header.total_length).into());
    let judged = judge(ctx, header.protocol, transport, end, marks);
    if judged.is_foreign() {
        return None;
    }
    let packet = parse::ipv4_packet(&header, protocol, judged.ports(), transport, judged.marks());
    if packet.marks.has(Marks::FIRST | Marks::LATER) {
        fragment::identify(&packet, header.identification.into(), header.protocol.into());
    }
    Some(packet)
}

/// As [`ipv4`], behind extension headers.
#[inline(always)]
fn ipv6(ctx: &XdpContext) -> Option<Packet> {
    let header = parse::ipv6_header(ctx)?;
    if !is_of_interest(&Address::from_words(header.destination)) {
        return None;
    }
    let walked = extension::walk(ctx.ctx, header.next_header);
    let end = packet::end_of(parse::ipv6_length(&header));
    // A fragment without ports may be of either.
    let protocol = Protocol::from_number(walked.protocol()).unwrap_or(Protocol::Udp);
    let judged = judge(ctx, walked.protocol(), walked.offset(), end, walked.marks());
    if judged.is_foreign() {
        return None;
    }
    let packet = parse::ipv6_packet(&header, protocol, judged.ports(), walked.offset(), judged.marks());
    if packet.marks.has(Marks::FIRST | Marks::LATER) {
        fragment::identify(&packet, walked.identification(), IPV6_FRAGMENT);
    }
    Some(packet)
}

/// Fragment offset and mark of an IPv4 header (RFC 791 §3.1).
const OFFSET: u16 = 0x1fff;
const MORE_FRAGMENTS: u16 = 0x2000;
/// Bytes of a TCP header without options.
const TCP_LENGTH: u16 = 20;

/// What there is of a packet, in one word, as LLVM leaves half an enum as it finds it: the ports, and from bit 32 on [`Marks`].
#[derive(Clone, Copy)]
struct Judged(u64);

impl Judged {
    /// It is nothing of ours.
    const FOREIGN: Self = Self(u64::MAX);

    #[inline(always)]
    fn new(ports: u32, marks: u32) -> Self {
        Self(u64::from(ports) | u64::from(marks) << 32)
    }

    #[inline(always)]
    fn is_foreign(self) -> bool {
        self.0 == Self::FOREIGN.0
    }

    #[inline(always)]
    fn ports(self) -> Ports {
        Ports { source: self.0 as u16, destination: (self.0 >> 16) as u16 }
    }

    #[inline(always)]
    fn marks(self) -> Marks {
        Marks((self.0 >> 32) as u32)
    }
}

/// Judges a packet whose transport header begins at `offset` and that ends at `end`. Protocol zero: unknown behind extension
/// headers.
#[inline(always)]
fn judge(ctx: &XdpContext, protocol: u8, offset: usize, end: u64, marks: u32) -> Judged {
    let lengths = if end > packet::frame_length(ctx) { Marks::MALFORMED } else { 0 };
    let marks = marks | lengths;
    if Marks(marks).has(Marks::LATER | Marks::TINY) {
        return Judged::new(0, marks);
    }
    let Some(protocol) = Protocol::from_number(protocol) else { return Judged::FOREIGN };
    let is_short = offset as u64 + parse::header_length(protocol) > end;
    let without = if Marks(marks).has(Marks::FIRST) { Judged::new(0, marks | Marks::TINY) } else { Judged::FOREIGN };
    match packet::read::<u32>(ctx, offset) {
        Some(_) if is_short && Marks(marks).has(Marks::FIRST) => without,
        Some(ports) => Judged::new(ports, marks),
        None => without,
    }
}

/// Whether a packet to `destination` may be one of a virtual server: one of a client, or a reply.
#[inline(always)]
fn is_of_interest(destination: &Address) -> bool {
    maps::NAT_REPLIES.load() != 0 || service::lookups().is_some_and(|lookups| service::is_vip(destination, lookups))
}
