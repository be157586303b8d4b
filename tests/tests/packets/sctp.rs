//! SCTP by `dr` and `tun`: what an association is to the director, and what it answers where it knows none.

use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::real::CountChunk;
use lb_common::service::{ForwardingMethod, Refusal, Scheduler};
use lb_userspace::model::{Policy, Service};

use super::bench::{Bench, Verdict, assert_same, in_namespace, timeout};
use super::decapsulation::{Decapsulator, counted};
use super::forwarding::carried;
use super::frame::{ACK, Frame, PSH, Transport};
use super::scene::{FAMILIES, Family, INGRESS, real_mac, real_server, service};
use super::sctp_frame::{Chunk, INITIATE_TAG, TAG, checksum, kind, saying};

const METHODS: [ForwardingMethod; 2] = [ForwardingMethod::Dr, ForwardingMethod::Tun];

fn sctp(family: Family) -> Service {
    service(family, Protocol::Sctp)
}

/// The first VIP's SCTP on real servers 1 and 2.
fn serving_by(policy: &Policy, family: Family, method: ForwardingMethod) -> Bench {
    let mut bench = Bench::empty();
    (1..=2).for_each(|n| bench.way(family, n, INGRESS, 1500));
    let reals: Vec<_> = (1..=2).map(|n| (real_server(family, method, n), 1)).collect();
    bench.serve_by(policy, sctp(family), method, &reals);
    bench
}

fn serving(family: Family, method: ForwardingMethod) -> Bench {
    serving_by(&Policy::new(Scheduler::Rr), family, method)
}

/// A packet of the client's `port` with chunks of these types.
fn packet(family: Family, port: u16, kinds: &[u8]) -> Frame {
    Frame::sctp(family.client(port), sctp(family).address, kinds)
}

/// Active and inactive associations of the real servers.
fn counts(bench: &mut Bench) -> [(u32, u32); 2] {
    let lanes = bench.get::<CountChunk>("server_counts", 0).lanes;
    [0, 1].map(|lane| (lanes[lane].active, lanes[lane].inactive))
}

#[test]
fn packets_leave_with_nothing_changed_but_what_the_method_changes() {
    in_namespace(|| {
        let decapsulator = Decapsulator::load();
        for family in FAMILIES {
            let bench = serving(family, ForwardingMethod::Dr);
            for kinds in [&[kind::INIT][..], &[kind::COOKIE_ECHO, kind::DATA], &[kind::SACK, kind::DATA]] {
                let packet = packet(family, 1000, kinds).payload(b"odd");
                bench.expect(&packet, Verdict::Transmit, &packet.sent_on(real_mac(1)));
            }
            for outer in FAMILIES {
                let mut bench = Bench::empty();
                bench.way(outer, 1, INGRESS, 1500);
                let method = ForwardingMethod::Tun;
                bench.serve(sctp(family), method, &[(real_server(outer, method, 1), 1)]);
                for kinds in [&[kind::INIT][..], &[kind::COOKIE_ECHO, kind::DATA], &[kind::SACK, kind::DATA]] {
                    let packet = packet(family, 1000, kinds).payload(b"odd");
                    let expected = carried(&packet, outer);
                    bench.expect(&packet, Verdict::Transmit, &expected);
                    let unwrapped = Frame { outer: None, ..expected.clone() };
                    decapsulator.expect(&expected.bytes(), &unwrapped.bytes(), counted(family, outer));
                }
            }
        }
    });
}

#[test]
fn an_association_stays_with_its_real_server_and_counts_as_active_while_it_is_established() {
    in_namespace(|| {
        for (family, method) in FAMILIES.into_iter().flat_map(|family| METHODS.map(|method| (family, method))) {
            let mut bench = serving(family, method);
            let steps = [
                // INIT, also sent again; COOKIE ECHO establishes; SHUTDOWN ends, and what follows does not bring it back.
                (&[kind::INIT][..], (0, 1)),
                (&[kind::INIT], (0, 1)),
                (&[kind::COOKIE_ECHO], (1, 0)),
                (&[kind::SACK, kind::DATA], (1, 0)),
                (&[kind::HEARTBEAT], (1, 0)),
                // A restart of the client's stack (RFC 9260 §5.2.2) is the same association's.
                (&[kind::INIT], (1, 0)),
                (&[kind::SACK, kind::SHUTDOWN], (0, 1)),
                (&[kind::SACK], (0, 1)),
                (&[kind::SHUTDOWN_COMPLETE], (0, 1)),
            ];
            for (kinds, expected) in steps {
                assert_eq!(bench.server_of(&packet(family, 1000, kinds)), 1, "{kinds:?}");
                assert_eq!(counts(&mut bench), [expected, (0, 0)], "{kinds:?}");
            }
            // A new one of the same client, in its place.
            assert_eq!(bench.server_of(&packet(family, 1000, &[kind::INIT])), 2);
            assert_eq!(counts(&mut bench), [(0, 0), (0, 1)]);
        }
    });
}

#[test]
fn every_chunk_that_ends_an_association_ends_it() {
    in_namespace(|| {
        for family in FAMILIES {
            let ends = [
                (&[kind::SHUTDOWN][..], timeout::CLOSING),
                (&[kind::SHUTDOWN_ACK], timeout::CLOSING),
                (&[kind::SHUTDOWN_COMPLETE], timeout::RESET),
                (&[kind::ABORT], timeout::RESET),
                // An ABORT may follow others (RFC 9260 §3.3.7).
                (&[kind::COOKIE_ECHO, kind::ABORT], timeout::RESET),
            ];
            for (kinds, lasts) in ends {
                let mut bench = serving(family, ForwardingMethod::Dr);
                for kinds in [&[kind::INIT][..], &[kind::COOKIE_ECHO], &[kind::DATA], kinds] {
                    assert_eq!(bench.server_of(&packet(family, 1000, kinds)), 1);
                }
                assert_eq!(counts(&mut bench)[0], (0, 1), "{kinds:?}");
                bench.age(lasts - 2);
                assert_eq!(bench.server_of(&packet(family, 1000, &[kind::SACK])), 1, "{kinds:?}");
                bench.age(lasts + 2);
                bench.expect_refusal(&packet(family, 1000, &[kind::SACK]).bytes(), DropReason::NoConnection);
            }
        }
    });
}

/// TCP's times: half-open, then as an established connection.
#[test]
fn an_association_lasts_as_long_as_a_tcp_connection() {
    in_namespace(|| {
        for family in FAMILIES {
            let stages = [(&[kind::INIT][..], timeout::HALF_OPEN), (&[kind::COOKIE_ECHO], timeout::ESTABLISHED)];
            for (stage, (_, lasts)) in stages.iter().enumerate() {
                let mut bench = serving(family, ForwardingMethod::Dr);
                for (kinds, _) in &stages[..=stage] {
                    assert_eq!(bench.server_of(&packet(family, 1000, kinds)), 1);
                }
                bench.age(lasts + 2);
                bench.expect_refusal(&packet(family, 1000, &[kind::SACK]).bytes(), DropReason::NoConnection);
            }
        }
    });
}

#[test]
fn chunks_out_of_the_blue_get_an_abort_with_their_own_tag() {
    in_namespace(|| {
        for family in FAMILIES {
            let bench = serving(family, ForwardingMethod::Dr);
            let transport = if family == Family::V4 { 34 } else { 54 };
            let answered = [
                (kind::DATA, kind::ABORT),
                (kind::SACK, kind::ABORT),
                (kind::HEARTBEAT, kind::ABORT),
                (kind::COOKIE_ECHO, kind::ABORT),
                (kind::INIT_ACK, kind::ABORT),
                (kind::SHUTDOWN, kind::ABORT),
                (kind::SHUTDOWN_ACK, kind::SHUTDOWN_COMPLETE),
                (0xc1, kind::ABORT),
            ];
            for (kind, answer) in answered {
                let request = packet(family, 1000, &[kind]);
                let sent = bench.send(&request);
                assert_eq!((sent.verdict, sent.dropped), (Verdict::Transmit, Some(DropReason::NoConnection)), "{kind}");
                let segment = &sent.frame[transport..];
                // Ports the other way round, tag, then the chunk with the T bit.
                assert_eq!(segment[..8], [&[0, 80, 3, 232][..], &TAG.to_be_bytes()].concat());
                assert_eq!(segment[12..], [answer, 1, 0, 4]);
                let without_sum = [&segment[..8], &[0; 4], &segment[12..]].concat();
                assert_eq!(segment[8..12], checksum(&without_sum));
                // And every other byte.
                bench.expect_refusal(&request.bytes(), DropReason::NoConnection);
            }
            for silent in [kind::ABORT, kind::SHUTDOWN_COMPLETE, kind::COOKIE_ACK, kind::ERROR] {
                bench.expect_drop(&packet(family, 1000, &[silent]).bytes(), DropReason::NoConnection);
            }
            bench.expect_drop(&packet(family, 1000, &[kind::SACK, kind::ABORT]).bytes(), DropReason::NoConnection);
        }
    });
}

#[test]
fn an_init_that_finds_no_real_server_gets_an_abort_with_the_tag_that_it_asks_for() {
    in_namespace(|| {
        for family in FAMILIES {
            let mut bench = Bench::empty();
            bench.serve(sctp(family), ForwardingMethod::Dr, &[]);
            let request = packet(family, 1000, &[kind::INIT]);
            let sent = bench.send(&request);
            assert_eq!((sent.verdict, sent.dropped), (Verdict::Transmit, Some(DropReason::NoRealServer)));
            let transport = if family == Family::V4 { 34 } else { 54 };
            assert_eq!(sent.frame[transport + 4..transport + 8], INITIATE_TAG.to_be_bytes());
            assert_eq!(sent.frame[transport + 12..], [kind::ABORT, 0, 0, 4]);
            bench.expect_refusal(&request.bytes(), DropReason::NoRealServer);
            // One that is too short for a tag.
            let cut = Transport::Sctp { chunks: vec![Chunk { kind: kind::INIT, flags: 0, value: vec![] }] };
            bench.expect_drop(&Frame { transport: cut, ..request }.bytes(), DropReason::NoRealServer);
        }
    });
}

#[test]
fn silence_is_kept_where_it_is_asked_for() {
    in_namespace(|| {
        for family in FAMILIES {
            let silent = Policy {
                unknown_connection: Refusal::Drop,
                no_real_server: Refusal::Drop,
                ..Policy::new(Scheduler::Rr)
            };
            let mut bench = serving_by(&silent, family, ForwardingMethod::Tun);
            bench.expect_drop(&packet(family, 1000, &[kind::DATA]).bytes(), DropReason::NoConnection);
            bench.serve_by(&silent, sctp(family), ForwardingMethod::Tun, &[]);
            bench.expect_drop(&packet(family, 1000, &[kind::INIT]).bytes(), DropReason::NoRealServer);
        }
    });
}

#[test]
fn hashing_takes_an_association_up_in_mid_stream() {
    in_namespace(|| {
        for family in FAMILIES {
            let mut bench = serving_by(&Policy::new(Scheduler::Mh), family, ForwardingMethod::Dr);
            let n = bench.server_of(&packet(family, 1000, &[kind::DATA]));
            assert_eq!(counts(&mut bench)[usize::from(n) - 1], (1, 0));
        }
    });
}

#[test]
fn a_packet_too_short_for_a_chunk_is_malformed() {
    in_namespace(|| {
        for family in FAMILIES {
            let bench = serving(family, ForwardingMethod::Dr);
            let none = Frame { transport: Transport::Sctp { chunks: vec![] }, ..packet(family, 1000, &[]) };
            bench.expect_drop(&none.bytes(), DropReason::Malformed);
        }
    });
}

/// The same VIP and port by TCP and by SCTP are two virtual servers.
#[test]
fn protocols_are_kept_apart() {
    in_namespace(|| {
        for family in FAMILIES {
            let mut bench = Bench::serving(ForwardingMethod::Dr, 1);
            let data = packet(family, 1000, &[kind::DATA]);
            bench.expect_untouched(&data);
            bench.open(family, 1000);
            bench.expect_untouched(&data);
            bench.way(family, 2, INGRESS, 1500);
            bench.serve(sctp(family), ForwardingMethod::Dr, &[(real_server(family, ForwardingMethod::Dr, 2), 1)]);
            bench.expect_refusal(&data.bytes(), DropReason::NoConnection);
            assert_eq!(bench.server_of(&packet(family, 1000, &[kind::INIT])), 2);
            let segment = Frame::tcp(family.client(1000), service(family, Protocol::Tcp).address, ACK);
            assert_eq!(bench.server_of(&segment), 1);
        }
    });
}

#[test]
fn the_builder_pads_chunks_and_says_what_tcp_would() {
    let frame =
        Frame::new(Family::V4.client(1000), sctp(Family::V4).address, Transport::Sctp { chunks: saying(ACK | PSH) });
    let bytes = frame.bytes();
    // A SACK of 16 bytes, a DATA chunk of 4 + 17 bytes and three of padding.
    assert_eq!(bytes.len(), 14 + 20 + 12 + 16 + 24);
    assert_eq!(bytes[34 + 12 + 16..34 + 12 + 20], [kind::DATA, 0, 0, 21]);
    assert_same(&bytes[bytes.len() - 3..], &[0; 3], &"padding");
}
