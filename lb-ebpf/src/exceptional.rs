//! What the fast parser leaves: fragments, IPv4 options and IPv6 extension headers, frames in several buffers, other
//! protocols than TCP and UDP.
//!
//! The program that `balance` jumps to. It serves what belongs to a virtual server; all others are left to [`crate::icmp`].

use aya_ebpf::programs::XdpContext;
use lb_common::net::{Address, Protocol};
use lb_common::{STAGE_FRAGMENT, STAGE_ICMP};

use crate::extension::{self, Walked};
use crate::packet::{self, Ports};
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
        None => Ok(enter(ctx, STAGE_ICMP)),
    }
}

/// Decides what becomes of an IPv6 packet, and prepares it for that.
#[inline(always)]
pub fn run_ipv6(ctx: &XdpContext) -> Result<Verdict, Stop> {
    fragment::begin();
    match ipv6(ctx) {
        Some(packet) => serve(ctx, &packet),
        None => Ok(enter(ctx, STAGE_ICMP)),
    }
}

#[inline(always)]
fn serve(ctx: &XdpContext, packet: &Packet) -> Result<Verdict, Stop> {
    if packet.marks.has(Marks::FIRST | Marks::LATER) {
        fragment::identify(packet);
    }
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

/// A packet of interest with ports, or a part of one.
#[inline(always)]
pub fn ipv4(ctx: &XdpContext) -> Option<Packet> {
    let (header, _) = parse::ipv4_header(ctx)?;
    if !is_of_interest(&Address::from_ipv4_word(header.destination)) {
        return None;
    }
    let walked = extension::walk_ipv4(ctx.ctx);
    let end = packet::end_of(u16::from_be(header.total_length).into());
    let protocol = Protocol::from_number(walked.protocol())?;
    let judged = judge(ctx, walked, end);
    if judged.is_foreign() {
        return None;
    }
    Some(parse::ipv4_packet(&header, protocol, judged.ports(), walked.offset(), judged.marks()))
}

/// As [`ipv4`], behind extension headers.
#[inline(always)]
pub fn ipv6(ctx: &XdpContext) -> Option<Packet> {
    let header = parse::ipv6_header(ctx)?;
    if !is_of_interest(&Address::from_words(header.destination)) {
        return None;
    }
    let walked = extension::walk_ipv6(ctx.ctx, header.next_header);
    let end = packet::end_of(parse::ipv6_length(&header));
    // A fragment without ports may be of any.
    let protocol = Protocol::from_number(walked.protocol()).unwrap_or(Protocol::Udp);
    let judged = judge(ctx, walked, end);
    if judged.is_foreign() {
        return None;
    }
    Some(parse::ipv6_packet(&header, protocol, judged.ports(), walked.offset(), judged.marks()))
}

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

/// Judges a packet that ends at `end`.
#[inline(always)]
fn judge(ctx: &XdpContext, walked: Walked, end: u64) -> Judged {
    let offset = walked.offset();
    let lengths = if end > packet::frame_length(ctx) { Marks::MALFORMED } else { 0 };
    let marks = walked.marks() | lengths;
    if Marks(marks).has(Marks::LATER | Marks::TINY) {
        return Judged::new(0, marks);
    }
    let Some(protocol) = Protocol::from_number(walked.protocol()) else { return Judged::FOREIGN };
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
