//! Which real server a known connection has, and for how long.

use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Scheduler};
use lb_userspace::model::{Policy, Removal};

use super::bench::{Bench, Verdict, in_namespace, timeout};
use super::frame::{ACK, FIN, Frame, PSH, RST, SYN};
use super::replies::back;
use super::scene::{FAMILIES, Family, INGRESS, METHODS, PROTOCOLS, answer, opening, real_server, service};

/// So many ticks the clock may go on while a test runs, at least 2.5 seconds.
const SLACK: u16 = 10;

/// A segment on the connection from `port`.
fn segment(family: Family, port: u16, flags: u8) -> Frame {
    Frame::tcp(family.client(port), service(family, Protocol::Tcp).address, flags)
}

/// Each method in each family, with three real servers; the next is another one than the last.
fn each(scene: impl Fn(&mut Bench, ForwardingMethod, Family) + Sync) {
    in_namespace(|| {
        for method in METHODS {
            let mut bench = Bench::serving(method, 3);
            FAMILIES.into_iter().for_each(|family| scene(&mut bench, method, family));
        }
    });
}

#[test]
fn a_flow_keeps_its_real_server_while_others_come() {
    each(|bench, _, family| {
        for protocol in PROTOCOLS {
            let service = service(family, protocol);
            let first = bench.server_of(&opening(service, 1000));
            for port in 1001..1010 {
                bench.server_of(&opening(service, port));
                let next = match protocol {
                    Protocol::Tcp => segment(family, 1000, ACK | PSH).payload(b"more"),
                    Protocol::Udp | Protocol::Sctp => opening(service, 1000).payload(b"more"),
                };
                assert_eq!(bench.server_of(&next), first);
            }
        }
    });
}

#[test]
fn a_repeated_syn_goes_to_the_same_real_server() {
    each(|bench, _, family| {
        let first = bench.open(family, 1000);
        assert_eq!(bench.open(family, 1000), first);
        // Also from a client that has forgotten its connection: the real server will tell it so (RFC 9293 §3.5.1).
        bench.server_of(&segment(family, 1000, ACK));
        assert_eq!(bench.open(family, 1000), first);
    });
}

/// RFC 3168 §6.1.1: such a SYN has ECE and CWR set.
#[test]
fn a_syn_that_offers_congestion_notification_opens_a_connection() {
    each(|bench, _, family| {
        let first = bench.server_of(&segment(family, 1000, SYN | 0xc0));
        assert_eq!(bench.server_of(&segment(family, 1000, ACK | 0x40)), first);
    });
}

#[test]
fn after_fin_or_rst_of_the_client_a_syn_is_a_new_connection() {
    each(|bench, _, family| {
        for (port, last) in (1000..).zip([FIN, FIN | ACK, RST, RST | ACK]) {
            let first = bench.open(family, port);
            bench.server_of(&segment(family, port, ACK));
            assert_eq!(bench.server_of(&segment(family, port, last)), first);
            // What still comes on the old one goes where it went.
            assert_eq!(bench.server_of(&segment(family, port, ACK)), first);
            let second = bench.open(family, port);
            assert_eq!(second, first % 3 + 1, "its turn");
            assert_eq!(bench.server_of(&segment(family, port, ACK)), second);
            assert_eq!(bench.open(family, port), second, "not closing any more");
        }
    });
}

#[test]
fn after_fin_or_rst_of_a_nat_real_server_a_syn_is_a_new_connection() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 3);
        for family in FAMILIES {
            for (port, last) in (1000..).zip([FIN | ACK, RST, RST | ACK]) {
                let first = bench.open(family, port);
                bench.server_of(&segment(family, port, ACK));
                let real = real_server(family, ForwardingMethod::Nat, first);
                bench.send(&answer(&segment(family, port, ACK), real, first, last));
                assert_eq!(bench.server_of(&segment(family, port, ACK)), first);
                assert_eq!(bench.open(family, port), first % 3 + 1);
            }
        }
    });
}

#[test]
fn an_answer_that_does_not_end_the_connection_leaves_it_where_it_is() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 3);
        for family in FAMILIES {
            let first = bench.open(family, 1000);
            let real = real_server(family, ForwardingMethod::Nat, first);
            for flags in [SYN | ACK, ACK, ACK | PSH] {
                bench.send(&answer(&segment(family, 1000, ACK), real, first, flags));
                assert_eq!(bench.open(family, 1000), first);
            }
        }
    });
}

/// A round robin whose removed real servers lose their connections at once.
const EXPIRING: Policy = Policy { removed_real_server: Removal::Expire, ..Policy::new(Scheduler::Rr) };

/// A connection of each protocol; then its real server is removed, and `then` is told of it.
fn removed(policy: &Policy, then: impl Fn(&mut Bench, ForwardingMethod, Family, Protocol, u8) + Sync) {
    each(|bench, method, family| {
        let all = [1, 2, 3].map(|n| (real_server(family, method, n), 1));
        for protocol in PROTOCOLS {
            let service = service(family, protocol);
            bench.serve_by(policy, service, method, &all);
            let first = bench.server_of(&opening(service, 1000));
            let others: Vec<_> = all.into_iter().filter(|real| real.0 != real_server(family, method, first)).collect();
            bench.serve_by(policy, service, method, &others);
            then(bench, method, family, protocol, first);
        }
    });
}

#[test]
fn a_removed_real_server_keeps_its_tcp_connections_and_gets_no_new_ones_until_it_is_back() {
    removed(&Policy::new(Scheduler::Rr), |bench, method, family, protocol, first| {
        if protocol == Protocol::Udp {
            return;
        }
        assert_eq!(bench.server_of(&segment(family, 1000, ACK)), first);
        let others: Vec<u8> = (1001..1004).map(|port| bench.open(family, port)).collect();
        assert!(!others.contains(&first), "{others:?}");
        let all = [1, 2, 3].map(|n| (real_server(family, method, n), 1));
        bench.serve(service(family, protocol), method, &all);
        assert_eq!(bench.server_of(&segment(family, 1000, ACK)), first, "it is the same one");
        let all: Vec<u8> = (1010..1013).map(|port| bench.open(family, port)).collect();
        assert!(all.contains(&first), "{all:?}");
    });
}

#[test]
fn udp_goes_elsewhere_when_its_real_server_is_removed() {
    for policy in [Policy::new(Scheduler::Rr), EXPIRING] {
        removed(&policy, |bench, _, family, protocol, first| {
            if protocol == Protocol::Udp {
                let second = bench.server_of(&opening(service(family, protocol), 1000));
                assert_ne!(second, first);
                assert_eq!(bench.server_of(&opening(service(family, protocol), 1000)), second);
            }
        });
    }
}

#[test]
fn where_connections_of_removed_real_servers_expire_they_are_unknown_also_when_it_is_back() {
    removed(&EXPIRING, |bench, method, family, protocol, _| {
        if protocol == Protocol::Udp {
            return;
        }
        bench.expect_refusal(&segment(family, 1000, ACK).bytes(), DropReason::NoConnection);
        let all = [1, 2, 3].map(|n| (real_server(family, method, n), 1));
        bench.serve_by(&EXPIRING, service(family, protocol), method, &all);
        bench.expect_refusal(&segment(family, 1000, ACK).bytes(), DropReason::NoConnection);
    });
}

#[test]
fn a_virtual_server_that_was_removed_and_added_again_inherits_no_connection() {
    each(|bench, method, family| {
        let service = service(family, Protocol::Tcp);
        bench.open(family, 1000);
        bench.withdraw(service);
        bench.expect_untouched(&segment(family, 1000, ACK));
        bench.serve(service, method, &[1, 2, 3].map(|n| (real_server(family, method, n), 1)));
        bench.expect_refusal(&segment(family, 1000, ACK).bytes(), DropReason::NoConnection);
    });
}

#[test]
fn a_real_server_in_a_former_ones_place_inherits_no_connection() {
    each(|bench, method, family| {
        let service = service(family, Protocol::Tcp);
        let serve = |bench: &mut Bench, n: Option<u8>| {
            let reals: Vec<_> = n.into_iter().map(|n| (real_server(family, method, n), 1)).collect();
            bench.serve_by(&EXPIRING, service, method, &reals);
        };
        serve(bench, Some(1));
        assert_eq!(bench.open(family, 1000), 1);
        serve(bench, None);
        serve(bench, Some(2));
        bench.expect_refusal(&segment(family, 1000, ACK).bytes(), DropReason::NoConnection);
    });
}

#[test]
fn a_change_of_weights_moves_no_connection() {
    each(|bench, method, family| {
        let service = service(family, Protocol::Tcp);
        let servers: Vec<(u16, u8)> = (1000..1006).map(|port| (port, bench.open(family, port))).collect();
        for weights in [[0, 0, 0], [5, 0, 1], [1, 1, 1], [0, 7, 0]] {
            let reals = [1, 2, 3].map(|n| (real_server(family, method, n), weights[usize::from(n) - 1]));
            bench.serve(service, method, &reals);
            for (port, server) in &servers {
                assert_eq!(bench.server_of(&segment(family, *port, ACK)), *server, "{weights:?}");
            }
        }
    });
}

#[test]
fn a_change_of_the_forwarding_method_ends_connections() {
    in_namespace(|| {
        for family in FAMILIES {
            let mut bench = Bench::serving(ForwardingMethod::Dr, 1);
            bench.open(family, 1000);
            let service = service(family, Protocol::Tcp);
            bench.serve(service, ForwardingMethod::Tun, &[(real_server(family, ForwardingMethod::Dr, 1), 1)]);
            bench.expect_refusal(&segment(family, 1000, ACK).bytes(), DropReason::NoConnection);
        }
    });
}

/// A connection in one state, made by `packets`, is known until its timeout and void after it.
fn lives_for(ticks: u16, flags: &'static [u8]) {
    each(move |bench, _, family| {
        let begin = |port| {
            let first = bench.open(family, port);
            flags.iter().for_each(|flags| assert_eq!(bench.server_of(&segment(family, port, *flags)), first));
            (first, segment(family, port, ACK))
        };
        let ((first, next), (_, late)) = (begin(1000), begin(1001));
        bench.age(ticks - SLACK);
        assert_eq!(bench.server_of(&next), first);
        bench.age(SLACK + 1);
        bench.expect_refusal(&late.bytes(), DropReason::NoConnection);
    });
}

#[test]
fn an_unanswered_syn_is_forgotten_after_its_timeout() {
    lives_for(timeout::HALF_OPEN, &[]);
}

#[test]
fn an_idle_established_connection_is_forgotten_after_its_timeout() {
    lives_for(timeout::ESTABLISHED, &[ACK]);
}

#[test]
fn a_closing_connection_is_forgotten_after_its_timeout() {
    lives_for(timeout::CLOSING, &[ACK, FIN | ACK]);
}

#[test]
fn an_idle_udp_flow_is_scheduled_anew_after_its_timeout() {
    each(|bench, _, family| {
        let service = service(family, Protocol::Udp);
        let first = bench.server_of(&opening(service, 1000));
        bench.age(timeout::UDP - SLACK);
        assert_eq!(bench.server_of(&opening(service, 1000)), first);
        bench.age(timeout::UDP + 1);
        assert_eq!(bench.server_of(&opening(service, 1000)), first % 3 + 1);
    });
}

#[test]
fn every_packet_renews_a_connection() {
    each(|bench, _, family| {
        let first = bench.open(family, 1000);
        for _ in 0..5 {
            assert_eq!(bench.server_of(&segment(family, 1000, ACK)), first);
            bench.age(timeout::ESTABLISHED - SLACK);
        }
    });
}

#[test]
fn an_answer_after_the_timeout_belongs_to_nobody() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            for protocol in PROTOCOLS {
                let request = opening(service(family, protocol), 1000);
                bench.server_of(&request);
                bench.age(timeout::ESTABLISHED + 1);
                let real = real_server(family, ForwardingMethod::Nat, 1);
                bench.expect_untouched(&answer(&request, real, 1, SYN | ACK));
            }
        }
    });
}

/// Two virtual servers of one `nat` real server; the client opens a connection to the second from the port it used for
/// the first, once `end` has ended that one.
fn the_tuple_is_free_after(end: impl Fn(&mut Bench, Frame) + Sync) {
    in_namespace(|| {
        for family in FAMILIES {
            let mut bench = Bench::empty();
            bench.way(family, 1, INGRESS, 1500);
            let real = real_server(family, ForwardingMethod::Nat, 1);
            let first = service(family, Protocol::Tcp);
            let mut second = first;
            second.address.set_ip(family.vip(1));
            bench.serve(first, ForwardingMethod::Nat, &[(real, 1)]);
            bench.serve(second, ForwardingMethod::Nat, &[(real, 1)]);
            bench.server_of(&opening(first, 1000));
            bench.expect_drop(&opening(second, 1000).bytes(), DropReason::TupleInUse);
            end(&mut bench, segment(family, 1000, ACK));
            assert_eq!(bench.server_of(&opening(second, 1000)), 1);
        }
    });
}

#[test]
fn a_connection_that_was_closed_frees_its_tuple() {
    the_tuple_is_free_after(|bench, segment| {
        let closing = Frame { transport: super::frame::Transport::Tcp { flags: FIN | ACK }, ..segment };
        bench.server_of(&closing);
    });
}

#[test]
fn a_connection_that_timed_out_frees_its_tuple() {
    the_tuple_is_free_after(|bench, _| bench.age(timeout::HALF_OPEN + 1));
}

#[test]
fn a_virtual_server_that_was_removed_frees_its_tuples() {
    the_tuple_is_free_after(|bench, segment| {
        bench.withdraw(lb_userspace::model::Service { address: segment.destination, protocol: Protocol::Tcp });
    });
}

#[test]
fn a_late_segment_of_an_ended_connection_does_not_end_the_one_that_has_its_tuple_now() {
    the_tuple_is_free_after(|bench, segment| {
        let closing = |flags| Frame { transport: super::frame::Transport::Tcp { flags }, ..segment.clone() };
        bench.server_of(&closing(FIN | ACK));
        let mut second = segment.clone();
        second.destination.set_ip(if segment.source.is_ipv4() { Family::V4.vip(1) } else { Family::V6.vip(1) });
        second.transport = super::frame::Transport::Tcp { flags: SYN };
        bench.server_of(&second);
        assert_eq!(bench.server_of(&closing(RST)), 1);
        // Were the second closing, the first could have the tuple again.
        bench.expect_drop(&closing(SYN).bytes(), DropReason::TupleInUse);
    });
}

/// The client has gone on to the real server itself, with the port of a connection through the VIP that has ended.
#[test]
fn the_answer_to_a_direct_connection_with_a_used_port_passes_and_so_does_what_follows() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            let request = segment(family, 1000, ACK);
            let real = real_server(family, ForwardingMethod::Nat, 1);
            let answered = |flags| answer(&request, real, 1, flags);
            bench.open(family, 1000);
            bench.server_of(&request);
            // A repeated answer while ours is open, and the end of ours, are still ours.
            bench.expect(&answered(SYN | ACK), Verdict::Transmit, &back(&answered(SYN | ACK), &request));
            bench.server_of(&segment(family, 1000, FIN | ACK));
            bench.expect(&answered(FIN | ACK), Verdict::Transmit, &back(&answered(FIN | ACK), &request));
            bench.expect_untouched(&answered(SYN | ACK));
            bench.expect_untouched(&answered(ACK | PSH));
            // Through the VIP again, it is ours again.
            bench.open(family, 1000);
            bench.expect(&answered(SYN | ACK), Verdict::Transmit, &back(&answered(SYN | ACK), &request));
        }
    });
}

#[test]
fn a_late_segment_of_a_former_real_server_does_not_end_the_connection_with_the_next() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 3);
        for family in FAMILIES {
            let request = segment(family, 1000, ACK);
            let former = bench.open(family, 1000);
            bench.server_of(&segment(family, 1000, RST));
            let next = bench.open(family, 1000);
            assert_ne!(next, former);
            bench.server_of(&request);
            let late = answer(&request, real_server(family, ForwardingMethod::Nat, former), former, FIN | ACK);
            // It is of no connection that there is.
            bench.expect_untouched(&late);
            // Were the connection closing, this SYN would be scheduled anew.
            assert_eq!(bench.open(family, 1000), next);
        }
    });
}

#[test]
fn answers_alone_keep_a_udp_flow_at_its_real_server() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Nat, 3);
        for family in FAMILIES {
            let request = opening(service(family, Protocol::Udp), 1000);
            let server = bench.server_of(&request);
            let answer = answer(&request, real_server(family, ForwardingMethod::Nat, server), server, 0);
            for _ in 0..3 {
                bench.age(timeout::UDP - SLACK);
                bench.expect(&answer, Verdict::Transmit, &back(&answer, &request));
            }
            assert_eq!(bench.server_of(&request), server);
        }
    });
}
