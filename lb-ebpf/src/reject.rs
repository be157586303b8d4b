//! Answers to packets that find no real server or connection: a TCP RST, an SCTP ABORT, or ICMP's port unreachable for UDP.
//!
//! So many a tick and CPU at most; never in answer to a RST or ABORT, or to an address that cannot be one host's.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use aya_ebpf::programs::XdpContext;
use lb_common::{checksum, crc32c};

use crate::packet::{
    self, ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4_LENGTH, IPV6_LENGTH, Icmp, Ipv4, Ipv6, Tcp,
};
use crate::parse::tcp_flag;
use crate::sctp::{self, chunk};
use crate::{clock, maps, word};

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
const IPV6_VERSION: u32 = 0x6000_0000_u32.to_be();

/// Makes the packet into a rejection to its sender; [`ANSWERED`] if it did.
///
/// The packet has been found whole: a header of TCP, UDP, or SCTP with a chunk lies in it, and no extension header before that.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn answer_sender(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    let Some(ethernet) = packet::read::<Ethernet>(&ctx, 0) else { return SILENT };
    let answered = match ethernet.ethertype {
        ETHERTYPE_IPV4 => ipv4(&ctx, &ethernet),
        ETHERTYPE_IPV6 => ipv6(&ctx, &ethernet),
        _ => None,
    };
    if answered.is_some() { ANSWERED } else { SILENT }
}

#[inline(always)]
fn ipv4(ctx: &XdpContext, ethernet: &Ethernet) -> Option<()> {
    let header = packet::read::<Ipv4>(ctx, ETHERNET_LENGTH)?;
    let first = header.source.to_ne_bytes()[0];
    if first == 0 || first == 127 || first >= 224 {
        return None;
    }
    let length = usize::from(header.version_ihl & 0x0f) * 4;
    match header.protocol {
        TCP => reset_ipv4(ctx, ethernet, &header, length),
        UDP => unreachable_ipv4(ctx, ethernet, &header, length),
        SCTP => abort_ipv4(ctx, ethernet, &header, length),
        _ => None,
    }
}

#[inline(always)]
fn ipv6(ctx: &XdpContext, ethernet: &Ethernet) -> Option<()> {
    let header = packet::read::<Ipv6>(ctx, ETHERNET_LENGTH)?;
    if header.source.first()?.to_ne_bytes()[0] == 0xff || header.source == [0; 4] {
        return None;
    }
    match header.next_header {
        TCP => reset_ipv6(ctx, ethernet, &header),
        UDP => unreachable_ipv6(ctx, ethernet, &header),
        SCTP => abort_ipv6(ctx, ethernet, &header),
        _ => None,
    }
}

#[inline(always)]
fn reset_ipv4(ctx: &XdpContext, ethernet: &Ethernet, header: &Ipv4, length: usize) -> Option<()> {
    let segment = packet::read::<Tcp>(ctx, ETHERNET_LENGTH + length)?;
    let payload = u32::from(u16::from_be(header.total_length)).wrapping_sub(length as u32);
    let mut reset = reset(&segment, payload)?;
    let sum = u64::from(header.source) + u64::from(header.destination) + pseudo_header(TCP, size_of::<Tcp>());
    reset.checksum = checksum::of_sum(sum + reset.sum());
    let total = IPV4_LENGTH + size_of::<Tcp>();
    let answer = ipv4_answer(header, TCP, 0, DONT_FRAGMENT, total);
    spend()?;
    packet::write(ctx, 0, ethernet.turned())?;
    packet::write(ctx, ETHERNET_LENGTH, answer)?;
    packet::write(ctx, ETHERNET_LENGTH + IPV4_LENGTH, reset)?;
    cut(ctx, ETHERNET_LENGTH + total)
}

#[inline(always)]
fn reset_ipv6(ctx: &XdpContext, ethernet: &Ethernet, header: &Ipv6) -> Option<()> {
    let segment = packet::read::<Tcp>(ctx, ETHERNET_LENGTH + IPV6_LENGTH)?;
    let mut reset = reset(&segment, u16::from_be(header.payload_length).into())?;
    let sum = addresses_sum(header) + pseudo_header(TCP, size_of::<Tcp>());
    reset.checksum = checksum::of_sum(sum + reset.sum());
    let answer = ipv6_answer(header, TCP, size_of::<Tcp>());
    spend()?;
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
fn abort_ipv4(ctx: &XdpContext, ethernet: &Ethernet, header: &Ipv4, length: usize) -> Option<()> {
    let end = ETHERNET_LENGTH + usize::from(u16::from_be(header.total_length));
    let abort = abort(ctx, ETHERNET_LENGTH + length, end)?;
    let total = IPV4_LENGTH + size_of::<SctpAnswer>();
    let answer = ipv4_answer(header, SCTP, 0, DONT_FRAGMENT, total);
    spend()?;
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
    let answer = ipv6_answer(header, SCTP, size_of::<SctpAnswer>());
    spend()?;
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

/// Destination unreachable, port unreachable (RFC 792).
#[inline(always)]
fn unreachable_ipv4(ctx: &XdpContext, ethernet: &Ethernet, header: &Ipv4, length: usize) -> Option<()> {
    const BEFORE: usize = IPV4_LENGTH + size_of::<Icmp>();
    let quoted = length + QUOTED;
    let answer = ipv4_answer(header, ICMP, ICMP_TOS, 0, BEFORE + quoted);
    spend()?;
    grow(ctx, BEFORE)?;
    let mut icmp = Icmp { kind: 3, code: 3, checksum: 0, rest: 0 };
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

/// Destination unreachable, port unreachable (RFC 4443 §3.1).
#[inline(always)]
fn unreachable_ipv6(ctx: &XdpContext, ethernet: &Ethernet, header: &Ipv6) -> Option<()> {
    const BEFORE: usize = IPV6_LENGTH + size_of::<Icmp>();
    const PAYLOAD: usize = size_of::<Icmp>() + IPV6_LENGTH + QUOTED;
    let datagram = packet::read::<[u32; 2]>(ctx, ETHERNET_LENGTH + IPV6_LENGTH)?;
    let mut icmp = Icmp { kind: 1, code: 4, checksum: 0, rest: 0 };
    let rest = u32::from_ne_bytes([0, 0, header.next_header, header.hop_limit]) | u32::from(header.payload_length);
    let quote = u64::from(header.version_class_label)
        + u64::from(rest)
        + addresses_sum(header)
        + u64::from(datagram[0])
        + u64::from(datagram[1]);
    let sum = addresses_sum(header) + pseudo_header(ICMPV6, PAYLOAD) + icmp.sum() + quote;
    icmp.checksum = checksum::of_sum(sum);
    let answer = ipv6_answer(header, ICMPV6, PAYLOAD);
    spend()?;
    grow(ctx, BEFORE)?;
    packet::write(ctx, 0, ethernet.turned())?;
    packet::write(ctx, ETHERNET_LENGTH, answer)?;
    packet::write(ctx, ETHERNET_LENGTH + IPV6_LENGTH, icmp)?;
    cut(ctx, ETHERNET_LENGTH + IPV6_LENGTH + PAYLOAD)
}

#[inline(always)]
fn ipv4_answer(header: &Ipv4, protocol: u8, tos: u8, fragment: u16, total: usize) -> Ipv4 {
    let mut answer = Ipv4 {
        version_ihl: 0x45,
        tos,
        total_length: (total as u16).to_be(),
        identification: 0,
        fragment,
        ttl: TTL,
        protocol,
        checksum: 0,
        source: header.destination,
        destination: header.source,
    };
    answer.checksum = answer.sum_of_header();
    answer
}

#[inline(always)]
fn ipv6_answer(header: &Ipv6, next_header: u8, payload: usize) -> Ipv6 {
    Ipv6 {
        version_class_label: IPV6_VERSION,
        payload_length: (payload as u16).to_be(),
        next_header,
        hop_limit: TTL,
        source: header.destination,
        destination: header.source,
    }
}

/// The part of a pseudo header that is not addresses, as a sum of words in memory order.
#[inline(always)]
fn pseudo_header(protocol: u8, length: usize) -> u64 {
    u64::from(u16::from(protocol).to_be()) + u64::from((length as u16).to_be())
}

#[inline(always)]
fn addresses_sum(header: &Ipv6) -> u64 {
    let [a, b, c, d] = header.source;
    let [e, f, g, h] = header.destination;
    let half = |w: u32, x: u32, y: u32, z: u32| u64::from(w) + u64::from(x) + u64::from(y) + u64::from(z);
    half(a, b, c, d) + half(e, f, g, h)
}

/// Takes one rejection from this CPU's budget; `None` when this tick's is used up.
#[inline(always)]
fn spend() -> Option<()> {
    let budget = maps::REJECT_BUDGET.get_ptr_mut(0)?;
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
