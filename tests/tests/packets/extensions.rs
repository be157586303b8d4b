//! What may stand between the IP header and the transport header: IPv6 extension headers, IPv4 options.

use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;

use super::bench::{Bench, Verdict, in_namespace};
use super::forwarding::{translated, tunnelled};
use super::frame::{ACK, Frame, SYN};
use super::replies::back;
use super::scene::{FAMILIES, Family, METHODS, PROTOCOLS, answer, opening, real_mac, real_server, service};

/// Number and contents of an extension header.
type Extension = (u8, Vec<u8>);

/// PadN of 4 bytes, in hop-by-hop (0) or destination options (60).
fn options(number: u8) -> Extension {
    (number, vec![0, 0, 1, 4, 0, 0, 0, 0])
}

/// A routing header of type 4 with one segment, of which so many are left (RFC 8754 §2).
fn routing(left: u8) -> Extension {
    (43, [vec![0, 2, 4, left, 0, 0, 0, 0], vec![0x20; 16]].concat())
}

/// RFC 4302 §2.
fn authentication() -> Extension {
    (51, [vec![0, 4], vec![9; 22]].concat())
}

/// A fragment that is the whole packet (RFC 6946).
fn atomic() -> Extension {
    (44, vec![0, 0, 0, 0, 0, 0, 0, 1])
}

/// What `method` makes of `packet`.
fn forwarded(method: ForwardingMethod, packet: &Frame, family: Family) -> Frame {
    match method {
        ForwardingMethod::Nat => translated(packet, family),
        ForwardingMethod::Dr => packet.sent_on(real_mac(1)),
        ForwardingMethod::Tun => tunnelled(packet, family),
    }
}

fn chains() -> Vec<Vec<Extension>> {
    vec![
        vec![options(0)],
        vec![options(60)],
        vec![(60, [vec![0, 2, 1, 20], vec![0; 20]].concat())],
        vec![routing(0)],
        vec![atomic()],
        vec![options(0), options(60), routing(0), atomic(), options(60)],
        vec![options(60); 8],
        // Nearly as many as fit into 1500 bytes before a TCP header and an outer one.
        vec![options(60); 170],
    ]
}

#[test]
fn ipv6_packets_with_extension_headers_are_served() {
    in_namespace(|| {
        for method in METHODS {
            let bench = Bench::serving(method, 1);
            for protocol in PROTOCOLS {
                for extensions in chains() {
                    let packet = opening(service(Family::V6, protocol), 1000).payload(b"odd");
                    let packet = Frame { extensions, class: 0x28, ..packet };
                    bench.expect(&packet, Verdict::Transmit, &forwarded(method, &packet, Family::V6));
                    let padded = Frame { padding: vec![0xee; 6], ..packet.clone() };
                    bench.expect(&padded, Verdict::Transmit, &forwarded(method, &padded, Family::V6));
                    let to_another_port = Frame { destination: (packet.destination.ip(), 81).into(), ..packet };
                    bench.expect_untouched(&to_another_port);
                }
            }
        }
    });
}

#[test]
fn nat_answers_with_extension_headers_or_options_come_from_the_vip() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            for protocol in PROTOCOLS {
                let request = opening(service(family, protocol), 1000);
                bench.server_of(&request);
                let plain = answer(&request, real_server(family, ForwardingMethod::Nat, 1), 1, SYN | ACK).payload(b"x");
                let answers: Vec<Frame> = match family {
                    Family::V4 => vec![Frame { options: vec![0x94, 4, 0, 0, 1, 1, 1, 0], ..plain }],
                    Family::V6 => {
                        chains().into_iter().map(|extensions| Frame { extensions, ..plain.clone() }).collect()
                    }
                };
                for answer in answers {
                    bench.expect(&answer, Verdict::Transmit, &back(&answer, &request));
                }
            }
        }
    });
}

#[test]
fn what_an_authentication_header_covers_is_left_as_it_is_or_dropped() {
    in_namespace(authenticated);
}

pub fn authenticated() {
    for method in METHODS {
        let bench = Bench::serving(method, 1);
        for protocol in PROTOCOLS {
            let plain = opening(service(Family::V6, protocol), 1000);
            let packet = Frame { extensions: vec![authentication()], ..plain.clone() };
            match method {
                ForwardingMethod::Nat => bench.expect_drop(&packet.bytes(), DropReason::ExtensionHeader),
                ForwardingMethod::Dr | ForwardingMethod::Tun => {
                    bench.expect(&packet, Verdict::Transmit, &forwarded(method, &packet, Family::V6));
                }
            }
            if method == ForwardingMethod::Nat {
                bench.server_of(&plain);
                let answer = answer(&plain, real_server(Family::V6, method, 1), 1, SYN | ACK);
                let answer = Frame { extensions: vec![authentication()], ..answer };
                bench.expect_drop(&answer.bytes(), DropReason::ExtensionHeader);
            }
        }
    }
}

#[test]
fn whose_sender_prescribes_the_route_is_dropped() {
    in_namespace(source_routes);
}

pub fn source_routes() {
    // Loose and strict, each with one address that is yet to come, and with one that has been visited (RFC 791 §3.1).
    let routes = [131, 137].into_iter().flat_map(|kind| [4, 8].map(|pointer| vec![kind, 7, pointer, 10, 0, 0, 1, 0]));
    let behind_others = routes.clone().map(|route| [&[1, 0x94, 4, 0, 0, 1, 1, 1][..], &route].concat());
    let routes: Vec<Vec<u8>> = routes.chain(behind_others).collect();
    for method in METHODS {
        let bench = Bench::serving(method, 1);
        for protocol in PROTOCOLS {
            let packet = opening(service(Family::V4, protocol), 1000);
            for options in routes.clone() {
                let routed = Frame { options: options.clone(), ..packet.clone() };
                bench.expect_drop(&routed.bytes(), DropReason::SourceRoute);
                bench.expect_untouched(&Frame { destination: (packet.destination.ip(), 81).into(), ..routed });
                if method == ForwardingMethod::Nat {
                    bench.server_of(&packet);
                    let answer = answer(&packet, real_server(Family::V4, method, 1), 1, SYN | ACK);
                    bench.expect_drop(&Frame { options, ..answer }.bytes(), DropReason::SourceRoute);
                }
            }
            // What looks like one but is behind the end of the list, or inside another option.
            for options in [vec![0, 131, 7, 4], vec![0x44, 8, 131, 7, 4, 137, 3, 4]] {
                let packet = Frame { options, ..packet.clone() };
                bench.expect(&packet, Verdict::Transmit, &forwarded(method, &packet, Family::V4));
            }
            let to_visit = Frame { extensions: vec![routing(1)], ..opening(service(Family::V6, protocol), 1000) };
            bench.expect_drop(&to_visit.bytes(), DropReason::SourceRoute);
            let behind = Frame { extensions: vec![options(0), routing(3), options(60)], ..to_visit };
            bench.expect_drop(&behind.bytes(), DropReason::SourceRoute);
        }
    }
}

#[test]
fn options_that_contradict_the_header_are_malformed() {
    in_namespace(malformed_options);
}

pub fn malformed_options() {
    for method in METHODS {
        let bench = Bench::serving(method, 1);
        // No length, none of the length itself, longer than the header; the last may begin in its last byte.
        for options in [vec![7, 0, 0, 0], vec![7, 1, 0, 0], vec![7, 5, 0, 0], vec![1, 1, 7, 3], vec![1, 1, 1, 7]] {
            let packet = Frame { options, ..opening(service(Family::V4, Protocol::Tcp), 1000) };
            bench.expect_drop(&packet.bytes(), DropReason::Malformed);
        }
    }
}

/// A rejection quotes the packet with its options; where extension headers are before the ports, there is none.
#[test]
fn packets_with_options_are_rejected_like_others() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Dr, 1);
        for family in FAMILIES {
            for protocol in PROTOCOLS {
                let service = service(family, protocol);
                bench.serve(service, ForwardingMethod::Dr, &[]);
                let packet = opening(service, 1000).payload(b"question");
                match family {
                    Family::V4 => {
                        let packet = Frame { options: [vec![0x94, 4, 0, 0], vec![1; 36]].concat(), ..packet };
                        bench.expect_refusal(&packet.bytes(), DropReason::NoRealServer);
                    }
                    Family::V6 => {
                        let packet = Frame { extensions: vec![options(60)], ..packet };
                        bench.expect_drop(&packet.bytes(), DropReason::NoRealServer);
                    }
                }
            }
        }
    });
}

/// As a driver gives frames that are larger than a page.
#[test]
fn frames_in_several_buffers_are_served() {
    in_namespace(|| {
        for method in METHODS {
            let mut bench = Bench::serving(method, 1);
            for family in FAMILIES {
                bench.way(family, 1, super::scene::INGRESS, 9000);
                for protocol in PROTOCOLS {
                    let payload: Vec<u8> = (0..=255).cycle().take(8800).collect();
                    let packet = opening(service(family, protocol), 1000).payload(&payload);
                    bench.expect(&packet, Verdict::Transmit, &forwarded(method, &packet, family));
                    let bytes = packet.bytes();
                    bench.expect_drop(&bytes[..bytes.len() - 1], DropReason::Malformed);
                    if method == ForwardingMethod::Nat {
                        let answer = answer(&packet, real_server(family, method, 1), 1, ACK).payload(&payload);
                        bench.expect(&answer, Verdict::Transmit, &back(&answer, &packet));
                    }
                }
                // One that is refused is answered by a frame in one buffer.
                let service = service(family, Protocol::Udp);
                bench.serve(service, method, &[]);
                let refused = opening(service, 1001).payload(&vec![7; 8000]);
                bench.expect_refusal(&refused.bytes(), DropReason::NoRealServer);
            }
        }
    });
}
