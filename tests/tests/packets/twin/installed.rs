//! What the model is to know: the meaning from what was asked for, and the places from the kernel's maps.
//!
//! Rings are made anew, independently, and must be what is installed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_common::hash;
use lb_common::net::Address;
use lb_common::real::{NextHop, NextHopState, RealServerEntry, real_flag};
use lb_common::service::{NONE, RING_CHUNK, RingChunk, Run, Scheduler, VirtualServerEntry};
use lb_userspace::model::{RealServer as Wanted, VirtualServer as Asked};

use super::super::bench::Bench;
use super::super::model::rings::{self, Backend};
use super::super::model::world::{Hop, Persistence, RealServer, VirtualServer};
use super::Twin;

impl Twin {
    /// Brings the model to what is installed now, which must be `servers`.
    pub fn follow(&mut self, servers: &[Asked]) {
        let installed = self.bench.virtual_servers();
        assert_eq!(installed.len(), servers.len(), "as many as were asked for");
        let mut places = BTreeMap::new();
        for asked in servers {
            let entry = installed.iter().find(|entry| entry.key == asked.service.into()).expect("it is installed");
            places.insert(entry.index, (asked, *entry));
        }
        self.forget_counters(&places);
        let mut before = std::mem::take(&mut self.model.reals);
        for (index, entry) in self.bench.real_servers() {
            if let Some((asked, server)) = places.get(&entry.virtual_server) {
                let mut real = real_server(index, &entry, asked, server);
                match before.remove(&index) {
                    // Also where it is reached by another method now, which ends its connections.
                    Some(known) => {
                        (real.active, real.inactive) = (known.active, known.inactive);
                        real.is_overloaded = overloaded_now(&real, known.is_overloaded);
                    }
                    None => {
                        (real.active, real.inactive) = self.model.vacated.remove(&index).unwrap_or_default();
                        real.is_overloaded = overloaded_now(&real, false);
                        self.model.real_counters.remove(&index);
                    }
                }
                self.model.reals.insert(index, real);
            }
        }
        self.model.vacated.extend(before.into_iter().map(|(index, real)| (index, (real.active, real.inactive))));
        self.model.services =
            places.values().map(|(asked, entry)| virtual_server(&mut self.bench, asked, entry)).collect();
        self.rank();
        self.model.end_denied();
        for server in &self.model.services {
            self.check_ring(server);
        }
    }

    /// A virtual server in a former one's place counts from zero.
    fn forget_counters(&mut self, places: &BTreeMap<u32, (&Asked, VirtualServerEntry)>) {
        let former = &self.model.services;
        self.model.virtual_counters.retain(|index, _| {
            let asked = places.get(&u32::from(*index)).map(|(asked, _)| asked.service);
            let was = former.iter().find(|server| server.index == *index).map(|s| (s.address, s.protocol));
            asked.map(|service| (service.address, service.protocol)) == was
        });
    }

    /// Notes who comes when in the chains of those that share address and port.
    fn rank(&mut self) {
        let entries: BTreeMap<u16, RealServerEntry> = self.bench.real_servers().into_iter().collect();
        let next = |index: u16| u16::try_from(entries[&index].next_same).ok();
        let followed: Vec<u16> = entries.keys().filter_map(|index| next(*index)).collect();
        for head in entries.keys().filter(|index| !followed.contains(index)) {
            let chain = std::iter::successors(Some(*head), |index| next(*index));
            for (rank, index) in chain.enumerate() {
                if let Some(real) = self.model.reals.get_mut(&index) {
                    real.rank = rank;
                }
            }
        }
    }

    /// Compares a virtual server's ring with one that is made here.
    fn check_ring(&self, server: &VirtualServer) {
        let mut reals: Vec<&RealServer> = self.model.reals.values().collect();
        reals
            .retain(|real| real.virtual_server == server.index && server.sorry != Some(real.index) && !real.is_removed);
        reals.sort_by_key(|real| real.address);
        let weights: Vec<u16> = reals.iter().map(|real| real.weight).collect();
        let expected: Vec<usize> = match server.scheduler {
            _ if weights.iter().all(|weight| *weight == 0) => Vec::new(),
            Scheduler::Rr | Scheduler::Lc => (0..reals.len()).filter(|n| weights[*n] != 0).collect(),
            Scheduler::Wrr | Scheduler::Twos | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq | Scheduler::Ovf => {
                smooth(&weights)
            }
            Scheduler::Fo => {
                let highest = weights.iter().max();
                weights.iter().position(|weight| Some(weight) == highest).into_iter().collect()
            }
            Scheduler::Sh | Scheduler::Dh | Scheduler::Mh => maglev(&reals),
        };
        let expected: Vec<u16> = expected.into_iter().map(|n| reals[n].index).collect();
        assert_eq!(*server.ring, expected, "{server:?}");
    }
}

fn smooth(weights: &[u16]) -> Vec<usize> {
    rings::smooth(&weights.iter().map(|weight| u32::from(*weight)).collect::<Vec<_>>())
}

/// Maglev's table: two hashes of address and port, and a prime size of at least a hundred places for each.
fn maglev(reals: &[&RealServer]) -> Vec<usize> {
    let size = if reals.len() <= 655 { 65_521 } else { 131_071 };
    let below = |hash: u64, limit: usize| usize::try_from(hash % u64::try_from(limit).expect("fits")).expect("fits");
    let weighted: Vec<usize> = (0..reals.len()).filter(|n| reals[*n].weight != 0).collect();
    let backend = |n: &usize| {
        let hash = hash::scheduling(Address::from(reals[*n].address.ip()).halves(), reals[*n].address.port());
        Backend {
            offset: below(hash::mix(hash ^ 0x6f66_6673_6574_0001), size),
            skip: below(hash::mix(hash ^ 0x736b_6970_0000_0002), size - 1) + 1,
            weight: reals[*n].weight.into(),
        }
    };
    let backends: Vec<Backend> = weighted.iter().map(backend).collect();
    rings::maglev(&backends, size).into_iter().map(|position| weighted[position]).collect()
}

/// Whether it is overloaded after its thresholds may have changed.
fn overloaded_now(real: &RealServer, was: bool) -> bool {
    let mut probe = RealServer { is_overloaded: was, ..real.clone() };
    probe.note_taken_away();
    probe.note_added();
    probe.upper != 0 && probe.is_overloaded
}

fn real_server(index: u16, entry: &RealServerEntry, asked: &Asked, server: &VirtualServerEntry) -> RealServer {
    let address = SocketAddr::new(entry.address.into(), entry.port.number());
    let is_sorry = server.sorry_server == u32::from(index);
    let is_removed = entry.flags & real_flag::REMOVED != 0;
    let wanted: Option<Wanted> = match is_sorry {
        true => asked.sorry_server,
        false => asked.real_servers.iter().find(|real| real.address == address).copied(),
    };
    assert_eq!(
        wanted.is_none(),
        is_removed,
        "{address} is there because it was asked for, or until its connections end"
    );
    let (weight, upper, lower) = match wanted {
        Some(_) if is_sorry => (0, 0, 0),
        Some(real) => (real.weight.get(), real.thresholds.upper, real.thresholds.lower),
        // Should it come back, it is known whether it was overloaded.
        None => (0, entry.upper_threshold, entry.lower_threshold),
    };
    if let Some(real) = wanted {
        assert_eq!((entry.forwarding, address), (real.forwarding, real.address));
    }
    RealServer {
        index,
        virtual_server: u16::try_from(server.index).expect("an index"),
        address,
        forwarding: entry.forwarding,
        generation: u8::try_from(entry.generation & 0xff).expect("an octet"),
        weight,
        is_removed,
        upper,
        lower,
        rank: 0,
        hop: hop(&entry.next_hop),
        tunnel_source: tunnel_source(entry),
        active: 0,
        inactive: 0,
        is_overloaded: false,
    }
}

/// The prefix whose host bits are filled; of the whole address where there are none.
fn tunnel_source(entry: &RealServerEntry) -> Option<IpNet> {
    let filled = u8::try_from(entry.tunnel_spread.count_ones()).expect("at most 32");
    let address = IpAddr::from(entry.tunnel_source);
    let length = if address.is_ipv4() { 32 - filled } else { 128 - filled };
    (entry.tunnel_source != Address::UNSPECIFIED).then(|| IpNet::new(address, length).expect("a prefix"))
}

fn hop(hop: &NextHop) -> Hop {
    use lb_common::drop_reason::DropReason;
    match hop.state {
        NextHopState::Resolved => Hop::Known {
            ifindex: hop.ifindex,
            mtu: usize::try_from(hop.mtu).expect("fits"),
            to: hop.destination.octets,
            from: hop.source.octets,
        },
        // The test's namespace does not forward.
        NextHopState::Unresolved => Hop::Unknown(DropReason::ForwardingDisabled),
        NextHopState::Unusable => Hop::Unknown(DropReason::NoRoute),
        NextHopState::Unlisted => Hop::Unknown(DropReason::UnlistedInterface),
        NextHopState::Local => Hop::Local,
    }
}

fn virtual_server(bench: &mut Bench, asked: &Asked, entry: &VirtualServerEntry) -> VirtualServer {
    let policy = &asked.policy;
    let persistence = policy.persistence.map(|persistence| Persistence {
        timeout: u16::try_from(entry.persistence_timeout).expect("a timeout in ticks"),
        prefix_length: persistence.prefix_length,
    });
    VirtualServer {
        index: u16::try_from(entry.index).expect("an index"),
        address: asked.service.address,
        protocol: asked.service.protocol,
        scheduler: policy.scheduler,
        hash_port: policy.hash_port,
        hash_fallback: policy.hash_fallback,
        one_packet: policy.one_packet,
        sloppy_tcp: policy.sloppy_tcp,
        stateless_replies: policy.stateless_replies,
        persistence,
        no_real_server: policy.no_real_server,
        unknown_connection: policy.unknown_connection,
        access: asked.access.iter().flat_map(|list| list.prefixes()).collect(),
        sorry: (entry.sorry_server != NONE).then(|| u16::try_from(entry.sorry_server).expect("an index")),
        ring: elements(bench, entry.ring).into(),
        groups: elements(bench, entry.chunks),
        lanes: entry.lanes,
        window: entry.window,
        cursor: bench.get("rr_cursors", entry.index),
    }
}

/// The elements of a run in `scheduler_rings`.
fn elements(bench: &mut Bench, run: Run) -> Vec<u16> {
    let chunk = u32::try_from(RING_CHUNK).expect("small");
    let numbers = run.start..run.start + run.length;
    let chunks: BTreeMap<u32, RingChunk> = numbers
        .clone()
        .map(|n| n / chunk)
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .map(|n| (n, bench.get("scheduler_rings", n)))
        .collect();
    numbers.map(|n| chunks[&(n / chunk)].elements[usize::try_from(n % chunk).expect("small")]).collect()
}
