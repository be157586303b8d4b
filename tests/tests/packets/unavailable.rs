//! New connections where real servers take none: above their thresholds, out of reach, or drained.

use std::collections::BTreeSet;
use std::time::Duration;

use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Scheduler};
use lb_userspace::datapath::xdp::object::LoadOptions;
use lb_userspace::model::{Persistence, Policy, RealServer, Thresholds, VirtualServer, Weight};

use super::bench::{Bench, OPTIONS, Verdict, in_namespace, timeout};
use super::bursts::{bench_of, reals, segment, syns};
use super::frame::{ACK, SYN};
use super::oracle::Told;
use super::scene::{Family, INGRESS, opening, real_server, service};

const DR: ForwardingMethod = ForwardingMethod::Dr;

fn with_thresholds(policy: Policy, limits: &[(u16, u32)]) -> VirtualServer {
    let real = |(n, (weight, upper)): (u8, &(u16, u32))| RealServer {
        address: real_server(Family::V4, DR, n),
        weight: Weight::new(*weight),
        forwarding: DR,
        thresholds: Thresholds { upper: *upper, lower: 0 },
    };
    VirtualServer {
        name: None,
        service: service(Family::V4, Protocol::Tcp),
        policy,
        real_servers: (1..).zip(limits).map(real).collect(),
        access: None,
        sorry_server: None,
    }
}

/// IPVS's wrr goes on to the one that takes connections.
#[test]
fn wrr_finds_the_light_server_when_the_heavy_one_is_over_its_threshold() {
    in_namespace(|| {
        for scheduler in [Scheduler::Wrr, Scheduler::Twos] {
            let mut bench = Bench::load(&OPTIONS);
            (1..=2).for_each(|n| bench.way(Family::V4, n, INGRESS, 1500));
            bench.install(&[with_thresholds(Policy::new(scheduler), &[(1000, 1), (1, 0)])]);
            let mut refused = 0;
            for syn in syns(1000..1200) {
                let sent = bench.send(&syn);
                refused += u32::from(sent.dropped == Some(DropReason::NoRealServer));
            }
            assert_eq!(refused, 0, "{scheduler:?}: of 200 connections; the second has no threshold");
        }
    });
}

/// IPVS hashes on until it finds one: as often as its table has elements.
#[test]
fn a_hash_with_fallback_finds_the_last_of_many_that_takes_a_connection() {
    const SERVERS: u8 = 60;
    in_namespace(|| {
        for scheduler in [Scheduler::Sh, Scheduler::Mh] {
            let mut bench = Bench::load(&OPTIONS);
            (1..=SERVERS).for_each(|n| bench.way(Family::V4, n, INGRESS, 1500));
            let policy = Policy { hash_port: true, hash_fallback: true, ..Policy::new(scheduler) };
            bench.install(&[with_thresholds(policy, &[(1, 1); SERVERS as usize])]);
            let chosen: BTreeSet<u8> = syns(1000..1060).map(|syn| bench.server_of(&syn)).collect();
            assert_eq!(chosen, (1..=SERVERS).collect(), "{scheduler:?}");
            bench.expect_refusal(&segment(2000, SYN).bytes(), DropReason::NoRealServer);
        }
    });
}

#[test]
fn wrr_finds_the_light_server_when_the_heavy_one_is_out_of_reach() {
    in_namespace(|| {
        let mut bench = bench_of(&Policy::new(Scheduler::Wrr), Protocol::Tcp, DR, &[1000, 1]);
        bench.no_way(Family::V4, 1);
        let lost = syns(1000..1200).filter(|syn| bench.send(syn).verdict == Verdict::Drop).count();
        assert_eq!(lost, 0, "of 200 connections; the second is in reach");
    });
}

/// Slow start makes `rr` a `wrr` of 100 to 1: then what `wrr` has, `rr` has too.
#[test]
fn a_server_that_comes_back_takes_over_when_the_other_is_out_of_reach() {
    in_namespace(|| {
        let mut bench = bench_of(&Policy::new(Scheduler::Wrr), Protocol::Tcp, DR, &[100, 1]);
        bench.no_way(Family::V4, 1);
        let lost = syns(1000..1200).filter(|syn| bench.send(syn).verdict == Verdict::Drop).count();
        assert_eq!(lost, 0, "of 200 connections in the first hundredth of a slow start");
    });
}

/// README, Limits: "A new connection whose real server cannot be reached takes the next in turn instead".
#[test]
fn a_template_to_a_server_out_of_reach_does_not_hold_its_client() {
    in_namespace(|| {
        let persistence = Some(Persistence { timeout: Duration::from_secs(300), prefix_length: 32 });
        let policy = Policy { persistence, ..Policy::new(Scheduler::Rr) };
        let mut bench = bench_of(&policy, Protocol::Tcp, DR, &[1, 1]);
        let first = bench.open(Family::V4, 1000);
        bench.no_way(Family::V4, first);
        let lost = syns(1001..1021).filter(|syn| bench.send(syn).verdict == Verdict::Drop).count();
        assert_eq!(lost, 0, "of 20 connections; the other one is in reach");
    });
}

/// "Established flows that have shown only one packet go before busy ones": pairs of SYN and ACK, from sources that never
/// answer anything, must not keep newcomers out until the timeout of established connections, 15 minutes.
#[test]
fn a_datagram_that_is_too_big_does_not_move_its_client_to_a_server_behind_another_way() {
    in_namespace(|| {
        let policy = Policy {
            persistence: Some(Persistence { timeout: Duration::from_secs(300), prefix_length: 32 }),
            ..Policy::new(Scheduler::Rr)
        };
        let mut bench = bench_of(&policy, Protocol::Udp, DR, &[1, 1]);
        bench.way(Family::V4, 1, INGRESS, 1400);
        let datagram = |port, length| opening(service(Family::V4, Protocol::Udp), port).payload(&vec![7; length]);
        let first = bench.server_of(&datagram(1000, 10));
        assert_eq!(first, 1);
        bench.expect_told(&datagram(1001, 1401 - 28), Family::V4.vip(0), Told::TooBig(1400));
        assert_eq!(bench.server_of(&datagram(1002, 10)), 1);
    });
}

#[test]
fn a_minute_after_a_flood_of_spoofed_pairs_newcomers_have_room_again() {
    in_namespace(|| {
        let options = LoadOptions { connections_max: 1024, ..OPTIONS };
        let mut bench = Bench::load(&options);
        bench.way(Family::V4, 1, INGRESS, 1500);
        let nat = ForwardingMethod::Nat;
        bench.serve(service(Family::V4, Protocol::Tcp), nat, &reals(nat, &[1]));
        for n in 0..20_000_u16 {
            let [high, low] = n.to_be_bytes();
            for flags in [SYN, ACK] {
                let mut frame = segment(4000, flags);
                frame.source = ([10, 9, high, low], 4000).into();
                bench.send(&frame);
            }
        }
        bench.age(timeout::HALF_OPEN + 1);
        let refused = syns(1000..1100).filter(|syn| bench.send(syn).dropped == Some(DropReason::TableFull)).count();
        assert!(refused < 10, "{refused} of 100 newcomers are dropped");
    });
}

/// "Weight 0 never gets a new flow by any path": a SYN from a port whose connection has ended unseen, as with `dr` by the real
/// server's RST.
#[test]
fn a_new_syn_on_an_established_entry_of_a_drained_or_removed_server_goes_elsewhere() {
    in_namespace(|| {
        for weights in [&[0, 1][..], &[1]] {
            let mut bench = bench_of(&Policy::new(Scheduler::Rr), Protocol::Tcp, DR, &[1, 1]);
            let first = [SYN, ACK, ACK].map(|flags| bench.server_of(&segment(1000, flags)))[0];
            assert_eq!(first, 1);
            let left: Vec<_> = match weights {
                [0, 1] => reals(DR, weights),
                _ => reals(DR, &[1, 1])[1..].to_vec(),
            };
            bench.serve(service(Family::V4, Protocol::Tcp), DR, &left);
            assert_eq!(bench.server_of(&segment(1000, SYN)), 2, "left: {left:?}");
        }
    });
}
