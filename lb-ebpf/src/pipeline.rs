//! The stages of a packet in order: parse, virtual server, connection, scheduler, way out, rewrite.
//!
//! What belongs to no virtual server passes untouched. What does is sent on or dropped with a reason; it goes up to the host
//! only where the host is the real server.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use aya_log_ebpf::macro_support::{Level, level_enabled};
use lb_common::checksum::Delta;
use lb_common::connection::{Meta, State};
use lb_common::counters::Counters;
use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::real::{RealServerEntry, real_flag};
use lb_common::service::{ForwardingMethod, Lookups, NONE, VirtualServerEntry, service_flag};

use crate::conntrack::{self, Lookup};
use crate::forward::{self, Egress, Way};
use crate::packet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet};
use crate::parse::{self, Packet, Version};
use crate::replies;
use crate::rewrite::{self, End, Translation};
use crate::service::{self, Hit};
use crate::tcp::{self, Sender};
use crate::verdict::{Stop, Told, Verdict};
use crate::{access, clock, encap, exceptional, maps, schedule, template, word};

/// Decides what becomes of the packet, and prepares it for that.
///
/// Everything below is compiled twice, once for each IP version: what the other has need not be asked then.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Result<Verdict, Stop> {
    // No closures, which are functions that LLVM may leave as they are.
    match parse::version(ctx) {
        Some(Version::Ipv4) => match parse::ipv4(ctx) {
            Some(packet) => serve(ctx, &packet),
            None => Ok(exceptional::enter(ctx)),
        },
        Some(Version::Ipv6) => match parse::ipv6(ctx) {
            Some(packet) => serve(ctx, &packet),
            None => Ok(exceptional::enter(ctx)),
        },
        None => Ok(Verdict::PASS),
    }
}

/// What becomes of a packet whose ports are known.
#[inline(always)]
pub fn serve(ctx: &XdpContext, packet: &Packet) -> Result<Verdict, Stop> {
    let Some(lookups) = service::lookups() else { return Ok(Verdict::PASS) };
    if let Some(hit) = service::find(packet, lookups) {
        return request(ctx, packet, hit, lookups);
    }
    if maps::NAT_REPLIES.load() != 0 {
        if let Some(first) = service::find_real(&packet.source, packet.source_port, packet.protocol, lookups)
            && let Some(verdict) = reply(ctx, packet, first, lookups)?
        {
            return Ok(verdict);
        }
        replies::note_direct(packet, lookups);
    }
    Ok(Verdict::PASS)
}

/// A real server for the packet.
#[derive(Clone, Copy)]
struct Choice {
    index: u32,
    real: &'static RealServerEntry,
    newcomer: Newcomer,
}

/// What the packet of a connection without a slot begins.
///
/// One word: several small fields LLVM would pack into parts of a register that holds a pointer on another path.
#[derive(Clone, Copy)]
struct Newcomer(u32);

impl Newcomer {
    /// The connection has a slot.
    const NONE: Self = Self(0);
    /// It counts as a connection.
    const COUNTS: u32 = 1 << 8;
    /// The client gets a persistence template.
    const TEMPLATE: u32 = 1 << 9;
    /// Any other real server would do as well.
    const MAY_MOVE: u32 = 1 << 10;

    /// The state that its connection is entered with; [`State::FREE`]: it is not.
    #[inline(always)]
    fn state(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    fn is(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

/// A packet of a client to a virtual server.
#[inline(always)]
fn request(ctx: &XdpContext, packet: &Packet, hit: Hit, lookups: &Lookups) -> Result<Verdict, Stop> {
    parse::validate(ctx, packet)?;
    let flags = parse::tcp_flags(ctx, packet)?;
    // Before the table: a flood of SYNs from denied clients costs no look-up there.
    if tcp::is_opening(flags) {
        access::check(&packet.source, hit)?;
    }
    let key = replies::request_key(packet, hit);
    let choice = match known(packet, hit, key, flags) {
        Known::Is(choice) => choice,
        Known::Not => open(packet, hit, key, flags)?,
        // What is sent again finds the slot written.
        Known::Locked => return Err(DropReason::TableFull.into()),
    };
    let mut choice = choice;
    let mut way = match forward::to_real_server(ctx, packet, choice.index, choice.real) {
        Ok(way) => way,
        // Whose packet is too big is to hear so, and to send a smaller one there.
        Err(stop) if !choice.newcomer.is(Newcomer::MAY_MOVE) || stop.told() == Told::TooBig => return Err(stop),
        // What cannot be sent enters nothing, so the least loaded would remain so, and take all that comes.
        Err(stop) => {
            let index = schedule::next_server(hit.index, choice.index);
            let real = real_server(index, hit).ok_or(stop)?;
            (choice.index, choice.real) = (index, real);
            if hit.flags & service_flag::PERSISTENT != 0 {
                choice.newcomer.0 |= Newcomer::TEMPLATE;
            }
            forward::to_real_server(ctx, packet, index, real)?
        }
    };
    if choice.newcomer.is(Newcomer::TEMPLATE) {
        template::enter(hit.index, packet.source.halves(), choice.index, choice.real.generation);
    }
    if choice.newcomer.state() != State::FREE
        && let Err(reason) = enter(ctx, packet, key, &choice, lookups)
    {
        // Without a slot a reply would not find its way back; else the client keeps to the server that its key names.
        choice = stateless(hit, key, choice).filter(|_| reason == DropReason::TableFull).ok_or(reason)?;
        way = forward::to_real_server(ctx, packet, choice.index, choice.real)?;
    }
    // The verifier removes the branch where the packet log is off.
    if level_enabled(Level::Info) {
        log_packet(ctx.ctx, choice.index);
    }
    let verdict = match way {
        Way::Out(egress) => deliver(ctx, packet, choice.real, &egress)?,
        Way::Up => Verdict::PASS,
    };
    let length = u64::from(packet.length);
    let is_new = choice.newcomer.is(Newcomer::COUNTS);
    count(hit.index, choice.index, |counters| {
        counters.connections += u64::from(is_new);
        counters.packets_in += 1;
        counters.bytes_in += length;
    });
    Ok(verdict)
}

/// Whether the packet's connection is known.
enum Known {
    Is(Choice),
    Not,
    /// Its slot is being rewritten: which connection it will hold is not known.
    Locked,
}

/// The real server of the packet's connection, unless there is none or the packet opens a new one; notes the packet.
#[inline(always)]
fn known(packet: &Packet, hit: Hit, key: u64, flags: u8) -> Known {
    if hit.flags & service_flag::ONE_PACKET != 0 {
        return Known::Not;
    }
    let (place, meta) = match conntrack::find(key, false) {
        Lookup::Found(place, meta) => (place, meta),
        Lookup::Missing => return Known::Not,
        Lookup::Locked => return Known::Locked,
    };
    let index = u32::from(meta.real_server());
    let Some(real) = maps::REAL_SERVERS.get(index) else { return Known::Not };
    let state = meta.state();
    let next = match packet.protocol {
        Protocol::Tcp | Protocol::Sctp => tcp::after(state, flags, Sender::Client),
        Protocol::Udp => State::UDP,
    };
    let is_void = real.generation as u8 != meta.generation()
        || real.virtual_server != hit.index
        || (real.flags & real_flag::REMOVED != 0 && packet.protocol == Protocol::Udp)
        || (tcp::is_opening(flags) && may_begin_anew(state, real));
    let is_kept = !is_void && if next == state { place.touch(meta) } else { is_fresh(meta) };
    if !is_kept {
        return if place.free(meta) { Known::Not } else { Known::Locked };
    }
    if next != state {
        place.advance(meta, next);
        let is_established = next == State::ESTABLISHED || next == State::UDP;
        if is_established && hit.flags & service_flag::PERSISTENT != 0 {
            let [a, b] = packet.source.halves();
            template::confirm_template(hit.index, a, b);
        }
    }
    Known::Is(Choice { index, real, newcomer: Newcomer::NONE })
}

/// Whether a SYN on a connection in `state` begins another one.
///
/// It does where that has ended, and where its real server takes no new connections: of the end of an established one by
/// `dr` and `tun` nothing may have been seen.
#[inline(always)]
fn may_begin_anew(state: u8, real: &RealServerEntry) -> bool {
    State::is_closing(state) || (State::class(state) >= 4 && (real.weight == 0 || real.flags & real_flag::REMOVED != 0))
}

#[inline(always)]
fn is_fresh(meta: Meta) -> bool {
    lb_common::connection::age(meta.last_seen(), clock::tick()) <= conntrack::timeout(meta.state())
}

/// The real server for a packet of an unknown connection.
#[inline(always)]
fn open(packet: &Packet, hit: Hit, key: u64, flags: u8) -> Result<Choice, Stop> {
    if !tcp::is_opening(flags) {
        access::check(&packet.source, hit)?;
    }
    let service = service::by_index(hit.index).ok_or(DropReason::NoRealServer)?;
    let unknown = Stop::by(service.unknown_connection, DropReason::NoConnection);
    let refusal = Stop::by(service.no_real_server, DropReason::NoRealServer);
    let mut newcomer = match packet.protocol {
        Protocol::Udp if hit.flags & service_flag::ONE_PACKET != 0 => Newcomer(Newcomer::COUNTS),
        Protocol::Udp => Newcomer(Newcomer::COUNTS | State::UDP_NEW as u32),
        Protocol::Tcp if tcp::is_opening(flags) => Newcomer(Newcomer::COUNTS | State::OPENING as u32),
        Protocol::Sctp if tcp::is_opening(flags) => Newcomer(Newcomer::COUNTS | State::SCTP_OPENING as u32),
        Protocol::Tcp | Protocol::Sctp => match midstream(service, key, flags) {
            Midstream::Schedule(State::FREE) => Newcomer::NONE,
            Midstream::Schedule(state) => Newcomer(Newcomer::COUNTS | u32::from(state)),
            Midstream::Stateless => {
                let index = schedule::stateless_server(hit.index, key);
                let real = real_server(index, hit).ok_or(refusal)?;
                // Its reply would not find its way back behind `nat`.
                let is_answered = real.forwarding != ForwardingMethod::Nat;
                return is_answered.then_some(Choice { index, real, newcomer: Newcomer::NONE }).ok_or(unknown);
            }
            Midstream::Refuse => return Err(unknown),
        },
    };
    let index = scheduled(packet, hit, service, &mut newcomer);
    let real = real_server(index, hit).ok_or(refusal)?;
    Ok(Choice { index, real, newcomer })
}

/// What becomes of a TCP segment that opens nothing and whose connection is unknown.
enum Midstream {
    /// It is scheduled, and entered with this state.
    Schedule(u8),
    /// It goes where its SYN went when that found no slot.
    Stateless,
    Refuse,
}

#[inline(always)]
fn midstream(service: &VirtualServerEntry, key: u64, flags: u8) -> Midstream {
    let is_under_way = tcp::is_under_way(flags);
    if service.scheduler.is_hash() {
        return Midstream::Schedule(if is_under_way { State::SETTLING } else { State::FREE });
    }
    // Before it is scheduled as new: its SYN may have gone by its key.
    if conntrack::is_crowded(key) != 0 {
        return Midstream::Stateless;
    }
    let is_sloppy = service.flags & service_flag::SLOPPY_TCP != 0;
    if is_sloppy && is_under_way { Midstream::Schedule(State::SETTLING) } else { Midstream::Refuse }
}

/// The index of the real server that template, scheduler or sorry server gives; [`NONE`] without any.
#[inline(always)]
fn scheduled(packet: &Packet, hit: Hit, service: &VirtualServerEntry, newcomer: &mut Newcomer) -> u32 {
    let [a, b] = packet.source.halves();
    let is_persistent = hit.flags & service_flag::PERSISTENT != 0;
    let may_move = if service.scheduler.is_hash() { 0 } else { Newcomer::MAY_MOVE };
    if is_persistent {
        let known = template::template_server(hit.index, a, b);
        if known != NONE {
            newcomer.0 |= may_move;
            return known;
        }
    }
    let chosen = schedule::choose_server(hit.index, a, b, packet.source_port.number().into());
    if chosen == NONE {
        // SAFETY: a word of a live map element.
        return unsafe { word::read(&raw const service.sorry_server) };
    }
    if is_persistent {
        newcomer.0 |= Newcomer::TEMPLATE;
    }
    newcomer.0 |= may_move;
    chosen
}

/// The real server at `index`, if it is the virtual server's.
#[inline(always)]
fn real_server(index: u32, hit: Hit) -> Option<&'static RealServerEntry> {
    let real = maps::REAL_SERVERS.get(index)?;
    (real.generation != 0 && real.virtual_server == hit.index).then_some(real)
}

/// Where a new connection goes that found no slot, instead of to its `choice`; nowhere behind `nat`, where the reply would be
/// lost.
///
/// The schedulers by hash have chosen what they will choose for its other packets too.
#[inline(always)]
fn stateless(hit: Hit, key: u64, choice: Choice) -> Option<Choice> {
    let mut choice = choice;
    if !service::by_index(hit.index)?.scheduler.is_hash() {
        choice.index = schedule::stateless_server(hit.index, key);
        choice.real = real_server(choice.index, hit)?;
    }
    (choice.real.forwarding != ForwardingMethod::Nat).then_some(choice)
}

/// Gives a new connection its slot.
#[inline(always)]
fn enter(ctx: &XdpContext, packet: &Packet, key: u64, choice: &Choice, lookups: &Lookups) -> Result<(), DropReason> {
    let Choice { index, real, newcomer } = choice;
    let mut hop = 0;
    match real.forwarding {
        ForwardingMethod::Nat => {
            if replies::is_taken(packet, *index, real, lookups) {
                return Err(DropReason::TupleInUse);
            }
            let ethernet = packet::read::<Ethernet>(ctx, 0).ok_or(DropReason::Malformed)?;
            hop = replies::learn_arrival(ctx.ctx, ethernet.source, ethernet.destination);
        }
        ForwardingMethod::Dr | ForwardingMethod::Tun => {}
    }
    let meta = Meta::new(*index as u16, newcomer.state(), real.generation as u8, clock::tick(), hop);
    let [a, b] = packet.source.halves();
    match conntrack::enter_connection(key, meta.0, a, b, replies::ports_of(packet)) {
        conntrack::entry::ENTERED => Ok(()),
        _ => Err(DropReason::TableFull),
    }
}

/// Rewrites or wraps the packet for `real` and sends it.
#[inline(always)]
fn deliver(ctx: &XdpContext, packet: &Packet, real: &RealServerEntry, egress: &Egress) -> Result<Verdict, Stop> {
    match real.forwarding {
        ForwardingMethod::Nat => {
            let port = if real.port.number() == 0 { packet.destination_port } else { real.port };
            let to = Translation {
                end: End::Destination,
                address: real.address,
                port,
                addresses: Delta::from_folded(real.address_delta),
                transport: Delta::from_folded(real.transport_delta),
            };
            rewrite::translate(ctx, packet, &to)?;
        }
        ForwardingMethod::Dr => rewrite::decrement_ttl(ctx, packet)?,
        ForwardingMethod::Tun => {
            rewrite::decrement_ttl(ctx, packet)?;
            encap::wrap(ctx, packet, real)?;
            return Ok(forward::send(ctx, egress, encap::ethertype(real))?);
        }
    }
    Ok(forward::send(ctx, egress, ethertype(packet))?)
}

/// The EtherType of the packet.
#[inline(always)]
pub fn ethertype(packet: &Packet) -> u16 {
    if packet.is_ipv4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 }
}

/// A packet of a real server to a client, on its way back through the director; `None` where it is none of ours after all.
#[inline(always)]
fn reply(ctx: &XdpContext, packet: &Packet, first: Hit, lookups: &Lookups) -> Result<Option<Verdict>, Stop> {
    // What is sent again finds the slot written.
    let (index, real, service, egress) = match replies::find(packet, first).map_err(|_| DropReason::TableFull)? {
        Some(answered) => {
            let replies::Answered { index, real, service, meta, .. } = answered;
            if meta.state() == State::UDP_DIRECT {
                return Ok(None);
            }
            let Some(egress) = follow(ctx, packet, answered, lookups)? else { return Ok(None) };
            (index, real, service, egress)
        }
        None => {
            let Some((real, service)) = replies::stateless(packet, first) else { return Ok(None) };
            parse::validate(ctx, packet)?;
            parse::check_ttl(packet, service.index)?;
            (first.index, real, service, replies::looked_up(ctx.ctx, packet, service.index)?)
        }
    };
    let to = Translation {
        end: End::Source,
        address: service.key.vip,
        port: if real.port.number() == 0 { packet.source_port } else { service.key.port },
        addresses: Delta::from_folded(real.address_delta).inverse(),
        transport: Delta::from_folded(real.transport_delta).inverse(),
    };
    rewrite::translate(ctx, packet, &to)?;
    let verdict = forward::send(ctx, &egress, ethertype(packet))?;
    let length = u64::from(packet.length);
    count(service.index, index, |counters| {
        counters.packets_out += 1;
        counters.bytes_out += length;
    });
    Ok(Some(verdict))
}

/// Notes the reply in its connection; the way back to the client, or `None` where the packet is none of ours after all.
#[inline(always)]
fn follow(
    ctx: &XdpContext,
    packet: &Packet,
    answered: replies::Answered,
    lookups: &Lookups,
) -> Result<Option<Egress>, Stop> {
    let replies::Answered { service, place, meta, .. } = answered;
    let routes = service::routes(lookups);
    let known = replies::known_way_back(meta, routes);
    // Each way back is looked up anew after a change of addresses, so this is not asked for each packet.
    if known.is_none() && replies::is_for_us(packet) {
        return Ok(None);
    }
    parse::validate(ctx, packet)?;
    parse::check_ttl(packet, service.index)?;
    let flags = parse::tcp_flags(ctx, packet)?;
    if tcp::is_accepting(flags) && State::is_closing(meta.state()) {
        // Our connection has ended, so this answers one that the client has opened to the real server itself, with a port
        // that it used before: leave it and what follows alone.
        place.free(meta);
        return Ok(None);
    }
    let (egress, hop) = match known {
        Some(hop) => replies::fitting(packet, service.index, replies::egress_of(hop), meta.client_hop())?,
        None => replies::way_back(ctx.ctx, packet, &answered, routes)?,
    };
    let next = match packet.protocol {
        Protocol::Tcp => tcp::after(meta.state(), flags, Sender::Server),
        Protocol::Udp | Protocol::Sctp => meta.state(),
    };
    if hop != meta.client_hop() {
        place.reroute(meta, next, hop);
    } else if next == meta.state() {
        place.touch(meta);
    } else {
        place.advance(meta, next);
    }
    Ok(Some(egress))
}

/// One line a packet that goes to a real server.
///
/// It reads the packet anew: what a function of its own is given a pointer to would lie on the stack for every packet. A
/// global one, verified once: for each path that leads here it would be more than Linux 6.1 has patience for.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn log_packet(ctx: *mut xdp_md, index: u32) -> u32 {
    let ctx = &XdpContext::new(ctx);
    let packet = match parse::version(ctx) {
        Some(Version::Ipv4) => parse::ipv4(ctx).or_else(|| exceptional::ipv4(ctx)),
        Some(Version::Ipv6) => parse::ipv6(ctx).or_else(|| exceptional::ipv6(ctx)),
        None => None,
    };
    let Some(Packet { source, destination, source_port, destination_port, protocol, is_ipv4, .. }) = packet else {
        return 0;
    };
    let (from, to) = (source_port.number(), destination_port.number());
    let protocol = protocol.name();
    if is_ipv4 {
        let (source, destination) = (u32::from_be(source.words()[3]), u32::from_be(destination.words()[3]));
        info!(ctx, "{} {:i}:{} -> {:i}:{} to real server {}", protocol, source, from, destination, to, index);
    } else {
        let (source, destination) = (source.octets, destination.octets);
        info!(ctx, "{} [{:i}]:{} -> [{:i}]:{} to real server {}", protocol, source, from, destination, to, index);
    }
    0
}

/// Applies `change` to this CPU's counters of a virtual server and of a real server.
#[inline(always)]
fn count(virtual_server: u32, real_server: u32, change: impl Fn(&mut Counters)) {
    if let Some(counters) = maps::VS_COUNTERS.get_ptr_mut(virtual_server) {
        // SAFETY: this CPU's own element; nothing else writes it while the program runs.
        change(unsafe { &mut *counters });
    }
    if let Some(counters) = maps::RS_COUNTERS.get_ptr_mut(real_server) {
        // SAFETY: as above.
        change(unsafe { &mut *counters });
    }
}
