//! The reference model: what the XDP program decides, bytes, servers and counters, as plain Rust.
//!
//! Shares data types and hashes with the program, and no decisions. It knows neither locks nor races: one packet at a time.

mod error;
mod reply;
mod request;
pub mod rings;
pub mod schedule;
pub mod state;
pub mod table;
#[cfg(test)]
mod tests;
pub mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::counters::Counters;
use lb_common::drop_reason::DropReason;
use lb_common::hash::Secret;
use lb_common::net::Protocol;
use lb_userspace::model::Service;

use self::state::{Count, Side, State};
use self::table::{Entry, Kind, Place, Table};
use self::world::{Hop, Persistence, RealServer, VirtualServer};
use super::oracle::{self, Change, Examined, Reading, Told};
use super::scene::Mac;

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Up to the host, untouched.
    Passed,
    /// Out of an interface.
    Sent {
        ifindex: u32,
        bytes: Vec<u8>,
    },
    /// Not sent on, but answered; counted as dropped.
    Refused {
        reason: DropReason,
        bytes: Vec<u8>,
    },
    Dropped(DropReason),
}

/// The program with its tables.
#[derive(Clone, Debug)]
pub struct Model {
    pub services: Vec<VirtualServer>,
    pub reals: BTreeMap<u16, RealServer>,
    pub table: Table,
    pub drops: BTreeMap<DropReason, u64>,
    pub virtual_counters: BTreeMap<u16, Counters>,
    pub real_counters: BTreeMap<u16, Counters>,
    pub settings: Settings,
    /// This host's own addresses.
    pub own: BTreeSet<IpAddr>,
    /// Active and inactive connections in the table of places that no real server has now.
    pub vacated: BTreeMap<u16, (u32, u32)>,
    /// Answers to refused packets in the tick of the last of them.
    /// Of packets that are too big, and of all others.
    rejects: [(u16, u32); 2],
    /// Where packets of each client came from, the way back to it.
    stations: BTreeMap<Place, Mac>,
}

/// What is fixed when the program is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub secret: Secret,
    /// Answers to refused packets in a tick.
    pub rejects_per_tick: u32,
}

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// Its sender hears nothing of it.
    Silent(DropReason),
    /// Its sender is told by the VIP.
    Told(Told),
}

impl Stop {
    fn reason(self) -> DropReason {
        match self {
            Self::Silent(reason) => reason,
            Self::Told(told) => told.reason(),
        }
    }
}

impl From<DropReason> for Stop {
    fn from(reason: DropReason) -> Self {
        match reason {
            DropReason::TtlExpired => Self::Told(Told::Expired),
            other => Self::Silent(other),
        }
    }
}

/// A packet of a virtual server.
#[derive(Clone, Copy)]
struct Packet<'a> {
    frame: &'a [u8],
    reading: Reading,
    /// Of TCP, or what they would be for SCTP; 0 for UDP.
    flags: u8,
    now: u16,
}

impl Packet<'_> {
    /// Whether it lives no longer than to here.
    fn is_at_its_end(&self) -> bool {
        let ttl = if self.reading.destination.is_ipv4() { self.frame[22] } else { self.frame[21] };
        ttl < 2
    }
}

impl Model {
    pub fn new(settings: Settings, table: Table) -> Self {
        Self {
            services: Vec::new(),
            reals: BTreeMap::new(),
            table,
            drops: BTreeMap::new(),
            virtual_counters: BTreeMap::new(),
            real_counters: BTreeMap::new(),
            settings,
            own: BTreeSet::new(),
            vacated: BTreeMap::new(),
            rejects: [(0, 0); 2],
            stations: BTreeMap::new(),
        }
    }

    /// Takes a frame that comes in at the tick `now`.
    pub fn take(&mut self, frame: &[u8], now: u16) -> Outcome {
        let (reading, fault) = match oracle::examine(frame) {
            Examined::Foreign => {
                let outcome = self.error(frame, now);
                self.count_drop(&outcome);
                return outcome;
            }
            Examined::Packet { reading, fault } => (reading, fault),
        };
        let flags = reading.flags(frame);
        let packet = Packet { frame, reading, flags, now };
        let outcome = match self.service_of(&reading) {
            Some(service) => match fault {
                // It may be for this host.
                None | Some(DropReason::TtlExpired) => self.request(packet, service),
                Some(reason) => self.stopped(&packet, reading.destination.ip(), reason.into()),
            },
            None => self.reply(packet, fault),
        };
        self.count_drop(&outcome);
        outcome
    }

    fn count_drop(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Refused { reason, .. } | Outcome::Dropped(reason) => *self.drops.entry(*reason).or_default() += 1,
            Outcome::Passed | Outcome::Sent { .. } => {}
        }
    }

    /// The address of the real server that has the connection of `client` with `vip_port` of a virtual server.
    pub fn server_of(&self, service: &Service, client: SocketAddr, vip_port: u16) -> Option<SocketAddr> {
        let is_it = |s: &&VirtualServer| s.address == service.address && s.protocol == service.protocol;
        let key = self.services.iter().find(is_it)?.connection_key(client, vip_port, &self.settings.secret);
        let (_, entry) = self.table.find(key, Kind::Connection)?;
        self.reals.get(&entry.real).map(|real| real.address)
    }

    /// Forgets all connections.
    pub fn clear(&mut self) {
        self.table.buckets.iter_mut().for_each(|slots| slots.fill(None));
        self.vacated.clear();
    }

    /// Ends what clients have who are not served: their connections, and templates that are theirs alone.
    pub fn end_denied(&mut self) {
        let is_denied = |entry: &Entry| {
            let real = self.reals.get(&entry.real).filter(|real| real.generation == entry.generation);
            let server = real.and_then(|real| self.services.iter().find(|s| s.index == real.virtual_server));
            let Some(server) = server else { return false };
            let of_many = |p: Persistence| p.prefix_length < if server.address.is_ipv4() { 32 } else { 128 };
            if entry.state.is_template() && server.persistence.is_none_or(of_many) {
                return false;
            }
            let exact = u32::try_from(entry.key & 0xffff_ffff).expect("32 bits").to_ne_bytes();
            !server.serves(entry.tuple.map_or_else(|| exact.into(), |(client, ..)| client.into()))
        };
        let places = self.table.entries().filter(|(_, entry)| is_denied(entry)).map(|(place, _)| place);
        for place in places.collect::<Vec<_>>() {
            self.free(place);
        }
    }

    /// The connections of each place for a real server by the table: active and inactive.
    pub fn recount(&self) -> BTreeMap<u16, (u32, u32)> {
        let mut counts: BTreeMap<u16, (u32, u32)> = self.reals.keys().map(|index| (*index, (0, 0))).collect();
        for (_, entry) in self.table.entries() {
            let (active, inactive) = counts.entry(entry.real).or_default();
            match entry.state.counts() {
                Some(Count::Active) => *active += 1,
                Some(Count::Inactive) => *inactive += 1,
                None => {}
            }
        }
        counts
    }

    /// The virtual server of the packet's own port, else that of all ports.
    fn service_of(&self, reading: &Reading) -> Option<usize> {
        let with_port = |port| {
            let address = SocketAddr::new(reading.destination.ip(), port);
            let is_it = |s: &VirtualServer| s.address == address && is_of(s.protocol, reading);
            self.services.iter().position(is_it)
        };
        with_port(reading.destination.port()).or_else(|| with_port(0))
    }

    /// The slot of `key`, if what it says still holds; if not, it becomes free.
    fn find(&mut self, key: u64, kind: Kind, server: usize, now: u16) -> Option<(Place, Entry)> {
        let (place, entry) = self.table.find(key, kind)?;
        if self.holds(&entry, server, now) {
            return Some((place, entry));
        }
        self.free(place);
        None
    }

    /// As [`Self::find`], but what does not hold is left where it is.
    fn peek(&self, key: u64, kind: Kind, server: usize, now: u16) -> Option<(Place, Entry)> {
        self.table.find(key, kind).filter(|(_, entry)| self.holds(entry, server, now))
    }

    /// Whether a slot still leads to a real server of `server`, and has not run out.
    fn holds(&self, entry: &Entry, server: usize, now: u16) -> bool {
        let server = &self.services[server];
        let is_same = |real: &RealServer| {
            real.generation == entry.generation && real.generation != 0 && real.virtual_server == server.index
        };
        let timeout = match (entry.state.is_template(), server.persistence) {
            (true, Some(persistence)) => self.table.timeout(entry.state).min(persistence.timeout),
            _ => self.table.timeout(entry.state),
        };
        self.reals.get(&entry.real).is_some_and(is_same) && entry.age(now) <= timeout
    }

    /// Takes a connection out of the table.
    fn free(&mut self, place: Place) {
        let Some(entry) = self.table.at(place) else { return };
        self.table.set(place, None);
        self.stations.remove(&place);
        self.count_out(&entry);
    }

    /// What a packet does to its connection: the state, and the time.
    fn follow(&mut self, place: Place, side: Side, packet: &Packet) {
        let Some(before) = self.table.at(place) else { return };
        let state = before.state.after(side, packet.flags);
        self.table.set(place, Some(Entry { state, last_seen: packet.now, ..before }));
        if state.counts() != before.state.counts() {
            let real = self.reals.get_mut(&before.real).expect("it was found by its real server");
            adjust(real, before.state, -1);
            adjust(real, state, 1);
        }
    }

    fn count_in(&mut self, entry: &Entry) {
        let Some(real) = self.reals.get_mut(&entry.real) else { return };
        if entry.state.counts().is_some() {
            adjust(real, entry.state, 1);
            real.note_added();
        }
    }

    fn count_out(&mut self, entry: &Entry) {
        match (self.reals.get_mut(&entry.real), entry.state.counts()) {
            (_, None) => {}
            (Some(real), Some(_)) => {
                adjust(real, entry.state, -1);
                real.note_taken_away();
            }
            (None, Some(count)) => {
                let (active, inactive) = self.vacated.entry(entry.real).or_default();
                match count {
                    Count::Active => *active -= 1,
                    Count::Inactive => *inactive -= 1,
                }
            }
        }
    }

    fn count(&mut self, server: u16, real: u16, change: impl Fn(&mut Counters)) {
        change(self.virtual_counters.entry(server).or_default());
        change(self.real_counters.entry(real).or_default());
    }

    /// A packet of virtual server `vip` that goes no further.
    fn stopped(&mut self, packet: &Packet, vip: IpAddr, stop: Stop) -> Outcome {
        match stop {
            Stop::Silent(reason) => Outcome::Dropped(reason),
            Stop::Told(told)
                if packet.reading.is_from_a_host() && self.may_answer(matches!(told, Told::TooBig(_)), packet.now) =>
            {
                Outcome::Refused { reason: told.reason(), bytes: packet.reading.told(packet.frame, vip, told) }
            }
            Stop::Told(told) => Outcome::Dropped(told.reason()),
        }
    }

    /// Where a packet of `length` bytes, with an outer header of `outer` more, leaves for a real server.
    fn way(real: &RealServer, packet: &Packet, outer: usize) -> Result<Way, Stop> {
        let (ifindex, mtu, to, from) = match real.hop {
            Hop::Known { ifindex, mtu, to, from } => (ifindex, mtu, to, from),
            Hop::Unknown(reason) => return Err(reason.into()),
            Hop::Local => return Ok(Way::Up),
        };
        if packet.reading.length() + outer > mtu {
            return Err(Stop::Told(Told::TooBig(u16::try_from(mtu - outer).expect("no MTU is larger"))));
        }
        Ok(Way::Out { ifindex, to, from })
    }

    /// Whether a sender may still be told that its packet is too big, or anything else, in this tick; if so, that is one more.
    fn may_answer(&mut self, is_too_big: bool, now: u16) -> bool {
        let [too_big, others] = &mut self.rejects;
        let (tick, used) = if is_too_big { too_big } else { others };
        if *tick != now {
            (*tick, *used) = (now, 0);
        }
        let is_allowed = *used < self.settings.rejects_per_tick;
        *used += u32::from(is_allowed);
        is_allowed
    }
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    Up,
    Out { ifindex: u32, to: Mac, from: Mac },
}

impl Way {
    /// The frame, changed and between the Ethernet addresses of this way.
    fn send(self, packet: &Packet, change: Change) -> Outcome {
        match self {
            Self::Up => Outcome::Passed,
            Self::Out { ifindex, to, from } => {
                let changed = packet.reading.forwarded(packet.frame, change, &[]);
                Outcome::Sent { ifindex, bytes: [&to, &from, &changed[12..]].concat() }
            }
        }
    }
}

fn is_of(protocol: Protocol, reading: &Reading) -> bool {
    protocol as u32 == u32::from(reading.protocol)
}

fn adjust(real: &mut RealServer, state: State, by: i32) {
    let count = match state.counts() {
        Some(Count::Active) => &mut real.active,
        Some(Count::Inactive) => &mut real.inactive,
        None => return,
    };
    *count = count.checked_add_signed(by).expect("nothing is taken away that was not added");
}
