//! Frames that no well-behaved station sends: cut, random, and good ones with a few bytes changed; 100,000, or as many as
//! `EVENKEEL_PACKETS` says.
//!
//! Whatever comes goes up untouched or is dropped and counted once; it is sent on only where [`oracle`] calls it a good
//! packet of a virtual server, and then it leaves as the oracle says. The kernel takes no test frame below 14 bytes.

use std::env;
use std::fmt::Debug;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;
use lb_userspace::model::{Access, Service};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;

use super::bench::{Bench, Sent, Verdict, assert_same, in_namespace};
use super::frame::{ACK, FIN, Frame, PSH, RST, SYN, Transport};
use super::icmp;
use super::oracle::{self, Change, Examined, Reading, Told};
use super::quotation;
use super::scene::{FAMILIES, Family, INGRESS, OUR_MAC, PORT, PROTOCOLS, number_of, real_mac, real_server};
use super::sctp_frame::saying;

/// Of each of the five kinds: what `cargo xtask test --packets` says.
fn cases() -> u32 {
    let packets = env::var("EVENKEEL_PACKETS").map(|text| text.parse().expect("EVENKEEL_PACKETS is a number"));
    packets.unwrap_or(100_000) / 5
}

/// Real servers of each virtual server.
const SERVERS: u8 = 2;

/// How real servers are reached, and whether they are of the other family.
const WAYS: [(ForwardingMethod, bool); 4] = [
    (ForwardingMethod::Nat, false),
    (ForwardingMethod::Dr, false),
    (ForwardingMethod::Tun, false),
    (ForwardingMethod::Tun, true),
];

/// The VIP of the way with this index has its number; behind it are two real servers of its own.
fn served(family: Family, way: usize, protocol: Protocol) -> Service {
    let vip = family.vip(u8::try_from(way).expect("one of four"));
    Service { address: (vip, PORT).into(), protocol }
}

/// The `which`-th real server of the way with this index.
fn real_number(way: usize, which: u8) -> u8 {
    u8::try_from(way).expect("one of four") * SERVERS + which
}

/// The family of the real servers of the way with this index, of a virtual server of `family`.
fn family_behind(way: usize, family: Family) -> Family {
    match (WAYS[way], family) {
        ((_, false), same) => same,
        ((_, true), Family::V4) => Family::V6,
        ((_, true), Family::V6) => Family::V4,
    }
}

/// Whom a way's virtual servers deny: the stranger by a prefix that the client is not in, or nobody.
fn denied(way: usize, family: Family) -> Option<&'static str> {
    match (way, family) {
        (0 | 3, Family::V4) => Some("192.0.2.64/26"),
        (0 | 3, Family::V6) => Some("2001:db8:11:2233:4455:66:bad:0/112"),
        _ => None,
    }
}

/// Whether a client of a way's virtual servers is denied.
fn is_denied(way: usize, client: IpAddr) -> bool {
    let family = if client.is_ipv4() { Family::V4 } else { Family::V6 };
    denied(way, family).is_some_and(|prefix| prefix.parse::<IpNet>().expect("a prefix").contains(&client))
}

/// Every way, in both families, by every protocol that it can carry.
fn everything() -> Bench {
    let mut bench = Bench::empty();
    for family in FAMILIES {
        (1..=real_number(WAYS.len(), 0)).for_each(|n| bench.way(family, n, INGRESS, 1500));
    }
    for family in FAMILIES {
        for (index, (method, _)) in WAYS.into_iter().enumerate() {
            let numbers = (1..=SERVERS).map(|which| real_number(index, which));
            let reals: Vec<_> = numbers.map(|n| (real_server(family_behind(index, family), method, n), 1)).collect();
            let denied = denied(index, family).map(|prefix| (prefix, Access::Denied));
            for protocol in Protocol::ALL.into_iter().filter(|protocol| is_served(method, *protocol)) {
                let service = served(family, index, protocol);
                bench.serve(service, method, &reals);
                bench.restrict(service, denied.as_slice());
            }
        }
    }
    bench
}

/// SCTP cannot be translated.
fn is_served(method: ForwardingMethod, protocol: Protocol) -> bool {
    method != ForwardingMethod::Nat || protocol != Protocol::Sctp
}

/// A frame out of `sent_on` was a good packet of a virtual server, and is what forwarding makes of it.
fn check_forwarded(input: &[u8], sent: &Sent) {
    let Some(reading) = oracle::read(input) else { return check_error(input, sent) };
    let (way, service) = match service_of(&reading) {
        Some(found) => found,
        None => return check_answer(input, &reading, sent),
    };
    let n = number_of(&sent.frame[..6]).expect("the address of a real server");
    assert!((1..=SERVERS).any(|which| real_number(way, which) == n), "real server {n} is not of {service}");
    assert!(!is_denied(way, reading.source.ip()), "sent on for a denied client");
    let real = real_server(family_behind(way, reading.family), WAYS[way].0, n);
    let changed = |change, actual: &[u8]| {
        let frame = reading.forwarded(input, change, actual);
        [&real_mac(n), &OUR_MAC, &frame[12..]].concat()
    };
    let expected = match WAYS[way].0 {
        ForwardingMethod::Nat => changed(Change::Destination(real), &sent.frame),
        ForwardingMethod::Dr => changed(Change::Nothing, &sent.frame),
        ForwardingMethod::Tun => {
            let (behind, inner) = unwrapped(way, reading.family, &sent.frame);
            reading.wrapped(&changed(Change::Nothing, &inner), behind.director(), real.ip())
        }
    };
    assert_same(&sent.frame, &expected, &"a request");
}

/// The family of the outer header of what was tunnelled, and the frame without that header.
fn unwrapped(way: usize, family: Family, frame: &[u8]) -> (Family, Vec<u8>) {
    let behind = family_behind(way, family);
    let (outer, ethertype) = if behind == Family::V4 { (20, [0x08, 0x00]) } else { (40, [0x86, 0xdd]) };
    assert_eq!(frame[12..14], ethertype);
    let inner = if family == Family::V4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    (behind, [&frame[..12], &inner, &frame[14 + outer..]].concat())
}

/// As [`check_forwarded`], for what is not to a virtual server: it must be from a real server reached by `nat`.
fn check_answer(input: &[u8], reading: &Reading, sent: &Sent) {
    let mut reals =
        (1..=SERVERS).map(|which| real_server(reading.family, ForwardingMethod::Nat, real_number(0, which)));
    assert!(reals.any(|real| real == reading.source), "sent on, but of no virtual server");
    let vip = served(reading.family, 0, Protocol::Tcp).address;
    let frame = reading.forwarded(input, Change::Source(vip), &sent.frame);
    // To whichever station the request came from.
    assert_same(&sent.frame, &[&sent.frame[..6], &OUR_MAC, &frame[12..]].concat(), &"an answer");
}

/// A frame out of `sent_on` was an ICMP error about a packet of a virtual server, and is what forwarding makes of it.
fn check_error(input: &[u8], sent: &Sent) {
    let quotation = quotation::read(input).unwrap_or_else(|| panic!("sent on, but it is no good packet"));
    assert_eq!(quotation.fault, None);
    let answer = quotation.answer;
    let changed = |change, actual: &[u8]| {
        let frame = quotation.forwarded(input, change, actual);
        [&actual[..6], &OUR_MAC, &frame[12..]].concat()
    };
    let Some((way, _)) = service_of(&answer) else {
        let vip = served(answer.family, 0, Protocol::Tcp).address;
        return assert_same(&sent.frame, &changed(Change::Source(vip), &sent.frame), &"an error to a client");
    };
    let n = number_of(&sent.frame[..6]).expect("the address of a real server");
    assert!((1..=SERVERS).any(|which| real_number(way, which) == n), "real server {n} is not of the virtual server");
    let real = real_server(family_behind(way, answer.family), WAYS[way].0, n);
    let expected = match WAYS[way].0 {
        ForwardingMethod::Nat => changed(Change::Destination(real), &sent.frame),
        ForwardingMethod::Dr => changed(Change::Nothing, &sent.frame),
        ForwardingMethod::Tun => {
            let (behind, inner) = unwrapped(way, answer.family, &sent.frame);
            answer.wrapped(&changed(Change::Nothing, &inner), behind.director(), real.ip())
        }
    };
    assert_same(&sent.frame, &expected, &"an error to a real server");
}

/// The virtual server that a packet is to, and the index of its way.
fn service_of(reading: &Reading) -> Option<(usize, Service)> {
    let protocol = Protocol::ALL.into_iter().find(|protocol| *protocol as u32 == u32::from(reading.protocol))?;
    let ways = (0..WAYS.len()).filter(|way| is_served(WAYS[*way].0, protocol));
    let mut all = ways.map(|way| (way, served(reading.family, way, protocol)));
    all.find(|(_, service)| service.address == reading.destination)
}

/// A frame that may be good: it passes as it is, is dropped, or is forwarded as it should be.
fn check(bench: &Bench, input: &[u8]) -> Sent {
    let sent = bench.send_bytes(input);
    match sent.verdict {
        Verdict::Pass => assert_same(&sent.frame, input, &"what passed"),
        Verdict::Drop => {}
        Verdict::Transmit => match sent.dropped {
            None => check_forwarded(input, &sent),
            Some(_) => check_refused(input, &sent),
        },
        Verdict::Redirect | Verdict::Aborted => panic!("{:?}, but there is no other interface", sent.verdict),
    }
    // The other way round: only a list stands against a good packet that opens a connection.
    if let Some(reading) = oracle::read(input)
        && let Some((way, _)) = service_of(&reading)
        && (reading.protocol == 17 || reading.is_syn(input))
    {
        let is_denied = is_denied(way, reading.source.ip());
        let expected = if is_denied { (Verdict::Drop, Some(DropReason::Denied)) } else { (Verdict::Transmit, None) };
        assert_eq!((sent.verdict, sent.dropped), expected);
    }
    sent
}

/// An answer is made to good packets of virtual servers only, and to those whose time has run out. What is refused has come to
/// its end, and needs no more time.
fn check_refused(input: &[u8], sent: &Sent) {
    let Examined::Packet { reading, fault } = oracle::examine(input) else { panic!("answered, but it has no ports") };
    assert!(matches!(fault, None | Some(DropReason::TtlExpired)), "answered, but it is no good packet");
    if sent.dropped == Some(DropReason::TtlExpired) {
        assert_eq!(fault, sent.dropped);
        let answered = |way| {
            let vip = served(reading.family, way, Protocol::Tcp).address.ip();
            sent.frame == reading.told(input, vip, Told::Expired)
        };
        assert!((0..WAYS.len()).any(answered), "answered: {:02x?}", sent.frame);
        return;
    }
    assert!(service_of(&reading).is_some() && reading.is_from_a_host(), "answered: {reading:?}");
    assert!(reading.is_answerable(input), "answered: {reading:?}");
    assert_same(&sent.frame, &reading.rejection(input), &"a refused packet");
}

/// A frame that is not good: it must not be sent on.
fn check_bad(bench: &Bench, input: &[u8]) {
    let sent = check(bench, input);
    assert!(sent.verdict == Verdict::Pass || sent.dropped.is_some(), "{sent:?}");
}

/// Runs `test` on so many frames as [`cases`] says; a failure is shown as small as it can be made.
fn for_frames<T: Debug>(frames: impl Strategy<Value = T> + Send, test: impl Fn(&Bench, T) + Send) {
    in_namespace(move || {
        let bench = everything();
        let config = ProptestConfig { cases: cases(), failure_persistence: None, ..Default::default() };
        let result = TestRunner::new(config).run(&frames, |frame| {
            test(&bench, frame);
            Ok(())
        });
        result.unwrap_or_else(|failure| panic!("{failure}"));
    });
}

/// A good packet: to a virtual server, or the answer of a real server.
fn good() -> impl Strategy<Value = Frame> {
    let who = (select(FAMILIES.as_slice()), 0..WAYS.len(), select(Protocol::ALL.as_slice()), 1000..1008_u16);
    let flags = select(vec![SYN, SYN, SYN, ACK, ACK | PSH, FIN | ACK, RST, SYN | ACK]);
    let answer = prop_oneof![3 => Just(None), 1 => (1..=SERVERS).prop_map(Some)];
    let is_stranger = proptest::bool::weighted(0.2);
    let marks = (2..=255_u8, any::<u8>(), any::<u16>(), any::<bool>(), 0..0x10_0000_u32);
    let sizes = (vec(any::<u8>(), 0..40), 0..4_usize, prop_oneof![Just(0), 1..8_usize]);
    (who, is_stranger, flags, answer, marks, sizes).prop_map(|(who, is_stranger, flags, answer, marks, sizes)| {
        let (family, way, protocol, port) = who;
        let transport = match protocol {
            Protocol::Tcp => Transport::Tcp { flags },
            Protocol::Udp => Transport::Udp { has_checksum: family == Family::V6 || flags != RST },
            Protocol::Sctp => Transport::Sctp { chunks: saying(flags) },
        };
        let client = if is_stranger { (family.stranger(), port).into() } else { family.client(port) };
        let to_vip = served(family, way, protocol).address;
        let frame = match answer {
            None => Frame::new(client, to_vip, transport),
            Some(which) => {
                let real = real_server(family, ForwardingMethod::Nat, which);
                Frame::new(real, client, transport).macs(real_mac(which), OUR_MAC)
            }
        };
        let (ttl, class, identification, dont_fragment, flow_label) = marks;
        let (payload, options, padding) = sizes;
        let options = if family == Family::V4 { vec![1; options * 4] } else { Vec::new() };
        let padding = vec![0xaa; padding];
        Frame { ttl, class, identification, dont_fragment, flow_label, payload, options, padding, ..frame }
    })
}

#[test]
fn a_cut_packet_is_never_sent_on() {
    for_frames((good(), any::<Index>()), |bench, (frame, cut)| {
        let whole = Frame { padding: Vec::new(), ..frame }.bytes();
        check_bad(bench, &whole[..14 + cut.index(whole.len() - 14)]);
        // The whole one goes through, so that cut ones meet a table that knows them.
        check(bench, &whole);
    });
}

#[test]
fn random_bytes_are_never_sent_on() {
    let ours = prop_oneof![
        2 => Just(Vec::new()),
        1 => Just([&OUR_MAC[..], &[2, 0, 0, 0, 0, 9, 8, 0, 0x45]].concat()),
        1 => Just([&OUR_MAC[..], &[2, 0, 0, 0, 0, 9, 0x86, 0xdd, 0x60]].concat()),
    ];
    for_frames((ours, vec(any::<u8>(), 14..160)), |bench, (start, bytes)| {
        check_bad(bench, &[start, bytes].concat());
    });
}

#[test]
fn random_bytes_behind_good_headers_are_sent_on_only_where_they_make_a_packet() {
    // TCP, UDP, SCTP, IPv6's extension headers, anything.
    let protocol = prop_oneof![Just(6_u8), Just(17), Just(132), select(vec![0_u8, 43, 44, 51, 60]), any::<u8>()];
    let to = (select(FAMILIES.as_slice()), 0..WAYS.len(), protocol);
    let port = prop_oneof![3 => Just(Some(PORT)), 1 => Just(None)];
    for_frames((to, port, vec(any::<u8>(), 0..80)), |bench, ((family, way, protocol), port, mut bytes)| {
        if let (Some(port), Some(field)) = (port, bytes.get_mut(2..4)) {
            field.copy_from_slice(&port.to_be_bytes());
        }
        let vip = served(family, way, Protocol::Tcp).address;
        check(bench, &Frame::new(family.client(0), vip, Transport::Other { protocol }).payload(&bytes).bytes());
    });
}

#[test]
fn a_packet_with_changed_bytes_is_sent_on_only_where_it_is_still_good() {
    let mutations = vec((any::<Index>(), 1..=255_u8), 1..=3);
    // Half of the changes to the headers, where they tell.
    for_frames((good(), mutations, any::<bool>()), |bench, (frame, mutations, in_headers)| {
        let mut bytes = frame.bytes();
        let range = if in_headers { bytes.len().min(62) } else { bytes.len() };
        for (at, change) in mutations {
            bytes[at.index(range)] ^= change;
        }
        check(bench, &bytes);
    });
}

/// An ICMP error about what may belong to a connection, of a VIP to a client or of a client to a real server; or an echo or
/// another message with the same in it.
fn good_error() -> impl Strategy<Value = Frame> {
    let who = (select(FAMILIES.as_slice()), 0..WAYS.len(), select(Protocol::ALL.as_slice()), 1000..1008_u16);
    let about = prop_oneof![2 => Just(None), 1 => (1..=SERVERS).prop_map(Some)];
    let sizes = (0..3_usize, 0..3_usize, 8..40_usize, prop_oneof![Just(0), 1..8_usize]);
    let kind = prop_oneof![6 => 1..13_u8, 1 => select(vec![0_u8, 8, 13, 128, 129, 135])];
    (who, about, kind, any::<u32>(), sizes).prop_map(|(who, about, kind, rest, sizes)| {
        let (family, way, protocol, port) = who;
        let (client, vip) = (family.client(port), served(family, way, protocol).address);
        let (from, to) = match about {
            None => (vip, client),
            Some(which) => (client, real_server(family, ForwardingMethod::Nat, real_number(0, which))),
        };
        let transport = match protocol {
            Protocol::Tcp => Transport::Tcp { flags: ACK },
            Protocol::Udp => Transport::Udp { has_checksum: true },
            Protocol::Sctp => Transport::Sctp { chunks: saying(ACK) },
        };
        let (words, quoted_words, length, padding) = sizes;
        let options = |words: usize| if family == Family::V4 { vec![1; words * 4] } else { Vec::new() };
        let quoted = Frame { options: options(quoted_words), ..Frame::new(from, to, transport) }.payload(&[0x33; 40]);
        let quoted = icmp::quote(&quoted, length);
        let error = icmp::error(family.director(), from.ip(), (kind, kind & 1, rest), &quoted);
        Frame { options: options(words), padding: vec![0xaa; padding], ..error }
    })
}

#[test]
fn an_error_with_changed_bytes_is_sent_on_only_where_it_still_quotes_one_of_ours() {
    let mutations = vec((any::<Index>(), 1..=255_u8), 0..=2);
    for_frames((good(), good_error(), mutations), |bench, (packet, error, mutations)| {
        // So that there are connections to have errors about.
        check(bench, &packet.bytes());
        let mut bytes = error.bytes();
        let length = bytes.len();
        for (at, change) in mutations {
            bytes[at.index(length)] ^= change;
        }
        check(bench, &bytes);
    });
}

#[test]
fn every_prefix_of_a_packet_passes_or_is_dropped() {
    in_namespace(|| {
        let bench = everything();
        for family in FAMILIES {
            for way in 0..WAYS.len() {
                for protocol in PROTOCOLS {
                    let to = served(family, way, protocol);
                    let whole = super::scene::opening(to, 2000).payload(b"payload").bytes();
                    (14..whole.len()).for_each(|length| check_bad(&bench, &whole[..length]));
                    assert_eq!(check(&bench, &whole).verdict, Verdict::Transmit);
                    (14..whole.len()).for_each(|length| check_bad(&bench, &whole[..length]));
                }
            }
        }
    });
}
