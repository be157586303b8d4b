//! What becomes of a real server's answer with `nat`, on its way back through the director.

use std::net::SocketAddr;

use evenkeel_tests::lab;
use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Scheduler};
use lb_userspace::model::{Policy, Service};

use super::bench::{Bench, Verdict, in_namespace};
use super::frame::{ACK, FIN, Frame, PSH, SYN, Transport};
use super::routes;
use super::scene::{
    CLIENT_MAC, FAMILIES, Family, METHODS, OUR_MAC, PORT, PROTOCOLS, answer, opening, real_mac, real_server, service,
};

/// What leaves for the client: the answer, from the VIP.
pub fn back(answer: &Frame, request: &Frame) -> Frame {
    Frame { source: request.destination, ..answer.sent_on(request.mac_from) }
}

#[test]
fn nat_answers_come_from_the_vip() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            let real = real_server(family, ForwardingMethod::Nat, 1);
            for protocol in PROTOCOLS {
                let request = opening(service(family, protocol), 1000);
                assert_eq!(bench.server_of(&request), 1);
                for (flags, payload) in [(SYN | ACK, ""), (ACK | PSH, "an answer"), (ACK | PSH, "odd"), (FIN | ACK, "")]
                {
                    let answer = answer(&request, real, 1, flags).payload(payload.as_bytes());
                    bench.expect(&answer, Verdict::Transmit, &back(&answer, &request));
                }
            }
        }
    });
}

#[test]
fn nat_answers_keep_what_is_in_their_headers() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            let real = real_server(family, ForwardingMethod::Nat, 1);
            for protocol in PROTOCOLS {
                let request = opening(service(family, protocol), 1000);
                bench.server_of(&request);
                let plain = answer(&request, real, 1, SYN | ACK).payload(b"x");
                let options = if family == Family::V4 { vec![0x94, 4, 0, 0, 1, 1, 1, 0] } else { Vec::new() };
                let marked = Frame { class: 0xbb, flow_label: 0x1_2345, ttl: 2, dont_fragment: false, ..plain.clone() };
                for answer in [Frame { options, ..plain.clone() }, Frame { padding: vec![0; 5], ..plain }, marked] {
                    bench.expect(&answer, Verdict::Transmit, &back(&answer, &request));
                }
            }
        }
    });
}

#[test]
fn a_nat_answer_without_udp_checksum_stays_without() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        let request = opening(service(Family::V4, Protocol::Udp), 1000);
        bench.server_of(&request);
        let real = real_server(Family::V4, ForwardingMethod::Nat, 1);
        let plain = answer(&request, real, 1, 0).payload(b"unchecked");
        let answer = Frame { transport: Transport::Udp { has_checksum: false }, ..plain };
        bench.expect(&answer, Verdict::Transmit, &back(&answer, &request));
    });
}

/// Where the routing table knows no neighbour, the way back is where the request came from: another router's, here.
#[test]
fn nat_answers_go_back_to_the_station_that_sent_the_request() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        let router = [0x02, 0, 0, 0, 0, 0x77];
        for family in FAMILIES {
            let real = real_server(family, ForwardingMethod::Nat, 1);
            let requests = [
                opening(service(family, Protocol::Tcp), 1000),
                opening(service(family, Protocol::Tcp), 1001).macs(router, OUR_MAC),
            ];
            requests.iter().for_each(|request| assert_eq!(bench.server_of(request), 1));
            for (request, station) in requests.iter().zip([CLIENT_MAC, router]) {
                let sent = bench.send(&answer(request, real, 1, SYN | ACK));
                assert_eq!(sent.frame[..6], station);
            }
        }
    });
}

#[test]
fn each_real_servers_answer_belongs_to_its_own_connection() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 3);
        for family in FAMILIES {
            let requests: Vec<_> = (2000..2006).map(|port| opening(service(family, Protocol::Tcp), port)).collect();
            let servers: Vec<_> = requests.iter().map(|request| bench.server_of(request)).collect();
            for (request, n) in requests.iter().zip(servers) {
                for other in 1..=3 {
                    let real = real_server(family, ForwardingMethod::Nat, other);
                    let answer = answer(request, real, other, SYN | ACK);
                    if other == n {
                        bench.expect(&answer, Verdict::Transmit, &back(&answer, request));
                    } else {
                        bench.expect_untouched(&answer);
                    }
                }
            }
        }
    });
}

#[test]
fn only_nat_takes_notice_of_what_real_servers_send() {
    in_namespace(|| {
        for method in METHODS {
            let bench = Bench::serving(method, 1);
            for family in FAMILIES {
                let request = opening(service(family, Protocol::Tcp), 1000);
                bench.server_of(&request);
                let from_vip = Frame::tcp(request.destination, request.source, SYN | ACK).macs(real_mac(1), OUR_MAC);
                bench.expect_untouched(&from_vip);
                let from_itself = answer(&request, real_server(family, method, 1), 1, SYN | ACK);
                match method {
                    ForwardingMethod::Nat => {
                        bench.expect(&from_itself, Verdict::Transmit, &back(&from_itself, &request));
                    }
                    ForwardingMethod::Dr | ForwardingMethod::Tun => bench.expect_untouched(&from_itself),
                }
            }
        }
    });
}

/// What a host asks a real server by itself: from `client`, and the answer as it passes here.
fn direct(client: SocketAddr, real: SocketAddr, protocol: Protocol, flags: u8) -> (Frame, Frame) {
    match protocol {
        Protocol::Tcp => (Frame::tcp(client, real, SYN), Frame::tcp(real, client, flags).macs(real_mac(1), OUR_MAC)),
        Protocol::Udp => (Frame::udp(client, real), Frame::udp(real, client).macs(real_mac(1), OUR_MAC)),
        Protocol::Sctp => panic!("nat does not carry it"),
    }
}

/// As health checks are: also where a client of the VIP has the same port, or pretended to be this host.
#[test]
fn what_a_real_server_answers_this_host_is_left_alone() {
    in_namespace(|| {
        for is_stateless in [false, true] {
            let mut bench = Bench::serving(ForwardingMethod::Nat, 1);
            serve_statelessly(&mut bench, is_stateless);
            for family in FAMILIES {
                bench.datapath.set_own_addresses(&[family.client(0).ip()].into()).expect("the map takes it");
                let real = real_server(family, ForwardingMethod::Nat, 1);
                for protocol in PROTOCOLS {
                    let (check, _) = direct(family.client(1000), real, protocol, SYN);
                    bench.expect_untouched(&check);
                    for has_connection in [false, true] {
                        if has_connection {
                            bench.server_of(&opening(service(family, protocol), 1000));
                        }
                        for flags in [SYN | ACK, ACK | PSH, FIN | ACK] {
                            let (_, answer) = direct(family.client(1000), real, protocol, flags);
                            bench.expect_untouched(&answer);
                            bench.expect_untouched(&Frame { ttl: 1, ..answer });
                        }
                    }
                }
            }
        }
    });
}

/// The way back was learnt when the address was a client's.
#[test]
fn an_address_that_becomes_this_hosts_own_gets_its_answers_as_they_are() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            let real = real_server(family, ForwardingMethod::Nat, 1);
            let request = opening(service(family, Protocol::Udp), 1000);
            bench.server_of(&request);
            let answer = answer(&request, real, 1, 0);
            bench.expect(&answer, Verdict::Transmit, &back(&answer, &request));
            bench.datapath.set_own_addresses(&[request.source.ip()].into()).expect("the map takes it");
            bench.datapath.routes_changed().expect("the map takes it");
            bench.expect_untouched(&answer);
            bench.datapath.set_own_addresses(&[].into()).expect("the map takes it");
            bench.expect(&answer, Verdict::Transmit, &back(&answer, &request));
        }
    });
}

#[test]
fn a_client_that_asks_a_real_server_directly_gets_its_answers_as_they_are() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            let real = real_server(family, ForwardingMethod::Nat, 1);
            for protocol in PROTOCOLS {
                let (question, answer) = direct(family.client(1000), real, protocol, SYN | ACK);
                bench.expect_untouched(&question);
                bench.expect_untouched(&answer);
            }
            // By UDP from one port as it likes: what it addressed last answers.
            let request = opening(service(family, Protocol::Udp), 1000);
            let (question, answer) = direct(family.client(1000), real, Protocol::Udp, 0);
            for _ in 0..3 {
                assert_eq!(bench.server_of(&request), 1);
                bench.expect(&answer, Verdict::Transmit, &back(&answer, &request));
                bench.expect_untouched(&question);
                bench.expect_untouched(&answer);
            }
            // Other ports, and other real servers' answers, are not concerned.
            let other = opening(service(family, Protocol::Udp), 1001);
            bench.server_of(&other);
            bench.expect_untouched(&question);
            let (_, answer) = direct(family.client(1001), real, Protocol::Udp, 0);
            bench.expect(&answer, Verdict::Transmit, &back(&answer, &other));
        }
    });
}

/// Serves what is served already, with or without `stateless_replies`.
fn serve_statelessly(bench: &mut Bench, is_stateless: bool) {
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            let policy = Policy { stateless_replies: is_stateless, ..Policy::new(Scheduler::Rr) };
            let real = real_server(family, ForwardingMethod::Nat, 1);
            bench.serve_by(&policy, service(family, protocol), ForwardingMethod::Nat, &[(real, 1)]);
        }
    }
}

#[test]
fn without_a_connection_an_answer_is_rewritten_only_where_that_was_asked_for() {
    in_namespace(|| {
        if !lab::available() {
            return;
        }
        routes::connect_clients();
        let mut bench = Bench::serving(ForwardingMethod::Nat, 1);
        for is_stateless in [false, true] {
            serve_statelessly(&mut bench, is_stateless);
            for family in FAMILIES {
                for protocol in PROTOCOLS {
                    let request = opening(service(family, protocol), 1000);
                    let real = real_server(family, ForwardingMethod::Nat, 1);
                    let answer = answer(&request, real, 1, ACK | PSH).payload(b"lost");
                    if is_stateless {
                        let expected = back(&answer, &request).macs(routes::OUT_MAC, routes::NEIGHBOUR_MAC);
                        bench.expect(&answer, Verdict::Redirect, &expected);
                        bench.expect_drop(&Frame { ttl: 1, ..answer.clone() }.bytes(), DropReason::TtlExpired);
                        let stranger = Frame { destination: SocketAddr::new(family.stranger(), 9), ..answer };
                        bench.expect_drop(&stranger.bytes(), DropReason::NoNeighbour);
                    } else {
                        bench.expect_untouched(&answer);
                    }
                }
            }
        }
        // Another virtual server with the same real server: nobody knows whose answer it is.
        let family = Family::V4;
        let other = Service { address: SocketAddr::new(family.vip(1), PORT), protocol: Protocol::Tcp };
        let real = real_server(family, ForwardingMethod::Nat, 1);
        bench.serve(other, ForwardingMethod::Nat, &[(real, 1)]);
        let request = opening(service(family, Protocol::Tcp), 1000);
        bench.expect_untouched(&answer(&request, real, 1, ACK | PSH));
        bench.withdraw(other);
        let answer = answer(&request, real, 1, ACK | PSH);
        bench.expect(&answer, Verdict::Redirect, &back(&answer, &request).macs(routes::OUT_MAC, routes::NEIGHBOUR_MAC));
    });
}
