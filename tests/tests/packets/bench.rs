//! A loaded `balance` in a network namespace of its own, with tables that the test fills by the daemon's own code.
//!
//! Frames go in through a program of a few instructions that lays [`POISON`] into the headroom first: BPF_PROG_TEST_RUN
//! zeroes it, a driver does not, and a header byte that the program forgets to write would look right.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::AddAssign;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::{env, panic, thread};

use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::{Ebpf, Pod};
use evenkeel_tests::bpf::{Instruction, Program, ProgramTable};
use evenkeel_tests::lab;
use lb_common::connection::{Bucket, Timeouts, buckets_for};
use lb_common::drop_reason::DropReason;
use lb_common::fragment::{FragmentEntry, FragmentKey};
use lb_common::hash::Secret;
use lb_common::net::{MacAddress, Protocol};
use lb_common::real::{CountChunk, NextHop, NextHopState, RealServerEntry};
use lb_common::service::{ForwardingMethod, Scheduler, ServiceKey, VirtualServerEntry};
use lb_userspace::datapath::xdp::object::{self, LoadOptions};
use lb_userspace::datapath::xdp::pins::MAPS;
use lb_userspace::datapath::xdp::tables::Way;
use lb_userspace::datapath::xdp::{XdpDatapath, attach};
use lb_userspace::datapath::{Clients, Policy, Servers, ServiceTable, Settings};
use lb_userspace::host::jiffies_per_second;
use lb_userspace::model::{self, Access, AccessList, Service, Thresholds, VirtualServer, Weight};
use lb_userspace::reconcile::reconcile;
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;

use super::frame::Frame;
use super::oracle::{self, Examined, Told};
use super::scene::{FAMILIES, Family, INGRESS, Mac, OUR_MAC, PROTOCOLS, UNLISTED, real_mac, real_server, service};

/// What lies before a frame: 64 bytes of ones.
pub const POISON: [u8; 64] = [0xff; 64];

const ADJUST_HEAD: i32 = 44;
const TAIL_CALL: i32 = 12;
const JIFFIES64: i32 = 118;
const XDP_ABORTED: i32 = 0;

/// Timeouts in ticks, far apart so that a test sees which one counts, and longer than any test runs.
pub mod timeout {
    pub const HALF_OPEN: u16 = 1000;
    pub const ESTABLISHED: u16 = 4000;
    pub const CLOSING: u16 = 2000;
    pub const RESET: u16 = 500;
    pub const UDP: u16 = 3000;
}

/// What the tests load unless they say otherwise.
pub const OPTIONS: LoadOptions = LoadOptions {
    connections_max: 4096,
    real_servers_max: 256,
    ring_chunks: 16_384,
    prefix_lines: 4096,
    nat: true,
    wide_tuples: true,
    reject_rate: 1_000_000,
    packet_log: false,
    timeouts: Timeouts::new(timeout::HALF_OPEN, timeout::ESTABLISHED, timeout::CLOSING, timeout::RESET, timeout::UDP),
    secret: Secret { words: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210] },
};

/// Whether tests take as long as they need to find what is rare: with `EVENKEEL_LONG=1`, minutes instead of seconds.
pub fn is_long() -> bool {
    env::var_os("EVENKEEL_LONG").is_some_and(|value| value == "1")
}

/// Runs `test` in a thread with a network namespace of its own; where that can't be, says why and leaves it out.
///
/// # Panics
/// When `test` does, and where the environment has `EVENKEEL_REQUIRE_LAB=1` and something is missing.
pub fn in_namespace(test: impl FnOnce() + Send) {
    let missing = if !object::is_embedded() {
        "the XDP programs are not built in; run `cargo xtask test`"
    } else if !lab::is_privileged() {
        "loading them needs root; run `cargo xtask test --runner \"sudo -E\"`"
    } else {
        return thread::scope(|scope| {
            let inside = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
                test();
            });
            inside.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
        });
    };
    assert!(
        env::var_os("EVENKEEL_REQUIRE_LAB").is_none_or(|value| value != "1"),
        "EVENKEEL_REQUIRE_LAB=1, but {missing}"
    );
    eprintln!("skipped: {missing}");
}

/// The CPUs that this process may use.
pub fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).expect("the kernel tells");
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
}

/// Keeps this thread on a CPU.
pub fn stay_on(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("one of those that there are");
    sched_setaffinity(Pid::from_raw(0), &set).expect("it may be used");
}

/// What became of a frame: an action of `enum xdp_action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Aborted,
    Drop,
    Pass,
    Transmit,
    Redirect,
}

/// A frame that has been through the program.
#[derive(Debug)]
pub struct Sent {
    pub verdict: Verdict,
    /// What the program left of the frame.
    pub frame: Vec<u8>,
    /// Why it was dropped, or answered instead of sent on.
    pub dropped: Option<DropReason>,
}

/// The loaded program with its tables.
pub struct Bench {
    pub datapath: XdpDatapath,
    pub desired: ServiceTable,
    options: LoadOptions,
    /// Drops as they stood after the last frame.
    drops: RefCell<Vec<(DropReason, u64)>>,
    entrance: Arc<Program>,
    clock: Program,
    /// Jumping to a program does not keep it: this does.
    _table: ProgramTable,
}

impl Bench {
    /// `balance` with [`OPTIONS`] and empty tables, on [`INGRESS`].
    pub fn empty() -> Self {
        Self::load(&OPTIONS)
    }

    /// `balance` with these options and empty tables, on [`INGRESS`].
    pub fn load(options: &LoadOptions) -> Self {
        Self::entered_by(options, poisoning)
    }

    /// As [`Bench::load`], but frames come by the program that `entrance` makes.
    pub fn entered_by(options: &LoadOptions, entrance: impl FnOnce(&ProgramTable) -> Program) -> Self {
        let mut ebpf = object::load(attach::PROGRAM, &MAPS, options).expect("the program loads");
        let table = table_of(&mut ebpf, attach::PROGRAM);
        let mut datapath = XdpDatapath::new(ebpf).expect("its maps are there");
        // The first is loopback; the others a test may make, or name without making them.
        for ifindex in INGRESS..UNLISTED {
            datapath.set_interface(ifindex, MacAddress { octets: OUR_MAC }, None).expect("a free place");
        }
        let drops = RefCell::new(datapath.drops().expect("the counters can be read"));
        let (desired, entrance) = (ServiceTable::new(), Arc::new(entrance(&table)));
        let clock = [Instruction::call(JIFFIES64), Instruction::EXIT];
        let clock = Program::load("clock", &clock).expect("the verifier takes it");
        Self { datapath, desired, options: *options, drops, entrance, clock, _table: table }
    }

    /// With both families' TCP and UDP virtual servers of the first VIP, and real servers 1..=`servers` behind each.
    pub fn serving(method: ForwardingMethod, servers: u8) -> Self {
        let mut bench = Self::empty();
        bench.serve_all(method, servers);
        bench
    }

    /// Installs what [`Bench::serving`] has.
    pub fn serve_all(&mut self, method: ForwardingMethod, servers: u8) {
        for family in FAMILIES {
            (1..=servers).for_each(|n| self.way(family, n, INGRESS, 1500));
            for protocol in PROTOCOLS {
                let reals: Vec<_> = (1..=servers).map(|n| (real_server(family, method, n), 1)).collect();
                self.serve(service(family, protocol), method, &reals);
            }
        }
    }

    /// Sets the way to real server `n`.
    pub fn way(&mut self, family: Family, n: u8, ifindex: u32, mtu: u32) {
        let next_hop = NextHop {
            state: NextHopState::Resolved,
            ifindex,
            mtu,
            destination: MacAddress { octets: real_mac(n) },
            source: MacAddress { octets: OUR_MAC },
        };
        let is_listed = (INGRESS..UNLISTED).contains(&ifindex);
        self.set_way(family.real(n), Way { next_hop, source: Some(family.director()), is_listed, ..Way::UNKNOWN });
    }

    /// Sets the way to `address` by a station.
    pub fn way_by(&mut self, address: IpAddr, station: Mac) {
        let next_hop = NextHop {
            state: NextHopState::Resolved,
            ifindex: INGRESS,
            mtu: 1500,
            destination: MacAddress { octets: station },
            source: MacAddress { octets: OUR_MAC },
        };
        self.set_way(address, Way { next_hop, ..Way::UNKNOWN });
    }

    /// Makes real server `n` this host.
    pub fn local(&mut self, family: Family, n: u8) {
        self.set_way(family.real(n), Way::LOCAL);
    }

    /// Makes the way to real server `n` unknown, so that the program asks the kernel's routing table.
    pub fn no_way(&mut self, family: Family, n: u8) {
        self.set_way(family.real(n), Way { source: Some(family.director()), ..Way::UNKNOWN });
    }

    /// Forgets our own address on the way to real server `n`, but nothing else.
    pub fn no_source(&mut self, family: Family, n: u8) {
        let way = self.datapath.way(family.real(n));
        self.set_way(family.real(n), Way { source: None, ..way });
    }

    /// Sets the outer source, an address or a prefix, of what is tunnelled to real server `n`.
    pub fn tunnel_source(&mut self, family: Family, n: u8, prefix: &str) {
        let way = self.datapath.way(family.real(n));
        let tunnel_source = Some(prefix.parse().expect("a prefix"));
        self.set_way(family.real(n), Way { tunnel_source, ..way });
    }

    fn set_way(&mut self, address: IpAddr, way: Way) {
        self.datapath.set_way(address, way).expect("the map takes it");
    }

    /// Puts a round robin with these real servers and weights.
    pub fn serve(&mut self, service: Service, method: ForwardingMethod, reals: &[(SocketAddr, u16)]) {
        self.serve_by(&model::Policy::new(Scheduler::Rr), service, method, reals);
    }

    /// Puts a virtual server with these real servers and weights.
    pub fn serve_by(
        &mut self,
        policy: &model::Policy,
        service: Service,
        method: ForwardingMethod,
        reals: &[(SocketAddr, u16)],
    ) {
        let thresholds = Thresholds::default();
        let settings = |weight: u16| Settings { weight: Weight::new(weight), forwarding: method, thresholds };
        let real_servers: BTreeMap<_, _> =
            reals.iter().map(|(address, weight)| (*address, settings(*weight))).collect();
        let policy = Policy::new(policy, jiffies_per_second());
        let access = self.desired.get(&service).and_then(|servers| servers.access.clone());
        self.desired.insert(service, Servers { policy, access, real_servers, sorry_server: None });
        self.reconcile();
    }

    /// Lets a virtual server that there is serve only some clients.
    pub fn restrict(&mut self, service: Service, prefixes: &[(&str, Access)]) {
        let parsed = prefixes.iter().map(|(prefix, access)| (prefix.parse().expect("a prefix"), *access));
        let list = AccessList::new(parsed.collect());
        let clients = Clients { digest: list.digest(), list: Some(Arc::new(list)) };
        self.desired.get_mut(&service).expect("there is one").access = (!prefixes.is_empty()).then_some(clients);
        self.reconcile();
    }

    /// The index of a virtual server.
    pub fn index(&mut self, service: Service) -> u32 {
        let servers = self.virtual_servers();
        servers.iter().find(|entry| entry.key == service.into()).expect("it is installed").index
    }

    /// Installs `servers`, and nothing else.
    pub fn install(&mut self, servers: &[VirtualServer]) {
        let hz = jiffies_per_second();
        self.desired = servers.iter().map(|server| (server.service, Servers::new(server, hz))).collect();
        self.reconcile();
    }

    /// Removes a virtual server.
    pub fn withdraw(&mut self, service: Service) {
        self.desired.remove(&service);
        self.reconcile();
    }

    fn reconcile(&mut self) {
        reconcile(&mut self.datapath, &self.desired).expect("the tables take it");
    }

    /// Sends a frame through the program, and checks that exactly those that are not sent on are counted, once.
    ///
    /// # Panics
    /// Where they are not, or where the kernel doesn't run the program.
    pub fn send_bytes(&self, frame: &[u8]) -> Sent {
        let (verdict, frame) = run(&self.entrance, &[&POISON, frame].concat());
        let after = self.datapath.drops().expect("the counters can be read");
        let before = self.drops.replace(after.clone());
        let raised = before.iter().zip(after).filter(|(before, after)| before.1 != after.1);
        let raised: Vec<_> = raised.map(|(before, after)| (after.0, after.1 - before.1)).collect();
        let dropped = match (verdict, raised.as_slice()) {
            (Verdict::Drop | Verdict::Transmit, [(reason, 1)]) => Some(*reason),
            (Verdict::Pass | Verdict::Transmit | Verdict::Redirect, []) => None,
            _ => panic!("the verdict is {verdict:?} and the counters of drops rose by {raised:?}"),
        };
        Sent { verdict, frame, dropped }
    }

    /// The way in, for many frames: what [`run`] takes. Frames come behind [`POISON`].
    pub fn entrance(&self) -> Arc<Program> {
        Arc::clone(&self.entrance)
    }

    /// Sends a frame through the program, and lets the kernel do what it says.
    pub fn send_live(&self, frame: &Frame) {
        self.entrance.live_run(&[&POISON, frame.bytes().as_slice()].concat()).expect("the kernel runs the program");
    }

    /// [`Bench::send_bytes`] for a frame in words.
    pub fn send(&self, frame: &Frame) -> Sent {
        self.send_bytes(&frame.bytes())
    }

    /// Sends `frame`, which must leave as `expected`, by `verdict`.
    #[track_caller]
    pub fn expect(&self, frame: &Frame, verdict: Verdict, expected: &Frame) {
        let sent = self.send(frame);
        assert_eq!((sent.verdict, sent.dropped), (verdict, None), "{frame:?}");
        assert_same(&sent.frame, &expected.bytes(), frame);
    }

    /// Sends `frame`, which must go up to the host untouched.
    #[track_caller]
    pub fn expect_untouched(&self, frame: &Frame) {
        self.expect(frame, Verdict::Pass, frame);
    }

    /// Sends a frame that must be dropped for `reason`.
    #[track_caller]
    pub fn expect_drop(&self, frame: &[u8], reason: DropReason) {
        let sent = self.send_bytes(frame);
        assert_eq!((sent.verdict, sent.dropped), (Verdict::Drop, Some(reason)), "\n{}", dump(frame));
    }

    /// Sends a frame that must not be sent on for `reason`, and that its sender must be told of.
    #[track_caller]
    pub fn expect_refusal(&self, frame: &[u8], reason: DropReason) {
        let sent = self.send_bytes(frame);
        assert_eq!((sent.verdict, sent.dropped), (Verdict::Transmit, Some(reason)), "\n{}", dump(frame));
        let reading = oracle::read(frame).expect("is a good packet");
        assert_same(&sent.frame, &reading.rejection(frame), &"a refused packet");
    }

    /// Sends a frame that goes no further, which the VIP `router` must tell its sender.
    #[track_caller]
    pub fn expect_told(&self, frame: &Frame, router: IpAddr, told: Told) {
        self.expect_told_of(&frame.bytes(), router, told);
    }

    /// As [`Bench::expect_told`], of bytes.
    #[track_caller]
    pub fn expect_told_of(&self, frame: &[u8], router: IpAddr, told: Told) {
        let sent = self.send_bytes(frame);
        let expected = (Verdict::Transmit, Some(told.reason()));
        assert_eq!((sent.verdict, sent.dropped), expected, "\n{}", dump(frame));
        let Examined::Packet { reading, .. } = oracle::examine(frame) else { panic!("has no ports:\n{}", dump(frame)) };
        assert_same(&sent.frame, &reading.told(frame, router, told), &dump(frame));
    }

    /// Sends a frame that must be sent on, and says to which real server it went.
    #[track_caller]
    pub fn server_of(&self, frame: &Frame) -> u8 {
        let sent = self.send(frame);
        assert_eq!((sent.verdict, sent.dropped), (Verdict::Transmit, None), "{frame:?}");
        super::scene::number_of(&sent.frame[..6]).expect("the address of a real server")
    }

    /// Opens a connection to the first VIP by TCP, from the client's `port`; returns its real server.
    #[track_caller]
    pub fn open(&self, family: Family, port: u16) -> u8 {
        self.server_of(&super::scene::opening(service(family, Protocol::Tcp), port))
    }
}

/// What is in the maps, as it stands.
impl Bench {
    /// An element of an array.
    pub fn get<V: Pod>(&mut self, map: &str, index: u32) -> V {
        let map = self.datapath.ebpf().map_mut(map).expect("is there");
        Array::<&mut MapData, V>::try_from(map).expect("an array").get(&index, 0).expect("can be read")
    }

    /// Sets an element of an array.
    pub fn set<V: Pod>(&mut self, map: &str, index: u32, value: V) {
        let map = self.datapath.ebpf().map_mut(map).expect("is there");
        Array::<&mut MapData, V>::try_from(map).expect("an array").set(index, value, 0).expect("takes it");
    }

    /// An element of a per-CPU array, summed over the CPUs.
    pub fn sum<V: Pod + Default + AddAssign>(&mut self, map: &str, index: u32) -> V {
        let map = self.datapath.ebpf().map_mut(map).expect("is there");
        let array = PerCpuArray::<&mut MapData, V>::try_from(map).expect("a per-CPU array");
        let mut total = V::default();
        array.get(&index, 0).expect("can be read").iter().for_each(|value| total += *value);
        total
    }

    /// Everything in `virtual_servers`.
    pub fn virtual_servers(&mut self) -> Vec<VirtualServerEntry> {
        let map = self.datapath.ebpf().map_mut("virtual_servers").expect("is there");
        let map = HashMap::<&mut MapData, ServiceKey, VirtualServerEntry>::try_from(map).expect("a hash map");
        map.iter().map(|element| element.expect("can be read").1).collect()
    }

    /// Every place in `real_servers` that is taken.
    pub fn real_servers(&mut self) -> Vec<(u16, RealServerEntry)> {
        let places = u16::try_from(self.options.real_servers_max).expect("at most 4096");
        let entries = (0..places).map(|index| (index, self.get::<RealServerEntry>("real_servers", index.into())));
        entries.filter(|(_, entry)| entry.generation != 0).collect()
    }

    /// Empties the tables of connections and fragments, which must be nobody's any more.
    pub fn clear(&mut self) {
        (0..self.buckets()).for_each(|index| self.set("connections", index, Bucket::default()));
        let chunks = self.options.real_servers_max / 8;
        (0..chunks).for_each(|index| self.set("server_counts", index, CountChunk::default()));
        let mut fragments = self.fragments();
        let known: Vec<FragmentKey> = fragments.keys().map(|key| key.expect("can be read")).collect();
        known.iter().for_each(|key| fragments.remove(key).expect("is there"));
    }

    /// Makes every connection's last packet `ticks` older; no test waits.
    pub fn age(&mut self, ticks: u16) {
        for index in 0..self.buckets() {
            let mut bucket: Bucket = self.get("connections", index);
            let taken = bucket.slots.iter_mut().filter(|slot| slot.state != 0);
            taken.for_each(|slot| slot.last_seen = slot.last_seen.wrapping_sub(ticks));
            self.set("connections", index, bucket);
        }
        let mut fragments = self.fragments();
        let known: Vec<(FragmentKey, FragmentEntry)> = fragments.iter().map(|one| one.expect("can be read")).collect();
        for (key, mut entry) in known {
            entry.since = entry.since.wrapping_sub(ticks.into());
            fragments.insert(key, entry, 0).expect("takes it");
        }
    }

    /// First fragments that are remembered.
    pub fn fragments(&mut self) -> HashMap<&mut MapData, FragmentKey, FragmentEntry> {
        let map = self.datapath.ebpf().map_mut("fragments").expect("is there");
        HashMap::try_from(map).expect("a hash map")
    }

    /// How many buckets the connection table has.
    pub fn buckets(&self) -> u32 {
        buckets_for(self.options.connections_max)
    }

    /// What was loaded.
    pub fn options(&self) -> LoadOptions {
        self.options
    }

    /// Refused packets that are answered in a tick of 256 jiffies.
    pub fn rejects_per_tick(&self) -> u32 {
        (self.options.reject_rate * 256).div_ceil(jiffies_per_second())
    }

    /// The coarse time, as the program reads it.
    pub fn tick(&self) -> u16 {
        coarse(self.jiffies())
    }

    /// As [`Bench::tick`], when that will not change in the next few milliseconds.
    pub fn steady_tick(&self) -> u16 {
        loop {
            let jiffies = self.jiffies();
            if jiffies & 0xff < 250 {
                return coarse(jiffies);
            }
            thread::yield_now();
        }
    }

    /// The lower 32 bits.
    fn jiffies(&self) -> u32 {
        self.clock.test_runs(&POISON, 1).expect("the kernel runs the program")
    }
}

/// Jiffies in units of 256, modulo 65,536.
fn coarse(jiffies: u32) -> u16 {
    u16::try_from(jiffies >> 8 & 0xffff).expect("16 bits")
}

/// A table to jump to `program` of `ebpf` by.
pub fn table_of(ebpf: &mut Ebpf, program: &'static str) -> ProgramTable {
    let program = object::program(ebpf, program).expect("the object has it");
    ProgramTable::of(program.fd().expect("it is loaded").as_fd()).expect("a table of programs")
}

/// Takes [`POISON`] off the frame's front, so that it lies in the headroom, and jumps to the program in `table`.
pub fn poisoning(table: &ProgramTable) -> Program {
    let [low, high] = Instruction::load_table(2, table);
    let instructions = [
        Instruction::copy(6, 1),
        Instruction::set(2, 64),
        Instruction::call(ADJUST_HEAD),
        Instruction::skip_unless_zero(0, 5),
        Instruction::copy(1, 6),
        low,
        high,
        Instruction::set(3, 0),
        Instruction::call(TAIL_CALL),
        Instruction::set(0, XDP_ABORTED),
        Instruction::EXIT,
    ];
    Program::load("poison", &instructions).expect("the verifier takes it")
}

/// Runs `program` once on `frame`; what it leaves.
pub fn run(program: &Program, frame: &[u8]) -> (Verdict, Vec<u8>) {
    let mut output = vec![0; 16_384];
    let (verdict, length) = program.test_run(frame, &mut output).expect("the kernel runs the program");
    output.truncate(length);
    let verdict = match verdict {
        0 => Verdict::Aborted,
        1 => Verdict::Drop,
        2 => Verdict::Pass,
        3 => Verdict::Transmit,
        4 => Verdict::Redirect,
        other => panic!("{other} is no verdict"),
    };
    (verdict, output)
}

/// Compares two frames, and shows both with the places where they differ.
#[track_caller]
pub fn assert_same(actual: &[u8], expected: &[u8], sent: &impl std::fmt::Debug) {
    if actual == expected {
        return;
    }
    let shorter = actual.len().min(expected.len());
    let differing: Vec<usize> = (0..shorter).filter(|at| actual[*at] != expected[*at]).collect();
    panic!(
        "bytes {differing:?} differ\nexpected {} bytes\n{}actual {} bytes\n{}sent: {sent:?}",
        expected.len(),
        dump(expected),
        actual.len(),
        dump(actual)
    );
}

fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (row, line) in bytes.chunks(16).enumerate() {
        let line: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{:04} {}", row * 16, line.join(" ")).expect("a string takes it");
    }
    text
}
