//! Floods against established connections: from random sources, by a program that makes its packets itself.

use std::net::SocketAddr;

use evenkeel_tests::bpf::{Instruction, Program, ProgramTable, Size};
use lb_common::connection::State;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;
use lb_userspace::datapath::xdp::object::LoadOptions;

use super::bench::{Bench, OPTIONS, POISON, Verdict, in_namespace, run};
use super::frame::{ACK, Frame, SYN};
use super::scene::{CLIENT_MAC, Family, INGRESS, OUR_MAC, number_of, real_server, service};

/// Connections that are in use, as many as the table is made for.
const BUSY: u32 = 100_000;
/// Of each flood; some seconds' work.
const PACKETS: u32 = 10_000_000;
const SERVERS: u8 = 8;
const TAIL_CALL: i32 = 12;
const PRANDOM: i32 = 7;
const XDP_ABORTED: i32 = 0;

/// Offsets in a TCP segment over IPv4.
const TTL: i16 = 22;
const SOURCE: i16 = 26;
const SOURCE_PORT: i16 = 34;
const FLAGS: i16 = 47;

/// What a flood consists of.
#[derive(Clone, Copy, Debug)]
enum Flood {
    /// SYNs, each from another address and port.
    Syns,
    /// A SYN, then an ACK from the same address and port, then others: half-open connections that seem to be established.
    Pairs,
}

/// Puts what a forwarded frame has lost back, and gives it another source; then jumps to the program in `table`.
///
/// The frame that one run leaves is the next one's: the flag tells [`Flood::Pairs`] whose turn it is. Checksums stay wrong,
/// which `dr` has no eye for.
fn flooding(table: &ProgramTable, flood: Flood) -> Program {
    let [low, high] = Instruction::load_table(2, table);
    let word = |octets: &[u8]| i32::from_le_bytes(octets.try_into().expect("four octets"));
    let half = |octets: &[u8]| i32::from(i16::from_le_bytes(octets.try_into().expect("two octets")));
    let (syn, ack) = (i32::from(SYN), i32::from(ACK));
    let another = [
        Instruction::call(PRANDOM),
        Instruction::store(Size::Word, 7, SOURCE, 0),
        Instruction::call(PRANDOM),
        Instruction::store(Size::Half, 7, SOURCE_PORT, 0),
        Instruction::store_value(Size::Byte, 7, FLAGS, syn),
    ];
    let mut body = vec![
        Instruction::store_value(Size::Word, 7, 0, word(&OUR_MAC[..4])),
        Instruction::store_value(Size::Half, 7, 4, half(&OUR_MAC[4..])),
        Instruction::store_value(Size::Word, 7, 6, word(&CLIENT_MAC[..4])),
        Instruction::store_value(Size::Half, 7, 10, half(&CLIENT_MAC[4..])),
        Instruction::store_value(Size::Byte, 7, TTL, 64),
    ];
    match flood {
        Flood::Syns => body.extend(another),
        Flood::Pairs => {
            body.push(Instruction::load(Size::Byte, 3, 7, FLAGS));
            body.push(Instruction::skip_if(3, syn, i16::try_from(another.len() + 1).expect("few")));
            body.extend(another);
            body.extend([Instruction::skip(1), Instruction::store_value(Size::Byte, 7, FLAGS, ack)]);
        }
    }
    body.extend([Instruction::copy(1, 6), low, high, Instruction::set(3, 0), Instruction::call(TAIL_CALL)]);
    let start = [
        Instruction::copy(6, 1),
        Instruction::load(Size::Word, 7, 1, 0),
        Instruction::load(Size::Word, 8, 1, 4),
        Instruction::copy(2, 7),
        Instruction::add(2, 54),
        // Past the body, if the frame is no segment.
        Instruction::skip_if_greater(2, 8, i16::try_from(body.len()).expect("few")),
    ];
    let end = [Instruction::set(0, XDP_ABORTED), Instruction::EXIT];
    let instructions = [start.as_slice(), &body, &end].concat();
    Program::load("flood", &instructions).expect("the verifier takes it")
}

/// The client of busy connection number `n`.
fn client(n: u32) -> SocketAddr {
    let [a, b, c, d] = n.to_be_bytes();
    assert_eq!(a, 0);
    ([10, b, c, d], 40_000).into()
}

/// Sends a segment of busy connection number `n`; returns its real server.
fn talk(entrance: &Program, n: u32, flags: u8) -> u8 {
    let frame = Frame::tcp(client(n), service(Family::V4, Protocol::Tcp).address, flags).bytes();
    let (verdict, output) = run(entrance, &[&POISON, frame.as_slice()].concat());
    assert_eq!(verdict, Verdict::Transmit, "connection {n}");
    number_of(&output[..6]).unwrap_or_else(|| panic!("connection {n} is refused"))
}

#[test]
fn no_busy_connection_changes_its_server_under_floods_from_random_sources() {
    in_namespace(|| {
        let options = LoadOptions { connections_max: BUSY, wide_tuples: false, ..OPTIONS };
        let mut floods = Vec::new();
        let mut bench = Bench::entered_by(&options, |table| {
            floods.extend([Flood::Syns, Flood::Pairs].map(|flood| (flood, flooding(table, flood))));
            super::bench::poisoning(table)
        });
        (1..=SERVERS).for_each(|n| bench.way(Family::V4, n, INGRESS, 1500));
        let reals: Vec<_> = (1..=SERVERS).map(|n| (real_server(Family::V4, ForwardingMethod::Dr, n), 1)).collect();
        let served = service(Family::V4, Protocol::Tcp);
        bench.serve(served, ForwardingMethod::Dr, &reals);
        let entrance = bench.entrance();
        let servers: Vec<u8> = (0..BUSY).map(|n| [SYN, ACK, ACK].map(|flags| talk(&entrance, n, flags))[2]).collect();
        let before = bench.datapath.table_counters().expect("can be read");
        assert_eq!((before.inserted, before.refused), (BUSY.into(), 0), "each has a slot");
        let segment = Frame::tcp(client(BUSY), served.address, ACK).bytes();
        for (flood, program) in &floods {
            assert_eq!(program.test_runs(&segment, PACKETS).expect("the kernel runs it"), 3, "{flood:?} is forwarded");
            for (n, server) in (0..).zip(&servers) {
                assert_eq!(talk(&entrance, n, ACK), *server, "connection {n} after {flood:?}");
            }
        }
        let after = bench.datapath.table_counters().expect("can be read");
        println!("{PACKETS} packets of each flood: {after:?}");
        // What was free has been filled by the first flood, which displaced itself, and kept by the second.
        assert!(after.evicted_half_open > u64::from(PACKETS) / 2 && after.refused > u64::from(PACKETS) / 4);
        let busy = (0..bench.buckets()).map(|index| {
            let bucket: lb_common::connection::Bucket = bench.get("connections", index);
            bucket.slots.iter().filter(|slot| slot.state == State::ESTABLISHED).count()
        });
        assert_eq!(busy.sum::<usize>(), usize::try_from(BUSY).expect("fits"));
    });
}
