//! Tunnels of either family in either: whole frames on the way out, through the decapsulator, and where they come from.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::drop_reason::DropReason;
use lb_common::net::{Address, Protocol};
use lb_common::service::ForwardingMethod;

use super::bench::{Bench, Verdict, assert_same, in_namespace};
use super::decapsulation::{Decapsulator, counted};
use super::forwarding::{carried, flow};
use super::frame::{Frame, Transport};
use super::oracle::Told;
use super::scene::{ELSEWHERE, FAMILIES, Family, INGRESS, PROTOCOLS, opening, real_server, service};

/// Every inner family in every outer one.
const PAIRS: [(Family, Family); 4] =
    [(Family::V4, Family::V4), (Family::V6, Family::V4), (Family::V4, Family::V6), (Family::V6, Family::V6)];

const TUN: ForwardingMethod = ForwardingMethod::Tun;

/// Virtual servers of family `inner` on real server 1 of family `outer`.
fn serving(inner: Family, outer: Family) -> Bench {
    let mut bench = Bench::empty();
    bench.way(outer, 1, INGRESS, 1500);
    for protocol in PROTOCOLS {
        bench.serve(service(inner, protocol), TUN, &[(real_server(outer, TUN, 1), 1)]);
    }
    bench
}

/// Packets of every kind that the outer header tells of: classes and congestion marks, fragmentable or not, of any length.
fn packets(family: Family) -> Vec<Frame> {
    let mut packets = Vec::new();
    for protocol in PROTOCOLS {
        let plain = opening(service(family, protocol), 1000);
        for class in [0, 0xa8, 0x01, 0x02, 0x03, 0xff] {
            let (identification, flow_label) = (0x8000 | u16::from(class), 0xf_0001 + u32::from(class));
            let marked = Frame { class, identification, flow_label, ..plain.clone() };
            packets.push(Frame { dont_fragment: false, ..marked.clone() });
            packets.push(marked.payload(b"odd"));
        }
        packets.push(plain.clone().payload(&[0xa5; 1400]));
        packets.push(Frame { padding: vec![0; 7], ..plain });
    }
    packets
}

#[test]
fn every_family_travels_in_every_other_and_comes_out_as_it_went_in() {
    in_namespace(|| {
        let decapsulator = Decapsulator::load();
        for (inner, outer) in PAIRS {
            let mut bench = serving(inner, outer);
            for (ifindex, verdict) in [(INGRESS, Verdict::Transmit), (ELSEWHERE, Verdict::Redirect)] {
                bench.way(outer, 1, ifindex, 1500);
                for packet in packets(inner) {
                    let expected = carried(&packet, outer);
                    let sent = bench.send(&packet);
                    assert_eq!((sent.verdict, sent.dropped), (verdict, None), "{inner:?} in {outer:?}: {packet:?}");
                    assert_same(&sent.frame, &expected.bytes(), &packet);
                    let unwrapped = Frame { outer: None, ..expected };
                    decapsulator.expect(&sent.frame, &unwrapped.bytes(), counted(inner, outer));
                }
            }
        }
    });
}

#[test]
fn the_mtu_counts_the_outer_header_of_the_real_servers_family() {
    in_namespace(|| {
        for (inner, outer) in PAIRS {
            let mut bench = serving(inner, outer);
            bench.way(outer, 1, INGRESS, 1400);
            let room = if outer == Family::V4 { 1380 } else { 1360 };
            let headers = if inner == Family::V4 { 28 } else { 48 };
            let of_length =
                |length: usize| opening(service(inner, Protocol::Udp), 1000).payload(&vec![7; length - headers]);
            let fits = of_length(room);
            bench.expect(&fits, Verdict::Transmit, &carried(&fits, outer));
            let told = Told::TooBig(u16::try_from(room).expect("small"));
            bench.expect_told(&of_length(room + 1), inner.vip(0), told);
        }
    });
}

#[test]
fn one_virtual_server_mixes_real_servers_of_both_families() {
    in_namespace(|| {
        for inner in FAMILIES {
            let mut bench = Bench::empty();
            for outer in FAMILIES {
                bench.way(outer, 1, INGRESS, 1500);
            }
            let reals: Vec<_> = FAMILIES.map(|outer| (real_server(outer, TUN, 1), 1)).to_vec();
            bench.serve(service(inner, Protocol::Udp), TUN, &reals);
            for (port, outer) in [(1000, Family::V4), (1001, Family::V6), (1000, Family::V4), (1001, Family::V6)] {
                let packet = opening(service(inner, Protocol::Udp), port);
                bench.expect(&packet, Verdict::Transmit, &carried(&packet, outer));
            }
        }
    });
}

#[test]
fn a_real_server_of_the_other_family_whose_way_is_unknown_is_asked_for_by_its_own_address() {
    in_namespace(|| {
        for (inner, outer) in PAIRS {
            let mut bench = serving(inner, outer);
            bench.no_way(outer, 1);
            // The test's namespace does not forward, which is what the routing table says.
            let packet = opening(service(inner, Protocol::Udp), 1000);
            assert_eq!(bench.send(&packet).dropped, Some(DropReason::ForwardingDisabled), "{inner:?} in {outer:?}");
            bench.no_source(outer, 1);
            assert_eq!(bench.send(&packet).dropped, Some(DropReason::NoRoute), "{inner:?} in {outer:?}");
        }
    });
}

#[test]
fn a_configured_source_is_the_outer_one() {
    in_namespace(|| {
        for (inner, outer) in PAIRS {
            let mut bench = serving(inner, outer);
            let source = if outer == Family::V4 { "10.9.8.7" } else { "2001:db8:9::7" };
            let prefix = if outer == Family::V4 { "10.9.8.7/32" } else { "2001:db8:9::7/128" };
            bench.tunnel_source(outer, 1, prefix);
            for packet in packets(inner) {
                let mut expected = carried(&packet, outer);
                expected.outer.as_mut().expect("it has one").source = source.parse().expect("an address");
                bench.expect(&packet, Verdict::Transmit, &expected);
            }
        }
    });
}

#[test]
fn a_hash_of_the_flow_fills_the_host_bits_of_a_source_prefix() {
    in_namespace(|| {
        for (inner, outer) in PAIRS {
            let mut bench = serving(inner, outer);
            let (prefix, host_bits) =
                if outer == Family::V4 { ("10.9.16.0/20", 0xfff_u32) } else { ("2001:db8:9::/64", u32::MAX) };
            bench.tunnel_source(outer, 1, prefix);
            let base =
                Address::from(prefix.split('/').next().expect("an address").parse::<IpAddr>().expect("an address"));
            let mut sources = BTreeSet::new();
            for port in 0..64 {
                let packet = opening(service(inner, Protocol::Udp), port);
                let mut source = base;
                for (octet, (hash, mask)) in source.octets[12..]
                    .iter_mut()
                    .zip(flow(&packet).to_ne_bytes().into_iter().zip(host_bits.to_be_bytes()))
                {
                    *octet |= hash & mask;
                }
                let mut expected = carried(&packet, outer);
                expected.outer.as_mut().expect("it has one").source = source.into();
                // The second packet of a flow comes from where the first one did.
                bench.expect(&packet, Verdict::Transmit, &expected);
                bench.expect(&packet, Verdict::Transmit, &expected);
                sources.insert(source.octets);
            }
            assert!(sources.len() > 60, "64 flows come from {} addresses", sources.len());
        }
    });
}

/// The checksum of the transport header covers nothing of the outer one, so that packets without any are carried too.
#[test]
fn a_datagram_without_checksum_is_carried_as_it_is() {
    in_namespace(|| {
        let bench = serving(Family::V4, Family::V6);
        let without = Transport::Udp { has_checksum: false };
        let to = service(Family::V4, Protocol::Udp).address;
        let packet = Frame::new(Family::V4.client(1000), to, without).payload(b"unchecked");
        bench.expect(&packet, Verdict::Transmit, &carried(&packet, Family::V6));
    });
}
