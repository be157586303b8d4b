//! Tables in plain memory, for tests.

use std::mem::offset_of;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use lb_common::connection::{Meta, SLOTS, State};
use lb_common::hash::{self, Secret};
use lb_common::net::{Address, Port, Protocol};
use lb_common::real::RealServerEntry;
use lb_common::service::{NONE, Scheduler, ServiceKey, VirtualServerEntry};

use super::words::{Counts, Tables};

pub const SECRET: Secret = Secret { words: [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321] };

/// As many tables as the scan needs, zeroed.
pub struct Memory {
    connections: Vec<AtomicU64>,
    tuples: Vec<AtomicU64>,
    real_servers: Vec<AtomicU64>,
    services: Vec<AtomicU64>,
    counts: Vec<AtomicU64>,
    loads: Vec<AtomicU64>,
    client_hops: Vec<AtomicU64>,
}

/// What tests set of a real server.
#[derive(Clone, Copy, Debug)]
pub struct Real {
    pub generation: u32,
    pub virtual_server: u32,
    pub address: &'static str,
    pub port: u16,
    pub weight: u32,
    pub active_cost: u64,
    pub inactive_cost: u64,
    pub busy_cost: u64,
    pub active_limit: u32,
    pub thresholds: (u32, u32),
}

impl Real {
    pub const PLAIN: Self = Self {
        generation: 1,
        virtual_server: 0,
        address: "10.0.1.11",
        port: 80,
        weight: 1,
        active_cost: 256,
        inactive_cost: 1,
        busy_cost: 0,
        active_limit: NONE,
        thresholds: (0, 0),
    };
}

/// What tests set of a virtual server.
#[derive(Clone, Copy, Debug)]
pub struct Virtual {
    pub vip: &'static str,
    pub port: u16,
    pub protocol: Protocol,
    pub scheduler: Scheduler,
    pub flags: u32,
    pub persistence_timeout: u32,
    pub mask: &'static str,
}

impl Virtual {
    pub const PLAIN: Self = Self {
        vip: "10.0.0.100",
        port: 80,
        protocol: Protocol::Tcp,
        scheduler: Scheduler::Lc,
        flags: 0,
        persistence_timeout: 0,
        mask: "255.255.255.255",
    };
}

impl Memory {
    /// Tables with so many buckets, places for so many real servers, and four virtual servers.
    pub fn new(buckets: usize, real_servers: usize) -> Self {
        let words = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            connections: words(buckets * SLOTS * 2),
            tuples: words(buckets * 20),
            real_servers: words(real_servers * 16),
            services: words(4 * 16),
            counts: words(real_servers),
            loads: words(real_servers),
            client_hops: words(lb_common::CLIENT_HOPS_LENGTH as usize * 4),
        }
    }

    pub fn tables(&self) -> Tables<'_> {
        let Self { connections, tuples, real_servers, services, counts, loads, client_hops } = self;
        Tables { connections, tuples, real_servers, services, counts, loads, client_hops }
    }

    pub fn put_real(&self, index: u16, real: Real) {
        let words = &self.real_servers[usize::from(index) * 16..][..16];
        set(words, offset_of!(RealServerEntry, generation), &real.generation.to_ne_bytes());
        set(words, offset_of!(RealServerEntry, virtual_server), &real.virtual_server.to_ne_bytes());
        set(words, offset_of!(RealServerEntry, port), &real.port.to_ne_bytes());
        set(words, offset_of!(RealServerEntry, address), &address(real.address).octets);
        set(words, offset_of!(RealServerEntry, weight), &real.weight.to_ne_bytes());
        set(words, offset_of!(RealServerEntry, active_cost), &real.active_cost.to_ne_bytes());
        set(words, offset_of!(RealServerEntry, inactive_cost), &real.inactive_cost.to_ne_bytes());
        set(words, offset_of!(RealServerEntry, busy_cost), &real.busy_cost.to_ne_bytes());
        set(words, offset_of!(RealServerEntry, active_limit), &real.active_limit.to_ne_bytes());
        set(words, offset_of!(RealServerEntry, upper_threshold), &real.thresholds.0.to_ne_bytes());
        set(words, offset_of!(RealServerEntry, lower_threshold), &real.thresholds.1.to_ne_bytes());
    }

    pub fn put_virtual(&self, index: u32, server: Virtual) {
        let words = &self.services[index as usize * 16..][..16];
        let key = offset_of!(VirtualServerEntry, key);
        set(words, key + offset_of!(ServiceKey, vip), &address(server.vip).octets);
        set(words, key + offset_of!(ServiceKey, port), &server.port.to_ne_bytes());
        set(words, key + offset_of!(ServiceKey, protocol), &(server.protocol as u32).to_ne_bytes());
        set(words, offset_of!(VirtualServerEntry, scheduler), &(server.scheduler as u32).to_ne_bytes());
        set(words, offset_of!(VirtualServerEntry, flags), &server.flags.to_ne_bytes());
        set(words, offset_of!(VirtualServerEntry, persistence_timeout), &server.persistence_timeout.to_ne_bytes());
        set(words, offset_of!(VirtualServerEntry, persistence_mask), &address(server.mask).octets);
    }

    /// Puts a connection into slot `slot`, and counts it.
    pub fn put(&self, slot: usize, key: u64, meta: Meta) {
        self.connections[slot * 2].store(key, SeqCst);
        self.connections[slot * 2 + 1].store(meta.0, SeqCst);
        if !State::is_template(meta.state()) {
            let (is_active, index) = (State::is_active(meta.state()), usize::from(meta.real_server()));
            let one = Counts { active: is_active.into(), inactive: (!is_active).into() };
            self.counts[index].fetch_add(one.to_word(), SeqCst);
            let real = self.tables().real_server(meta.real_server()).unwrap();
            self.loads[index].fetch_add(if is_active { real.active_cost() } else { real.inactive_cost() }, SeqCst);
        }
    }

    pub fn put_tuple(&self, slot: usize, client: &str, client_port: u16, vip_port: u16) {
        let words = &self.tuples[slot / SLOTS * 20..][..20];
        let at = slot % SLOTS * 20;
        set(words, at, &address(client).octets);
        set(words, at + 16, &client_port.to_ne_bytes());
        set(words, at + 18, &vip_port.to_ne_bytes());
    }

    /// The first slot of the first candidate bucket of `key`.
    pub fn first_slot(&self, key: u64) -> usize {
        let buckets = u32::try_from(self.tables().bucket_count()).unwrap();
        hash::buckets(key, buckets, &SECRET).0 as usize * SLOTS
    }

    pub fn meta(&self, slot: usize) -> Meta {
        Meta(self.connections[slot * 2 + 1].load(SeqCst))
    }

    /// Active and inactive connections, and the load.
    pub fn counted(&self, real_server: u16) -> (i64, i64, u64) {
        let Counts { active, inactive } = self.tables().counts(real_server).unwrap();
        (active, inactive, self.loads[usize::from(real_server)].load(SeqCst))
    }

    pub fn count_word(&self, real_server: u16) -> &AtomicU64 {
        &self.counts[usize::from(real_server)]
    }

    pub fn load_word(&self, real_server: u16) -> &AtomicU64 {
        &self.loads[usize::from(real_server)]
    }
}

fn set(words: &[AtomicU64], offset: usize, bytes: &[u8]) {
    for (byte, at) in bytes.iter().zip(offset..) {
        let mut word = words[at / 8].load(SeqCst).to_ne_bytes();
        word[at % 8] = *byte;
        words[at / 8].store(u64::from_ne_bytes(word), SeqCst);
    }
}

pub fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// The key of an IPv4 client's connection to virtual server 0.
pub fn key(client: &str, port: u16) -> u64 {
    let [_, _, _, word] = address(client).words();
    hash::exact_key(word, Port::new(port), 0)
}
