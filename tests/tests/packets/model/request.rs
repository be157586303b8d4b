//! A client's packet to a virtual server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use lb_common::drop_reason::DropReason;
use lb_common::net::{Address, Protocol};
use lb_common::service::{ForwardingMethod, Refusal};

use super::super::frame::{ACK, FIN, RST};
use super::super::oracle::{Change, Told};
use super::schedule;
use super::state::{Side, State, is_opening};
use super::table::{Entry, Inserted, Kind, Place};
use super::world::Hop;
use super::{Model, Outcome, Packet, Stop};

/// What becomes of a packet of no known connection.
#[derive(Clone, Copy, Debug)]
enum Newcomer {
    /// It is scheduled, and remembered in this state.
    Enter(State),
    /// It is scheduled, and not remembered: it begins no connection.
    Passing,
    /// It may belong to a connection for which there was no room.
    Roomless,
    Unknown,
}

/// A real server for a new connection.
#[derive(Clone, Copy, Debug)]
struct Choice {
    real: u16,
    /// The client's network, if its template is to be made.
    template: Option<IpAddr>,
    /// Whether any other real server would do as well.
    may_move: bool,
}

impl Model {
    pub(super) fn request(&mut self, packet: Packet, server: usize) -> Outcome {
        let (client, vip) = (packet.reading.source, packet.reading.destination);
        let key = self.services[server].connection_key(client, vip.port(), &self.settings.secret);
        let protocol = self.services[server].protocol;
        let is_denied = !self.services[server].serves(client.ip());
        if is_denied && (is_opening(packet.flags) || self.services[server].one_packet) {
            return self.deny(server);
        }
        if self.services[server].one_packet {
            return self.forget(&packet, server, true);
        }
        if let Some((place, entry)) = self.find(key, Kind::Connection, server, packet.now) {
            let is_removed = self.reals[&entry.real].is_removed;
            let is_over = match protocol {
                Protocol::Udp => is_removed,
                Protocol::Tcp | Protocol::Sctp => is_opening(packet.flags) && self.may_begin_anew(&entry),
            };
            if !is_over {
                self.follow(place, Side::Client, &packet);
                self.promote_template(&packet, server, entry.state, place);
                return self.send_to(&packet, entry.real, false);
            }
            self.free(place);
        }
        if is_denied {
            return self.deny(server);
        }
        match self.newcomer(&packet, server, key) {
            Newcomer::Enter(state) => self.admit(&packet, server, key, state),
            Newcomer::Passing => self.forget(&packet, server, false),
            Newcomer::Roomless => self.send_by_key(&packet, server, key, false),
            Newcomer::Unknown => self.refuse_unknown(&packet, server),
        }
    }

    /// Whether a SYN means another connection than the one that is known: that has ended, or its real server gets no new ones
    /// and may have ended it unseen.
    fn may_begin_anew(&self, entry: &Entry) -> bool {
        let real = &self.reals[&entry.real];
        entry.state.is_closing() || entry.state.class() >= 4 && (real.is_removed || !real.takes_any())
    }

    fn deny(&mut self, server: usize) -> Outcome {
        self.virtual_counters.entry(self.services[server].index).or_default().denied += 1;
        Outcome::Dropped(DropReason::Denied)
    }

    fn newcomer(&self, packet: &Packet, server: usize, key: u64) -> Newcomer {
        let service = &self.services[server];
        let is_under_way = packet.flags & (FIN | RST | ACK) == ACK;
        match service.protocol {
            Protocol::Udp => Newcomer::Enter(State::UdpNew),
            Protocol::Tcp if is_opening(packet.flags) => Newcomer::Enter(State::Opening),
            Protocol::Sctp if is_opening(packet.flags) => Newcomer::Enter(State::SctpOpening),
            Protocol::Tcp | Protocol::Sctp if service.scheduler.is_hash() && is_under_way => {
                Newcomer::Enter(State::Settling)
            }
            Protocol::Tcp | Protocol::Sctp if service.scheduler.is_hash() => Newcomer::Passing,
            Protocol::Tcp | Protocol::Sctp if !self.table.has_room(key, State::Opening, packet.now) => {
                Newcomer::Roomless
            }
            Protocol::Tcp if service.sloppy_tcp && is_under_way => Newcomer::Enter(State::Settling),
            Protocol::Tcp | Protocol::Sctp => Newcomer::Unknown,
        }
    }

    /// The scheduler's choice.
    fn schedule(&mut self, packet: &Packet, server: usize) -> Option<u16> {
        let (reading, secret) = (&packet.reading, self.settings.secret);
        let server = &mut self.services[server];
        schedule::choose(server, &self.reals, (reading.source, reading.destination), &secret)
    }

    /// Schedules a packet that is remembered nowhere.
    fn forget(&mut self, packet: &Packet, server: usize, is_new: bool) -> Outcome {
        let Some(choice) = self.choose(packet, server) else { return self.refuse_for_want(packet, server) };
        let choice = match self.within_reach(packet, server, choice) {
            Ok(choice) => choice,
            Err(stop) => return self.stopped(packet, packet.reading.destination.ip(), stop),
        };
        self.note_template(packet, server, choice);
        self.send_to(packet, choice.real, is_new)
    }

    /// A new connection: a real server for it, a place in the table, and off.
    fn admit(&mut self, packet: &Packet, server: usize, key: u64, state: State) -> Outcome {
        let Some(choice) = self.choose(packet, server) else { return self.refuse_for_want(packet, server) };
        let choice = match self.within_reach(packet, server, choice) {
            Ok(choice) => choice,
            Err(stop) => return self.stopped(packet, packet.reading.destination.ip(), stop),
        };
        self.note_template(packet, server, choice);
        if self.is_tuple_in_use(packet, choice.real) {
            return Outcome::Dropped(DropReason::TupleInUse);
        }
        let entry = self.entry(packet, server, key, (choice.real, state));
        match self.enter(entry, packet) {
            Some(_) => self.send_to(packet, choice.real, true),
            // The schedulers by hash have chosen what they will choose for its other packets too.
            None if !self.services[server].scheduler.is_hash() => self.send_by_key(packet, server, key, true),
            None if self.reals[&choice.real].forwarding == ForwardingMethod::Nat => {
                Outcome::Dropped(DropReason::TableFull)
            }
            None => self.send_to(packet, choice.real, true),
        }
    }

    fn entry(&self, packet: &Packet, server: usize, key: u64, (real, state): (u16, State)) -> Entry {
        let (client, vip) = (packet.reading.source, packet.reading.destination);
        let tuple = (Address::from(client.ip()), client.port(), vip.port());
        Entry {
            key,
            real,
            generation: self.reals[&real].generation,
            state,
            last_seen: packet.now,
            tuple: self.services[server].is_wide().then_some(tuple),
        }
    }

    fn enter(&mut self, entry: Entry, packet: &Packet) -> Option<Place> {
        let place = match self.table.insert(entry, packet.now) {
            Inserted::Free(place) => place,
            Inserted::Displaced(place, victim) => {
                self.count_out(&victim);
                place
            }
            Inserted::Refused => return None,
        };
        self.count_in(&entry);
        let station = packet.frame[6..12].try_into().expect("six bytes");
        self.stations.insert(place, station);
        Some(place)
    }

    /// The template's real server where there is one, else the scheduler's, else the sorry server.
    fn choose(&mut self, packet: &Packet, server: usize) -> Option<Choice> {
        let sorry = self.services[server].sorry.map(|real| Choice { real, template: None, may_move: false });
        let may_move = !self.services[server].scheduler.is_hash();
        let Some(persistence) = self.services[server].persistence else {
            return self.schedule(packet, server).map(|real| Choice { real, template: None, may_move }).or(sorry);
        };
        let network = self.services[server].network(packet.reading.source.ip(), persistence);
        let key = self.services[server].template_key(network, &self.settings.secret);
        if let Some((place, entry)) = self.peek(key, Kind::Template, server, packet.now)
            && self.reals[&entry.real].takes_any()
        {
            self.table.set(place, Some(Entry { last_seen: packet.now, ..entry }));
            return Some(Choice { real: entry.real, template: None, may_move });
        }
        self.schedule(packet, server).map(|real| Choice { real, template: Some(network), may_move }).or(sorry)
    }

    /// The choice, or where its real server can't be sent to, the next in turn.
    fn within_reach(&mut self, packet: &Packet, server: usize, choice: Choice) -> Result<Choice, Stop> {
        let Err(stop) = self.outgoing(packet, choice.real) else { return Ok(choice) };
        if !choice.may_move || matches!(stop, Stop::Told(Told::TooBig(_))) {
            return Err(stop);
        }
        let real = schedule::in_turn(&mut self.services[server], &self.reals, Some(choice.real)).ok_or(stop)?;
        self.outgoing(packet, real)?;
        // The client's template goes along.
        let service = &self.services[server];
        let template = service.persistence.map(|kept| service.network(packet.reading.source.ip(), kept));
        Ok(Choice { real, template, ..choice })
    }

    /// Makes the client's template, or changes the one that there is and that could not be used.
    fn note_template(&mut self, packet: &Packet, server: usize, choice: Choice) {
        let Some(network) = choice.template else { return };
        let key = self.services[server].template_key(network, &self.settings.secret);
        let mut entry = self.entry(packet, server, key, (choice.real, State::TemplateNew));
        entry.tuple = entry.tuple.map(|_| (Address::from(network), 0, 0));
        match self.table.find(key, Kind::Template) {
            Some((place, _)) => self.table.set(place, Some(entry)),
            None => drop(self.enter(entry, packet)),
        }
    }

    /// A connection that is established makes its template last.
    fn promote_template(&mut self, packet: &Packet, server: usize, before: State, place: Place) {
        let after = self.table.at(place).expect("just followed").state;
        let is_promoted = matches!(
            (before, after),
            (State::Settling, State::Established) | (State::UdpNew | State::UdpDirect, State::Udp)
        );
        let Some(persistence) = self.services[server].persistence.filter(|_| is_promoted) else { return };
        let network = self.services[server].network(packet.reading.source.ip(), persistence);
        let key = self.services[server].template_key(network, &self.settings.secret);
        if let Some((place, entry)) = self.peek(key, Kind::Template, server, packet.now)
            && entry.state == State::TemplateNew
            && !self.reals[&entry.real].is_removed
        {
            self.table.set(place, Some(Entry { state: State::Template, last_seen: packet.now, ..entry }));
        }
    }

    /// Whether another virtual server's connection of the same client has this real server's address and port.
    fn is_tuple_in_use(&self, packet: &Packet, real: u16) -> bool {
        let real = &self.reals[&real];
        if real.forwarding != ForwardingMethod::Nat {
            return false;
        }
        let to = real.destination(packet.reading.destination.port());
        let sharing = self.sharing(real.address, packet);
        let others = sharing.iter().filter(|other| other.index != real.index);
        let mut connections =
            others.filter_map(|other| self.connection_with(other, to.port(), packet.reading.source, packet.now));
        connections.any(|(_, _, entry)| !entry.state.is_closing())
    }

    /// No slot: each packet of the connection finds the same real server by itself.
    fn send_by_key(&mut self, packet: &Packet, server: usize, key: u64, is_new: bool) -> Outcome {
        let by_hash = schedule::without_slot(&self.services[server], &self.reals, key, &self.settings.secret);
        let Some(real) = by_hash.or(self.services[server].sorry) else {
            return self.refuse_for_want(packet, server);
        };
        if self.reals[&real].forwarding == ForwardingMethod::Nat {
            return match is_new {
                true => Outcome::Dropped(DropReason::TableFull),
                false => self.refuse_unknown(packet, server),
            };
        }
        self.send_to(packet, real, is_new)
    }

    /// Length of the packet on its way to the real server, and whether it may go.
    pub(super) fn outgoing(&self, packet: &Packet, real: u16) -> Result<super::Way, Stop> {
        let real = &self.reals[&real];
        let outer = match (real.forwarding, real.address) {
            _ if packet.is_at_its_end() && real.hop != Hop::Local => return Err(DropReason::TtlExpired.into()),
            (ForwardingMethod::Nat | ForwardingMethod::Dr, _) => 0,
            (ForwardingMethod::Tun, _) if real.tunnel_source.is_none() => return Err(DropReason::NoRoute.into()),
            (ForwardingMethod::Tun, SocketAddr::V4(_)) => 20,
            (ForwardingMethod::Tun, SocketAddr::V6(_)) => 40,
        };
        Self::way(real, packet, outer)
    }

    fn send_to(&mut self, packet: &Packet, index: u16, is_new: bool) -> Outcome {
        let real = self.reals[&index].clone();
        let way = match self.outgoing(packet, index) {
            Ok(way) => way,
            Err(stop) => return self.stopped(packet, packet.reading.destination.ip(), stop),
        };
        let bytes = u64::try_from(packet.reading.length()).expect("fits");
        self.count(real.virtual_server, index, |counters| {
            counters.connections += u64::from(is_new);
            counters.packets_in += 1;
            counters.bytes_in += bytes;
        });
        match (real.forwarding, real.tunnel_source) {
            (ForwardingMethod::Dr, _) => way.send(packet, Change::Nothing),
            (ForwardingMethod::Nat, _) => {
                way.send(packet, Change::Destination(real.destination(packet.reading.destination.port())))
            }
            (ForwardingMethod::Tun, source) => match way.send(packet, Change::Nothing) {
                Outcome::Sent { ifindex, bytes } => {
                    let source = spread(source.expect("without one there is no way"), packet.reading.flow());
                    let bytes = packet.reading.wrapped(&bytes, source, real.address.ip());
                    Outcome::Sent { ifindex, bytes }
                }
                other => other,
            },
        }
    }

    fn refuse_for_want(&mut self, packet: &Packet, server: usize) -> Outcome {
        self.refuse(packet, self.services[server].no_real_server, DropReason::NoRealServer)
    }

    fn refuse_unknown(&mut self, packet: &Packet, server: usize) -> Outcome {
        self.refuse(packet, self.services[server].unknown_connection, DropReason::NoConnection)
    }

    fn refuse(&mut self, packet: &Packet, policy: Refusal, reason: DropReason) -> Outcome {
        let is_answered = match policy {
            Refusal::Drop => false,
            Refusal::Reject => {
                packet.reading.is_answerable(packet.frame)
                    && packet.reading.is_from_a_host()
                    && self.may_answer(false, packet.now)
            }
        };
        if !is_answered {
            return Outcome::Dropped(reason);
        }
        Outcome::Refused { reason, bytes: packet.reading.rejection(packet.frame) }
    }
}

/// An address of the source prefix: the flow's.
pub(super) fn spread(source: IpNet, flow: u32) -> IpAddr {
    let [a, b, c, d] = flow.to_ne_bytes();
    match source {
        IpNet::V4(net) => (net.addr() | (Ipv4Addr::new(a, b, c, d) & net.hostmask())).into(),
        IpNet::V6(net) => {
            let filled = Ipv6Addr::from(u128::from(u32::from_be_bytes([a, b, c, d])));
            (net.addr() | (filled & net.hostmask())).into()
        }
    }
}
