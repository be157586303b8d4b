//! Answers to packets that are not forwarded: a TCP RST, an SCTP ABORT or ICMP's port unreachable where nobody serves them, and a router's
//! ICMP errors where they are too big or their time to live has run out.
//!
//! So many a tick and CPU at most; none in answer to a RST or ABORT, and nothing to an address that cannot be one host's. They come
//! from the VIP, also those to a real server, and go back by the way that the packet has come.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use lb_common::net::Address;
use lb_common::{checksum, crc32c};

use crate::maps::budget;
use crate::packet::{
    self, ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4_LENGTH, IPV6_LENGTH, Icmp, Ipv4, Ipv6, Tcp,
};
use crate::parse::tcp_flag;
use crate::sctp::{self, chunk};
use crate::verdict::{Stop, Told};
use crate::{clock, maps, service, word};

/// [`answer_sender`] has made the packet into the answer.
pub const ANSWERED: u32 = 1;
const SILENT: u32 = 0;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const TTL: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();
/// Precedence "internetwork control", RFC 1812 §4.3.2.5.
const ICMP_TOS: u8 = 0xc0;
/// Bytes of a packet's transport header that an ICMP error quotes, RFC 792.
const QUOTED: usize = 8;
/// Most 16-bit words of a quoted IPv4 packet: 60 bytes of header, and [`QUOTED`].
const QUOTED_WORDS_MAX: usize = 34;
/// RFC 8200 §5.
const IPV6_MTU_MIN: u32 = 1280;
const IPV6_VERSION: u32 = 0x6000_0000_u32.to_be();

/// Makes the packet into an answer to its sender, as [`Stop::word`] says; [`ANSWERED`] if it did.
///
/// The packet has been found whole: a header of TCP, UDP, or SCTP with a chunk lies in it, and no extension header before that.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn answer_sender(ctx: *mut xdp_md, stop: u64) -> u32 {
    let (ctx, stop) = (XdpContext::new(ctx), Stop::from_word(stop));
    let Some(ethernet) = packet::read::<Ethernet>(&ctx, 0) else { return SILENT };
    let answered = match ethernet.ethertype {
        ETHERTYPE_IPV4 => ipv4(&ctx, &ethernet, stop),
        ETHERTYPE_IPV6 => ipv6(&ctx, &ethernet, stop),
        _ => None,
    };
    if answered.is_some() { ANSWERED } else { SILENT }
}

/// Type, code and the four bytes behind the checksum of an ICMP error, its checksum still zero.
const fn error(kind: u8, code: u8, rest: u32) -> Icmp {
    Icmp { kind, code, checksum: 0, rest: rest.to_be() }
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, ethernet: &Ethernet, stop: Stop) -> Option<()> {
    let header = packet::read::<Ipv4>(ctx, ETHERNET_LENGTH)?;
    let first = header.source.to_ne_bytes()[0];
    if first == 0 || first == 127 || first >= 224 {
        return None;
    }
    let (source, icmp) = match (stop.told(), header.protocol) {
        (Told::Refused, TCP) => return reset_ipv4(ctx, ethernet, &header),
        (Told::Refused, SCTP) => return abort_ipv4(ctx, ethernet, &header),
        // Destination unreachable (RFC 792): port; fragmentation needed, with the next hop's MTU (RFC 1191 §4).
        (Told::Refused, UDP) => (header.destination, error(3, 3, 0)),
        (Told::TooBig, _) => (vip(stop)?.words()[3], error(3, 4, stop.mtu() & 0xffff)),
        // Time exceeded in transit.
        (Told::Expired, _) => (vip(stop)?.words()[3], error(11, 0, 0)),
        (Told::Refused | Told::Nothing, _) => return None,
    };
    error_ipv4(ctx, ethernet, &header, source, icmp)
}

#[inline(always)]
fn ipv6(ctx: &XdpContext, ethernet: &Ethernet, stop: Stop) -> Option<()> {
    let header = packet::read::<Ipv6>(ctx, ETHERNET_LENGTH)?;
    if header.source.first()?.to_ne_bytes()[0] == 0xff || header.source == [0; 4] {
        return None;
    }
    let (source, icmp) = match (stop.told(), header.next_header) {
        (Told::Refused, TCP) => return reset_ipv6(ctx, ethernet, &header),
        (Told::Refused, SCTP) => return abort_ipv6(ctx, ethernet, &header),
        // Destination unreachable: port (RFC 4443 §3.1).
        (Told::Refused, UDP) => (header.destination, error(1, 4, 0)),
        // Packet too big (§3.2). No link of IPv6 has a smaller MTU, and no sender would believe one.
        (Told::TooBig, _) => (vip(stop)?.words(), error(2, 0, stop.mtu().max(IPV6_MTU_MIN))),
        // Time exceeded in transit (§3.3).
        (Told::Expired, _) => (vip(stop)?.words(), error(3, 0, 0)),
        (Told::Refused | Told::Nothing, _) => return None,
    };
    error_ipv6(ctx, ethernet, &header, source, icmp)
}

/// The address of the virtual server that a packet was for or from. Of ours a router would use that of the interface; this is
/// one too, and known to be reached by whom we answer.
#[inline(always)]
fn vip(stop: Stop) -> Option<&'static Address> {
    service::by_index(stop.service()).map(|service| &service.key.vip)
}

#[inline(always)]
fn reset_ipv4(ctx: &XdpContext, ethernet: &Ethernet, header: &Ipv4) -> Option<()> {
    let length = usize::from(header.version_ihl & 0x0f) * 4;
    let segment = packet::read::<Tcp>(ctx, ETHERNET_LENGTH + length)?;
    let payload = u32::from(u16::from_be(header.total_length)).wrapping_sub(length as u32);
    let mut reset = reset(&segment, payload)?;
    let sum = u64::from(header.source) + u64::from(header.destination) + pseudo_header(TCP, size_of::<Tcp>());
    reset.checksum = checksum::of_sum(sum + reset.sum());
    let total = IPV4_LENGTH + size_of::<Tcp>();
    let answer = ipv4_answer(header, header.destination, TCP, DONT_FRAGMENT, total);
    spend(budget::REFUSED)?;
    packet::write(ctx, 0, ethernet.turned())?;
    packet::write(ctx, ETHERNET_LENGTH, answer)?;
    packet::write(ctx, ETHERNET_LENGTH + IPV4_LENGTH, reset)?;
    cut(ctx, ETHERNET_LENGTH + total)
}

#[inline(always)]
fn reset_ipv6(ctx: &XdpContext, ethernet: &Ethernet, header: &Ipv6) -> Option<()> {
    let segment = packet::read::<Tcp>(ctx, ETHERNET_LENGTH + IPV6_LENGTH)?;
    let mut reset = reset(&segment, u16::from_be(header.payload_length).into())?;
    let sum = address_sum(header.source) + address_sum(header.destination) + pseudo_header(TCP, size_of::<Tcp>());
    reset.checksum = checksum::of_sum(sum + reset.sum());
    let answer = ipv6_answer(header, header.destination, TCP, size_of::<Tcp>());
    spend(budget::REFUSED)?;
    packet::write(ctx, 0, ethernet.turned())?;
    packet::write(ctx, ETHERNET_LENGTH, answer)?;
    packet::write(ctx, ETHERNET_LENGTH + IPV6_LENGTH, reset)?;
    cut(ctx, ETHERNET_LENGTH + IPV6_LENGTH + size_of::<Tcp>())
}

/// The reset that answers `segment` of `length` bytes (RFC 9293 §3.10.7.1), its checksum still zero.
#[inline(always)]
fn reset(segment: &Tcp, length: u32) -> Option<Tcp> {
    let [offset, flags] = segment.offset_flags.to_ne_bytes();
    if flags & tcp_flag::RST != 0 {
        return None;
    }
    let payload = length.wrapping_sub(u32::from(offset >> 4) * 4);
    let (sequence, acknowledgment, answer_flags) = if flags & tcp_flag::ACK != 0 {
        (segment.acknowledgment, 0, tcp_flag::RST)
    } else {
        let control = u32::from(flags & tcp_flag::SYN != 0) + u32::from(flags & tcp_flag::FIN != 0);
        let next = u32::from_be(segment.sequence).wrapping_add(payload).wrapping_add(control);
        (0, next.to_be(), tcp_flag::RST | tcp_flag::ACK)
    };
    Some(Tcp {
        source: segment.destination,
        destination: segment.source,
        sequence,
        acknowledgment,
        offset_flags: u16::from_ne_bytes([5 << 4, answer_flags]),
        window: 0,
        checksum: 0,
        urgent: 0,
    })
}

/// An SCTP packet of one chunk without value: source and destination port, verification tag, checksum, chunk (RFC 9260 §3).
type SctpAnswer = [u32; 4];

#[inline(always)]
fn abort_ipv4(ctx: &XdpContext, ethernet: &Ethernet, header: &Ipv4) -> Option<()> {
    let length = usize::from(header.version_ihl & 0x0f) * 4;
    let end = ETHERNET_LENGTH + usize::from(u16::from_be(header.total_length));
    let abort = abort(ctx, ETHERNET_LENGTH + length, end)?;
    let total = IPV4_LENGTH + size_of::<SctpAnswer>();
    let answer = ipv4_answer(header, header.destination, SCTP, DONT_FRAGMENT, total);
    spend(budget::REFUSED)?;
    packet::write(ctx, 0, ethernet.turned())?;
    packet::write(ctx, ETHERNET_LENGTH, answer)?;
    packet::write(ctx, ETHERNET_LENGTH + IPV4_LENGTH, abort)?;
    cut(ctx, ETHERNET_LENGTH + total)
}

#[inline(always)]
fn abort_ipv6(ctx: &XdpContext, ethernet: &Ethernet, header: &Ipv6) -> Option<()> {
    const TRANSPORT: usize = ETHERNET_LENGTH + IPV6_LENGTH;
    let end = TRANSPORT + usize::from(u16::from_be(header.payload_length));
    let abort = abort(ctx, TRANSPORT, end)?;
    let answer = ipv6_answer(header, header.destination, SCTP, size_of::<SctpAnswer>());
    spend(budget::REFUSED)?;
    packet::write(ctx, 0, ethernet.turned())?;
    packet::write(ctx, ETHERNET_LENGTH, answer)?;
    packet::write(ctx, TRANSPORT, abort)?;
    cut(ctx, TRANSPORT + size_of::<SctpAnswer>())
}

/// The answer to an SCTP packet out of the blue (RFC 9260 §8.4): an ABORT, or to SHUTDOWN ACK a SHUTDOWN COMPLETE; none to
/// what is itself an end or an answer.
#[inline(always)]
fn abort(ctx: &XdpContext, transport: usize, end: usize) -> Option<SctpAnswer> {
    /// The tag is the sender's own.
    const REFLECTED: u8 = 1;
    let [ports, tag] = packet::read::<[u32; 2]>(ctx, transport)?;
    let [kind, ..] = packet::read::<[u8; sctp::CHUNK_LENGTH]>(ctx, transport + sctp::HEADER_LENGTH)?;
    if sctp::flags_between(ctx, transport, end) & tcp_flag::RST != 0 {
        return None;
    }
    let (tag, answer, flags) = match kind {
        chunk::COOKIE_ACK | chunk::ERROR => return None,
        // The tag that its sender expects stands in it.
        chunk::INIT => {
            const INITIATE_TAG: usize = sctp::HEADER_LENGTH + sctp::CHUNK_LENGTH;
            if transport + INITIATE_TAG + size_of::<u32>() > end {
                return None;
            }
            (packet::read::<u32>(ctx, transport + INITIATE_TAG)?, chunk::ABORT, 0)
        }
        chunk::SHUTDOWN_ACK => (tag, chunk::SHUTDOWN_COMPLETE, REFLECTED),
        _ => (tag, chunk::ABORT, REFLECTED),
    };
    let [_, length] = (sctp::CHUNK_LENGTH as u16).to_be_bytes();
    let mut packet = [ports.rotate_left(16), tag, 0, u32::from_ne_bytes([answer, flags, 0, length])];
    packet[2] = sctp_checksum(ports.rotate_left(16), tag, packet[3]);
    Some(packet)
}

/// The checksum of an [`SctpAnswer`], as a function of its own, verified once and alone.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn sctp_checksum(ports: u32, tag: u32, chunk: u32) -> u32 {
    crc32c::of_words([ports, tag, 0, chunk])
}

/// An ICMP error with the packet's IP header and eight bytes of what follows (RFC 792).
#[inline(always)]
fn error_ipv4(ctx: &XdpContext, ethernet: &Ethernet, header: &Ipv4, source: u32, icmp: Icmp) -> Option<()> {
    const BEFORE: usize = IPV4_LENGTH + size_of::<Icmp>();
    let quoted = usize::from(header.version_ihl & 0x0f) * 4 + QUOTED;
    let answer = ipv4_answer(header, source, ICMP, 0, BEFORE + quoted);
    // Destination unreachable, code 4.
    spend(if icmp.kind == 3 && icmp.code == 4 { budget::TOO_BIG } else { budget::REFUSED })?;
    grow(ctx, BEFORE)?;
    let mut icmp = icmp;
    let mut sum = icmp.sum();
    for at in 0..QUOTED_WORDS_MAX {
        if at * 2 >= quoted {
            break;
        }
        sum += u64::from(packet::read::<u16>(ctx, ETHERNET_LENGTH + BEFORE + at * 2)?);
    }
    icmp.checksum = checksum::of_sum(sum);
    packet::write(ctx, 0, ethernet.turned())?;
    packet::write(ctx, ETHERNET_LENGTH, answer)?;
    packet::write(ctx, ETHERNET_LENGTH + IPV4_LENGTH, icmp)?;
    cut(ctx, ETHERNET_LENGTH + BEFORE + quoted)
}

/// An ICMPv6 error with the packet's IPv6 header and eight bytes of what follows.
#[inline(always)]
fn error_ipv6(ctx: &XdpContext, ethernet: &Ethernet, header: &Ipv6, source: [u32; 4], icmp: Icmp) -> Option<()> {
    const BEFORE: usize = IPV6_LENGTH + size_of::<Icmp>();
    const PAYLOAD: usize = size_of::<Icmp>() + IPV6_LENGTH + QUOTED;
    let segment = packet::read::<[u32; 2]>(ctx, ETHERNET_LENGTH + IPV6_LENGTH)?;
    let rest = u32::from_ne_bytes([0, 0, header.next_header, header.hop_limit]) | u32::from(header.payload_length);
    let quote = u64::from(header.version_class_label)
        + u64::from(rest)
        + address_sum(header.source)
        + address_sum(header.destination)
        + u64::from(segment[0])
        + u64::from(segment[1]);
    let mut icmp = icmp;
    let addresses = address_sum(source) + address_sum(header.source);
    icmp.checksum = checksum::of_sum(addresses + pseudo_header(ICMPV6, PAYLOAD) + icmp.sum() + quote);
    let answer = ipv6_answer(header, source, ICMPV6, PAYLOAD);
    spend(if icmp.kind == 2 { budget::TOO_BIG } else { budget::REFUSED })?;
    grow(ctx, BEFORE)?;
    packet::write(ctx, 0, ethernet.turned())?;
    packet::write(ctx, ETHERNET_LENGTH, answer)?;
    packet::write(ctx, ETHERNET_LENGTH + IPV6_LENGTH, icmp)?;
    cut(ctx, ETHERNET_LENGTH + IPV6_LENGTH + PAYLOAD)
}

#[inline(always)]
fn ipv4_answer(header: &Ipv4, source: u32, protocol: u8, fragment: u16, total: usize) -> Ipv4 {
    let mut answer = Ipv4 {
        version_ihl: 0x45,
        tos: if protocol == ICMP { ICMP_TOS } else { 0 },
        total_length: (total as u16).to_be(),
        identification: 0,
        fragment,
        ttl: TTL,
        protocol,
        checksum: 0,
        source,
        destination: header.source,
    };
    answer.checksum = answer.sum_of_header();
    answer
}

#[inline(always)]
fn ipv6_answer(header: &Ipv6, source: [u32; 4], next_header: u8, payload: usize) -> Ipv6 {
    Ipv6 {
        version_class_label: IPV6_VERSION,
        payload_length: (payload as u16).to_be(),
        next_header,
        hop_limit: TTL,
        source,
        destination: header.source,
    }
}

/// The part of a pseudo header that is not addresses, as a sum of words in memory order.
#[inline(always)]
fn pseudo_header(protocol: u8, length: usize) -> u64 {
    u64::from(u16::from(protocol).to_be()) + u64::from((length as u16).to_be())
}

#[inline(always)]
fn address_sum(address: [u32; 4]) -> u64 {
    let [a, b, c, d] = address;
    u64::from(a) + u64::from(b) + u64::from(c) + u64::from(d)
}

/// Takes one answer from this CPU's [`budget`] of its kind; `None` when this tick's is used up.
#[inline(always)]
fn spend(kind: u32) -> Option<()> {
    let budget = maps::REJECT_BUDGET.get_ptr_mut(kind)?;
    let now = u64::from(clock::tick());
    // SAFETY: this CPU's own element; nothing else writes it while the program runs.
    let (tick, used) = unsafe { (*budget >> 32, *budget & 0xffff_ffff) };
    let used = if tick == now { used } else { 0 };
    if used >= u64::from(maps::REJECTS_PER_TICK.load()) {
        return None;
    }
    // SAFETY: as above.
    unsafe { word::write(budget, now << 32 | (used + 1)) };
    Some(())
}

/// Moves the packet's start `bytes` forward into the headroom.
#[inline(always)]
fn grow(ctx: &XdpContext, bytes: usize) -> Option<()> {
    // SAFETY: the context is the program's own; all packet pointers are made anew afterwards.
    (unsafe { bpf_xdp_adjust_head(ctx.ctx, -(bytes as i32)) } == 0).then_some(())
}

/// Ends the frame after `length` bytes.
#[inline(always)]
fn cut(ctx: &XdpContext, length: usize) -> Option<()> {
    let change = length as i32 - packet::frame_length(ctx) as i32;
    // SAFETY: as above.
    (unsafe { bpf_xdp_adjust_tail(ctx.ctx, change) } == 0).then_some(())
}
