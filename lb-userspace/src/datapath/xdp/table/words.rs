//! The tables as words of memory that the packet path changes at the same time, and the fields in them.
//!
//! Nothing is copied and nothing cached: each call is one load or one atomic change. Where the memory comes from is not
//! asked, so that tests need no kernel.

use std::mem::offset_of;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::atomic::{AtomicU64, fence};

use lb_common::connection::{Meta, SLOTS, State, Tuple};
use lb_common::net::{Address, Port, Protocol};
use lb_common::real::{RealServerEntry, load};
use lb_common::service::{ForwardingMethod, NONE, Scheduler, ServiceKey, VirtualServerEntry, service_flag};

const SLOT_WORDS: usize = 2;
const TUPLE_WORDS: usize = 20;
const REAL_SERVER_WORDS: usize = size_of::<RealServerEntry>() / 8;
const SERVICE_WORDS: usize = size_of::<VirtualServerEntry>() / 8;

const _: () = assert!(TUPLE_WORDS * 8 == size_of::<lb_common::connection::TupleBucket>());

/// What the maps hold, each from its first element on.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a> {
    /// `connections`.
    pub connections: &'a [AtomicU64],
    /// `tuples`; shorter than `connections` where no virtual server needs them.
    pub tuples: &'a [AtomicU64],
    /// `real_servers`.
    pub real_servers: &'a [AtomicU64],
    /// `services`.
    pub services: &'a [AtomicU64],
    /// `server_counts`.
    pub counts: &'a [AtomicU64],
    /// `server_loads`.
    pub loads: &'a [AtomicU64],
    /// `client_hops`.
    pub client_hops: &'a [AtomicU64],
}

impl<'a> Tables<'a> {
    /// Every slot, bucket by bucket.
    pub fn slots(&self) -> impl ExactSizeIterator<Item = SlotWords<'a>> + use<'a> {
        self.connections.as_chunks().0.iter().map(SlotWords)
    }

    /// The slots of the buckets numbered `start` to `end`, the latter excluded; what is past the table is left out.
    pub fn slots_between(&self, start: usize, end: usize) -> impl Iterator<Item = SlotWords<'a>> + use<'a> {
        let (slots, _) = self.connections.as_chunks();
        let at = |bucket: usize| bucket.saturating_mul(SLOTS).min(slots.len());
        slots.get(at(start)..at(end)).unwrap_or_default().iter().map(SlotWords)
    }

    /// Buckets in the table.
    pub fn bucket_count(&self) -> usize {
        self.connections.len() / SLOT_WORDS / SLOTS
    }

    /// Slots in the table.
    pub fn slot_count(&self) -> usize {
        self.bucket_count() * SLOTS
    }

    /// The tuple beside slot number `slot` of the table; `None` where there is no room for it.
    pub fn tuple(&self, slot: usize) -> Option<Tuple> {
        let bucket: &[AtomicU64; TUPLE_WORDS] = self.tuples.as_chunks().0.get(slot / SLOTS)?;
        let at = slot % SLOTS * size_of::<Tuple>();
        let words = [0, 4, 8, 12].map(|offset| u32_at(bucket, at + offset));
        let ports = u32_at(bucket, at + offset_of!(Tuple, client_port));
        let (client_port, vip_port) = halves(ports);
        Some(Tuple {
            client: Address::from_words(words),
            client_port: Port::new(client_port),
            vip_port: Port::new(vip_port),
        })
    }

    /// Places for real servers.
    pub fn real_server_count(&self) -> usize {
        self.real_servers.len() / REAL_SERVER_WORDS
    }

    /// The real server at `index`, or the free place; `None` past the table.
    pub fn real_server(&self, index: u16) -> Option<RealServerWords<'a>> {
        self.real_servers.as_chunks().0.get(usize::from(index)).map(RealServerWords)
    }

    /// The virtual server at `index`; `None` past the table.
    pub fn service(&self, index: u32) -> Option<ServiceWords<'a>> {
        self.services.as_chunks().0.get(usize::try_from(index).ok()?).map(ServiceWords)
    }

    /// What is counted for the real server at `index`; `None` past the table.
    pub fn counts(&self, index: u16) -> Option<Counts> {
        self.counts.get(usize::from(index)).map(|word| Counts::from_word(word.load(Acquire)))
    }

    /// Takes a connection that was in `state` off what is counted for its real server, as the packet path does: counts,
    /// load, and the marks of a load that depend on the counts.
    ///
    /// For whoever has won the slot, nobody else. Templates are counted nowhere.
    pub fn count_down(&self, real_server: u16, state: u8) {
        if State::is_template(state) {
            return;
        }
        let index = usize::from(real_server);
        let (Some(entry), Some(counts), Some(load)) =
            (self.real_server(real_server), self.counts.get(index), self.loads.get(index))
        else {
            return;
        };
        let is_active = State::is_active(state);
        let gone = if is_active { Counts { active: 1, inactive: 0 } } else { Counts { active: 0, inactive: 1 } };
        let before = Counts::from_word(counts.fetch_sub(gone.to_word(), Relaxed));
        load.fetch_sub(entry.relief(is_active, before.active), Relaxed);
        if entry.is_relieved(before.total() - 1) {
            load.fetch_and(!load::OVERLOADED, Relaxed);
        }
    }
}

/// A place for a connection.
#[derive(Clone, Copy, Debug)]
pub struct SlotWords<'a>(&'a [AtomicU64; SLOT_WORDS]);

impl SlotWords<'_> {
    /// Which connection.
    pub fn key(self) -> u64 {
        let [key, _] = self.0;
        key.load(Relaxed)
    }

    /// Everything else.
    pub fn meta(self) -> Meta {
        let [_, meta] = self.0;
        Meta(meta.load(Acquire))
    }

    /// Puts `new` in the place of `old`; `false`, and nothing is changed, where it is `old` no longer.
    pub fn replace(self, old: Meta, new: Meta) -> bool {
        let [_, meta] = self.0;
        meta.compare_exchange(old.0, new.0, Relaxed, Relaxed).is_ok()
    }

    /// Key and meta as they were at one time, and what `beside` read at that time; `None` where the slot was free, or was
    /// being rewritten again and again.
    pub fn read_with<T>(self, mut beside: impl FnMut(u64, Meta) -> T) -> Option<(u64, Meta, T)> {
        const TRIES: usize = 8;
        let connection = |meta: Meta| (meta.real_server(), meta.generation());
        for _ in 0..TRIES {
            let (meta, key) = (self.meta(), self.key());
            let value = beside(key, meta);
            fence(Acquire);
            let after = self.meta();
            match after.state() {
                State::FREE => return None,
                State::LOCKED => std::hint::spin_loop(),
                // State and time may have moved on meanwhile.
                _ if connection(meta) == connection(after) && key == self.key() => return Some((key, after, value)),
                _ => {}
            }
        }
        None
    }
}

/// A real server's entry.
#[derive(Clone, Copy, Debug)]
pub struct RealServerWords<'a>(&'a [AtomicU64; REAL_SERVER_WORDS]);

impl RealServerWords<'_> {
    /// Zero for a free place.
    pub fn generation(self) -> u32 {
        u32_at(self.0, offset_of!(RealServerEntry, generation))
    }

    /// The octet of the generation that slots hold.
    pub fn generation_octet(self) -> u8 {
        let [octet, ..] = self.generation().to_le_bytes();
        octet
    }

    /// How packets reach it; `None` for a number that is no method.
    pub fn forwarding(self) -> Option<ForwardingMethod> {
        ForwardingMethod::from_number(u32_at(self.0, offset_of!(RealServerEntry, forwarding)))
    }

    /// Index of its virtual server.
    pub fn virtual_server(self) -> u32 {
        u32_at(self.0, offset_of!(RealServerEntry, virtual_server))
    }

    /// Its port; zero where its virtual server serves all ports.
    pub fn port(self) -> Port {
        Port::new(halves(u32_at(self.0, offset_of!(RealServerEntry, port))).0)
    }

    /// Its address.
    pub fn address(self) -> Address {
        address_at(self.0, offset_of!(RealServerEntry, address))
    }

    /// Address and port.
    pub fn socket_address(self) -> SocketAddr {
        socket_address(self.address(), self.port())
    }

    /// Its weight; zero takes no new connection.
    pub fn weight(self) -> u32 {
        u32_at(self.0, offset_of!(RealServerEntry, weight))
    }

    /// What an active connection adds to its load.
    pub fn active_cost(self) -> u64 {
        u64_at(self.0, offset_of!(RealServerEntry, active_cost))
    }

    /// What an inactive connection adds to its load.
    pub fn inactive_cost(self) -> u64 {
        u64_at(self.0, offset_of!(RealServerEntry, inactive_cost))
    }

    /// What the first active connection adds on top.
    pub fn busy_cost(self) -> u64 {
        u64_at(self.0, offset_of!(RealServerEntry, busy_cost))
    }

    /// Active connections above which it takes no new one; [`NONE`]: no limit.
    pub fn active_limit(self) -> u32 {
        u32_at(self.0, offset_of!(RealServerEntry, active_limit))
    }

    /// Whether the number of its connections is limited.
    pub fn has_thresholds(self) -> bool {
        self.upper_threshold() != 0
    }

    /// Whether it has so many connections, `total`, that it takes no new one.
    pub fn is_overloaded(self, total: i64) -> bool {
        self.has_thresholds() && total >= self.upper_threshold()
    }

    /// Whether it has so few connections, `total`, that it takes new ones again after it was overloaded.
    pub fn is_relieved(self, total: i64) -> bool {
        match i64::from(u32_at(self.0, offset_of!(RealServerEntry, lower_threshold))) {
            _ if !self.has_thresholds() => false,
            0 => total * 4 < self.upper_threshold() * 3,
            lower => total < lower,
        }
    }

    fn upper_threshold(self) -> i64 {
        i64::from(u32_at(self.0, offset_of!(RealServerEntry, upper_threshold)))
    }

    /// What one connection less takes from the load, where `active` were active before.
    fn relief(self, is_active: bool, active: i64) -> u64 {
        if !is_active {
            return self.inactive_cost();
        }
        let busy = if active == 1 { self.busy_cost() } else { 0 };
        let limit = self.active_limit();
        let overflow = if limit != NONE && active == i64::from(limit) + 1 { load::OVERFLOWING } else { 0 };
        self.active_cost().wrapping_add(busy).wrapping_add(overflow)
    }
}

/// A virtual server's entry.
#[derive(Clone, Copy, Debug)]
pub struct ServiceWords<'a>(&'a [AtomicU64; SERVICE_WORDS]);

impl ServiceWords<'_> {
    /// What clients address; `None` for a place that no virtual server has.
    pub fn key(self) -> Option<ServiceKey> {
        let at = offset_of!(VirtualServerEntry, key);
        let number = u32_at(self.0, at + offset_of!(ServiceKey, protocol));
        let protocol = Protocol::from_number(u8::try_from(number).ok()?)?;
        let port = halves(u32_at(self.0, at + offset_of!(ServiceKey, port))).0;
        let vip = address_at(self.0, at + offset_of!(ServiceKey, vip));
        Some(ServiceKey::new(vip, Port::new(port), protocol))
    }

    /// How a new connection gets its real server; `None` for a number that is no scheduler's.
    pub fn scheduler(self) -> Option<Scheduler> {
        let number = u32_at(self.0, offset_of!(VirtualServerEntry, scheduler));
        Scheduler::ALL.into_iter().find(|scheduler| *scheduler as u32 == number)
    }

    /// Whether its connections' keys are fingerprints, beside which stands a tuple.
    pub fn is_wide(self) -> bool {
        self.flags() & service_flag::WIDE != 0
    }

    /// Whether a client's connections go to one real server.
    pub fn is_persistent(self) -> bool {
        self.flags() & service_flag::PERSISTENT != 0
    }

    /// Ticks that a template outlives its last new connection.
    pub fn persistence_timeout(self) -> u32 {
        u32_at(self.0, offset_of!(VirtualServerEntry, persistence_timeout))
    }

    /// What of a client's address makes its template.
    pub fn persistence_mask(self) -> Address {
        address_at(self.0, offset_of!(VirtualServerEntry, persistence_mask))
    }

    fn flags(self) -> u32 {
        u32_at(self.0, offset_of!(VirtualServerEntry, flags))
    }
}

/// A word of `server_counts`. Signed, for a count that has gone wrong may be below zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Established TCP.
    pub active: i64,
    /// All other connections.
    pub inactive: i64,
}

impl Counts {
    /// The counts in `word`: the number active × 2^32 + inactive, either of which may be negative.
    pub fn from_word(word: u64) -> Self {
        let inactive = word.cast_signed() << 32 >> 32;
        Self { active: word.cast_signed().wrapping_sub(inactive) >> 32, inactive }
    }

    /// What to add to a word to add these counts, or to subtract.
    pub fn to_word(self) -> u64 {
        let Self { active, inactive } = self;
        (active << 32).wrapping_add(inactive).cast_unsigned()
    }

    /// Both together.
    pub fn total(self) -> i64 {
        self.active + self.inactive
    }
}

/// An address and a port of the maps.
pub fn socket_address(address: Address, port: Port) -> SocketAddr {
    SocketAddr::new(address.into(), port.number())
}

fn u64_at(words: &[AtomicU64], offset: usize) -> u64 {
    words.get(offset / 8).map_or(0, |word| word.load(Acquire))
}

/// The four octets at `offset`, a multiple of four, as the machine reads them.
fn u32_at(words: &[AtomicU64], offset: usize) -> u32 {
    let [a, b, c, d, e, f, g, h] = u64_at(words, offset).to_ne_bytes();
    u32::from_ne_bytes(if offset.is_multiple_of(8) { [a, b, c, d] } else { [e, f, g, h] })
}

/// The 16-bit numbers in a word, that of the lower address first.
fn halves(word: u32) -> (u16, u16) {
    let [a, b, c, d] = word.to_ne_bytes();
    (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]))
}

fn address_at(words: &[AtomicU64], offset: usize) -> Address {
    Address::from_words([0, 4, 8, 12].map(|further| u32_at(words, offset + further)))
}
