//! What only `nat` needs: the connection that a real server's packet answers, and the way back to its client.

use aya_ebpf::bindings::xdp_md;
use lb_common::connection::{Meta, State};
use lb_common::drop_reason::DropReason;
use lb_common::hash;
use lb_common::net::{Address, MacAddress, Port, Protocol};
use lb_common::real::{ClientHop, RealServerEntry, hop_state};
use lb_common::service::{NONE, VirtualServerEntry, service_flag};
use lb_common::{CLIENT_HOPS_LENGTH, connection};

use crate::conntrack::{self, Lookup, Place};
use crate::forward::Egress;
use crate::parse::Packet;
use crate::route::{self, answer};
use crate::service::{self, Hit};
use crate::verdict::Stop;
use crate::{arrival, clock, maps, word};

/// A connection that a packet answers.
#[derive(Clone, Copy)]
pub struct Answered {
    pub index: u32,
    pub real: &'static RealServerEntry,
    pub service: &'static VirtualServerEntry,
    pub place: Place,
    pub meta: Meta,
}

/// The slot of the connection is being rewritten, so that nobody knows which it will hold.
#[derive(Clone, Copy)]
pub struct Locked;

/// The connection that a packet from the address and port of real server `first` answers.
#[inline(always)]
pub fn find(packet: &Packet, first: Hit) -> Result<Option<Answered>, Locked> {
    let Some(real) = maps::REAL_SERVERS.get(first.index) else { return Ok(None) };
    let Some(service) = service::by_index(real.virtual_server) else { return Ok(None) };
    let (client, client_port) = (packet.destination.halves(), packet.destination_port);
    match conntrack::find(key(service, first.flags, client, client_port, packet.source_port), false) {
        Lookup::Found(place, meta)
            if is_live(meta, first.index, real) && (real.next_same == NONE || !State::is_closing(meta.state())) =>
        {
            return Ok(Some(Answered { index: first.index, real, service, place, meta }));
        }
        Lookup::Locked if real.next_same == NONE => return Err(Locked),
        _ => {}
    }
    if real.next_same == NONE {
        return Ok(None);
    }
    let [a, b] = client;
    let other = Other(find_other(first.index, NONE, a, b, ports(client_port, packet.source_port)));
    if other.is_locked() {
        return Err(Locked);
    }
    Ok(other.answered())
}

/// Where a reply without a connection is rewritten all the same: the real server and its virtual server, if these replies are
/// to be, no other virtual server has the real server, and the packet is not for this host.
#[inline(always)]
pub fn stateless(packet: &Packet, first: Hit) -> Option<(&'static RealServerEntry, &'static VirtualServerEntry)> {
    if first.flags & service_flag::STATELESS_REPLIES == 0 {
        return None;
    }
    let real = maps::REAL_SERVERS.get(first.index)?;
    if real.generation == 0 || real.next_same != NONE || is_for_us(packet) {
        return None;
    }
    Some((real, service::by_index(real.virtual_server)?))
}

/// Whether the packet's destination is this host.
#[inline(always)]
pub fn is_for_us(packet: &Packet) -> bool {
    let [a, b] = packet.destination.halves();
    service::is_own(a, b) != 0
}

/// Where a packet of no virtual server is a datagram to a real server behind `nat`, notes in the connection of the client's
/// port that it has gone there directly: what comes back now is left alone, until the client addresses the VIP again.
///
/// TCP needs none of that: a client's SYN+ACK tells.
#[inline(always)]
pub fn note_direct(packet: &Packet, lookups: &lb_common::service::Lookups) {
    if packet.protocol != Protocol::Udp {
        return;
    }
    let real = service::find_real(&packet.destination, packet.destination_port, packet.protocol, lookups);
    let Some(first) = real else { return };
    let [a, b] = packet.source.halves();
    let other = Other(find_other(first.index, NONE, a, b, ports(packet.source_port, packet.destination_port)));
    let Some(Answered { place, meta, .. }) = other.answered() else { return };
    if meta.state() == State::UDP_DIRECT {
        place.touch(meta);
    } else {
        place.advance(meta, State::UDP_DIRECT);
    }
}

/// Whether the client has a connection in use, from the packet's port, with the same real server by another virtual server.
#[inline(always)]
pub fn is_taken(packet: &Packet, index: u32, real: &RealServerEntry, lookups: &lb_common::service::Lookups) -> bool {
    let Some(head) = service::replying(&real.address, real.port, packet.protocol, lookups) else { return false };
    if head.index == index && real.next_same == NONE {
        return false;
    }
    let [a, b] = packet.source.halves();
    let other = find_other(head.index, index, a, b, ports(packet.source_port, packet.destination_port));
    other != 0 && !Other(other).is_closing() && !Other(other).is_locked()
}

/// What [`find_other`] returns: the place in bits 0..32, the real server and one in 32..62, bit 62 where a slot is being
/// rewritten instead, bit 63 for a closing connection.
#[derive(Clone, Copy)]
struct Other(u64);

impl Other {
    const CLOSING: u64 = 1 << 63;
    const LOCKED: u64 = 1 << 62;

    #[inline(always)]
    fn answered(self) -> Option<Answered> {
        let number = (self.0 & !Self::CLOSING) >> 32;
        if number == 0 {
            return None;
        }
        let index = number as u32 - 1;
        let real = maps::REAL_SERVERS.get(index)?;
        let service = service::by_index(real.virtual_server)?;
        let (place, meta) = conntrack::numbered(self.0 as u32)?;
        is_live(meta, index, real).then_some(Answered { index, real, service, place, meta })
    }

    #[inline(always)]
    fn is_locked(self) -> bool {
        self.0 == Self::LOCKED
    }

    #[inline(always)]
    fn is_closing(self) -> bool {
        self.0 & Self::CLOSING != 0
    }
}

/// Most virtual servers that share a real server's address and port behind `nat`; the configuration allows no more.
const CHAIN_MAX: u32 = 64;

/// The connection of a client with one of the real servers that share address and port, beginning with `first` and without
/// `skip`: one that is in use rather than one that closes, and that rather than one of whose slot nothing is known. Zero: none.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn find_other(first: u32, skip: u32, client_a: u64, client_b: u64, ports: u64) -> u64 {
    let mut index = first;
    let (mut closing, mut locked) = (0, 0);
    for _ in 0..CHAIN_MAX {
        let Some(real) = maps::REAL_SERVERS.get(index) else { break };
        if index != skip
            && let Some(number) = connection_with(real, [client_a, client_b], ports)
        {
            if number == conntrack::LOCKED_SLOT {
                locked = Other::LOCKED;
            } else if let Some((_, meta)) = conntrack::numbered(number)
                && is_live(meta, index, real)
            {
                let found = u64::from(number) | (u64::from(index) + 1) << 32;
                if !State::is_closing(meta.state()) {
                    return found;
                }
                if closing == 0 {
                    closing = found | Other::CLOSING;
                }
            }
        }
        index = real.next_same;
    }
    if closing == 0 { locked } else { closing }
}

/// The number of the slot of a client's connection with a real server, [`conntrack::LOCKED_SLOT`] where it is being rewritten.
#[inline(always)]
fn connection_with(real: &RealServerEntry, client: [u64; 2], ports: u64) -> Option<u32> {
    let service = service::by_index(real.virtual_server)?;
    let key = key(service, service.flags, client, Port::new(ports as u16), Port::new((ports >> 16) as u16));
    let number = conntrack::find_number(key);
    (number != conntrack::NO_SLOT).then_some(number)
}

#[inline(always)]
fn ports(client: Port, server: Port) -> u64 {
    u64::from(client.number()) | u64::from(server.number()) << 16
}

/// The key of a client's connection with `service`, whose real server answers from port `server`.
#[inline(always)]
fn key(service: &VirtualServerEntry, flags: u32, client: [u64; 2], client_port: Port, server: Port) -> u64 {
    let index = service.index as u16;
    if flags & service_flag::WIDE == 0 {
        let [_, ipv4] = client;
        return hash::exact_key((ipv4 >> 32) as u32, client_port, index);
    }
    let vip_port = if flags & service_flag::ALL_PORTS != 0 { server } else { service.key.port };
    let [a, b] = client;
    wide_key(a, b, ports(client_port, vip_port), index.into())
}

/// [`hash::fingerprint`], as a function of its own for the paths where a call is not what counts.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn wide_key(client_a: u64, client_b: u64, ports: u64, service: u32) -> u64 {
    let (client_port, vip_port) = (Port::new(ports as u16), Port::new((ports >> 16) as u16));
    hash::fingerprint([client_a, client_b], client_port, vip_port, service as u16, &maps::SECRET.load())
}

/// Whether the slot is that of a connection with this real server, and not too old.
#[inline(always)]
pub fn is_live(meta: Meta, index: u32, real: &RealServerEntry) -> bool {
    u32::from(meta.real_server()) == index
        && meta.generation() == real.generation as u8
        && connection::age(meta.last_seen(), clock::tick()) <= conntrack::timeout(meta.state())
}

/// The way back to the client, if it was looked up since routes and addresses last changed.
#[inline(always)]
pub fn known_way_back(meta: Meta, routes: u32) -> Option<&'static ClientHop> {
    hop(meta.client_hop().into()).filter(|hop| hop.routes == routes)
}

/// The way back to the client by the routing table, and its number in `client_hops`, which the connection's slot should have.
///
/// Where all places are taken, by clients that are reached by [`CLIENT_HOPS_LENGTH`] different ways at a time (each is
/// mostly a router's), a connection keeps the number that it has, and the routing table is asked for each of its replies.
/// One that has none is then served as long as the kernel knows the client's neighbour; where it does not, the way that the
/// client's packets came is not remembered, and replies are dropped as `no_neighbour`.
#[inline(always)]
pub fn way_back(ctx: *mut xdp_md, packet: &Packet, answered: &Answered, routes: u32) -> Result<(Egress, u16), Stop> {
    let service = answered.service.index;
    let number = answered.meta.client_hop();
    let egress = match route::to_client(ctx, service, packet.length) {
        answer::SUCCESS => route::found().ok_or(DropReason::NoRoute)?,
        answer::FRAGMENTATION_NEEDED => return Err(Stop::too_big(service, route::mtu())),
        answer::BLACKHOLE | answer::UNREACHABLE | answer::PROHIBIT => return Err(DropReason::NoRoute.into()),
        // Local, no route, no neighbour, forwarding off: back to where the client's packets have come from.
        _ => egress_of(hop(number.into()).ok_or(DropReason::NoNeighbour)?),
    };
    let learnt = learn(&egress, routes);
    fitting(packet, service, egress, if learnt == 0 { number } else { learnt })
}

/// The way back to a client of whose packets nothing is known: by the routing table alone, for each reply.
#[inline(always)]
pub fn looked_up(ctx: *mut xdp_md, packet: &Packet, service: u32) -> Result<Egress, Stop> {
    match route::to_client(ctx, service, packet.length) {
        answer::SUCCESS => Ok(route::found().ok_or(DropReason::NoRoute)?),
        answer::FRAGMENTATION_NEEDED => Err(Stop::too_big(service, route::mtu())),
        answer::NO_NEIGHBOUR => Err(DropReason::NoNeighbour.into()),
        answer::FORWARDING_DISABLED => Err(DropReason::ForwardingDisabled.into()),
        answer::NOT_PERMITTED => Err(DropReason::UnlistedInterface.into()),
        _ => Err(DropReason::NoRoute.into()),
    }
}

/// The way and its number, where the packet is not too long for it.
#[inline(always)]
pub fn fitting(packet: &Packet, service: u32, egress: Egress, number: u16) -> Result<(Egress, u16), Stop> {
    if packet.length > egress.mtu { Err(Stop::too_big(service, egress.mtu)) } else { Ok((egress, number)) }
}

/// The way that an entry of `client_hops` holds.
#[inline(always)]
pub fn egress_of(hop: &ClientHop) -> Egress {
    Egress { ifindex: hop.ifindex, mtu: hop.mtu, destination: hop.destination, source: hop.source }
}

/// An entry of `client_hops` that can be read.
#[inline(always)]
fn hop(number: u32) -> Option<&'static ClientHop> {
    if number == 0 {
        return None;
    }
    let hop = maps::CLIENT_HOPS.get(number)?;
    // SAFETY: a word of a live map element.
    (unsafe { word::read(&raw const hop.state) } >= hop_state::READABLE).then_some(hop)
}

/// Any IP packet fits: the largest that its length field can state.
const MTU_UNKNOWN: u32 = 65_535;

/// The number of the way that a client's packet has come; zero where no place is left.
#[inline(always)]
pub fn learn_arrival(ctx: *mut xdp_md, client_mac: MacAddress, our_mac: MacAddress) -> u16 {
    let ifindex = arrival::ifindex(ctx);
    learn(&Egress { ifindex, mtu: MTU_UNKNOWN, destination: client_mac, source: our_mac }, 0)
}

#[inline(always)]
fn learn(egress: &Egress, routes: u32) -> u16 {
    let ifindex_mtu = u64::from(egress.ifindex) | u64::from(egress.mtu) << 32;
    client_hop(mac_word(&egress.destination), mac_word(&egress.source), ifindex_mtu, routes) as u16
}

/// How many places in `client_hops` are tried.
const PROBES: u32 = 8;

/// The number of an entry of `client_hops` with these addresses, interface, MTU and age; made if there is none, also where
/// one lies behind a place that was freed since. Zero where no place is left: then the routing table is asked for each packet.
///
/// The caller enters it into a slot at once: user space waits for that before it frees an entry that seems unused.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn client_hop(destination: u64, source: u64, ifindex_mtu: u64, routes: u32) -> u32 {
    let hash = hash::mix(destination ^ hash::mix(source ^ hash::mix(ifindex_mtu ^ u64::from(routes) << 16)));
    for probe in 0..PROBES {
        let number = (hash.wrapping_add(u64::from(probe)) % u64::from(CLIENT_HOPS_LENGTH - 1)) as u32 + 1;
        let Some(hop) = maps::CLIENT_HOPS.get_ptr_mut(number) else { return 0 };
        // SAFETY: a live map element, like all accesses below; its state says who may write it.
        unsafe {
            let state = word::read(&raw const (*hop).state);
            if state == hop_state::FREE && word::swap32(&raw mut (*hop).state, hop_state::FREE, hop_state::WRITING) {
                (*hop).routes = routes;
                (*hop).ifindex = ifindex_mtu as u32;
                (*hop).mtu = (ifindex_mtu >> 32) as u32;
                (*hop).destination = mac(destination);
                (*hop).source = mac(source);
                word::write(&raw mut (*hop).state, hop_state::READABLE);
                return number;
            }
            let is_same = (*hop).routes == routes
                && u64::from((*hop).ifindex) | u64::from((*hop).mtu) << 32 == ifindex_mtu
                && mac_word(&(*hop).destination) == destination
                && mac_word(&(*hop).source) == source;
            if state == hop_state::READABLE && is_same {
                return number;
            }
        }
    }
    0
}

#[inline(always)]
fn mac_word(mac: &MacAddress) -> u64 {
    let [a, b, c] = mac.words();
    u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32
}

#[inline(always)]
fn mac(word: u64) -> MacAddress {
    MacAddress::from_words([word as u16, (word >> 16) as u16, (word >> 32) as u16])
}

/// The client's address and the ports of a packet to a virtual server, for `tuples`.
#[inline(always)]
pub fn ports_of(packet: &Packet) -> u64 {
    ports(packet.source_port, packet.destination_port)
}

/// The key of a packet to virtual server `hit`.
#[inline(always)]
pub fn request_key(packet: &Packet, hit: Hit) -> u64 {
    let client: &Address = &packet.source;
    if hit.flags & service_flag::WIDE == 0 {
        return hash::exact_key(client.words()[3], packet.source_port, hit.index as u16);
    }
    let secret = maps::SECRET.load();
    hash::fingerprint(client.halves(), packet.source_port, packet.destination_port, hit.index as u16, &secret)
}
