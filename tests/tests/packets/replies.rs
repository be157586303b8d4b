//! What becomes of a real server's answer with `nat`, on its way back through the director.

use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;

use super::bench::{Bench, Verdict, in_namespace};
use super::frame::{ACK, FIN, Frame, PSH, SYN, Transport};
use super::scene::{
    CLIENT_MAC, FAMILIES, Family, METHODS, OUR_MAC, PROTOCOLS, answer, opening, real_mac, real_server, service,
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
