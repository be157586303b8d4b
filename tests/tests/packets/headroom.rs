//! The test of the tests: what the program takes from the headroom was not zero.

use evenkeel_tests::bpf::{Instruction, Program, ProgramTable};
use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;

use super::bench::{Bench, OPTIONS, POISON, Verdict, in_namespace, run};
use super::frame::Frame;
use super::scene::{FAMILIES, opening, service};

const ADJUST_HEAD: i32 = 44;
const ADJUST_TAIL: i32 = 65;
const LOAD_BYTES: i32 = 189;
const STORE_BYTES: i32 = 190;
const TAIL_CALL: i32 = 12;

/// Every frame of the test that starts with too little headroom has this length.
const CRAMPED: usize = 80;

#[test]
fn the_headroom_of_a_test_frame_is_full_of_ones() {
    in_namespace(|| {
        // As `poisoning` does, then back by the length of an outer header, as `tun` does, and up with what is there.
        let instructions = [
            Instruction::copy(6, 1),
            Instruction::set(2, 64),
            Instruction::call(ADJUST_HEAD),
            Instruction::copy(1, 6),
            Instruction::set(2, -20),
            Instruction::call(ADJUST_HEAD),
            Instruction::set(0, 2),
            Instruction::EXIT,
        ];
        let program = Program::load("show_headroom", &instructions).expect("the verifier takes it");
        let frame: Vec<u8> = (0..100).collect();
        let (verdict, seen) = run(&program, &[&POISON, frame.as_slice()].concat());
        assert_eq!(verdict, Verdict::Pass);
        assert_eq!(seen, [&[0xff; 20], frame.as_slice()].concat());
    });
}

#[test]
fn without_room_for_the_outer_header_the_packet_is_dropped() {
    in_namespace(no_headroom);
}

pub fn no_headroom() {
    let mut bench = Bench::entered_by(&OPTIONS, cramping);
    bench.serve_all(ForwardingMethod::Tun, 1);
    for family in FAMILIES {
        let service = service(family, Protocol::Tcp);
        bench.expect_drop(&long_enough(&opening(service, 1000)), DropReason::NoHeadroom);
    }
    // A method that needs none goes by the same entrance.
    bench.serve_all(ForwardingMethod::Dr, 1);
    for family in FAMILIES {
        let sent = bench.send_bytes(&long_enough(&opening(service(family, Protocol::Tcp), 1001)));
        assert_eq!(sent.verdict, Verdict::Transmit);
    }
}

/// With payload, to the length that [`cramping`] moves.
fn long_enough(frame: &Frame) -> Vec<u8> {
    let missing = CRAMPED - frame.bytes().len();
    let bytes = frame.clone().payload(&vec![0x55; missing]).bytes();
    assert_eq!(bytes.len(), CRAMPED);
    bytes
}

/// Moves the frame to 8 bytes behind the start of the page's usable room, and jumps on.
///
/// The kernel gives 256 bytes of headroom, of which it keeps 40 for itself (`struct xdp_frame`). The frame comes behind
/// [`POISON`], which is left where it was and cut off. Failures need no check: the frame then arrives as another one.
fn cramping(table: &ProgramTable) -> Program {
    let [length, poisoned] = [CRAMPED, POISON.len()].map(|bytes| i32::try_from(bytes).expect("a small number"));
    let moved = 256 - 40 - 8;
    let [low, high] = Instruction::load_table(2, table);
    let instructions = [
        Instruction::copy(6, 1),
        Instruction::set(2, -moved),
        Instruction::call(ADJUST_HEAD),
        // The frame into the stack, and from there to the front.
        Instruction::copy(1, 6),
        Instruction::set(2, moved + poisoned),
        Instruction::copy(3, 10),
        Instruction::add(3, -length),
        Instruction::set(4, length),
        Instruction::call(LOAD_BYTES),
        Instruction::copy(1, 6),
        Instruction::set(2, 0),
        Instruction::copy(3, 10),
        Instruction::add(3, -length),
        Instruction::set(4, length),
        Instruction::call(STORE_BYTES),
        // What was the frame off the end.
        Instruction::copy(1, 6),
        Instruction::set(2, -moved - poisoned),
        Instruction::call(ADJUST_TAIL),
        Instruction::copy(1, 6),
        low,
        high,
        Instruction::set(3, 0),
        Instruction::call(TAIL_CALL),
        Instruction::set(0, 0),
        Instruction::EXIT,
    ];
    Program::load("cramp", &instructions).expect("the verifier takes it")
}
