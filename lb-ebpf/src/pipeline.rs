//! The stages of a packet in order: parse, virtual server, connection, scheduler, way out, rewrite.
//!
//! What belongs to no virtual server passes untouched. What does is sent on or dropped with a reason; it never goes up to
//! the host, whose stack would answer it with a reset.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use lb_common::connection::{ConnectionEntry, ConnectionState, Direction, FlowKey};
use lb_common::counters::Counters;
use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::real::RealServerEntry;
use lb_common::service::{ForwardingMethod, VirtualServerEntry};

use crate::conntrack::{self, Connection};
use crate::encap;
use crate::forward::{self, Egress};
use crate::maps;
use crate::parse::{self, Packet, tcp_flag};
use crate::rewrite::{self, End};
use crate::schedule::{self, Choice};
use crate::service;
use crate::verdict::Verdict;

/// Decides what becomes of the packet, and prepares it for that.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> Result<Verdict, DropReason> {
    let mut packet = Packet::EMPTY;
    let Some(()) = parse::packet(ctx, &mut packet) else { return Ok(Verdict::Pass) };
    if let Some(service) = service::lookup(&packet.flow) {
        return request(ctx, &packet, service);
    }
    if maps::NAT_REPLIES.load() != 0
        && let Some(connection) = conntrack::lookup(&packet.flow, Direction::Reply)
    {
        return reply(ctx, &packet, connection);
    }
    Ok(Verdict::Pass)
}

/// A packet of a client to a virtual server.
#[inline(always)]
fn request(ctx: &XdpContext, packet: &Packet, service: &VirtualServerEntry) -> Result<Verdict, DropReason> {
    parse::validate(ctx, packet)?;
    let flags = parse::tcp_flags(ctx, packet)?;
    let known = known_real_server(packet, service, flags);
    let (Choice { index, real }, entries) = match known {
        Some(known) => known,
        None if packet.flow.protocol == Protocol::Tcp && !is_opening(flags) => return Err(DropReason::NoConnection),
        None => {
            let state = conntrack::first_state(packet.flow.protocol);
            (schedule::choose(service)?, Entries::Missing(state))
        }
    };
    let egress = match real.forwarding {
        ForwardingMethod::Nat | ForwardingMethod::Dr => {
            forward::to_real_server(ctx.ctx, real, &packet.flow.source, packet.length)?
        }
        // Without a route, user space knows no address of ours that the outer header could carry.
        ForwardingMethod::Tun if real.tunnel_source.words() == [0; 4] => return Err(DropReason::NoRoute),
        ForwardingMethod::Tun => {
            let length = packet.length + encap::overhead(packet.is_ipv4);
            forward::to_real_server(ctx.ctx, real, &real.tunnel_source, length)?
        }
    };
    if let Entries::Missing(state) = entries {
        remember(ctx.ctx, packet, index, real, state)?;
    }
    log(ctx, packet, index);
    let verdict = deliver(ctx, packet, real, &egress)?;
    let length = u64::from(packet.length);
    count(service.index, index, |counters| {
        counters.connections += u64::from(known.is_none());
        counters.packets_in += 1;
        counters.bytes_in += length;
    });
    Ok(verdict)
}

/// Rewrites or wraps the packet for `real` and sends it.
#[inline(always)]
fn deliver(ctx: &XdpContext, packet: &Packet, real: &RealServerEntry, egress: &Egress) -> Result<Verdict, DropReason> {
    match real.forwarding {
        ForwardingMethod::Nat => rewrite::translate(ctx, packet, End::Destination, real.address, real.port)?,
        ForwardingMethod::Dr => rewrite::decrement_ttl(ctx, packet)?,
        ForwardingMethod::Tun => {
            rewrite::decrement_ttl(ctx, packet)?;
            encap::wrap(ctx.ctx, packet, real)?;
        }
    }
    forward::send(ctx, egress, packet.ethernet.ethertype)
}

/// A packet of a real server to a client, on its way back through the director.
#[inline(always)]
fn reply(ctx: &XdpContext, packet: &Packet, connection: Connection) -> Result<Verdict, DropReason> {
    parse::validate(ctx, packet)?;
    let flags = parse::tcp_flags(ctx, packet)?;
    let entry = connection.entry();
    if is_accepting(flags) && conntrack::is_closing(entry) {
        // Our connection has ended, so this answers one that the client has opened to the real server itself, with a port
        // that it used before: leave it and what follows alone.
        conntrack::remove(&packet.flow);
        return Ok(Verdict::Pass);
    }
    let real = real_server_of(entry).ok_or(DropReason::NoConnection)?;
    let egress = forward::to_client(ctx.ctx, packet, entry)?;
    let moved_on = connection.touch(flags);
    if moved_on || is_closing(flags) {
        touch_request(packet, entry, flags);
    }
    rewrite::translate(ctx, packet, End::Source, entry.vip, entry.vip_port)?;
    let verdict = forward::send(ctx, &egress, packet.ethernet.ethertype)?;
    let length = u64::from(packet.length);
    count(real.virtual_server, entry.real_server, |counters| {
        counters.packets_out += 1;
        counters.bytes_out += length;
    });
    Ok(verdict)
}

/// Whether the table has all entries of a connection.
#[derive(Clone, Copy)]
enum Entries {
    Complete,
    /// Some must be made, in this state.
    Missing(ConnectionState),
}

/// The real server of the packet's connection, unless the packet opens a new one.
#[inline(always)]
fn known_real_server(packet: &Packet, service: &VirtualServerEntry, flags: u8) -> Option<(Choice, Entries)> {
    let connection = conntrack::lookup(&packet.flow, Direction::Request)?;
    let entry = connection.entry();
    if is_opening(flags) && conntrack::is_closing(entry) {
        return None;
    }
    let choice = schedule::recall(entry.real_server, service, entry.generation)?;
    connection.touch(flags);
    let entries = match choice.real.forwarding {
        // The reply's entry ages by the same packets; where it was evicted, the answer would not find its way.
        ForwardingMethod::Nat if !touch_reply(packet, choice.real, flags) => Entries::Missing(entry.state),
        ForwardingMethod::Nat | ForwardingMethod::Dr | ForwardingMethod::Tun => Entries::Complete,
    };
    Some((choice, entries))
}

/// Notes the packet in the entry of its connection's other direction; false where there is none, or another connection's.
#[inline(never)]
fn touch_reply(packet: &Packet, real: &RealServerEntry, flags: u8) -> bool {
    let Some(other) = conntrack::lookup(&reply_flow(packet, real), Direction::Reply) else { return false };
    if !conntrack::is_of(other.entry(), &packet.flow.destination, packet.flow.destination_port) {
        return false;
    }
    other.touch(flags);
    true
}

/// Keeps the client's direction of a connection alive by a reply, and notes there that the real server closes it.
#[inline(never)]
fn touch_request(packet: &Packet, entry: &ConnectionEntry, flags: u8) {
    let Some(other) = conntrack::lookup(&request_flow(packet, entry), Direction::Request) else { return };
    // The client may have opened its next connection with the same port, to another real server.
    if other.entry().real_server == entry.real_server && other.entry().generation == entry.generation {
        // Only the client's own segments establish the connection.
        other.touch(flags & (tcp_flag::FIN | tcp_flag::RST));
    }
}

/// Enters a new connection into the table, for `nat` in both directions.
///
/// Not inlined, like its neighbours below, because a program has 512 bytes of stack and the keys are large.
#[inline(never)]
fn remember(
    ctx: *mut xdp_md,
    packet: &Packet,
    index: u32,
    real: &RealServerEntry,
    state: ConnectionState,
) -> Result<(), DropReason> {
    let mut entry = ConnectionEntry {
        vip: packet.flow.destination,
        vip_port: packet.flow.destination_port,
        client_mac: packet.ethernet.source,
        director_mac: packet.ethernet.destination,
        reserved: 0,
        // SAFETY: the context is valid for as long as the program runs.
        client_ifindex: unsafe { (*ctx).ingress_ifindex },
        direction: Direction::Reply,
        state,
        real_server: index,
        generation: real.generation,
        last_seen: conntrack::tick(),
    };
    match real.forwarding {
        ForwardingMethod::Nat => {
            let back = reply_flow(packet, real);
            if let Some(other) = conntrack::live_rival(&back, &entry)
                && real_server_of(other).is_some()
            {
                return Err(DropReason::TupleInUse);
            }
            conntrack::insert(&back, &entry)?;
        }
        ForwardingMethod::Dr | ForwardingMethod::Tun => {}
    }
    entry.direction = Direction::Request;
    conntrack::insert(&packet.flow, &entry)
}

/// The real server that the entry names, if it is still the one that the entry was made for.
#[inline(always)]
fn real_server_of(entry: &ConnectionEntry) -> Option<&'static RealServerEntry> {
    maps::REAL_SERVERS.get(entry.real_server).filter(|real| real.generation == entry.generation)
}

/// The tuple of `real`'s answers to the packet, before they are rewritten.
#[inline(always)]
fn reply_flow(packet: &Packet, real: &RealServerEntry) -> FlowKey {
    FlowKey {
        source: real.address,
        destination: packet.flow.source,
        source_port: real.port,
        destination_port: packet.flow.source_port,
        protocol: packet.flow.protocol,
    }
}

/// The tuple of the client's packets that `packet` answers.
#[inline(always)]
fn request_flow(packet: &Packet, entry: &ConnectionEntry) -> FlowKey {
    FlowKey {
        source: packet.flow.destination,
        destination: entry.vip,
        source_port: packet.flow.destination_port,
        destination_port: entry.vip_port,
        protocol: packet.flow.protocol,
    }
}

/// Whether a TCP segment asks for a new connection.
#[inline(always)]
fn is_opening(flags: u8) -> bool {
    flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN) == tcp_flag::SYN
}

/// Whether a TCP segment accepts a new connection.
#[inline(always)]
fn is_accepting(flags: u8) -> bool {
    flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN | tcp_flag::ACK
}

/// Whether a TCP segment ends its connection, or its direction of it.
#[inline(always)]
fn is_closing(flags: u8) -> bool {
    flags & (tcp_flag::FIN | tcp_flag::RST) != 0
}

/// One line a packet that goes to a real server, where the packet log is on; the verifier removes the call where it is off.
#[inline(never)]
fn log(ctx: &XdpContext, packet: &Packet, index: u32) {
    let FlowKey { source, destination, source_port, destination_port, protocol } = &packet.flow;
    let (from, to) = (source_port.number(), destination_port.number());
    let protocol = protocol.name();
    if packet.is_ipv4 {
        let (source, destination) = (u32::from_be(source.words()[3]), u32::from_be(destination.words()[3]));
        info!(ctx, "{} {:i}:{} -> {:i}:{} to real server {}", protocol, source, from, destination, to, index);
    } else {
        let (source, destination) = (source.octets, destination.octets);
        info!(ctx, "{} [{:i}]:{} -> [{:i}]:{} to real server {}", protocol, source, from, destination, to, index);
    }
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
