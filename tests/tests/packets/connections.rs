//! Which real server a known connection has, and for how long.

use aya::maps::{HashMap, MapData};
use lb_common::connection::{ConnectionEntry, Direction, FlowKey};
use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;

use super::bench::{Bench, TIMEOUTS, Verdict, in_namespace};
use super::frame::{ACK, FIN, Frame, PSH, RST, SYN};
use super::replies::back;
use super::scene::{FAMILIES, Family, INGRESS, METHODS, PROTOCOLS, answer, opening, real_server, service};

/// So many ticks the clock may go on while a test runs, at least 2.5 seconds.
const SLACK: u32 = 10;

type Table<'a> = HashMap<&'a mut MapData, FlowKey, ConnectionEntry>;

/// The connection table and what is in it.
fn table(bench: &mut Bench) -> (Table<'_>, Vec<(FlowKey, ConnectionEntry)>) {
    let map = bench.datapath.ebpf().map_mut("connections").expect("is there");
    let map = Table::try_from(map).expect("a hash map");
    let entries = map.iter().collect::<Result<_, _>>().expect("can be read");
    (map, entries)
}

/// Makes every connection's last packet `ticks` older; no test waits.
fn age(bench: &mut Bench, ticks: u32) {
    let (mut map, entries) = table(bench);
    for (flow, mut entry) in entries {
        entry.last_seen = entry.last_seen.wrapping_sub(ticks);
        map.insert(flow, entry, 0).expect("takes it");
    }
}

/// Removes the entries of `nat` answers.
fn forget_answers(bench: &mut Bench) {
    let (mut map, entries) = table(bench);
    for (flow, _) in entries.into_iter().filter(|(_, entry)| entry.direction == Direction::Reply) {
        map.remove(&flow).expect("is there");
    }
}

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
                    Protocol::Udp => opening(service, 1000).payload(b"more"),
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

/// The table may give up one entry of the two; the one of the request has all that is needed to make the other again.
#[test]
fn a_nat_connection_that_lost_its_way_back_gets_it_again() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Nat, 3);
        for family in FAMILIES {
            bench.open(family, 1000);
            bench.open(family, 1001);
            for request in [opening(service(family, Protocol::Udp), 1000), segment(family, 1000, ACK)] {
                let server = bench.server_of(&request);
                forget_answers(&mut bench);
                assert_eq!(bench.server_of(&request), server, "it keeps its real server");
                let answer = answer(&request, real_server(family, ForwardingMethod::Nat, server), server, ACK);
                bench.expect(&answer, Verdict::Transmit, &back(&answer, &request));
            }
        }
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

#[test]
fn a_real_server_that_was_removed_and_added_again_inherits_no_connection() {
    each(|bench, method, family| {
        let all = [1, 2, 3].map(|n| (real_server(family, method, n), 1));
        for protocol in PROTOCOLS {
            let service = service(family, protocol);
            let first = bench.server_of(&opening(service, 1000));
            let others: Vec<_> = all.into_iter().filter(|real| real.0 != real_server(family, method, first)).collect();
            bench.serve(service, method, &others);
            bench.serve(service, method, &all);
            match protocol {
                Protocol::Tcp => bench.expect_drop(&segment(family, 1000, ACK).bytes(), DropReason::NoConnection),
                // A new flow: where the turn stands shows that it was scheduled.
                Protocol::Udp => {
                    let second = bench.server_of(&opening(service, 1000));
                    assert_eq!(bench.server_of(&opening(service, 1001)), second % 3 + 1);
                }
            }
        }
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
        bench.expect_drop(&segment(family, 1000, ACK).bytes(), DropReason::NoConnection);
    });
}

#[test]
fn a_real_server_in_a_former_ones_place_inherits_no_connection() {
    each(|bench, method, family| {
        let service = service(family, Protocol::Tcp);
        bench.serve(service, method, &[(real_server(family, method, 1), 1)]);
        assert_eq!(bench.open(family, 1000), 1);
        bench.serve(service, method, &[]);
        bench.serve(service, method, &[(real_server(family, method, 2), 1)]);
        bench.expect_drop(&segment(family, 1000, ACK).bytes(), DropReason::NoConnection);
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
            bench.expect_drop(&segment(family, 1000, ACK).bytes(), DropReason::NoConnection);
        }
    });
}

/// A connection in one state, made by `packets`, is known until its timeout and void after it.
fn lives_for(ticks: u32, flags: &'static [u8]) {
    each(move |bench, _, family| {
        let begin = |port| {
            let first = bench.open(family, port);
            flags.iter().for_each(|flags| assert_eq!(bench.server_of(&segment(family, port, *flags)), first));
            (first, segment(family, port, ACK))
        };
        let ((first, next), (_, late)) = (begin(1000), begin(1001));
        age(bench, ticks - SLACK);
        assert_eq!(bench.server_of(&next), first);
        age(bench, SLACK + 1);
        bench.expect_drop(&late.bytes(), DropReason::NoConnection);
    });
}

#[test]
fn an_unanswered_syn_is_forgotten_after_its_timeout() {
    lives_for(TIMEOUTS.syn, &[]);
}

#[test]
fn an_idle_established_connection_is_forgotten_after_its_timeout() {
    lives_for(TIMEOUTS.established, &[ACK]);
}

#[test]
fn a_closing_connection_is_forgotten_after_its_timeout() {
    lives_for(TIMEOUTS.closing, &[ACK, FIN | ACK]);
}

#[test]
fn an_idle_udp_flow_is_scheduled_anew_after_its_timeout() {
    each(|bench, _, family| {
        let service = service(family, Protocol::Udp);
        let first = bench.server_of(&opening(service, 1000));
        age(bench, TIMEOUTS.udp - SLACK);
        assert_eq!(bench.server_of(&opening(service, 1000)), first);
        age(bench, TIMEOUTS.udp + 1);
        assert_eq!(bench.server_of(&opening(service, 1000)), first % 3 + 1);
    });
}

#[test]
fn every_packet_renews_a_connection() {
    each(|bench, _, family| {
        let first = bench.open(family, 1000);
        for _ in 0..5 {
            assert_eq!(bench.server_of(&segment(family, 1000, ACK)), first);
            age(bench, TIMEOUTS.established - SLACK);
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
                age(&mut bench, TIMEOUTS.established + 1);
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
    the_tuple_is_free_after(|bench, _| age(bench, TIMEOUTS.syn + 1));
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
        // Were the second closing, the first could have the tuple again.
        bench.expect_drop(&closing(RST).bytes(), DropReason::TupleInUse);
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
            bench.expect(&late, Verdict::Transmit, &back(&late, &request));
            // Were the connection closing, this SYN would be scheduled anew.
            assert_eq!(bench.open(family, 1000), next);
        }
    });
}

#[test]
fn an_evicted_way_back_does_not_reopen_a_closing_connection() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Nat, 3);
        for family in FAMILIES {
            let first = bench.open(family, 1000);
            bench.server_of(&segment(family, 1000, FIN | ACK));
            forget_answers(&mut bench);
            assert_eq!(bench.server_of(&segment(family, 1000, ACK)), first);
            assert_eq!(bench.open(family, 1000), first % 3 + 1, "a new connection");
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
                age(&mut bench, TIMEOUTS.udp - SLACK);
                bench.expect(&answer, Verdict::Transmit, &back(&answer, &request));
            }
            assert_eq!(bench.server_of(&request), server);
        }
    });
}
