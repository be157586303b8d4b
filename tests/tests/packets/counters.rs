//! What virtual and real servers count: connections, packets and bytes, exactly.

use std::net::SocketAddr;

use lb_common::counters::Counters;
use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Scheduler};
use lb_userspace::model::{Policy, Removal, Service};

use super::bench::{Bench, in_namespace};
use super::frame::{ACK, FIN, Frame, SYN};
use super::scene::{FAMILIES, Family, METHODS, answer, opening, real_server, service};

/// The counters of `service`, and those of its real servers.
fn counters(bench: &Bench, service: Service) -> (Counters, Vec<(SocketAddr, Counters)>) {
    let statistics = bench.datapath.statistics().expect("can be read");
    let found = statistics.into_iter().find(|statistics| statistics.service == service).expect("is installed");
    (found.counters, found.real_servers.iter().map(|real| (real.address, real.counters)).collect())
}

/// `connections` and what came in; nothing goes out by way of the director.
fn incoming(connections: u64, packets_in: u64, bytes_in: u64) -> Counters {
    Counters { connections, packets_in, bytes_in, ..Counters::default() }
}

#[test]
fn connections_packets_and_bytes_of_clients_are_counted() {
    in_namespace(|| {
        for method in METHODS {
            let bench = Bench::serving(method, 2);
            for family in FAMILIES {
                let service = service(family, Protocol::Tcp);
                let (first, second) = (opening(service, 1000), opening(service, 1001));
                let data = Frame::tcp(first.source, service.address, ACK).payload(&[0; 100]);
                // A repeated SYN is a packet but no connection, and padding is no byte of it.
                let frames = [&first, &first, &second, &data, &Frame { padding: vec![0; 6], ..first.clone() }];
                for frame in frames {
                    bench.server_of(frame);
                }
                // 20 bytes of TCP behind 20 of IPv4 or 40 of IPv6.
                let syn = if family == Family::V4 { 40 } else { 60 };
                let expected = [incoming(1, 4, 4 * syn + 100), incoming(1, 1, syn)];
                let (all, each) = counters(&bench, service);
                assert_eq!(all, incoming(2, 5, 5 * syn + 100), "{method:?}");
                let reals = [1, 2].map(|n| real_server(family, method, n));
                assert_eq!(each, reals.into_iter().zip(expected).collect::<Vec<_>>(), "{method:?}");
            }
        }
    });
}

#[test]
fn packets_and_bytes_of_nat_answers_are_counted() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 2);
        for family in FAMILIES {
            let service = service(family, Protocol::Udp);
            let request = opening(service, 1000).payload(&[0; 10]);
            let n = bench.server_of(&request);
            let real = real_server(family, ForwardingMethod::Nat, n);
            for length in [500, 3] {
                bench.send(&answer(&request, real, n, 0).payload(&vec![0; length]));
            }
            let header = if family == Family::V4 { 28 } else { 48 };
            let expected = Counters { packets_out: 2, bytes_out: 2 * header + 503, ..incoming(1, 1, header + 10) };
            let (all, each) = counters(&bench, service);
            assert_eq!(all, expected);
            assert_eq!(each[usize::from(n) - 1], (real, expected));
        }
    });
}

#[test]
fn a_connection_that_is_opened_again_counts_again() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Dr, 1);
        let service = service(Family::V4, Protocol::Tcp);
        for flags in [SYN, ACK, FIN | ACK, SYN, ACK] {
            bench.server_of(&Frame::tcp(Family::V4.client(1000), service.address, flags));
        }
        assert_eq!(counters(&bench, service).0, incoming(2, 5, 200));
    });
}

#[test]
fn what_passes_or_is_dropped_is_not_counted() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Dr, 1);
        let service = service(Family::V6, Protocol::Tcp);
        bench.send(&Frame { ttl: 1, ..opening(service, 1000) });
        bench.send(&Frame::tcp(Family::V6.client(1000), service.address, ACK));
        bench.send(&opening(service, 1000).macs([2; 6], [4; 6]));
        assert_eq!(counters(&bench, service).0, Counters::default());
    });
}

/// One connection, then a change of weight, removal and return, another connection: what is counted at the end.
fn after_removal_and_return(removal: Removal) -> (Counters, Vec<(SocketAddr, Counters)>) {
    let mut bench = Bench::serving(ForwardingMethod::Dr, 1);
    let service = service(Family::V4, Protocol::Tcp);
    let real = real_server(Family::V4, ForwardingMethod::Dr, 1);
    let policy = Policy { removed_real_server: removal, ..Policy::new(Scheduler::Rr) };
    bench.open(Family::V4, 1000);
    bench.serve_by(&policy, service, ForwardingMethod::Dr, &[(real, 7)]);
    assert_eq!(counters(&bench, service), (incoming(1, 1, 40), vec![(real, incoming(1, 1, 40))]));
    bench.serve_by(&policy, service, ForwardingMethod::Dr, &[]);
    bench.serve_by(&policy, service, ForwardingMethod::Dr, &[(real, 1)]);
    bench.open(Family::V4, 1001);
    counters(&bench, service)
}

#[test]
fn a_real_server_that_was_removed_and_added_again_counts_from_zero_and_its_virtual_server_goes_on() {
    in_namespace(|| {
        let real = real_server(Family::V4, ForwardingMethod::Dr, 1);
        let counted = after_removal_and_return(Removal::Expire);
        assert_eq!(counted, (incoming(2, 2, 80), vec![(real, incoming(1, 1, 40))]));
    });
}

#[test]
fn a_real_server_that_kept_its_connections_goes_on_counting_when_it_is_back() {
    in_namespace(|| {
        let real = real_server(Family::V4, ForwardingMethod::Dr, 1);
        let counted = after_removal_and_return(Removal::Keep);
        assert_eq!(counted, (incoming(2, 2, 80), vec![(real, incoming(2, 2, 80))]));
    });
}

#[test]
fn a_virtual_server_in_a_former_ones_place_counts_from_zero() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Dr, 1);
        let service = service(Family::V4, Protocol::Tcp);
        bench.open(Family::V4, 1000);
        bench.withdraw(service);
        bench.serve(service, ForwardingMethod::Dr, &[(real_server(Family::V4, ForwardingMethod::Dr, 1), 1)]);
        assert_eq!(counters(&bench, service).0, Counters::default());
    });
}
