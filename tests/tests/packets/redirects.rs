//! That a redirected frame leaves by the interface of its way, which a verdict alone does not tell.

use std::process::Command;
use std::time::{Duration, Instant};

use evenkeel_tests::bpf::{Instruction, Program};
use evenkeel_tests::lab;
use lb_common::net::Protocol;
use nix::net::if_::if_nametoindex;

use super::bench::{Bench, in_namespace};
use super::routes::ip;
use super::scene::{FAMILIES, METHODS, opening, service};

/// What there is to wait for comes at once, or never.
const PATIENCE: Duration = Duration::from_secs(5);

/// Packets that have arrived at an interface.
fn received(interface: &str) -> u64 {
    let output = Command::new("ip").args(["-s", "-o", "link", "show", interface]).output().expect("ip is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `RX: bytes packets errors ...`, then their numbers.
    let words = text.split("RX:").nth(1).and_then(|behind| behind.split('\\').nth(1)).expect("counters");
    words.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number of packets")
}

/// Two links whose far ends take redirected frames and keep quiet, for the life of the result.
fn two_links() -> Vec<impl Sized> {
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("a setting of the namespace");
    let program = Program::load("take", &[Instruction::set(0, 2), Instruction::EXIT]).expect("the verifier takes it");
    let link = |name: &str| {
        ip(&[
            &format!("link add name {name} type veth peer name {name}far"),
            &format!("link set {name} up"),
            &format!("link set {name}far up"),
        ]);
        let index = if_nametoindex(format!("{name}far").as_str()).expect("is there");
        program.attach(index).expect("veth has native XDP")
    };
    vec![link("one"), link("two")]
}

#[test]
fn a_redirected_frame_leaves_by_the_interface_of_its_way() {
    in_namespace(|| {
        if !lab::available() {
            return;
        }
        let _programs = two_links();
        for method in METHODS {
            let mut bench = Bench::serving(method, 1);
            for family in FAMILIES {
                for (name, far, other) in [("one", "onefar", "twofar"), ("two", "twofar", "onefar")] {
                    bench.way(family, 1, if_nametoindex(name).expect("is there"), 1500);
                    let before = (received(far), received(other));
                    bench.send_live(&opening(service(family, Protocol::Tcp), 1000));
                    let until = Instant::now() + PATIENCE;
                    while received(far) == before.0 && Instant::now() < until {}
                    assert_eq!((received(far), received(other)), (before.0 + 1, before.1), "{method:?} by {name}");
                }
            }
        }
    });
}
