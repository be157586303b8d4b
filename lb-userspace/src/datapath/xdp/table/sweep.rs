//! What happens to every slot once a round: connections whose time is over end, and templates live while connections do.
//!
//! The packet path frees a slot only when it comes by it; without this, counts would stay up until somebody does.

use lb_common::connection::{Meta, SLOTS, State, Timeouts, age};
use lb_common::hash::{self, Secret};
use lb_common::net::{Address, Port};

use super::hops::Named;
use super::words::{ServiceWords, SlotWords, Tables};

/// What a virtual server's persistence timeout is divided by for how often live connections renew their template. A template
/// thus outlives its last connection by at least 7/8 of the timeout, and at most by all of it. No more often than once a round: what
/// is installed is longer than a round takes, for tables of up to twenty million connections.
///
/// A renewal is a look-up, a cache miss or two. Ten million persistent connections at a timeout of 6 minutes make a million
/// of them a round: some 3 % of a CPU.
const RENEWALS: u32 = 8;

/// What was found in the table, from one end to the other in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Half-open TCP connections, and UDP flows of one datagram.
    pub half_open: u64,
    /// TCP connections that are closing or closed.
    pub closing: u64,
    /// Established TCP connections, and UDP flows of more than one datagram.
    pub established: u64,
    /// Persistence templates.
    pub templates: u64,
}

/// What a sweep has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// What is left.
    pub census: Census,
    /// Connections and templates that have ended because their time was over, or their real server gone.
    pub expired: u64,
    /// The ways back to clients that slots name.
    pub hops: Named,
}

/// One go over a part of the table.
pub struct Sweep<'a> {
    tables: Tables<'a>,
    timeouts: &'a Timeouts,
    secret: &'a Secret,
    servers: Vec<Server>,
    now: u16,
    round: u32,
}

/// What must be known of a real server to judge its connections.
#[derive(Clone, Copy, Debug)]
struct Server {
    generation: u8,
    /// Ticks that a template lives at most.
    template_timeout: u16,
    persistence: Option<Persistence>,
}

/// How to find the templates of a virtual server's clients.
#[derive(Clone, Copy, Debug)]
struct Persistence {
    service: u16,
    mask: Address,
    is_wide: bool,
    /// Each connection renews its template once in so many rounds.
    rounds: u32,
}

/// The time, and what is counted of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    /// Coarse ticks.
    pub now: u16,
    /// The round, counted from anywhere.
    pub round: u32,
    /// Ticks that a round takes, at least 1.
    pub round_ticks: u32,
}

impl<'a> Sweep<'a> {
    /// A sweep at `time` over `tables`, whose real and virtual servers are read now.
    pub fn new(tables: Tables<'a>, timeouts: &'a Timeouts, secret: &'a Secret, time: Time) -> Self {
        let Time { now, round, round_ticks } = time;
        let places = u16::try_from(tables.real_server_count()).unwrap_or(u16::MAX);
        let servers = (0..places).map(|index| Server::read(&tables, index, round_ticks)).collect();
        Self { tables, timeouts, secret, servers, now, round }
    }

    /// Goes over the buckets numbered `start` to `end`, the latter excluded, and adds to `swept`.
    pub fn run(&self, start: usize, end: usize, swept: &mut Swept) {
        for (slot, number) in self.tables.slots_between(start, end).zip(start * SLOTS..) {
            let meta = slot.meta();
            if matches!(meta.state(), State::FREE | State::LOCKED) {
                continue;
            }
            // Also of one that is over: the packet path may be quicker, and keep it.
            swept.hops.note(meta.client_hop());
            match meta.state() {
                _ if !self.is_over(meta) => {
                    swept.census.add(meta.state());
                    self.renew(slot, meta, number);
                }
                // Lost to the packet path: then it is in use, or was ended there.
                state => {
                    if slot.replace(meta, Meta::FREE) {
                        self.tables.count_down(meta.real_server(), state);
                        swept.expired += 1;
                    }
                }
            }
        }
    }

    fn is_over(&self, meta: Meta) -> bool {
        let Some(server) = self.servers.get(usize::from(meta.real_server())) else { return true };
        // The place may have been given to another real server since the servers were read.
        let generation = || self.tables.real_server(meta.real_server()).map(|entry| entry.generation_octet());
        if meta.generation() != server.generation && Some(meta.generation()) != generation() {
            return true;
        }
        let timeout = match State::is_template(meta.state()) {
            true => self.timeouts.of(meta.state()).min(server.template_timeout),
            false => self.timeouts.of(meta.state()),
        };
        age(meta.last_seen(), self.now) > timeout
    }

    /// When it is this connection's turn: its template was in use just now.
    fn renew(&self, slot: SlotWords<'_>, meta: Meta, number: usize) {
        let server = self.servers.get(usize::from(meta.real_server()));
        let Some(persistence) = server.and_then(|server| server.persistence) else { return };
        let turn = u32::try_from(number).unwrap_or(0).wrapping_add(self.round);
        // A half-open connection holds nothing: its client may not exist.
        let is_held = State::class(meta.state()) >= State::class(State::CLOSED) && !State::is_template(meta.state());
        if !is_held || !turn.is_multiple_of(persistence.rounds) {
            return;
        }
        let Some(key) = self.template_key(slot, number, &persistence) else { return };
        if let Some((template, found)) = self.template(key, meta.real_server()) {
            let established = State::class(meta.state()) > State::class(State::CLOSED);
            let state = if established { State::TEMPLATE } else { found.state() };
            if found != found.moved(state, self.now) {
                // Lost: the packet path has used it just now.
                template.replace(found, found.moved(state, self.now));
            }
        }
    }

    fn template_key(&self, slot: SlotWords<'_>, number: usize, persistence: &Persistence) -> Option<u64> {
        let Persistence { service, mask, is_wide, rounds: _ } = *persistence;
        if !is_wide {
            let (client, [_, _, _, mask]) = (exact_client(slot.key()), mask.words());
            return Some(hash::exact_key(client & mask, NO_PORT, service));
        }
        let (_, _, tuple) = slot.read_with(|_, _| self.tables.tuple(number))?;
        let ([a, b], [c, d]) = (tuple?.client.halves(), mask.halves());
        Some(hash::fingerprint([a & c, b & d], NO_PORT, NO_PORT, service, self.secret))
    }

    /// The template with `key`, if it names this real server.
    fn template(&self, key: u64, real_server: u16) -> Option<(SlotWords<'a>, Meta)> {
        let buckets = u32::try_from(self.tables.bucket_count()).unwrap_or(u32::MAX);
        let (one, two) = hash::buckets(key, buckets, self.secret);
        let slots = [one, two].map(|bucket| usize::try_from(bucket).unwrap_or(usize::MAX));
        let mut slots =
            slots.into_iter().flat_map(|bucket| self.tables.slots_between(bucket, bucket.saturating_add(1)));
        slots.find_map(|slot| {
            let meta = slot.meta();
            let is_it = State::is_template(meta.state()) && meta.real_server() == real_server && slot.key() == key;
            is_it.then_some((slot, meta))
        })
    }
}

impl Server {
    fn read(tables: &Tables<'_>, index: u16, round_ticks: u32) -> Self {
        let Some(entry) = tables.real_server(index) else {
            return Self { generation: 0, template_timeout: 0, persistence: None };
        };
        let service = tables.service(entry.virtual_server());
        let timeout = service.map_or(0, |service| service.persistence_timeout());
        Self {
            generation: entry.generation_octet(),
            template_timeout: u16::try_from(timeout).unwrap_or(u16::MAX),
            persistence: service.and_then(|service| Persistence::read(&service, entry.virtual_server(), round_ticks)),
        }
    }
}

impl Persistence {
    fn read(service: &ServiceWords<'_>, index: u32, round_ticks: u32) -> Option<Self> {
        service.is_persistent().then_some(())?;
        Some(Self {
            service: u16::try_from(index).ok()?,
            mask: service.persistence_mask(),
            is_wide: service.is_wide(),
            rounds: (service.persistence_timeout() / RENEWALS).checked_div(round_ticks).unwrap_or(1).max(1),
        })
    }
}

impl Census {
    fn add(&mut self, state: u8) {
        let Self { half_open, closing, established, templates } = self;
        let number = match State::class(state) {
            _ if State::is_template(state) => templates,
            2 => half_open,
            3 => closing,
            _ => established,
        };
        *number += 1;
    }

    /// Slots in use.
    pub fn total(&self) -> u64 {
        let Self { half_open, closing, established, templates } = self;
        half_open + closing + established + templates
    }
}

const NO_PORT: Port = Port::new(0);

/// The client's address, as it lies in memory, of an exact key.
pub(super) fn exact_client(key: u64) -> u32 {
    let [a, b, c, d, ..] = key.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
