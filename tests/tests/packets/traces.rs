//! A million events at random, on one CPU and on two at once: what is counted must be what is in the table, to the last one.
//!
//! Clients and real servers open, talk and close in any order; real servers come and go; time passes; and user space takes
//! out what has expired, as the daemon does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use evenkeel_tests::bpf::Program;
use lb_common::connection::{Bucket, State, Timeouts};
use lb_common::net::Protocol;
use lb_common::real::{CountChunk, LoadChunk, RealServerEntry, load};
use lb_common::service::{ForwardingMethod, Scheduler};
use lb_userspace::datapath::xdp::object::LoadOptions;
use lb_userspace::datapath::xdp::table::memory_maps::MappedTables;
use lb_userspace::datapath::xdp::table::scanner::{Constants, Scanner};
use lb_userspace::host::jiffies_per_second;
use lb_userspace::model::{Policy, RealServer, Removal, Service, Thresholds, VirtualServer, Weight};

use super::bench::{Bench, OPTIONS, POISON, Verdict, cpus, in_namespace, run, stay_on};
use super::frame::{ACK, FIN, Frame, PSH, RST, SYN, Transport};
use super::scene::{FAMILIES, Family, INGRESS, OUR_MAC, number_of, real_mac, real_server};

const EVENTS: u32 = 1_000_000;
const PHASES: u32 = 20;
/// Client ports of each virtual server: together twice as many connections as the table has slots.
const PORTS: u16 = 4000;
const REALS: u8 = 6;

/// Timeouts of some hundred ticks, of which the trace lets pass some at once.
const LOADED: LoadOptions =
    LoadOptions { connections_max: 6000, timeouts: Timeouts::new(50, 400, 100, 20, 200), ..OPTIONS };

/// Numbers that look random and are the same each time (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(((self.0 >> 32) * u64::from(limit)) >> 32).expect("below the limit")
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(u32::try_from(all.len()).expect("few"))).expect("few")]
    }
}

/// A virtual server of the trace, with frames to and from it of which only port and flags remain to be set.
struct Site {
    service: Service,
    method: ForwardingMethod,
    family: Family,
    request: Vec<u8>,
    /// By the real server's number, from 1.
    answers: Vec<Vec<u8>>,
    /// Where each client port's packets go.
    servers: Vec<AtomicU8>,
}

/// `nat` and `dr` by TCP in both families, and `nat` by UDP.
fn sites() -> Vec<Site> {
    let kinds = [
        (Family::V4, ForwardingMethod::Nat, Protocol::Tcp),
        (Family::V4, ForwardingMethod::Dr, Protocol::Tcp),
        (Family::V6, ForwardingMethod::Nat, Protocol::Tcp),
        (Family::V6, ForwardingMethod::Dr, Protocol::Tcp),
        (Family::V4, ForwardingMethod::Nat, Protocol::Udp),
    ];
    let site = |(n, (family, method, protocol)): (u8, (Family, ForwardingMethod, Protocol))| {
        let service = Service { address: (family.vip(n), 80).into(), protocol };
        let transport = match protocol {
            Protocol::Tcp => Transport::Tcp { flags: 0 },
            Protocol::Udp => Transport::Udp { has_checksum: true },
            Protocol::Sctp => Transport::Sctp { chunks: vec![] },
        };
        let request = Frame::new(family.client(1), service.address, transport.clone()).bytes();
        let answer = |n| {
            let real = real_server(family, method, n);
            Frame::new(real, family.client(1), transport.clone()).macs(real_mac(n), OUR_MAC).bytes()
        };
        let servers = (0..PORTS).map(|_| AtomicU8::new(0)).collect();
        Site { service, method, family, request, answers: (1..=REALS).map(answer).collect(), servers }
    };
    (0..).zip(kinds).map(site).collect()
}

impl Site {
    /// One event; the dice say which.
    fn event(&self, entrance: &Program, dice: &mut Dice) {
        let port = u16::try_from(dice.below(PORTS.into())).expect("below");
        let server = &self.servers[usize::from(port)];
        let known = server.load(Ordering::Relaxed);
        if dice.below(4) == 0 && known != 0 {
            let flags = dice.of(&[SYN | ACK, ACK, ACK, ACK | PSH, FIN | ACK, RST]);
            let frame = self.patched(&self.answers[usize::from(known) - 1], 2, port, flags);
            run(entrance, &frame);
            return;
        }
        let flags = dice.of(&[SYN, SYN, SYN, ACK, ACK, ACK, ACK, ACK | PSH, FIN | ACK, FIN, RST | ACK]);
        let frame = self.patched(&self.request, 0, port, flags);
        let (verdict, output) = run(entrance, &frame);
        if verdict == Verdict::Transmit
            && let Some(n) = number_of(&output[..6])
        {
            server.store(n, Ordering::Relaxed);
        }
    }

    /// A frame behind [`POISON`] with the client's port at `offset` of its transport header. Its checksum is left wrong.
    fn patched(&self, frame: &[u8], offset: usize, port: u16, flags: u8) -> Vec<u8> {
        let mut frame = [&POISON, frame].concat();
        let transport = POISON.len() + if self.family == Family::V4 { 34 } else { 54 };
        frame[transport + offset..][..2].copy_from_slice(&(1024 + port).to_be_bytes());
        if self.service.protocol == Protocol::Tcp {
            frame[transport + 13] = flags;
        }
        frame
    }

    /// Other weights, and some real servers gone or back.
    fn change(&self, bench: &mut Bench, dice: &mut Dice) {
        let present = (1..=REALS).filter(|n| *n == 1 || dice.below(4) != 0).collect::<Vec<u8>>();
        let weigh = |n: &u8| (real_server(self.family, self.method, *n), u16::try_from(dice.below(4)).expect("few"));
        let reals: Vec<_> = present.iter().map(weigh).collect();
        let removed_real_server = dice.of(&[Removal::Keep, Removal::Expire]);
        let policy = Policy { removed_real_server, ..Policy::new(Scheduler::Wlc) };
        bench.serve_by(&policy, self.service, self.method, &reals);
        bench.datapath.release_idle().expect("the maps can be read");
    }
}

impl Site {
    /// Its virtual server, of which each real server takes so few connections that it is often full.
    fn limited(&self, scheduler: Scheduler) -> VirtualServer {
        let real = |n: u8| RealServer {
            address: real_server(self.family, self.method, n),
            weight: Weight::new(u16::from(n) * 7),
            forwarding: self.method,
            thresholds: Thresholds { upper: 60, lower: 58 },
        };
        let real_servers = (1..=REALS).map(real).collect();
        VirtualServer {
            name: None,
            service: self.service,
            policy: Policy::new(scheduler),
            real_servers,
            access: None,
            sorry_server: None,
        }
    }
}

/// One round of what the daemon does: everything that has expired is taken out.
fn sweep(scanner: &mut Scanner, tables: &MappedTables, now: u16) {
    let rounds = scanner.report().rounds;
    while scanner.report().rounds == rounds {
        scanner.slice(&tables.tables(), now);
    }
}

fn bench_for(sites: &[Site]) -> Bench {
    let mut bench = Bench::load(&LOADED);
    for family in FAMILIES {
        (1..=REALS).for_each(|n| bench.way(family, n, INGRESS, 1500));
    }
    for site in sites {
        let reals: Vec<_> = (1..=REALS).map(|n| (real_server(site.family, site.method, n), 1)).collect();
        bench.serve_by(&Policy::new(Scheduler::Wlc), site.service, site.method, &reals);
    }
    bench
}

/// Connections by place and state, as they lie in the table.
fn recount(bench: &mut Bench) -> BTreeMap<u16, (u32, u32)> {
    let mut counts: BTreeMap<u16, (u32, u32)> = BTreeMap::new();
    for index in 0..bench.buckets() {
        for slot in bench.get::<Bucket>("connections", index).slots {
            let (active, inactive) = counts.entry(slot.real_server).or_default();
            match slot.state {
                State::FREE => {}
                state if State::is_active(state) => *active += 1,
                state => {
                    assert!(State::name(state).is_some(), "{state:#x} is left in the table");
                    *inactive += 1;
                }
            }
        }
    }
    counts
}

/// Every counter against the table; returns how many connections there are.
fn check_counts(bench: &mut Bench) -> u32 {
    let recounted = recount(bench);
    for place in 0..u16::try_from(LOADED.real_servers_max).expect("few") {
        let counts = bench.get::<CountChunk>("server_counts", u32::from(place) / 8).lanes[usize::from(place) % 8];
        let expected = recounted.get(&place).copied().unwrap_or_default();
        assert_eq!((counts.active, counts.inactive), expected, "place {place}: counted, and in the table");
    }
    recounted.values().map(|(active, inactive)| active + inactive).sum()
}

/// Every load against its costs.
fn check_loads(bench: &mut Bench) {
    for (place, entry) in bench.real_servers() {
        let RealServerEntry { active_cost, inactive_cost, .. } = entry;
        let (chunk, lane) = (u32::from(place) / 8, usize::from(place) % 8);
        let counts = bench.get::<CountChunk>("server_counts", chunk).lanes[lane];
        let word = bench.get::<LoadChunk>("server_loads", chunk).lanes[lane];
        let expected = u64::from(counts.active) * active_cost + u64::from(counts.inactive) * inactive_cost;
        assert_eq!(word & ((1 << load::COST_BITS) - 1), expected, "place {place}");
    }
}

fn constants() -> Constants {
    let LoadOptions { timeouts, secret, .. } = LOADED;
    Constants { timeouts, secret, jiffies_per_second: jiffies_per_second() }
}

#[test]
fn after_a_million_events_what_is_counted_is_in_the_table() {
    in_namespace(|| {
        let sites = sites();
        let mut bench = bench_for(&sites);
        let entrance = bench.entrance();
        let tables = MappedTables::of(&bench.datapath).expect("can be mapped");
        let (mut scanner, mut dice) = (Scanner::new(constants()), Dice(0x9e37_79b9_7f4a_7c15));
        for phase in 0..PHASES {
            for _ in 0..EVENTS / PHASES {
                let site = usize::try_from(dice.below(5)).expect("one of five");
                sites[site].event(&entrance, &mut dice);
            }
            assert_ne!(check_counts(&mut bench), 0);
            check_loads(&mut bench);
            bench.age(dice.of(&[1, 30, 60, 150]));
            sweep(&mut scanner, &tables, bench.tick());
            check_counts(&mut bench);
            sites[usize::try_from(phase % 5).expect("one of five")].change(&mut bench, &mut dice);
            check_counts(&mut bench);
        }
        let report = scanner.report();
        assert_eq!(report.repaired, 0, "nothing was wrong");
        let counters = bench.datapath.table_counters().expect("can be read");
        println!("{counters:?}, {report:?}");
        // Nothing of all this was left out.
        assert!(report.expired > 1000 && counters.reclaimed + counters.evicted_half_open > 1000);
        assert!(counters.evicted_closing > 0 && counters.refused > 0);
    });
}

#[test]
fn after_a_million_events_on_two_cpus_at_once_what_is_counted_is_in_the_table() {
    let [one, two, ..] = cpus()[..] else {
        eprintln!("skipped: this machine has one CPU only");
        return;
    };
    in_namespace(|| {
        let sites = Arc::new(sites());
        let mut bench = bench_for(&sites);
        let tables = MappedTables::of(&bench.datapath).expect("can be mapped");
        let (mut scanner, mut dice) = (Scanner::new(constants()), Dice(0x2545_f491_4f6c_dd1d));
        for phase in 0..PHASES {
            let workers: Vec<_> = [one, two].map(|cpu| worker(&bench, &sites, (cpu, phase))).into();
            // Meanwhile, on the first CPU: what the daemon does.
            while !workers.iter().all(thread::JoinHandle::is_finished) {
                sweep(&mut scanner, &tables, bench.tick());
                let site = usize::try_from(dice.below(5)).expect("one of five");
                sites[site].change(&mut bench, &mut dice);
            }
            workers.into_iter().for_each(|worker| worker.join().expect("it ends well"));
            assert_ne!(check_counts(&mut bench), 0);
            bench.age(dice.of(&[1, 30, 60, 150]));
        }
        println!("{:?}, {:?}", bench.datapath.table_counters().expect("can be read"), scanner.report());
    });
}

/// The marks of busy, overflowing and overloaded real servers included. Weights stay as they are: after a change of costs a load
/// that a packet was just adding to may need a repair.
#[test]
fn after_events_on_two_cpus_at_once_loads_are_what_the_counts_say_and_nothing_was_repaired() {
    let [one, two, ..] = cpus()[..] else {
        eprintln!("skipped: this machine has one CPU only");
        return;
    };
    in_namespace(|| {
        for scheduler in [Scheduler::Nq, Scheduler::Ovf, Scheduler::Wlc, Scheduler::Sed] {
            let sites = Arc::new(sites());
            let mut bench = bench_for(&sites);
            let servers: Vec<VirtualServer> = sites.iter().map(|site| site.limited(scheduler)).collect();
            bench.install(&servers);
            let tables = MappedTables::of(&bench.datapath).expect("can be mapped");
            let mut scanner = Scanner::new(constants());
            for phase in 0..PHASES / 4 {
                let workers: Vec<_> = [one, two].map(|cpu| worker(&bench, &sites, (cpu, phase))).into();
                while !workers.iter().all(thread::JoinHandle::is_finished) {
                    sweep(&mut scanner, &tables, bench.tick());
                    // Packets that were under way when a slice ended must be through when the next begins.
                    thread::sleep(Duration::from_millis(1));
                }
                workers.into_iter().for_each(|worker| worker.join().expect("it ends well"));
                // A wrong load would be found by so many looks, and repaired.
                let wrong: Vec<_> = (0..40).flat_map(|_| scanner.slice(&tables.tables(), bench.tick())).collect();
                assert_eq!(wrong, [], "{}, phase {phase}", scheduler.name());
                assert_ne!(check_counts(&mut bench), 0);
                bench.age(150);
            }
            println!("{}: {:?}", scheduler.name(), scanner.report());
            assert_eq!(scanner.report().repaired, 0, "{}", scheduler.name());
        }
    });
}

/// Half of a phase's events, on a CPU of its own.
fn worker(bench: &Bench, sites: &Arc<Vec<Site>>, (cpu, phase): (usize, u32)) -> thread::JoinHandle<()> {
    let (entrance, sites) = (bench.entrance(), Arc::clone(sites));
    thread::spawn(move || {
        stay_on(cpu);
        let seed = u64::from(phase) << 8 | u64::try_from(cpu).expect("fits");
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..EVENTS / PHASES / 2 {
            let site = usize::try_from(dice.below(5)).expect("one of five");
            sites[site].event(&entrance, &mut dice);
        }
    })
}
