//! What is switched off at load is not in the program that the kernel runs.

use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;
use lb_userspace::datapath::xdp::attach;
use lb_userspace::datapath::xdp::object::{self, LoadOptions};
use lb_userspace::datapath::xdp::pins::MAPS;

use super::bench::{Bench, OPTIONS, Verdict, in_namespace};
use super::oracle::Told;
use super::replies::back;
use super::scene::{FAMILIES, answer, opening, real_server, service};
use super::{forwarding, frame};

/// Bytes of the program after the verifier's work.
fn size(options: &LoadOptions) -> u32 {
    let mut ebpf = object::load(attach::PROGRAM, &MAPS, options).expect("the program loads");
    let program = object::program(&mut ebpf, attach::PROGRAM).expect("the object has it");
    program.info().expect("it is loaded").size_translated().expect("this process may see it")
}

#[test]
fn without_the_packet_log_the_program_is_smaller() {
    in_namespace(|| {
        let (without, with) = (size(&OPTIONS), size(&LoadOptions { packet_log: true, ..OPTIONS }));
        assert!(without < with, "{without} bytes without, {with} with");
    });
}

#[test]
fn without_nat_the_program_is_smaller() {
    in_namespace(|| {
        let (without, with) = (size(&LoadOptions { nat: false, ..OPTIONS }), size(&OPTIONS));
        assert!(without < with, "{without} bytes without, {with} with");
    });
}

#[test]
fn with_the_packet_log_packets_fare_the_same() {
    in_namespace(|| {
        let mut bench = Bench::load(&LoadOptions { packet_log: true, ..OPTIONS });
        bench.serve_all(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            let request = opening(service(family, Protocol::Tcp), 1000);
            bench.expect(&request, Verdict::Transmit, &forwarding::translated(&request, family));
            let real = real_server(family, ForwardingMethod::Nat, 1);
            let answer = answer(&request, real, 1, frame::SYN | frame::ACK);
            bench.expect(&answer, Verdict::Transmit, &back(&answer, &request));
            let expired = frame::Frame { ttl: 1, ..request };
            bench.expect_told(&expired, expired.destination.ip(), Told::Expired);
        }
    });
}

#[test]
fn without_nat_packets_of_real_servers_pass() {
    in_namespace(|| {
        let mut bench = Bench::load(&LoadOptions { nat: false, ..OPTIONS });
        bench.serve_all(ForwardingMethod::Tun, 1);
        for family in FAMILIES {
            let request = opening(service(family, Protocol::Udp), 1000);
            bench.expect(&request, Verdict::Transmit, &forwarding::tunnelled(&request, family));
            bench.expect_untouched(&answer(&request, real_server(family, ForwardingMethod::Nat, 1), 1, 0));
        }
    });
}
