//! Packets in fragments: they all go where the first goes, and what arrives is what the whole packet would have become.

use lb_common::counters::Counters;
use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;
use lb_userspace::host::jiffies_per_second;
use lb_userspace::model::{Policy, Removal};

use super::bench::{Bench, Verdict, assert_same, in_namespace};
use super::forwarding::{translated, tunnelled};
use super::frame::{ACK, Frame, Transport};
use super::oracle::Told;
use super::pieces::{cut, cut_behind, join};
use super::replies::back;
use super::scene::{
    CLIENT_MAC, FAMILIES, Family, INGRESS, METHODS, OUR_MAC, PROTOCOLS, answer, number_of, opening, real_mac,
    real_server, service,
};

const IDENTIFICATION: u32 = 0x9abc;

/// How the packets of these tests are cut: as TCP and UDP must be at least, as most are, and the rest.
const LENGTHS: [usize; 3] = [24, 1200, 512];

/// A packet that opens a connection, too large for one frame.
fn large(family: Family, protocol: Protocol, port: u16) -> Frame {
    let payload: Vec<u8> = (0..=250).cycle().take(3001).collect();
    let packet = opening(service(family, protocol), port).payload(&payload);
    Frame { dont_fragment: false, identification: 0x9abc, class: 0x28, flow_label: 0x1_2345, ..packet }
}

/// Its fragments.
fn fragments(packet: &Frame) -> Vec<Vec<u8>> {
    cut(&packet.bytes(), IDENTIFICATION, &LENGTHS)
}

/// What `method` makes of a packet for the first real server.
fn forwarded(method: ForwardingMethod, packet: &Frame, family: Family) -> Frame {
    match method {
        ForwardingMethod::Nat => translated(packet, family),
        ForwardingMethod::Dr | ForwardingMethod::Tun => packet.sent_on(real_mac(1)),
    }
}

/// Sends a fragment that must be sent on; what left.
#[track_caller]
fn sent(bench: &Bench, fragment: &[u8]) -> Vec<u8> {
    let sent = bench.send_bytes(fragment);
    assert_eq!((sent.verdict, sent.dropped), (Verdict::Transmit, None), "{fragment:02x?}");
    sent.frame
}

/// Sends a fragment that must go up to the host untouched.
#[track_caller]
fn passes(bench: &Bench, fragment: &[u8]) {
    let sent = bench.send_bytes(fragment);
    assert_eq!((sent.verdict, sent.dropped), (Verdict::Pass, None));
    assert_same(&sent.frame, fragment, &"the same");
}

/// The frame without its outer header, which must be that of a tunnel to the first real server.
fn unwrapped(frame: &[u8], family: Family) -> Vec<u8> {
    let (outer, number) = if family == Family::V4 { (20, frame[14 + 9]) } else { (40, frame[14 + 6]) };
    let source = if family == Family::V4 { &frame[26..30] } else { &frame[22..38] };
    let expected = match family.director() {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    assert_eq!((source, number), (expected.as_slice(), if family == Family::V4 { 4 } else { 41 }));
    [&frame[..14], &frame[14 + outer..]].concat()
}

#[test]
fn fragments_arrive_as_the_whole_packet_would() {
    in_namespace(|| {
        for method in METHODS {
            let bench = Bench::serving(method, 1);
            for family in FAMILIES {
                for protocol in PROTOCOLS {
                    let packet = large(family, protocol, 1000);
                    let out: Vec<Vec<u8>> = fragments(&packet).iter().map(|one| sent(&bench, one)).collect();
                    let out: Vec<Vec<u8>> = match method {
                        ForwardingMethod::Tun => out.iter().map(|one| unwrapped(one, family)).collect(),
                        ForwardingMethod::Nat | ForwardingMethod::Dr => out,
                    };
                    assert_eq!(out.len(), 4);
                    assert_same(&join(&out), &forwarded(method, &packet, family).bytes(), &packet);
                }
            }
        }
    });
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        let with = large(Family::V4, Protocol::Udp, 1000);
        let packet = Frame { transport: Transport::Udp { has_checksum: false }, ..with };
        let out: Vec<Vec<u8>> = fragments(&packet).iter().map(|one| sent(&bench, one)).collect();
        assert_same(&join(&out), &translated(&packet, Family::V4).bytes(), &packet);
    });
}

#[test]
fn outer_headers_of_fragments_are_those_of_packets() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Tun, 1);
        for family in FAMILIES {
            // The last has the least of a header.
            let packet = large(family, Protocol::Udp, 1000);
            let whole = tunnelled(&Frame { payload: Vec::new(), ..packet.clone() }, family).bytes();
            for fragment in fragments(&packet) {
                let mut out = sent(&bench, &fragment);
                // All but the lengths and IPv4's checksum over them.
                let outer = if family == Family::V4 { 14 + 20 } else { 14 + 40 };
                let differing = if family == Family::V4 { vec![16, 17, 24, 25] } else { vec![18, 19] };
                differing.into_iter().for_each(|at| out[at] = whole[at]);
                assert_same(&out[..outer], &whole[..outer], &fragment);
            }
        }
    });
}

/// The answer to `request` in fragments, and what the client is to get.
fn large_answer(family: Family, request: &Frame) -> (Vec<Vec<u8>>, Frame) {
    let real = real_server(family, ForwardingMethod::Nat, 1);
    let payload: Vec<u8> = (0..=240).rev().cycle().take(3000).collect();
    let answer = answer(request, real, 1, ACK).payload(&payload);
    let answer = Frame { dont_fragment: false, identification: 0x9abc, ..answer };
    (fragments(&answer), back(&answer, request))
}

#[test]
fn nat_answers_in_fragments_come_from_the_vip() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            for protocol in PROTOCOLS {
                let router = [0x02, 0, 0, 0, 0, 0x77];
                for (port, station) in [(1000, CLIENT_MAC), (1001, router)] {
                    let request = opening(service(family, protocol), port).macs(station, OUR_MAC);
                    bench.server_of(&request);
                    let (fragments, expected) = large_answer(family, &request);
                    let out: Vec<Vec<u8>> = fragments.iter().map(|one| sent(&bench, one)).collect();
                    assert_same(&join(&out), &expected.bytes(), &request);
                }
            }
        }
    });
}

#[test]
fn a_fragment_that_comes_before_the_first_is_dropped() {
    in_namespace(unknown_fragments);
}

pub fn unknown_fragments() {
    for method in METHODS {
        let bench = Bench::serving(method, 1);
        for family in FAMILIES {
            let fragments = fragments(&large(family, Protocol::Udp, 1000));
            bench.expect_drop(&fragments[1], DropReason::UnknownFragment);
            sent(&bench, &fragments[0]);
            for again in [3, 1, 2, 1] {
                sent(&bench, &fragments[again]);
            }
        }
    }
}

#[test]
fn a_nat_answers_fragment_that_comes_before_the_first_is_dropped() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            let request = opening(service(family, Protocol::Udp), 1000);
            bench.server_of(&request);
            let (fragments, _) = large_answer(family, &request);
            bench.expect_drop(&fragments[1], DropReason::UnknownFragment);
            sent(&bench, &fragments[0]);
            sent(&bench, &fragments[1]);
        }
    });
}

#[test]
fn after_thirty_seconds_the_first_is_forgotten() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Dr, 1);
        let ticks = u16::try_from((30 * jiffies_per_second()).div_ceil(256)).expect("fits");
        for family in FAMILIES {
            let fragments = fragments(&large(family, Protocol::Udp, 1000));
            sent(&bench, &fragments[0]);
            bench.steady_tick();
            bench.age(ticks - 1);
            sent(&bench, &fragments[1]);
            bench.age(2);
            bench.expect_drop(&fragments[2], DropReason::UnknownFragment);
            sent(&bench, &fragments[0]);
            sent(&bench, &fragments[2]);
        }
    });
}

/// Of two packets with the same identification the latter's fragments must not follow the former.
#[test]
fn what_follows_a_first_that_was_dropped_is_dropped() {
    in_namespace(|| {
        for method in METHODS {
            let bench = Bench::serving(method, 1);
            for family in FAMILIES {
                let packet = large(family, Protocol::Udp, 1000);
                fragments(&packet).iter().for_each(|fragment| drop(sent(&bench, fragment)));
                let expired = fragments(&Frame { ttl: 1, ..packet.clone() });
                bench.expect_told_of(&expired[0], family.vip(0), Told::Expired);
                bench.expect_drop(&fragments(&packet)[1], DropReason::UnknownFragment);
                sent(&bench, &fragments(&packet)[0]);
                bench.expect_drop(&expired[1], DropReason::TtlExpired);
            }
        }
    });
}

#[test]
fn an_identification_that_is_used_again_is_the_latters() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Dr, 3);
        for family in FAMILIES {
            let server = |frame: &[u8]| number_of(&sent(&bench, frame)[..6]).expect("a real server");
            let [one, two] = [1000, 1001].map(|port| fragments(&large(family, Protocol::Udp, port)));
            let first = server(&one[0]);
            assert_eq!(server(&one[1]), first);
            let second = server(&two[0]);
            assert_ne!(first, second, "the next in turn");
            assert_eq!(server(&one[2]), second);
        }
    });
}

#[test]
fn flows_with_the_same_identification_are_kept_apart() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 3);
        for family in FAMILIES {
            let [mut other, one] = [1000, 1001].map(|port| large(family, Protocol::Udp, port));
            other.source.set_ip(family.vip(77));
            let mut packets = vec![one, other];
            if family == Family::V4 {
                packets.push(large(family, Protocol::Tcp, 1000));
            }
            let cut: Vec<Vec<Vec<u8>>> = packets.iter().map(fragments).collect();
            let mut out = vec![Vec::new(); packets.len()];
            for part in 0..4 {
                for (pieces, out) in cut.iter().zip(&mut out) {
                    out.push(sent(&bench, &pieces[part]));
                }
            }
            for (out, packet) in out.iter().zip(&packets) {
                let n = number_of(&out[0][..6]).expect("a real server");
                let real = real_server(family, ForwardingMethod::Nat, n);
                let expected = Frame { destination: real, ..packet.sent_on(real_mac(n)) };
                assert_same(&join(out), &expected.bytes(), packet);
            }
        }
    });
}

#[test]
fn what_is_not_for_a_virtual_server_passes_in_any_order() {
    in_namespace(|| {
        for method in METHODS {
            let bench = Bench::serving(method, 1);
            for family in FAMILIES {
                let packet = large(family, Protocol::Udp, 1000);
                let elsewhere = Frame { destination: family.client(80), ..packet.clone() };
                fragments(&elsewhere).iter().rev().for_each(|fragment| passes(&bench, fragment));
                // Another port of the VIP: these are known by their first only.
                let to_the_host = Frame { destination: (family.vip(0), 81).into(), ..packet.clone() };
                fragments(&to_the_host).iter().for_each(|fragment| passes(&bench, fragment));
                // A protocol that is not balanced at all.
                let ping = Frame::new(family.client(0), packet.destination, Transport::Other { protocol: 50 });
                let ping = ping.payload(&packet.payload).bytes();
                cut(&ping, 1, &LENGTHS).iter().rev().for_each(|fragment| passes(&bench, fragment));
            }
        }
    });
}

#[test]
fn a_real_servers_own_traffic_passes_in_fragments() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            let real = real_server(family, ForwardingMethod::Nat, 1);
            // To nobody that has a connection, from the port of the service and from another.
            for port in [real.port(), 999] {
                let packet = Frame::udp((real.ip(), port).into(), family.client(53)).payload(&[1; 2000]);
                let packet = Frame { dont_fragment: false, ..packet.macs(real_mac(1), OUR_MAC) };
                fragments(&packet).iter().for_each(|fragment| passes(&bench, fragment));
            }
        }
    });
}

#[test]
fn fragments_of_a_real_server_that_is_gone_are_dropped() {
    in_namespace(|| {
        for method in METHODS {
            let mut bench = Bench::serving(method, 1);
            for family in FAMILIES {
                let service = service(family, Protocol::Udp);
                let fragments = fragments(&large(family, Protocol::Udp, 1000));
                sent(&bench, &fragments[0]);
                let policy =
                    Policy { removed_real_server: Removal::Expire, ..Policy::new(lb_common::service::Scheduler::Rr) };
                bench.serve_by(&policy, service, method, &[]);
                bench.expect_drop(&fragments[1], DropReason::UnknownFragment);
            }
        }
    });
}

#[test]
fn a_host_that_is_the_real_server_gets_all_fragments() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Dr, 1);
        for family in FAMILIES {
            bench.local(family, 1);
            fragments(&large(family, Protocol::Udp, 1000)).iter().for_each(|fragment| passes(&bench, fragment));
        }
    });
}

#[test]
fn fragments_count_as_packets_and_not_as_connections() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        let mut expected = Counters::default();
        for family in FAMILIES {
            let request = large(family, Protocol::Udp, 1000);
            let requests = fragments(&request);
            let (answers, _) = large_answer(family, &request);
            for frame in requests.iter().chain(&answers) {
                sent(&bench, frame);
            }
            let bytes = |frames: &[Vec<u8>]| frames.iter().map(|frame| frame.len() as u64 - 14).sum::<u64>();
            expected.connections += 1;
            expected.packets_in += 4;
            expected.packets_out += 4;
            expected.bytes_in += bytes(&requests);
            expected.bytes_out += bytes(&answers);
        }
        let mut counted = Counters::default();
        bench.datapath.statistics().expect("can be read").iter().for_each(|server| counted += server.counters);
        assert_eq!(counted, expected);
    });
}

#[test]
fn fragments_are_dropped_for_the_reasons_of_packets() {
    in_namespace(|| {
        for method in METHODS {
            let mut bench = Bench::serving(method, 1);
            for family in FAMILIES {
                let packet = large(family, Protocol::Udp, 1000);
                let fragments = fragments(&packet);
                sent(&bench, &fragments[0]);
                let expired = cut(&Frame { ttl: 1, ..packet }.bytes(), IDENTIFICATION, &LENGTHS);
                bench.expect_drop(&expired[1], DropReason::TtlExpired);
                bench.expect_drop(&fragments[1][..700], DropReason::Malformed);
                bench.way(family, 1, INGRESS, 1000);
                bench.expect_drop(&fragments[1], DropReason::PacketTooBig);
                sent(&bench, &fragments[2]);
                // No error is about any but the first, which quotes the ports.
                let overhead = match (method, family) {
                    (ForwardingMethod::Nat | ForwardingMethod::Dr, _) => 0,
                    (ForwardingMethod::Tun, Family::V4) => 20,
                    (ForwardingMethod::Tun, Family::V6) => 40,
                };
                let longer = cut(&large(family, Protocol::Udp, 1000).bytes(), IDENTIFICATION + 1, &[1200]);
                bench.expect_told_of(&longer[0], family.vip(0), Told::TooBig(1000 - overhead));
                bench.way(family, 1, INGRESS, 1500);
                sent(&bench, &fragments[1]);
            }
        }
    });
}

/// RFC 1858: the flags of a TCP segment are in its first fragment, and no other writes over them.
#[test]
fn tiny_and_overlapping_fragments_are_dropped() {
    in_namespace(tiny_fragments);
}

pub fn tiny_fragments() {
    for method in METHODS {
        let bench = Bench::serving(method, 1);
        for family in FAMILIES {
            let packet = large(family, Protocol::Tcp, 1000);
            for least in [8, 16] {
                let tiny = cut(&packet.bytes(), IDENTIFICATION, &[least]);
                bench.expect_drop(&tiny[0], DropReason::TinyFragment);
                bench.expect_drop(&tiny[1], DropReason::UnknownFragment);
                sent(&bench, &fragments(&packet)[0]);
                bench.expect_drop(&tiny[1], DropReason::TinyFragment);
                // UDP has all of its header in eight bytes.
                let datagram = large(family, Protocol::Udp, 1000).bytes();
                let identification = IDENTIFICATION + u32::from(family == Family::V6);
                cut(&datagram, identification, &[least, 1200, 1200])
                    .iter()
                    .for_each(|fragment| drop(sent(&bench, fragment)));
            }
            // Not even ports, and nothing at all.
            let first = fragments(&packet).swap_remove(0);
            let first_data = first.len() - 24;
            for left in [0, 2, 4] {
                let mut cut_off = first[..first_data + left].to_vec();
                let at = if family == Family::V4 { 16 } else { 18 };
                let length =
                    u16::from_be_bytes([cut_off[at], cut_off[at + 1]]) - 24 + u16::try_from(left).expect("small");
                cut_off[at..at + 2].copy_from_slice(&length.to_be_bytes());
                bench.expect_drop(&cut_off, DropReason::TinyFragment);
            }
        }
    }
}

#[test]
fn an_ipv6_packet_in_one_fragment_is_a_packet() {
    in_namespace(|| {
        for method in METHODS {
            let bench = Bench::serving(method, 1);
            for protocol in PROTOCOLS {
                let packet = opening(service(Family::V6, protocol), 1000).payload(b"atomic");
                let packet = Frame { extensions: vec![(44, vec![0, 0, 0, 0, 1, 2, 3, 4])], ..packet };
                let expected = match method {
                    ForwardingMethod::Tun => tunnelled(&packet, Family::V6),
                    ForwardingMethod::Nat | ForwardingMethod::Dr => forwarded(method, &packet, Family::V6),
                };
                bench.expect(&packet, Verdict::Transmit, &expected);
            }
        }
    });
}

#[test]
fn extension_headers_before_and_behind_the_fragment_header_are_kept() {
    in_namespace(|| {
        for method in [ForwardingMethod::Nat, ForwardingMethod::Dr] {
            let bench = Bench::serving(method, 1);
            let packet = large(Family::V6, Protocol::Udp, 1000);
            let options = |number| (number, vec![0, 0, 1, 4, 0, 0, 0, 0]);
            let packet = Frame { extensions: vec![options(0), options(60)], ..packet };
            let pieces = cut_behind(&packet.bytes(), 14 + 40 + 8, 0xdead_beef, &[24, 1200, 512]);
            let out: Vec<Vec<u8>> = pieces.iter().map(|one| sent(&bench, one)).collect();
            assert_same(&join(&out), &forwarded(method, &packet, Family::V6).bytes(), &packet);
        }
    });
}
