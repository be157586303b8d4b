//! The program on a real server that takes tunnelled packets apart.

use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::{HashMap, MapData, PerCpuArray};
use evenkeel_tests::bpf::Program;
use lb_common::net::{Address, Protocol};
use lb_userspace::datapath::xdp::object;

use super::bench::{OPTIONS, POISON, Verdict, assert_same, in_namespace, poisoning, run, table_of};
use super::forwarding::carried;
use super::frame::Frame;
use super::scene::{FAMILIES, Family, OUR_MAC, PROTOCOLS, opening, real_mac, service};

const PROGRAM: &str = "decapsulate";

/// The loaded program, for the first VIP of each family.
pub struct Decapsulator {
    ebpf: Ebpf,
    entrance: Program,
    _table: evenkeel_tests::bpf::ProgramTable,
}

impl Decapsulator {
    pub fn load() -> Self {
        let mut ebpf = object::load(PROGRAM, &["decap_vips", "decap_counters"], &OPTIONS).expect("the program loads");
        let map = ebpf.map_mut("decap_vips").expect("is there");
        let mut vips = HashMap::<&mut MapData, Address, u32>::try_from(map).expect("a hash map");
        for family in FAMILIES {
            vips.insert(Address::from(family.vip(0)), 1, 0).expect("takes it");
        }
        let table = table_of(&mut ebpf, PROGRAM);
        Self { ebpf, entrance: poisoning(&table), _table: table }
    }

    /// Packets unwrapped: IPIP, 6in4, 4in6 and IP6IP6.
    fn unwrapped(&self) -> [u64; 4] {
        let map = self.ebpf.map("decap_counters").expect("is there");
        let counters = PerCpuArray::<&MapData, u64>::try_from(map).expect("a per-CPU array");
        [0, 1, 2, 3].map(|index| counters.get(&index, 0).expect("can be read").iter().sum())
    }

    /// Sends `frame`, which must be dropped for congestion.
    #[track_caller]
    fn expect_congested(&self, frame: &[u8]) {
        let count = || -> u64 {
            let map = self.ebpf.map("decap_counters").expect("is there");
            let counters = PerCpuArray::<&MapData, u64>::try_from(map).expect("a per-CPU array");
            counters.get(&4, 0).expect("can be read").iter().sum()
        };
        let before = count();
        let (verdict, _) = run(&self.entrance, &[&POISON, frame].concat());
        assert_eq!((verdict, count() - before), (Verdict::Drop, 1));
    }

    /// Sends `frame`, which must go up as `expected`, and raise the counters so.
    #[track_caller]
    pub fn expect(&self, frame: &[u8], expected: &[u8], raised: [u64; 4]) {
        let before = self.unwrapped();
        let (verdict, passed) = run(&self.entrance, &[&POISON, frame].concat());
        assert_eq!(verdict, Verdict::Pass);
        assert_same(&passed, expected, &"a tunnelled frame");
        let after = self.unwrapped();
        assert_eq!([0, 1, 2, 3].map(|kind| after[kind] - before[kind]), raised);
    }

    #[track_caller]
    fn expect_untouched(&self, frame: &[u8]) {
        self.expect(frame, frame, [0; 4]);
    }
}

/// A packet as the director would send it to real server 1 of the same family.
fn arriving(family: Family, protocol: Protocol) -> Frame {
    arriving_in(family, family, protocol)
}

/// A packet as the director would send it to real server 1 of family `outer`.
fn arriving_in(inner: Family, outer: Family, protocol: Protocol) -> Frame {
    carried(&opening(service(inner, protocol), 1000).payload(b"payload"), outer)
}

/// What a packet of one family in another raises.
pub fn counted(inner: Family, outer: Family) -> [u64; 4] {
    match (inner, outer) {
        (Family::V4, Family::V4) => [1, 0, 0, 0],
        (Family::V6, Family::V4) => [0, 1, 0, 0],
        (Family::V4, Family::V6) => [0, 0, 1, 0],
        (Family::V6, Family::V6) => [0, 0, 0, 1],
    }
}

/// Every inner family in every outer one.
fn pairs() -> impl Iterator<Item = (Family, Family)> {
    FAMILIES.into_iter().flat_map(|inner| FAMILIES.map(|outer| (inner, outer)))
}

#[test]
fn the_outer_header_is_taken_off_and_counted() {
    in_namespace(|| {
        let decapsulator = Decapsulator::load();
        for (inner, outer) in pairs() {
            for protocol in PROTOCOLS {
                let frame = arriving_in(inner, outer, protocol);
                for padding in [vec![], vec![0; 7]] {
                    let frame = Frame { padding, ..frame.clone() };
                    let unwrapped = Frame { outer: None, ..frame.clone() };
                    decapsulator.expect(&frame.bytes(), &unwrapped.bytes(), counted(inner, outer));
                }
            }
        }
    });
}

/// RFC 6040 §4.2, figure 4: inner and outer field, and what the inner one becomes; `None`: dropped.
const CONGESTION: [(u8, u8, Option<u8>); 8] = [
    (0b00, 0b00, Some(0b00)),
    (0b00, 0b10, Some(0b00)),
    (0b00, 0b11, None),
    (0b10, 0b00, Some(0b10)),
    (0b10, 0b11, Some(0b11)),
    (0b01, 0b10, Some(0b01)),
    (0b01, 0b11, Some(0b11)),
    (0b11, 0b10, Some(0b11)),
];

#[test]
fn a_congestion_mark_goes_inwards_and_a_sender_that_knows_none_loses_the_packet() {
    in_namespace(|| {
        let decapsulator = Decapsulator::load();
        for (inner_family, outer_family) in pairs() {
            for (inner, outer, becomes) in CONGESTION {
                let options = if inner_family == Family::V4 { vec![1; 8] } else { vec![] };
                let frame =
                    Frame { class: 0xa8 | inner, options, ..opening(service(inner_family, Protocol::Udp), 1000) };
                let mut bytes = carried(&frame, outer_family).bytes();
                set_outer_congestion(&mut bytes, outer_family, outer);
                // What arrives has been through `carried`, which takes one from the time to live.
                let arrived = Frame { outer: None, ..carried(&frame, outer_family) };
                match becomes {
                    Some(field) => {
                        let expected = Frame { class: 0xa8 | field, ..arrived };
                        decapsulator.expect(&bytes, &expected.bytes(), counted(inner_family, outer_family));
                    }
                    None => decapsulator.expect_congested(&bytes),
                }
            }
        }
    });
}

/// Rewrites the two bits in the outer header; its checksum, which nobody here looks at, is left.
fn set_outer_congestion(frame: &mut [u8], family: Family, field: u8) {
    match family {
        Family::V4 => frame[15] = frame[15] & !3 | field,
        Family::V6 => frame[15] = frame[15] & !0x30 | field << 4,
    }
}

#[test]
fn what_is_not_tunnelled_stays_as_it_is() {
    in_namespace(|| {
        let decapsulator = Decapsulator::load();
        for family in FAMILIES {
            for protocol in PROTOCOLS {
                decapsulator.expect_untouched(&opening(service(family, protocol), 1000).bytes());
            }
        }
        decapsulator.expect_untouched(&[&OUR_MAC[..], &real_mac(1), &[8, 6], &[0; 46]].concat());
        decapsulator.expect_untouched(&[&OUR_MAC[..], &real_mac(1), &[8, 0]].concat());
    });
}

#[test]
fn a_tunnel_to_another_address_stays_as_it_is() {
    in_namespace(|| {
        let decapsulator = Decapsulator::load();
        for (inner, outer) in pairs() {
            let mut frame = arriving_in(inner, outer, Protocol::Tcp);
            frame.destination.set_ip(inner.vip(1));
            decapsulator.expect_untouched(&frame.bytes());
        }
    });
}

#[test]
fn a_tunnel_that_is_cut_short_stays_as_it_is() {
    in_namespace(|| {
        let decapsulator = Decapsulator::load();
        for (inner, outer) in pairs() {
            let frame = arriving_in(inner, outer, Protocol::Udp).bytes();
            let header = |family| if family == Family::V4 { 20 } else { 40 };
            for length in 14..14 + header(inner) + header(outer) {
                decapsulator.expect_untouched(&frame[..length]);
            }
        }
    });
}

/// The VIP 203.0.113.100 is served; `::ffff:203.0.113.100` on the wire is something else.
#[test]
fn a_mapped_address_is_no_vip() {
    in_namespace(|| {
        let decapsulator = Decapsulator::load();
        for outer in FAMILIES {
            let IpAddr::V4(vip) = Family::V4.vip(0) else { panic!("it is IPv4") };
            let mut frame = arriving_in(Family::V6, outer, Protocol::Tcp);
            frame.destination.set_ip(vip.to_ipv6_mapped().into());
            decapsulator.expect_untouched(&frame.bytes());
        }
    });
}

#[test]
fn other_outer_headers_stay_as_they_are() {
    in_namespace(|| {
        let decapsulator = Decapsulator::load();
        let changed = |family: Family, at: usize, value: u8| {
            let mut bytes = arriving(family, Protocol::Tcp).bytes();
            bytes[at] = value;
            bytes
        };
        // Options, which no director sends; a fragment, first and later; GRE; IPv4 that is said to be IPv6, and the reverse.
        for (at, value) in [(14, 0x46), (20, 0x20), (21, 0x01), (23, 47), (23, 41), (34, 0x65)] {
            decapsulator.expect_untouched(&changed(Family::V4, at, value));
        }
        // IPv6 that is said to be IPv4; a fragment header inside; IPv4 that is said to be IPv6.
        for (at, value) in [(20, 4), (20, 44), (54, 0x45)] {
            decapsulator.expect_untouched(&changed(Family::V6, at, value));
        }
        // VLAN-tagged.
        for family in FAMILIES {
            let bytes = arriving(family, Protocol::Tcp).bytes();
            decapsulator.expect_untouched(&[&bytes[..12], &[0x81, 0, 0, 5], &bytes[12..]].concat());
        }
    });
}
