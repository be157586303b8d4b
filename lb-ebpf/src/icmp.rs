//! ICMP errors (RFC 792, RFC 4443) about packets of virtual servers: to the real server or client whose packet they quote.
//!
//! A program of its own, to which [`crate::exceptional`] leaves what it doesn't read. An error goes where an answer to the
//! packet that it quotes would go; eight bytes behind the quoted header suffice. Errors of unknown connections pass: the
//! host may have sent something itself. No error refreshes or changes a connection, counts as a packet of a virtual server
//! or is answered.

use aya_ebpf::programs::XdpContext;
use lb_common::STAGE_ICMP;
use lb_common::checksum::Delta;
use lb_common::connection::State;
use lb_common::drop_reason::DropReason;
use lb_common::net::{Address, Port, Protocol};
use lb_common::real::real_flag;
use lb_common::service::{ForwardingMethod, Lookups};

use crate::conntrack::{self, Lookup};
use crate::forward::{self, Way};
use crate::packet::{self, ETHERNET_LENGTH, IPV6_LENGTH, Icmp, Ipv4, Ipv6, Ports};
use crate::parse::{self, Obstacle, Packet, Version};
use crate::rewrite::{self, End};
use crate::service::{self, Hit};
use crate::verdict::{Stop, Verdict};
use crate::{encap, maps, pipeline, replies};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Leaves the packet to the program [`run`] is in; it passes where that is missing, as in [`crate::exceptional::enter`].
#[inline(always)]
pub fn enter(ctx: &XdpContext) -> Verdict {
    // SAFETY: context and map are valid.
    unsafe { maps::STAGES.tail_call(ctx, STAGE_ICMP) };
    Verdict::PASS
}

/// Decides what becomes of the packet, and prepares it for that.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Result<Verdict, Stop> {
    match parse::version(ctx) {
        Some(Version::Ipv4) => match ipv4(ctx) {
            Some(error) => follow(ctx, &error),
            None => Ok(Verdict::PASS),
        },
        Some(Version::Ipv6) => match ipv6(ctx) {
            Some(error) => follow(ctx, &error),
            None => Ok(Verdict::PASS),
        },
        None => Ok(Verdict::PASS),
    }
}

/// An ICMP error.
#[derive(Clone, Copy)]
struct Error {
    /// The quoted packet the other way round, with the length and time to live of the error.
    answer: Packet,
    /// Who sent the error: not always whom the quoted packet was for.
    from: Address,
    /// Offset of the ICMP header.
    icmp: usize,
    /// Offset of the quoted ports.
    ports: usize,
}

impl Error {
    /// Offset of the quoted IP header.
    #[inline(always)]
    fn quoted(&self) -> usize {
        self.icmp + size_of::<Icmp>()
    }
}

/// An error that goes back to where the packet came from which it quotes.
#[inline(always)]
fn ipv4(ctx: &XdpContext) -> Option<Error> {
    let (outer, icmp) = parse::ipv4_header(ctx)?;
    if outer.protocol != ICMP || parse::is_fragment(&outer) {
        return None;
    }
    // Destination unreachable, time exceeded, parameter problem. Source quench is obsolete (RFC 6633), redirects are ours.
    if !matches!(packet::read::<Icmp>(ctx, icmp)?.kind, 3 | 11 | 12) {
        return None;
    }
    let quoted = icmp + size_of::<Icmp>();
    let header = packet::read::<Ipv4>(ctx, quoted)?;
    let length = usize::from(header.version_ihl & 0x0f) * 4;
    let is_first = u16::from_be(header.fragment) & 0x1fff == 0;
    if header.version_ihl >> 4 != 4 || length < packet::IPV4_LENGTH || !is_first || header.source != outer.destination {
        return None;
    }
    let protocol = Protocol::from_number(header.protocol)?;
    let ports = packet::read::<Ports>(ctx, quoted + length)?;
    let turned = Ipv4 { source: header.destination, destination: header.source, ..outer };
    let answer = parse::ipv4_packet(&turned, protocol, swapped(ports), icmp, Obstacle::None);
    Some(Error { answer, from: Address::from_ipv4_word(outer.source), icmp, ports: quoted + length })
}

/// As [`ipv4`]; neither the error nor what it quotes has extension headers.
#[inline(always)]
fn ipv6(ctx: &XdpContext) -> Option<Error> {
    const AT: usize = ETHERNET_LENGTH + IPV6_LENGTH;
    const QUOTED: usize = AT + size_of::<Icmp>();
    let outer = parse::ipv6_header(ctx)?;
    // Destination unreachable, packet too big, time exceeded, parameter problem.
    if outer.next_header != ICMPV6 || !matches!(packet::read::<Icmp>(ctx, AT)?.kind, 1..=4) {
        return None;
    }
    let header = packet::read::<Ipv6>(ctx, QUOTED)?;
    let is_ipv6 = u32::from_be(header.version_class_label) >> 28 == 6;
    if !is_ipv6 || Address::from_words(header.destination).is_ipv4() || header.source != outer.destination {
        return None;
    }
    let protocol = Protocol::from_number(header.next_header)?;
    let ports = packet::read::<Ports>(ctx, QUOTED + IPV6_LENGTH)?;
    let turned = Ipv6 { source: header.destination, destination: header.source, ..outer };
    let answer = parse::ipv6_packet(&turned, protocol, swapped(ports), AT, Obstacle::None);
    Some(Error { answer, from: Address::from_words(outer.source), icmp: AT, ports: QUOTED + IPV6_LENGTH })
}

#[inline(always)]
fn swapped(ports: Ports) -> Ports {
    Ports { source: ports.destination, destination: ports.source }
}

#[inline(always)]
fn follow(ctx: &XdpContext, error: &Error) -> Result<Verdict, Stop> {
    let Some(lookups) = service::lookups() else { return Ok(Verdict::PASS) };
    if let Some(hit) = service::find(&error.answer, lookups) {
        return to_real_server(ctx, error, hit);
    }
    if maps::NAT_REPLIES.load() != 0
        && let Some(first) =
            service::find_real(&error.answer.source, error.answer.source_port, error.answer.protocol, lookups)
    {
        return to_client(ctx, error, first, lookups);
    }
    Ok(Verdict::PASS)
}

/// Checks an error's lengths: what is rewritten lies in it.
#[inline(always)]
fn validate(ctx: &XdpContext, error: &Error) -> Result<(), DropReason> {
    /// Of the quoted segment, RFC 792.
    const QUOTED: u64 = 8;
    let end = ETHERNET_LENGTH as u64 + u64::from(error.answer.length);
    if error.ports as u64 + QUOTED > end || end > packet::frame_length(ctx) {
        return Err(DropReason::Malformed);
    }
    Ok(())
}

/// About a packet of virtual server `hit` to a client: to the real server that sent it.
#[inline(always)]
fn to_real_server(ctx: &XdpContext, error: &Error, hit: Hit) -> Result<Verdict, Stop> {
    let packet = &error.answer;
    let key = replies::request_key(packet, hit);
    let Lookup::Found(_, meta) = conntrack::find(key, false) else { return Ok(Verdict::PASS) };
    let index = u32::from(meta.real_server());
    let Some(real) = maps::REAL_SERVERS.get(index) else { return Ok(Verdict::PASS) };
    let is_gone = real.flags & real_flag::REMOVED != 0 && packet.protocol == Protocol::Udp;
    if !replies::is_live(meta, index, real) || real.virtual_server != hit.index || is_gone {
        return Ok(Verdict::PASS);
    }
    validate(ctx, error)?;
    let egress = match forward::to_real_server(ctx, packet, index, real) {
        Ok(Way::Out(egress)) => egress,
        Ok(Way::Up) => return Ok(Verdict::PASS),
        Err(stop) => return Err(stop.in_silence()),
    };
    match real.forwarding {
        ForwardingMethod::Nat => {
            let port = if real.port.number() == 0 { packet.destination_port } else { real.port };
            let both = Delta::from_folded(real.address_delta);
            let (quoted, outer) = (both, both);
            translate(ctx, error, &Translation { end: End::Destination, address: real.address, port, quoted, outer })?;
        }
        ForwardingMethod::Dr => rewrite::decrement_ttl(ctx, packet)?,
        ForwardingMethod::Tun => {
            rewrite::decrement_ttl(ctx, packet)?;
            encap::wrap(ctx, packet, real)?;
            return Ok(forward::send(ctx, &egress, encap::ethertype(real))?);
        }
    }
    Ok(forward::send(ctx, &egress, pipeline::ethertype(packet))?)
}

/// About a client's packet to the real server `first` behind `nat`, or another one with its address: to the client.
#[inline(always)]
fn to_client(ctx: &XdpContext, error: &Error, first: Hit, lookups: &Lookups) -> Result<Verdict, Stop> {
    let packet = &error.answer;
    let answered = match replies::find(packet, first) {
        Ok(Some(answered)) => answered,
        Ok(None) => return Ok(Verdict::PASS),
        Err(_) => return Err(DropReason::TableFull.into()),
    };
    // About what the client, or this host itself, has sent straight to the real server.
    if answered.meta.state() == State::UDP_DIRECT || replies::is_for_us(packet) {
        return Ok(Verdict::PASS);
    }
    validate(ctx, error)?;
    if packet.ttl <= 1 {
        return Err(DropReason::TtlExpired.into());
    }
    let (routes, service) = (service::routes(lookups), answered.service.index);
    let way = match replies::known_way_back(answered.meta, routes) {
        Some(hop) => replies::fitting(packet, service, replies::egress_of(hop), answered.meta.client_hop()),
        None => replies::way_back(ctx.ctx, packet, &answered, routes),
    };
    let egress = match way {
        Ok((egress, _)) => egress,
        Err(stop) => return Err(stop.in_silence()),
    };
    let key = &answered.service.key;
    let port = if answered.real.port.number() == 0 { packet.source_port } else { key.port };
    let quoted = Delta::from_folded(answered.real.address_delta).inverse();
    let outer = match packet.is_ipv4 {
        true => Delta::NONE.replace32(error.from.words()[3], key.vip.words()[3]),
        false => Delta::NONE.replace128(error.from.words(), key.vip.words()),
    };
    translate(ctx, error, &Translation { end: End::Source, address: key.vip, port, quoted, outer })?;
    Ok(forward::send(ctx, &egress, pipeline::ethertype(packet))?)
}

/// What one end of an error, and the other end of what it quotes, become.
#[derive(Clone, Copy)]
struct Translation {
    end: End,
    address: Address,
    port: Port,
    /// What the quoted address does to a checksum.
    quoted: Delta,
    /// What the error's own address does to one.
    outer: Delta,
}

/// Sets address and port, and takes one from the time to live. The quoted checksum of TCP or UDP stays as it is, as with IPVS:
/// it covers what is not quoted, and nobody looks at it.
#[inline(always)]
fn translate(ctx: &XdpContext, error: &Error, to: &Translation) -> Result<(), DropReason> {
    let checksum = packet::at::<u16>(ctx, error.icmp + 2).ok_or(DropReason::Malformed)?;
    let ports = packet::at::<Ports>(ctx, error.ports).ok_or(DropReason::Malformed)?;
    // SAFETY: `at` has checked that the ports lie in the packet.
    let ports = unsafe { &mut *ports };
    let port = match to.end {
        End::Destination => core::mem::replace(&mut ports.source, to.port.to_wire()),
        End::Source => core::mem::replace(&mut ports.destination, to.port.to_wire()),
    };
    let delta = to.quoted.replace16(port, to.port.to_wire());
    let delta =
        delta.and(if error.answer.is_ipv4 { quoted_ipv4(ctx, error, to)? } else { quoted_ipv6(ctx, error, to)? });
    // SAFETY: `at` has checked that the field lies in the packet, which nothing has moved.
    unsafe { *checksum = delta.apply(*checksum) };
    let outer = Some((to.end, to.address));
    if error.answer.is_ipv4 { rewrite::set_ipv4(ctx, outer, to.outer) } else { rewrite::set_ipv6(ctx, outer) }
}

/// Sets an address of the quoted header; what its checksum does to that of the error.
#[inline(always)]
fn quoted_ipv4(ctx: &XdpContext, error: &Error, to: &Translation) -> Result<Delta, DropReason> {
    let header = packet::at::<Ipv4>(ctx, error.quoted()).ok_or(DropReason::Malformed)?;
    // SAFETY: `at` has checked that the header lies in the packet.
    let header = unsafe { &mut *header };
    match to.end {
        End::Destination => header.source = to.address.words()[3],
        End::Source => header.destination = to.address.words()[3],
    }
    let old = header.checksum;
    header.checksum = to.quoted.apply(old);
    Ok(Delta::NONE.replace16(old, header.checksum))
}

/// Sets an address of the quoted header; what the outer address does to the error's checksum, which covers it.
#[inline(always)]
fn quoted_ipv6(ctx: &XdpContext, error: &Error, to: &Translation) -> Result<Delta, DropReason> {
    let header = packet::at::<Ipv6>(ctx, error.quoted()).ok_or(DropReason::Malformed)?;
    // SAFETY: `at` has checked that the header lies in the packet.
    let header = unsafe { &mut *header };
    match to.end {
        End::Destination => header.source = to.address.words(),
        End::Source => header.destination = to.address.words(),
    }
    Ok(to.outer)
}
