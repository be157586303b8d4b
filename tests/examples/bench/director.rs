//! The program that is measured, with tables that the daemon's own code fills. Nothing else here knows of that code.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap};
use aya::programs::ProgramFd;
use aya::{Ebpf, Pod};
use lb_common::connection::Timeouts;
use lb_common::hash::Secret;
use lb_common::net::{MacAddress, Protocol};
use lb_common::real::{LoadChunk, NextHop, NextHopState};
use lb_common::service::Scheduler;
use lb_userspace::datapath::xdp::capacity::Capacity;
use lb_userspace::datapath::xdp::object::{self, LoadOptions};
use lb_userspace::datapath::xdp::pins::MAPS;
use lb_userspace::datapath::xdp::table::memory_maps::MappedTables;
use lb_userspace::datapath::xdp::table::words::Tables;
use lb_userspace::datapath::xdp::tables::Way;
use lb_userspace::datapath::xdp::{XdpDatapath, attach};
use lb_userspace::datapath::{Clients, Policy, Servers, ServiceTable, Settings};
use lb_userspace::model::{self, Access, AccessList, Service, Thresholds, Weight};
use lb_userspace::reconcile::reconcile;

use crate::matrix::{Experiment, HOT, Kind};
use crate::packet::{self, DIRECTOR_MAC, real_mac};

/// Which program.
#[derive(Clone, Copy, Debug)]
pub enum Program<'o> {
    /// The one that the daemon loads.
    Product,
    /// The object with the LRU_HASH.
    Lru(&'o [u8]),
}

/// The loopback device of the namespace, by which the kernel lets the packets come in.
const INGRESS: u32 = 1;

/// Jiffies a second, at most: timeouts depend on it, and no run may outlive them.
const HZ: u32 = 1000;

/// Entries by which the LRU_HASH is larger than the number of flows: the kernel begins to evict a little early.
const LRU_SPARE: u32 = 4096;

/// A loaded program with one virtual server.
pub struct Director {
    datapath: XdpDatapath,
    /// Whether its connections are in the table, else in the LRU_HASH.
    keeps_table: bool,
    /// The loads of real servers without connections.
    idle: Vec<LoadChunk>,
}

impl Director {
    /// `program` with the virtual server of `experiment`, and no connection.
    pub fn serving(program: Program<'_>, experiment: &Experiment) -> Result<Self> {
        let desired = table(experiment);
        let Capacity { real_servers_max, ring_chunks, prefix_lines, nat, wide_tuples } = Capacity::of(&desired);
        let options = LoadOptions {
            connections_max: experiment.flows.max(HOT),
            real_servers_max,
            ring_chunks,
            prefix_lines,
            nat,
            wide_tuples,
            reject_rate: 0,
            packet_log: false,
            timeouts: Timeouts::ipvs_defaults(HZ),
            // Chosen once, so that every run has the same buckets.
            secret: Secret { words: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210] },
        };
        let ebpf = match program {
            Program::Product => object::load(attach::PROGRAM, &MAPS, &options)?,
            Program::Lru(object) => {
                let entries = options.connections_max + LRU_SPARE;
                // It keeps no tuples.
                let options = LoadOptions { wide_tuples: false, ..options };
                object::load_object(object, entries, attach::PROGRAM, &MAPS, &options)?
            }
        };
        let mut datapath = XdpDatapath::new(ebpf)?;
        datapath.set_interface(INGRESS, MacAddress { octets: DIRECTOR_MAC }, None)?;
        for n in 0..experiment.servers {
            datapath.set_way(experiment.family.real(experiment.path, n).ip(), way(experiment, n))?;
        }
        reconcile(&mut datapath, &desired)?;
        let idle = elements(datapath.ebpf(), "server_loads")?;
        let keeps_table = matches!(program, Program::Product);
        Ok(Self { datapath, keeps_table, idle })
    }

    /// The program's descriptor.
    pub fn program(&mut self) -> Result<&ProgramFd> {
        Ok(object::program(self.datapath.ebpf(), attach::PROGRAM)?.fd()?)
    }

    /// Packets that were forwarded, in either direction.
    pub fn packets(&self) -> Result<u64> {
        let statistics = self.datapath.statistics()?;
        Ok(statistics.iter().map(|server| server.counters.packets_in + server.counters.packets_out).sum())
    }

    /// Packets of clients that were not let in.
    pub fn denied(&self) -> Result<u64> {
        Ok(self.datapath.statistics()?.iter().map(|server| server.counters.denied).sum())
    }

    /// Connections that are established.
    pub fn active(&self) -> Result<u64> {
        Ok(self.counts()?.0)
    }

    /// Connections that the program has counted and not yet taken off.
    pub fn connections(&self) -> Result<u64> {
        let (active, inactive) = self.counts()?;
        Ok(active + inactive)
    }

    fn counts(&self) -> Result<(u64, u64)> {
        let statistics = self.datapath.statistics()?;
        let connections = statistics.iter().flat_map(|server| &server.real_servers).map(|real| real.connections);
        Ok(connections.fold((0, 0), |(active, inactive), one| {
            (active + u64::from(one.active), inactive + u64::from(one.inactive))
        }))
    }

    /// Drops since the program was loaded, in words.
    pub fn drops(&self) -> Result<String> {
        let drops = self.datapath.drops()?;
        let happened = drops.into_iter().filter(|(_, count)| *count != 0);
        let words: Vec<String> = happened.map(|(reason, count)| format!("{} {count}", reason.name())).collect();
        Ok(if words.is_empty() { "none".to_owned() } else { words.join(", ") })
    }

    /// Forgets all connections.
    ///
    /// Through mapped memory: thousands of system calls, each with a copy, would leave the processor's caches full of theirs.
    pub fn clear(&mut self) -> Result<()> {
        if !self.keeps_table {
            return self.clear_lru();
        }
        let tables = MappedTables::of(&self.datapath)?;
        let Tables { connections, counts, loads, .. } = tables.tables();
        for word in connections.iter().chain(counts) {
            word.store(0, Relaxed);
        }
        for (word, load) in loads.iter().zip(self.idle.iter().flat_map(|chunk| chunk.lanes)) {
            word.store(load, Relaxed);
        }
        Ok(())
    }

    /// As [`Director::clear`]; counts and loads go on rising there, which costs nothing.
    fn clear_lru(&mut self) -> Result<()> {
        let map = self.datapath.ebpf().map_mut("connections").context("there is no map connections")?;
        let mut map = HashMap::<_, [u64; 2], u64>::try_from(map)?;
        let keys: Result<Vec<_>, _> = map.keys().collect();
        for key in keys? {
            map.remove(&key)?;
        }
        Ok(())
    }
}

/// The virtual server that `experiment` needs.
fn table(experiment: &Experiment) -> ServiceTable {
    let Experiment { family, path, scheduler, servers, .. } = *experiment;
    // With `ovf` a real server takes no more connections at a time than its weight.
    let weight = |n: u16| if scheduler == Scheduler::Ovf { u16::MAX } else { 1 + n % 4 };
    let settings = |n: u16| Settings {
        weight: Weight::new(weight(n)),
        forwarding: path.method(),
        thresholds: Thresholds::default(),
    };
    let holds_client = experiment.kind == Kind::Denied;
    let prefixes = packet::prefixes(family, experiment.prefixes, holds_client).into_iter();
    let list = AccessList::new(prefixes.map(|prefix| (prefix, Access::Denied)).collect());
    let servers = Servers {
        policy: Policy::new(&model::Policy::new(scheduler), HZ),
        real_servers: (0..servers).map(|n| (family.real(path, n), settings(n))).collect(),
        access: (experiment.prefixes > 0).then(|| Clients { digest: list.digest(), list: Some(Arc::new(list)) }),
        sorry_server: None,
    };
    BTreeMap::from([(Service { address: family.vip(), protocol: Protocol::Tcp }, servers)])
}

fn way(experiment: &Experiment, n: u16) -> Way {
    let next_hop = NextHop {
        state: NextHopState::Resolved,
        ifindex: INGRESS,
        mtu: 1500,
        destination: MacAddress { octets: real_mac(n) },
        source: MacAddress { octets: DIRECTOR_MAC },
    };
    Way { next_hop, source: Some(experiment.family.director()), ..Way::UNKNOWN }
}

/// All elements of an array map.
fn elements<V: Pod>(ebpf: &mut Ebpf, name: &str) -> Result<Vec<V>> {
    let map = ebpf.map(name).with_context(|| format!("there is no map {name}"))?;
    let array = Array::<_, V>::try_from(map).with_context(|| format!("can't open map {name}"))?;
    let all: Result<Vec<V>, _> = array.iter().collect();
    all.with_context(|| format!("can't read map {name}"))
}
