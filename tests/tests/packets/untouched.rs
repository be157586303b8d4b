//! What is not ours goes up to the host byte for byte.

use std::net::SocketAddr;

use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;
use lb_common::{STAGE_EXCEPTIONAL, STAGE_EXCEPTIONAL_IPV6};

use super::bench::{Bench, Verdict, assert_same, in_namespace};
use super::frame::{ACK, Frame, SYN, Transport};
use super::scene::{FAMILIES, Family, METHODS, Mac, NAT_PORT, OUR_MAC, answer, opening, real_server, service};

/// Every method lets every frame that `frames` makes for a family pass.
fn passes(families: &[Family], frames: impl Fn(Family) -> Vec<Vec<u8>> + Sync) {
    in_namespace(|| {
        for method in METHODS {
            let bench = Bench::serving(method, 2);
            for family in families {
                bench.open(*family, 1000);
                for frame in frames(*family) {
                    let sent = bench.send_bytes(&frame);
                    assert_eq!(sent.verdict, Verdict::Pass, "dropped: {:?}, {frame:02x?}", sent.dropped);
                    assert_same(&sent.frame, &frame, &"the same");
                }
            }
        }
    });
}

/// A SYN to the virtual server, and a segment of the connection that is there.
fn ours(family: Family) -> [Frame; 2] {
    let service = service(family, Protocol::Tcp);
    [opening(service, 1001), Frame::tcp(family.client(1000), service.address, ACK).payload(b"data")]
}

#[test]
fn a_frame_to_another_station_passes() {
    let others: [Mac; 4] =
        [[0x02, 0, 0, 0, 0, 0x02], [0x03, 0, 0, 0, 0, 0x01], [0x02, 0, 0, 0, 0x80, 0x01], [0, 0, 0x5e, 0, 1, 51]];
    passes(&FAMILIES, |family| {
        let to = |mac| ours(family).map(|frame| frame.macs([2, 0, 0, 0, 0, 9], mac).bytes());
        others.into_iter().flat_map(to).collect()
    });
}

#[test]
fn broadcast_and_multicast_frames_pass() {
    let groups: [Mac; 3] = [[0xff; 6], [0x01, 0, 0x5e, 0, 0, 18], [0x33, 0x33, 0, 0, 0, 1]];
    passes(&FAMILIES, |family| {
        let to = |mac| ours(family).map(|frame| frame.macs([2, 0, 0, 0, 0, 9], mac).bytes());
        groups.into_iter().flat_map(to).collect()
    });
}

/// `::ffff:203.0.113.100` is how the maps write an IPv4 VIP, but on the wire it is another address.
#[test]
fn ipv6_packets_with_mapped_addresses_pass() {
    passes(&[Family::V4], |family| {
        let mapped = |ip: std::net::IpAddr, port| match ip {
            std::net::IpAddr::V4(v4) => SocketAddr::from((v4.to_ipv6_mapped(), port)),
            std::net::IpAddr::V6(v6) => SocketAddr::from((v6, port)),
        };
        let (client, vip) = (family.client(1001), family.vip(0));
        let address = mapped(vip, service(family, Protocol::Tcp).address.port());
        let both = Frame::tcp(mapped(client.ip(), 1001), address, SYN);
        let one = Frame::tcp(Family::V6.client(1001), address, SYN);
        vec![both.bytes(), one.bytes()]
    });
}

#[test]
fn arp_passes() {
    passes(&[Family::V4], |_| {
        let request = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 12, 192, 0, 2, 10, 0, 0, 0, 0, 0, 0, 203, 0, 113, 100];
        let frame = |to: Mac| [&to[..], &[2, 0, 0, 0, 0, 12, 8, 6], &request, &[0; 18]].concat();
        vec![frame([0xff; 6]), frame(OUR_MAC)]
    });
}

#[test]
fn tagged_frames_pass() {
    passes(&FAMILIES, |family| {
        let tag = |tag: &[u8], frame: &Frame| {
            let bytes = frame.bytes();
            [&bytes[..12], tag, &bytes[12..]].concat()
        };
        let tagged = |frame| [tag(&[0x81, 0, 0, 5], &frame), tag(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6], &frame)];
        ours(family).into_iter().flat_map(tagged).collect()
    });
}

#[test]
fn other_protocols_to_the_vip_pass() {
    passes(&FAMILIES, |family| {
        let vip = service(family, Protocol::Tcp).address;
        // ICMP and ICMPv6 echo, GRE, ESP, SCTP, with bytes where TCP would have the VIP's port.
        let packet = |protocol| Frame::new(family.client(0), vip, Transport::Other { protocol });
        [1, 58, 47, 50, 132].map(|number| packet(number).payload(&[8, 0, 0, 80, 0, 1, 0, 80]).bytes()).to_vec()
    });
}

#[test]
fn another_port_of_the_vip_passes() {
    passes(&FAMILIES, |family| {
        let vip = family.vip(0);
        // 20480 is 80 in the wrong byte order.
        let to = |port| Frame::tcp(family.client(1000), SocketAddr::new(vip, port), SYN).bytes();
        [0, 79, 81, 443, NAT_PORT, 20480, 65535].map(to).to_vec()
    });
}

#[test]
fn another_address_passes() {
    passes(&FAMILIES, |family| {
        let to = |ip| Frame::tcp(family.client(1000), SocketAddr::new(ip, 80), SYN).bytes();
        vec![to(family.vip(1)), to(family.director()), to(family.client(0).ip()), to(family.real(9))]
    });
}

#[test]
fn the_right_port_of_the_wrong_protocol_passes() {
    in_namespace(|| {
        for (served, sent) in [(Protocol::Tcp, Protocol::Udp), (Protocol::Udp, Protocol::Tcp)] {
            for family in FAMILIES {
                let mut bench = Bench::empty();
                bench.way(family, 1, 1, 1500);
                let real = real_server(family, ForwardingMethod::Dr, 1);
                bench.serve(service(family, served), ForwardingMethod::Dr, &[(real, 1)]);
                bench.expect_untouched(&opening(service(family, sent), 1000));
                bench.server_of(&opening(service(family, served), 1000));
            }
        }
    });
}

#[test]
fn a_real_servers_own_traffic_passes() {
    passes(&FAMILIES, |family| {
        let request = opening(service(family, Protocol::Tcp), 999);
        let mut frames = Vec::new();
        for method in METHODS {
            // An answer to nobody's request, and a connection of the real server's own.
            let real = real_server(family, method, 1);
            frames.push(answer(&request, real, 1, SYN | ACK).bytes());
            frames.push(Frame::tcp(real, family.client(443), SYN).bytes());
        }
        frames
    });
}

#[test]
fn a_direct_packet_to_a_real_server_passes() {
    passes(&FAMILIES, |family| {
        let to = |method| Frame::tcp(family.client(1000), real_server(family, method, 1), SYN).bytes();
        METHODS.map(to).to_vec()
    });
}

#[test]
fn a_header_that_is_no_ip_header_passes() {
    passes(&FAMILIES, |family| {
        let good = opening(service(family, Protocol::Tcp), 1001).bytes();
        let with_first = |first: u8| [&good[..14], &[first], &good[15..]].concat();
        match family {
            // Version 5, and a header length of four words.
            Family::V4 => vec![with_first(0x55), with_first(0x44), with_first(0x65)],
            Family::V6 => vec![with_first(0x40), with_first(0x70)],
        }
    });
}

/// An operator could unpin the map of programs; a packet that `balance` does not read itself is none that it could lose.
#[test]
fn without_the_program_for_them_exceptional_packets_pass() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Dr, 1);
        for family in FAMILIES {
            let packet = opening(service(family, Protocol::Udp), 1000);
            let fragment = match family {
                Family::V4 => Frame { more_fragments: true, dont_fragment: false, ..packet.clone() },
                Family::V6 => Frame { extensions: vec![(44, vec![0, 0, 0, 1, 0, 0, 0, 1])], ..packet.clone() },
            };
            bench.server_of(&fragment);
            let mut stages: aya::maps::ProgramArray<_> =
                bench.datapath.ebpf().map_mut("stages").expect("is there").try_into().expect("of programs");
            for stage in [STAGE_EXCEPTIONAL, STAGE_EXCEPTIONAL_IPV6] {
                stages.clear_index(&stage).expect("takes it");
            }
            bench.expect_untouched(&fragment);
            bench.server_of(&packet);
            bench = Bench::serving(ForwardingMethod::Dr, 1);
        }
    });
}

#[test]
fn without_its_interface_everything_passes() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Dr, 1);
        bench.server_of(&ours(Family::V4)[0]);
        // Another interface at the same place of the table: 257 = 1 + 256.
        let mut interfaces = aya::maps::Array::<_, lb_common::interface::InterfaceEntry>::try_from(
            bench.datapath.ebpf().map_mut("interfaces").expect("is there"),
        )
        .expect("an array");
        let mut entry = interfaces.get(&1, 0).expect("is there");
        entry.ifindex = 257;
        interfaces.set(1, entry, 0).expect("takes it");
        bench.expect_untouched(&ours(Family::V4)[0]);
    });
}
