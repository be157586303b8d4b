//! What each forwarding method makes of a client's packet, whole frames compared.

use std::net::SocketAddr;

use lb_common::hash;
use lb_common::net::{Address, Protocol};
use lb_common::service::ForwardingMethod;

use super::bench::{Bench, Verdict, in_namespace};
use super::frame::{ACK, Frame, Outer, PSH, SYN, Transport};
use super::scene::{ELSEWHERE, FAMILIES, Family, INGRESS, opening, real_mac, real_server, service};

#[test]
fn nat_sends_to_the_real_servers_address_and_port() {
    each_packet_leaves_as(ForwardingMethod::Nat, translated);
}

#[test]
fn dr_changes_ethernet_addresses_and_time_to_live_alone() {
    each_packet_leaves_as(ForwardingMethod::Dr, |packet, _| packet.sent_on(real_mac(1)));
}

#[test]
fn tun_carries_the_packet_in_another() {
    each_packet_leaves_as(ForwardingMethod::Tun, tunnelled);
}

#[test]
fn the_outer_header_that_the_builder_makes_is_a_good_one() {
    // Its checksum verifies to zero (RFC 1071 §1), and its length covers the rest.
    let request = opening(service(Family::V4, Protocol::Tcp), 1000);
    let bytes = tunnelled(&request, Family::V4).bytes();
    assert_eq!(super::frame::internet_checksum(&bytes[14..34]), 0);
    assert_eq!(usize::from(bytes[16]) * 256 + usize::from(bytes[17]), bytes.len() - 14);
}

/// What `nat` makes of `request`.
pub fn translated(request: &Frame, family: Family) -> Frame {
    Frame { destination: real_server(family, ForwardingMethod::Nat, 1), ..request.sent_on(real_mac(1)) }
}

/// What `tun` makes of `request` for a real server of the same family.
pub fn tunnelled(request: &Frame, family: Family) -> Frame {
    carried(request, family)
}

/// What `tun` makes of `request` for a real server of family `outer`: the outer header as RFC 2003 §3.1, RFC 4213 §3.5 and
/// RFC 2473 §6 have it.
pub fn carried(request: &Frame, outer: Family) -> Frame {
    let is_ipv4 = request.source.is_ipv4();
    let outer = Outer {
        source: outer.director(),
        destination: outer.real(1),
        class: request.class,
        identification: if is_ipv4 { request.identification } else { 0 },
        dont_fragment: request.dont_fragment || !is_ipv4,
        flow_label: if is_ipv4 { flow(request) & 0xf_ffff } else { request.flow_label },
    };
    Frame { outer: Some(outer), ..request.sent_on(real_mac(1)) }
}

/// The hash that spreads tunnelled packets.
pub fn flow(request: &Frame) -> u32 {
    let ports = u32::from(request.source.port()) | u32::from(request.destination.port()) << 16;
    hash::flow(Address::from(request.source.ip()).halves(), ports)
}

/// SYN, data and UDP in both families, out of the interface they came in by and out of another.
fn each_packet_leaves_as(method: ForwardingMethod, expected: fn(&Frame, Family) -> Frame) {
    in_namespace(move || {
        let mut bench = Bench::serving(method, 1);
        for (ifindex, verdict) in [(INGRESS, Verdict::Transmit), (ELSEWHERE, Verdict::Redirect)] {
            for family in FAMILIES {
                bench.way(family, 1, ifindex, 1500);
                for packet in conversation(family, family.client(1000)) {
                    bench.expect(&packet, verdict, &expected(&packet, family));
                }
            }
        }
    });
}

/// A new TCP connection, data on it, and UDP packets of even, odd and no length.
fn conversation(family: Family, client: SocketAddr) -> Vec<Frame> {
    let tcp = service(family, Protocol::Tcp).address;
    let udp = service(family, Protocol::Udp).address;
    vec![
        Frame::tcp(client, tcp, SYN),
        Frame::tcp(client, tcp, ACK),
        Frame::tcp(client, tcp, ACK | PSH).payload(b"GET / HTTP/1.1\r\n\r\n"),
        Frame::tcp(client, tcp, ACK | PSH).payload(b"an odd number of bytes!"),
        Frame::tcp(client, tcp, ACK | PSH).payload(&[0xff; 1400]),
        Frame::udp(client, udp).payload(b"even"),
        Frame::udp(client, udp).payload(b"odd"),
        Frame::udp(client, udp),
    ]
}

#[test]
fn every_length_of_payload_keeps_its_checksum() {
    in_namespace(|| {
        for (method, expected) in
            [(ForwardingMethod::Nat, translated as fn(&Frame, Family) -> Frame), (ForwardingMethod::Tun, tunnelled)]
        {
            let bench = Bench::serving(method, 1);
            for family in FAMILIES {
                let address = service(family, Protocol::Udp).address;
                for length in 0..200_u8 {
                    let payload: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
                    let packet = Frame::udp(family.client(2000), address).payload(&payload);
                    bench.expect(&packet, Verdict::Transmit, &expected(&packet, family));
                }
            }
        }
    });
}

/// Every seventh value of a 16-bit word of payload, so that the sum goes round and every carry occurs.
#[test]
fn nat_gets_the_checksum_right_for_all_kinds_of_sums() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            let (tcp, udp) = (service(family, Protocol::Tcp).address, service(family, Protocol::Udp).address);
            bench.open(family, 3000);
            for word in (0..=u16::MAX).step_by(7) {
                let (from, payload) = (family.client(3000), word.to_be_bytes());
                for packet in [Frame::udp(from, udp).payload(&payload), Frame::tcp(from, tcp, ACK).payload(&payload)] {
                    bench.expect(&packet, Verdict::Transmit, &translated(&packet, family));
                }
            }
        }
    });
}

#[test]
fn a_udp_checksum_that_becomes_zero_is_sent_as_all_ones() {
    in_namespace(|| {
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            let address = service(family, Protocol::Udp).address;
            let with_word = |word: u16| Frame::udp(family.client(4000), address).payload(&word.to_be_bytes());
            let checksum = |frame: &Frame| {
                let bytes = frame.bytes();
                let at = if family == Family::V4 { 14 + 20 + 6 } else { 14 + 40 + 6 };
                u16::from_be_bytes([bytes[at], bytes[at + 1]])
            };
            let packet = (0..=u16::MAX).map(with_word).find(|packet| checksum(&translated(packet, family)) == 0xffff);
            let packet = packet.expect("one of all sums is zero");
            bench.expect(&packet, Verdict::Transmit, &translated(&packet, family));
        }
    });
}

#[test]
fn a_udp_packet_without_checksum_stays_without() {
    in_namespace(|| {
        for (method, expected) in
            [(ForwardingMethod::Nat, translated as fn(&Frame, Family) -> Frame), (ForwardingMethod::Tun, tunnelled)]
        {
            let bench = Bench::serving(method, 1);
            let address = service(Family::V4, Protocol::Udp).address;
            let without = Transport::Udp { has_checksum: false };
            let packet = Frame::new(Family::V4.client(5000), address, without).payload(b"unchecked");
            bench.expect(&packet, Verdict::Transmit, &expected(&packet, Family::V4));
        }
    });
}
