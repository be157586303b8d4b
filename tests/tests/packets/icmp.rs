//! ICMP errors about packets of virtual servers: whole frames compared, each built from scratch.

use std::net::{IpAddr, SocketAddr};

use lb_common::connection::Bucket;
use lb_common::counters::Counters;
use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;

use super::bench::{Bench, Verdict, in_namespace};
use super::forwarding::{translated, tunnelled};
use super::frame::{Frame, Outer, Transport, internet_checksum, transport_checksum};
use super::oracle::Told;
use super::scene::{
    CLIENT_MAC, FAMILIES, Family, INGRESS, METHODS, Mac, OUR_MAC, PROTOCOLS, opening, real_mac, real_server, service,
};

/// A router's on the way to the client, or to the real server.
const ROUTER_MAC: Mac = [0x02, 0, 0, 0, 0, 0x77];

fn router(family: Family) -> IpAddr {
    match family {
        Family::V4 => [198, 18, 0, 1].into(),
        Family::V6 => [0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1].into(),
    }
}

/// Type, code and the four bytes behind the checksum of each kind of error that is followed.
fn kinds(family: Family) -> Vec<(u8, u8, u32)> {
    match family {
        // RFC 792, RFC 1191, RFC 1812 §5.2.7.
        Family::V4 => {
            let unreachable = (0..=15).filter(|code| *code != 4).map(|code| (3, code, 0));
            unreachable.chain([(3, 4, 1400), (11, 0, 0), (11, 1, 0), (12, 0, 0x1400_0000)]).collect()
        }
        // RFC 4443.
        Family::V6 => (0..=6).map(|code| (1, code, 0)).chain([(2, 0, 1400), (3, 0, 0), (3, 1, 0), (4, 1, 6)]).collect(),
    }
}

/// An ICMP error with this kind and quote, from a router's station to ours.
pub fn error(from: IpAddr, to: IpAddr, (kind, code, rest): (u8, u8, u32), quote: &[u8]) -> Frame {
    let protocol = if from.is_ipv4() { 1 } else { 58 };
    let mut message = [&[kind, code, 0, 0], &rest.to_be_bytes()[..], quote].concat();
    let sum =
        if from.is_ipv4() { internet_checksum(&message) } else { transport_checksum(from, to, protocol, &message) };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let frame = Frame::new((from, 0).into(), (to, 0).into(), Transport::Other { protocol });
    Frame { class: 0xc0, dont_fragment: false, ..frame }.payload(&message).macs(ROUTER_MAC, OUR_MAC)
}

/// The start of a packet: its IP header and `length` bytes of what follows.
pub fn quote(packet: &Frame, length: usize) -> Vec<u8> {
    let header = if packet.source.is_ipv4() { 20 + packet.options.len() } else { 40 };
    packet.bytes()[14..14 + header + length].to_vec()
}

/// As [`quote`] of `packet`, with the checksum of TCP or UDP, which nobody corrects, that `original` has.
pub fn requoted(packet: &Frame, original: &Frame, length: usize) -> Vec<u8> {
    let (mut quoted, original) = (quote(packet, length), quote(original, length));
    let header = quoted.len() - length;
    let at = header + if matches!(packet.transport, Transport::Tcp { .. }) { 16 } else { 6 };
    if at < quoted.len() {
        quoted[at..at + 2].copy_from_slice(&original[at..at + 2]);
    }
    quoted
}

/// How much of a segment is quoted: what RFC 792 asks for, and more, even and odd.
const LENGTHS: [usize; 4] = [8, 9, 20, 27];

/// What the real server has sent to the client, when it comes to the router.
fn sent_by(server: SocketAddr, request: &Frame) -> Frame {
    let options = if server.is_ipv4() { vec![0x94, 4, 0, 0] } else { Vec::new() };
    let answer = Frame::new(server, request.source, request.transport.clone()).payload(b"an answer of some length");
    Frame { ttl: 17, class: 0x20, identification: 0xbeef, options, ..answer }
}

/// Every method with one real server and a connection of each family and protocol to it.
fn each_connection(scene: impl Fn(&mut Bench, ForwardingMethod, Family, &Frame)) {
    for method in METHODS {
        let mut bench = Bench::serving(method, 1);
        for family in FAMILIES {
            for protocol in PROTOCOLS {
                let request = opening(service(family, protocol), 1000);
                bench.server_of(&request);
                scene(&mut bench, method, family, &request);
            }
        }
    }
}

/// Of a client's connection, an error about what the real server has sent, and what leaves for the real server.
fn about_an_answer(
    method: ForwardingMethod,
    family: Family,
    request: &Frame,
    kind: (u8, u8, u32),
    length: usize,
) -> (Frame, Frame) {
    let vip = request.destination;
    let answer = sent_by(vip, request);
    let came = error(router(family), vip.ip(), kind, &quote(&answer, length));
    let leaves = match method {
        ForwardingMethod::Nat => {
            let real = real_server(family, method, 1);
            let original = Frame { source: real, ..answer.clone() };
            error(router(family), real.ip(), kind, &requoted(&original, &answer, length)).sent_on_as(&came)
        }
        ForwardingMethod::Dr => came.sent_on(real_mac(1)),
        ForwardingMethod::Tun => tunnelled(&came, family),
    };
    (came, leaves)
}

impl Frame {
    /// What leaves for real server 1, with the time to live of `came`, one less.
    fn sent_on_as(&self, came: &Self) -> Self {
        Self { ttl: came.ttl, ..self.clone() }.sent_on(real_mac(1))
    }
}

#[test]
fn an_error_about_an_answer_goes_to_the_real_server() {
    in_namespace(|| {
        each_connection(|bench, method, family, request| {
            for kind in kinds(family) {
                for length in LENGTHS {
                    let (came, leaves) = about_an_answer(method, family, request, kind, length);
                    bench.expect(&came, Verdict::Transmit, &leaves);
                }
            }
        });
    });
}

#[test]
fn options_of_the_error_and_padding_are_kept() {
    in_namespace(|| {
        each_connection(|bench, method, family, request| {
            let (came, leaves) = about_an_answer(method, family, request, kinds(family)[0], 8);
            let options = if family == Family::V4 { vec![1; 8] } else { Vec::new() };
            let dress = |frame: Frame| Frame { options: options.clone(), padding: vec![0xee; 7], ..frame };
            bench.expect(&dress(came), Verdict::Transmit, &dress(leaves));
        });
    });
}

/// With `nat`, about a client's packet that was forwarded: from the real server itself, or a router before it.
#[test]
fn an_error_about_a_request_goes_to_the_client_from_the_vip() {
    in_namespace(|| {
        each_connection(|bench, method, family, request| {
            let forwarded = Frame { ttl: 3, ..translated(request, family) }.payload(b"and what it asks for");
            let original = Frame { destination: request.destination, ..forwarded.clone() };
            let client = request.source.ip();
            for from in [real_server(family, method, 1).ip(), router(family)] {
                for kind in kinds(family) {
                    for length in LENGTHS {
                        let came = error(from, client, kind, &quote(&forwarded, length)).macs(real_mac(1), OUR_MAC);
                        if method != ForwardingMethod::Nat {
                            bench.expect_untouched(&came);
                            continue;
                        }
                        let vip = request.destination.ip();
                        let leaves = error(vip, client, kind, &requoted(&original, &forwarded, length));
                        bench.expect(&came, Verdict::Transmit, &leaves.sent_on(CLIENT_MAC));
                    }
                }
            }
        });
    });
}

/// The host may have sent something itself, or the connection may be over: the host knows what to make of it.
#[test]
fn an_error_about_nothing_that_is_known_passes() {
    in_namespace(|| {
        each_connection(|bench, method, family, request| {
            let stranger = Frame { source: family.client(1001), ..request.clone() };
            let (came, _) = about_an_answer(method, family, &stranger, kinds(family)[0], 8);
            bench.expect_untouched(&came);
            let other = SocketAddr::new(family.vip(0), 81);
            let to_other_port = Frame { destination: other, ..request.clone() };
            let (came, _) = about_an_answer(method, family, &to_other_port, kinds(family)[0], 8);
            bench.expect_untouched(&came);
            // Sent to somebody else than the sender of what it quotes.
            let answer = sent_by(request.destination, request);
            for to in [family.vip(1), family.director()] {
                bench.expect_untouched(&error(router(family), to, kinds(family)[0], &quote(&answer, 8)));
            }
            let forwarded = translated(&stranger, family);
            let client = stranger.source.ip();
            bench.expect_untouched(&error(router(family), client, kinds(family)[0], &quote(&forwarded, 8)));
        });
    });
}

#[test]
fn other_icmp_passes() {
    in_namespace(|| {
        each_connection(|bench, _, family, request| {
            let vip = request.destination.ip();
            let answer = sent_by(request.destination, request);
            let about = |kind, quoted: &[u8]| error(router(family), vip, (kind, 0, 0), quoted);
            let others: &[u8] = match family {
                // Echo and its answer, source quench, redirect, router advertisement, time stamp.
                Family::V4 => &[0, 4, 5, 8, 9, 13],
                Family::V6 => &[0, 5, 100, 128, 129, 133, 134, 135, 136, 137],
            };
            others.iter().for_each(|kind| bench.expect_untouched(&about(*kind, &quote(&answer, 8))));
            let kind = kinds(family)[0].0;
            // Too short for ports, of another protocol, a later fragment, and of the other family.
            let short = quote(&answer, 3);
            bench.expect_untouched(&about(kind, &short));
            let other = Frame { transport: Transport::Other { protocol: 47 }, ..answer.clone() };
            bench.expect_untouched(&about(kind, &quote(&other, 8)));
            if family == Family::V4 {
                let later = Frame { fragment_offset: 1, dont_fragment: false, ..answer.clone() };
                bench.expect_untouched(&about(kind, &quote(&later, 8)));
                let first = Frame { more_fragments: true, ..about(kind, &quote(&answer, 8)) };
                bench.expect_untouched(&first);
            }
            let mut version = quote(&answer, 8);
            version[0] ^= 0x20;
            bench.expect_untouched(&about(kind, &version));
        });
    });
}

#[test]
fn an_error_that_cannot_be_sent_on_is_dropped_in_silence() {
    in_namespace(|| {
        each_connection(|bench, method, family, request| {
            let (came, _) = about_an_answer(method, family, request, kinds(family)[0], 20);
            for ttl in [0, 1] {
                bench.expect_drop(&Frame { ttl, ..came.clone() }.bytes(), DropReason::TtlExpired);
            }
            // Less than the eight bytes that there must be, in a length that the frame bears out or not.
            let answer = sent_by(request.destination, request);
            let short = error(router(family), request.destination.ip(), kinds(family)[0], &quote(&answer, 7));
            bench.expect_drop(&short.bytes(), DropReason::Malformed);
            bench.expect_drop(&came.bytes()[..came.bytes().len() - 1], DropReason::Malformed);
            bench.way(family, 1, INGRESS, 60);
            bench.expect_drop(&came.bytes(), DropReason::PacketTooBig);
            bench.way(family, 1, INGRESS, 1500);
        });
    });
}

#[test]
fn an_error_changes_no_connection_and_no_counter() {
    in_namespace(|| {
        each_connection(|bench, method, family, request| {
            let forwarded = translated(request, family);
            let client = request.source.ip();
            let errors = [
                about_an_answer(method, family, request, kinds(family)[0], 8).0,
                error(router(family), client, kinds(family)[0], &quote(&forwarded, 8)),
            ];
            // So that a refresh would show.
            bench.age(3);
            let table = |bench: &mut Bench| -> Vec<Bucket> {
                (0..bench.buckets()).map(|index| bench.get("connections", index)).collect()
            };
            let before =
                (table(bench), bench.sum::<Counters>("vs_counters", 0), bench.sum::<Counters>("rs_counters", 0));
            errors.iter().for_each(|error| drop(bench.send(error)));
            let after =
                (table(bench), bench.sum::<Counters>("vs_counters", 0), bench.sum::<Counters>("rs_counters", 0));
            assert_eq!(before, after);
        });
    });
}

/// RFC 792, RFC 2003 and RFC 1191, the sums by hand: a packet of 1481 bytes does not fit into a tunnel over 1500.
#[test]
fn too_big_for_a_tunnel_tells_the_mtu_without_the_outer_header() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Tun, 1);
        let packet = Frame::udp(Family::V4.client(1000), service(Family::V4, Protocol::Udp).address);
        let packet = packet.payload(&[0; 1481 - 28]);
        bench.expect_told(&packet, Family::V4.vip(0), Told::TooBig(1480));
        let answer = bench.send(&packet).frame;
        // IPv4: 45c0+0038+4001+cb00+7164+c000+020a = 28467, folded 8469, complement 7b96.
        let header = [0x45, 0xc0, 0, 56, 0, 0, 0, 0, 64, 1, 0x7b, 0x96, 203, 0, 113, 100, 192, 0, 2, 10];
        assert_eq!(answer[14..34], header);
        // Fragmentation needed, 1480 = 0x05c8.
        assert_eq!(answer[34..36], [3, 4]);
        assert_eq!(answer[38..42], [0, 0, 0x05, 0xc8]);
        assert_eq!(internet_checksum(&answer[34..]), 0);
        assert_eq!(answer[42..], packet.bytes()[14..14 + 28]);
    });
}

#[test]
fn the_outer_header_of_an_error_is_a_tunnels() {
    // What `tunnelled` gives is no more than it should: the class of errors, and no "don't fragment".
    let request = opening(service(Family::V4, Protocol::Tcp), 1000);
    let (_, leaves) = about_an_answer(ForwardingMethod::Tun, Family::V4, &request, (3, 4, 1400), 8);
    let Some(Outer { class: 0xc0, dont_fragment: false, .. }) = leaves.outer else { panic!("{:?}", leaves.outer) };
}
