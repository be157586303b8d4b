//! A loaded `balance` in a network namespace of its own, with tables that the test fills by the daemon's own code.
//!
//! Frames go in through a program of a few instructions that lays [`POISON`] into the headroom first: BPF_PROG_TEST_RUN
//! zeroes it, a driver does not, and a header byte that the program forgets to write would look right.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::{env, panic, thread};

use aya::Ebpf;
use evenkeel_tests::bpf::{Instruction, Program, ProgramTable};
use evenkeel_tests::lab;
use lb_common::connection::Timeouts;
use lb_common::drop_reason::DropReason;
use lb_common::net::{MacAddress, Protocol};
use lb_common::real::{NextHop, NextHopState};
use lb_common::service::{ForwardingMethod, Scheduler};
use lb_userspace::datapath::xdp::object::{self, LoadOptions};
use lb_userspace::datapath::xdp::pins::MAPS;
use lb_userspace::datapath::xdp::tables::Way;
use lb_userspace::datapath::xdp::{XdpDatapath, attach};
use lb_userspace::datapath::{Servers, ServiceTable, Settings};
use lb_userspace::model::{Service, Weight};
use lb_userspace::reconcile::reconcile;
use nix::sched::{CloneFlags, unshare};

use super::frame::Frame;
use super::scene::{FAMILIES, Family, INGRESS, OUR_MAC, PROTOCOLS, UNLISTED, real_mac, real_server, service};

/// What lies before a frame: 64 bytes of ones.
pub const POISON: [u8; 64] = [0xff; 64];

const ADJUST_HEAD: i32 = 44;
const TAIL_CALL: i32 = 12;
const XDP_ABORTED: i32 = 0;

/// Timeouts in ticks, far apart so that a test sees which one counts, and longer than any test runs.
pub const TIMEOUTS: Timeouts = Timeouts { syn: 1000, established: 4000, closing: 2000, udp: 3000 };

/// What the tests load unless they say otherwise.
pub const OPTIONS: LoadOptions =
    LoadOptions { connections_max: 4096, real_servers_max: 256, nat: true, packet_log: false, timeouts: TIMEOUTS };

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
    /// Why it was dropped.
    pub dropped: Option<DropReason>,
}

/// The loaded program with its tables.
pub struct Bench {
    pub datapath: XdpDatapath,
    pub desired: ServiceTable,
    /// Drops as they stood after the last frame.
    drops: RefCell<Vec<(DropReason, u64)>>,
    entrance: Program,
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
            datapath.set_interface(ifindex, MacAddress { octets: OUR_MAC }).expect("a free place");
        }
        let drops = RefCell::new(datapath.drops().expect("the counters can be read"));
        Self { datapath, desired: ServiceTable::new(), drops, entrance: entrance(&table), _table: table }
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
        self.set_way(family.real(n), Way { next_hop, source: Some(family.director()), is_routed: false });
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

    fn set_way(&mut self, address: IpAddr, way: Way) {
        self.datapath.set_way(address, way).expect("the map takes it");
    }

    /// Puts a virtual server with these real servers and weights.
    pub fn serve(&mut self, service: Service, method: ForwardingMethod, reals: &[(SocketAddr, u16)]) {
        let settings = |weight: u16| Settings { weight: Weight::new(weight), forwarding: method };
        let real_servers: BTreeMap<_, _> =
            reals.iter().map(|(address, weight)| (*address, settings(*weight))).collect();
        self.desired.insert(service, Servers { scheduler: Scheduler::Rr, real_servers });
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

    /// Sends a frame through the program, and checks that exactly the dropped ones are counted, once.
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
            (Verdict::Drop, [(reason, 1)]) => Some(*reason),
            (Verdict::Pass | Verdict::Transmit | Verdict::Redirect, []) => None,
            _ => panic!("the verdict is {verdict:?} and the counters of drops rose by {raised:?}"),
        };
        Sent { verdict, frame, dropped }
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
        assert_eq!(sent.verdict, verdict, "dropped: {:?}\n{frame:?}", sent.dropped);
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

    /// Sends a frame that must be sent on, and says to which real server it went.
    #[track_caller]
    pub fn server_of(&self, frame: &Frame) -> u8 {
        let sent = self.send(frame);
        assert_eq!(sent.verdict, Verdict::Transmit, "dropped: {:?}\n{frame:?}", sent.dropped);
        super::scene::number_of(&sent.frame[..6]).expect("the address of a real server")
    }

    /// Opens a connection to the first VIP by TCP, from the client's `port`; returns its real server.
    #[track_caller]
    pub fn open(&self, family: Family, port: u16) -> u8 {
        self.server_of(&super::scene::opening(service(family, Protocol::Tcp), port))
    }
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
    let mut output = vec![0; 4096];
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
