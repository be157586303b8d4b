//! Which real server a new connection gets: each in turn.

use std::collections::BTreeSet;

use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;

use super::bench::{Bench, in_namespace};
use super::scene::{FAMILIES, METHODS, PROTOCOLS, opening, real_server, service};

#[test]
fn new_connections_go_to_the_real_servers_in_strict_turn() {
    in_namespace(|| {
        for servers in 1..=5 {
            let bench = Bench::serving(METHODS[usize::from(servers) % 3], servers);
            for family in FAMILIES {
                for protocol in PROTOCOLS {
                    let service = service(family, protocol);
                    let chosen: Vec<u8> = (1000..1020).map(|port| bench.server_of(&opening(service, port))).collect();
                    let in_turn: Vec<u8> = (1..=servers).cycle().take(20).collect();
                    assert_eq!(chosen, in_turn, "{service}");
                }
            }
        }
    });
}

#[test]
fn each_virtual_server_has_its_own_turn() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Dr, 3);
        let services = FAMILIES.map(|family| PROTOCOLS.map(|protocol| service(family, protocol)));
        for (round, port) in (0..9).zip(1000..) {
            for service in services.as_flattened() {
                assert_eq!(bench.server_of(&opening(*service, port)), round % 3 + 1, "{service}");
            }
        }
    });
}

#[test]
fn a_real_server_of_weight_zero_takes_no_new_connection() {
    in_namespace(|| {
        for family in FAMILIES {
            let mut bench = Bench::serving(ForwardingMethod::Dr, 4);
            let service = service(family, Protocol::Tcp);
            let real = |n| real_server(family, ForwardingMethod::Dr, n);
            bench.serve(service, ForwardingMethod::Dr, &[(real(1), 1), (real(2), 0), (real(3), 1), (real(4), 0)]);
            let chosen: Vec<u8> = (1000..1006).map(|port| bench.open(family, port)).collect();
            assert_eq!(chosen, [1, 3, 1, 3, 1, 3]);
        }
    });
}

#[test]
fn round_robin_takes_no_notice_of_how_large_a_weight_is() {
    in_namespace(|| {
        for family in FAMILIES {
            let mut bench = Bench::serving(ForwardingMethod::Nat, 2);
            let real = |n| real_server(family, ForwardingMethod::Nat, n);
            bench.serve(service(family, Protocol::Tcp), ForwardingMethod::Nat, &[(real(1), 65535), (real(2), 1)]);
            let chosen: Vec<u8> = (1000..1006).map(|port| bench.open(family, port)).collect();
            assert_eq!(chosen, [1, 2, 1, 2, 1, 2]);
        }
    });
}

#[test]
fn a_real_server_that_is_added_gets_its_turn_and_one_that_is_removed_gets_none() {
    in_namespace(|| {
        for family in FAMILIES {
            let mut bench = Bench::serving(ForwardingMethod::Dr, 3);
            let service = service(family, Protocol::Tcp);
            let mut ports = 1000..;
            for present in [&[1, 2][..], &[1, 2, 3], &[3], &[2, 3], &[1, 3]] {
                let reals: Vec<_> =
                    present.iter().map(|n| (real_server(family, ForwardingMethod::Dr, *n), 1)).collect();
                bench.serve(service, ForwardingMethod::Dr, &reals);
                // Where the turn stands after a change is not promised, only that everybody has one.
                let round: BTreeSet<u8> = ports.by_ref().take(present.len()).map(|p| bench.open(family, p)).collect();
                assert!(round.iter().eq(present), "{round:?}");
            }
        }
    });
}
