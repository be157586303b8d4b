//! Bursts of new connections, which count for their real servers from the SYN on, as in IPVS.

use std::net::SocketAddr;

use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Scheduler};
use lb_userspace::datapath::xdp::object::LoadOptions;
use lb_userspace::model::Policy;

use super::bench::{Bench, OPTIONS, in_namespace};
use super::frame::{ACK, Frame, SYN};
use super::scene::{Family, INGRESS, opening, real_server, service};

const DR: ForwardingMethod = ForwardingMethod::Dr;

pub fn reals(method: ForwardingMethod, weights: &[u16]) -> Vec<(SocketAddr, u16)> {
    (1..).zip(weights).map(|(n, weight)| (real_server(Family::V4, method, n), *weight)).collect()
}

pub fn bench_of(policy: &Policy, protocol: Protocol, method: ForwardingMethod, weights: &[u16]) -> Bench {
    let mut bench = Bench::load(&LoadOptions { connections_max: 20_000, ..OPTIONS });
    (1..).zip(weights).for_each(|(n, _)| bench.way(Family::V4, n, INGRESS, 1500));
    bench.serve_by(policy, service(Family::V4, protocol), method, &reals(method, weights));
    bench
}

pub fn segment(port: u16, flags: u8) -> Frame {
    Frame::tcp(Family::V4.client(port), service(Family::V4, Protocol::Tcp).address, flags)
}

fn shares(bench: &Bench, frames: impl IntoIterator<Item = Frame>) -> [usize; 8] {
    let mut counts = [0; 8];
    frames.into_iter().for_each(|frame| counts[usize::from(bench.server_of(&frame)) - 1] += 1);
    counts
}

pub fn syns(ports: std::ops::Range<u16>) -> impl Iterator<Item = Frame> {
    ports.map(|port| segment(port, SYN))
}

/// IPVS (net/netfilter/ipvs/ip_vs_proto_tcp.c, `tcp_state_active_table`, since Linux 4.8): SYN_SENT, SYN_RECV and SYNACK are
/// active, so a SYN counts as active at once.
#[test]
fn in_a_burst_of_syns_lc_counts_them_as_ipvs_does() {
    in_namespace(|| {
        // Ten established with the first; then the second comes, and a burst before any of it is established.
        let policy = Policy::new(Scheduler::Lc);
        let mut bench = bench_of(&policy, Protocol::Tcp, DR, &[1, 0]);
        for port in 1000..1010 {
            assert_eq!([SYN, ACK].map(|flags| bench.server_of(&segment(port, flags))), [1, 1]);
        }
        bench.serve_by(&policy, service(Family::V4, Protocol::Tcp), DR, &reals(DR, &[1, 1]));
        let [one, two, ..] = shares(&bench, syns(10_000..11_000));
        // Ten fewer, and then in turn: 495 and 505.
        assert!(one.abs_diff(495) <= 1, "1000 SYNs at once: {one} and {two}");
    });
}

#[test]
fn in_a_burst_of_syns_ovf_keeps_to_its_limit_as_ipvs_does() {
    in_namespace(|| {
        let bench = bench_of(&Policy::new(Scheduler::Ovf), Protocol::Tcp, DR, &[10, 9]);
        // Not above ten means that the eleventh is still taken; then the other one, up to its tenth.
        let shares = shares(&bench, syns(10_000..10_021));
        assert_eq!(shares[..2], [11, 10], "of 21 SYNs at once");
    });
}

#[test]
fn in_a_burst_of_syns_sed_shares_by_weight_as_ipvs_does() {
    in_namespace(|| {
        let bench = bench_of(&Policy::new(Scheduler::Sed), Protocol::Tcp, DR, &[1, 3]);
        let shares = shares(&bench, syns(10_000..10_400));
        assert!(shares[0].abs_diff(100) <= 1, "of 400 SYNs at once: {shares:?}");
    });
}

/// README: "Schedulers that compare connections then have none to compare, and take turns."
#[test]
fn with_one_packet_schedulers_that_compare_take_turns() {
    in_namespace(|| {
        for scheduler in [Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq] {
            let policy = Policy { one_packet: true, ..Policy::new(scheduler) };
            let bench = bench_of(&policy, Protocol::Udp, DR, &[1, 3]);
            let datagrams = (1000..1100).map(|port| opening(service(Family::V4, Protocol::Udp), port));
            let shares = shares(&bench, datagrams);
            assert!(shares[0] >= 25 && shares[1] >= 25, "{scheduler:?}: {shares:?}");
        }
    });
}

/// "Ties rotate", also where one in the middle is drained.
#[test]
fn ties_rotate_evenly_beside_drained_servers() {
    in_namespace(|| {
        let policy = Policy { one_packet: true, ..Policy::new(Scheduler::Lc) };
        let bench = bench_of(&policy, Protocol::Udp, DR, &[1, 0, 0, 0, 0, 0, 0, 1]);
        let datagrams = (1000..1080).map(|port| opening(service(Family::V4, Protocol::Udp), port));
        let shares = shares(&bench, datagrams);
        assert_eq!((shares[0], shares[7]), (40, 40), "{shares:?}");
    });
}
