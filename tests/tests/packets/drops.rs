//! Each reason to drop a packet, with its counter: [`Bench::send_bytes`] checks that no other one moves.

use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Scheduler};
use lb_userspace::datapath::xdp::object::LoadOptions;
use lb_userspace::model::{Policy, Removal};

use super::bench::{Bench, OPTIONS, Verdict, in_namespace};
use super::frame::{ACK, FIN, Frame, PSH, RST, SYN, Transport};
use super::oracle::Told;
use super::scene::{
    FAMILIES, Family, INGRESS, METHODS, NAT_PORT, PORT, PROTOCOLS, UNLISTED, answer, opening, real_mac, real_server,
    service,
};
use super::{access, headroom, routes};

/// The scenes in which a reason arises. A reason that is added needs one.
fn scenes(reason: DropReason) -> &'static [fn()] {
    match reason {
        DropReason::Malformed => &[longer_than_the_frame, shorter_than_its_headers, malformed_answers],
        DropReason::Fragment => &[first_fragments],
        DropReason::ExtensionHeader => &[extension_headers],
        DropReason::NoRealServer => &[no_real_server],
        DropReason::NoConnection => &[no_connection],
        DropReason::TupleInUse => &[tuple_in_use],
        DropReason::TableFull => &[table_full],
        DropReason::TtlExpired => &[ttl_expired],
        DropReason::PacketTooBig => &[packet_too_big, routes::packet_too_big],
        DropReason::NoRoute => &[routes::no_route, no_outer_source],
        DropReason::NoNeighbour => &[routes::no_neighbour],
        DropReason::ForwardingDisabled => &[routes::forwarding_disabled],
        DropReason::NoHeadroom => &[headroom::no_headroom],
        DropReason::Denied => &[access::denied],
        DropReason::UnlistedInterface => &[unlisted_interface, routes::unlisted_interface],
    }
}

#[test]
fn every_reason_is_provoked() {
    assert!(DropReason::ALL.into_iter().all(|reason| !scenes(reason).is_empty()));
}

#[test]
fn a_way_out_by_an_interface_without_the_program_is_not_taken() {
    in_namespace(unlisted_interface);
}

fn unlisted_interface() {
    for method in METHODS {
        let mut bench = Bench::serving(method, 1);
        for family in FAMILIES {
            // The second shares its place in the map with the interface that frames come in by.
            for ifindex in [UNLISTED, INGRESS + 256] {
                bench.way(family, 1, ifindex, 1500);
                for protocol in PROTOCOLS {
                    let packet = opening(service(family, protocol), 1000);
                    bench.expect_drop(&packet.bytes(), DropReason::UnlistedInterface);
                }
            }
        }
    }
}

#[test]
fn without_a_source_for_the_outer_header_nothing_is_tunnelled() {
    in_namespace(no_outer_source);
}

fn no_outer_source() {
    let mut bench = Bench::serving(ForwardingMethod::Tun, 1);
    for family in FAMILIES {
        bench.no_source(family, 1);
        bench.expect_drop(&opening(service(family, Protocol::Tcp), 1000).bytes(), DropReason::NoRoute);
    }
}

#[test]
fn a_length_beyond_the_frame_is_malformed() {
    in_namespace(longer_than_the_frame);
}

#[test]
fn a_length_shorter_than_the_headers_is_malformed() {
    in_namespace(shorter_than_its_headers);
}

#[test]
fn a_malformed_answer_is_dropped() {
    in_namespace(malformed_answers);
}

#[test]
fn a_first_fragment_is_dropped() {
    in_namespace(first_fragments);
}

#[test]
fn a_packet_with_extension_headers_is_dropped() {
    in_namespace(extension_headers);
}

#[test]
fn without_a_real_server_new_connections_are_refused() {
    in_namespace(no_real_server);
}

#[test]
fn a_segment_of_no_connection_is_refused_unless_it_resets() {
    in_namespace(no_connection);
}

#[test]
fn behind_nat_a_connection_for_which_there_is_no_room_is_dropped() {
    in_namespace(table_full);
}

#[test]
fn a_real_server_gets_a_clients_port_from_one_virtual_server_only() {
    in_namespace(tuple_in_use);
}

#[test]
fn a_packet_that_has_no_time_to_live_is_dropped() {
    in_namespace(ttl_expired);
}

#[test]
fn a_packet_is_dropped_from_the_first_byte_above_the_limit() {
    in_namespace(packet_too_big);
}

/// `frame` with a length in its IP header that is `by` more or less than the truth.
fn lying(frame: &Frame, by: i16) -> Vec<u8> {
    let mut bytes = frame.bytes();
    let at = if frame.source.is_ipv4() { 16 } else { 18 };
    let true_length = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    bytes[at..at + 2].copy_from_slice(&true_length.wrapping_add_signed(by).to_be_bytes());
    bytes
}

/// Each method with one real server, for a new packet of each family and protocol, of which it has not heard.
fn each_opening(scene: impl Fn(&Bench, Frame)) {
    for method in METHODS {
        let bench = Bench::serving(method, 1);
        for family in FAMILIES {
            for protocol in PROTOCOLS {
                scene(&bench, opening(service(family, protocol), 1000));
            }
        }
    }
}

fn longer_than_the_frame() {
    each_opening(|bench, packet| {
        for by in [1, 2, 1000] {
            bench.expect_drop(&lying(&packet, by), DropReason::Malformed);
        }
        let padded = Frame { padding: vec![0; 10], ..packet };
        bench.expect_drop(&lying(&padded, 11), DropReason::Malformed);
    });
}

fn shorter_than_its_headers() {
    each_opening(|bench, packet| {
        // All the way down to an IP header that ends before itself.
        let headers = i16::try_from(packet.packet_length()).expect("small");
        let all_of_it = if packet.source.is_ipv4() { headers } else { headers - 40 };
        for by in 1..=all_of_it {
            bench.expect_drop(&lying(&packet.clone(), -by), DropReason::Malformed);
        }
        let with_payload = packet.payload(&[0; 8]);
        bench.expect_drop(&lying(&with_payload, -9), DropReason::Malformed);
    });
    let bench = Bench::serving(ForwardingMethod::Nat, 1);
    for protocol in PROTOCOLS {
        // Room for the header without options only.
        let packet = opening(service(Family::V4, protocol), 1000);
        bench.expect_drop(&lying(&Frame { options: vec![1; 40], ..packet }, -40), DropReason::Malformed);
    }
}

fn malformed_answers() {
    each_answer(|bench, answer, _| {
        bench.expect_drop(&lying(answer, 1), DropReason::Malformed);
        bench.expect_drop(&lying(answer, -1), DropReason::Malformed);
    });
}

/// For each family and protocol, an answer without payload of a `nat` real server to a connection that is there.
fn each_answer(scene: impl Fn(&Bench, &Frame, &Frame)) {
    let bench = Bench::serving(ForwardingMethod::Nat, 1);
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            let request = opening(service(family, protocol), 1000);
            assert_eq!(bench.server_of(&request), 1);
            let real = real_server(family, ForwardingMethod::Nat, 1);
            scene(&bench, &answer(&request, real, 1, SYN | ACK), &request);
        }
    }
}

/// An IPv6 fragment header (RFC 8200 §4.5) with this offset and mark.
fn fragment_header(field: u16) -> (u8, Vec<u8>) {
    let [high, low] = field.to_be_bytes();
    (44, vec![0, 0, high, low, 0, 0, 0, 1])
}

/// `packet` as the first of several fragments.
fn first_fragment(packet: &Frame) -> Frame {
    let mut first = packet.clone().payload(&[0x42; 16]);
    if packet.source.is_ipv4() {
        (first.more_fragments, first.dont_fragment) = (true, false);
    } else {
        first.extensions = vec![fragment_header(1)];
    }
    first
}

fn first_fragments() {
    each_opening(|bench, packet| {
        bench.expect_drop(&first_fragment(&packet).bytes(), DropReason::Fragment);
        if !packet.source.is_ipv4() {
            let behind_options = vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0]), fragment_header(1)];
            bench.expect_drop(&Frame { extensions: behind_options, ..packet }.bytes(), DropReason::Fragment);
        }
    });
    each_answer(|bench, answer, _| bench.expect_drop(&first_fragment(answer).bytes(), DropReason::Fragment));
}

fn extension_headers() {
    // PadN of 4 bytes; a routing header without segments; an authentication header; a fragment that is the whole packet.
    let hop_by_hop = (0, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    let destination = (60, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    let long_destination = (60, [vec![0, 2, 1, 20], vec![0; 20]].concat());
    let routing = (43, vec![0, 0, 4, 0, 0, 0, 0, 0]);
    let authentication = (51, [vec![0, 4], vec![9; 22]].concat());
    let chains = [
        vec![hop_by_hop.clone()],
        vec![destination.clone()],
        vec![long_destination.clone()],
        vec![routing.clone()],
        vec![authentication.clone()],
        vec![fragment_header(0)],
        vec![hop_by_hop.clone(), destination.clone(), routing, fragment_header(0), authentication, long_destination],
        vec![destination.clone(); 8],
        // As many as fit into 1500 bytes before a TCP header.
        vec![destination.clone(); 180],
    ];
    each_opening(|bench, packet| {
        if packet.source.is_ipv4() {
            return;
        }
        for extensions in chains.clone() {
            let with_headers = Frame { extensions, ..packet.clone() };
            bench.expect_drop(&with_headers.bytes(), DropReason::ExtensionHeader);
            let to_another_port = Frame { destination: (packet.destination.ip(), 81).into(), ..with_headers };
            bench.expect_untouched(&to_another_port);
        }
    });
    each_answer(|bench, answer, _| {
        if !answer.source.is_ipv4() {
            let answer = Frame { extensions: vec![hop_by_hop.clone()], ..answer.clone() };
            bench.expect_drop(&answer.bytes(), DropReason::ExtensionHeader);
        }
    });
}

fn no_real_server() {
    for method in METHODS {
        let mut bench = Bench::serving(method, 2);
        for family in FAMILIES {
            for protocol in PROTOCOLS {
                let service = service(family, protocol);
                let [one, two] = [1, 2].map(|n| real_server(family, method, n));
                bench.serve(service, method, &[(one, 0), (two, 0)]);
                bench.expect_refusal(&opening(service, 1000).bytes(), DropReason::NoRealServer);
                bench.serve(service, method, &[]);
                bench.expect_refusal(&opening(service, 1000).bytes(), DropReason::NoRealServer);
                bench.serve(service, method, &[(two, 1)]);
                assert_eq!(bench.server_of(&opening(service, 1000)), 2);
            }
        }
    }
}

fn no_connection() {
    for method in METHODS {
        let bench = Bench::serving(method, 1);
        for family in FAMILIES {
            let address = service(family, Protocol::Tcp).address;
            for flags in [0, ACK, ACK | PSH, RST, RST | ACK, FIN, FIN | ACK, SYN | ACK, SYN | FIN, SYN | RST] {
                let segment = Frame::tcp(family.client(1000), address, flags).bytes();
                match flags & RST {
                    0 => bench.expect_refusal(&segment, DropReason::NoConnection),
                    _ => bench.expect_drop(&segment, DropReason::NoConnection),
                }
            }
            bench.open(family, 1000);
            bench.server_of(&Frame::tcp(family.client(1000), address, ACK));
            // The connection is one of this port only.
            bench.expect_refusal(&Frame::tcp(family.client(1001), address, ACK).bytes(), DropReason::NoConnection);
        }
    }
}

fn table_full() {
    for family in FAMILIES {
        // Room for four at 60 percent: one bucket of eight.
        let mut bench = Bench::load(&LoadOptions { connections_max: 4, ..OPTIONS });
        bench.serve_all(ForwardingMethod::Nat, 1);
        let address = service(family, Protocol::Tcp).address;
        for port in 1000..1008 {
            bench.open(family, port);
            for _ in 0..2 {
                bench.server_of(&Frame::tcp(family.client(port), address, ACK));
            }
        }
        bench.expect_drop(&opening(service(family, Protocol::Tcp), 1008).bytes(), DropReason::TableFull);
        bench.expect_drop(&opening(service(family, Protocol::Udp), 1008).bytes(), DropReason::TableFull);
        bench.server_of(&Frame::tcp(family.client(1000), address, FIN | ACK));
        bench.open(family, 1008);
    }
}

#[test]
fn an_answer_of_a_real_server_that_has_no_connections_any_more_passes() {
    in_namespace(|| {
        for family in FAMILIES {
            let mut bench = Bench::serving(ForwardingMethod::Nat, 1);
            let service = service(family, Protocol::Tcp);
            let request = opening(service, 1000);
            bench.server_of(&request);
            let real = real_server(family, ForwardingMethod::Nat, 1);
            let policy = Policy { removed_real_server: Removal::Expire, ..Policy::new(Scheduler::Rr) };
            bench.serve_by(&policy, service, ForwardingMethod::Nat, &[]);
            bench.expect_untouched(&answer(&request, real, 1, SYN | ACK));
            // Back again, it is another one.
            bench.serve_by(&policy, service, ForwardingMethod::Nat, &[(real, 1)]);
            bench.expect_untouched(&answer(&request, real, 1, SYN | ACK));
        }
    });
}

fn tuple_in_use() {
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            let mut bench = Bench::empty();
            bench.way(family, 1, INGRESS, 1500);
            let real = real_server(family, ForwardingMethod::Nat, 1);
            let first = service(family, protocol);
            let mut second = first;
            second.address.set_ip(family.vip(1));
            let mut third = first;
            third.address.set_port(PORT + 1);
            for service in [first, second, third] {
                bench.serve(service, ForwardingMethod::Nat, &[(real, 1)]);
            }
            bench.server_of(&opening(first, 1000));
            bench.expect_drop(&opening(second, 1000).bytes(), DropReason::TupleInUse);
            bench.expect_drop(&opening(third, 1000).bytes(), DropReason::TupleInUse);
            // The refused one has left nothing behind: the answer still belongs to the first.
            let answer = answer(&opening(first, 1000), real, 1, SYN | ACK);
            let back = Frame { source: first.address, ..answer.sent_on(super::scene::CLIENT_MAC) };
            bench.expect(&answer, Verdict::Transmit, &back);
            // From another port there is room.
            bench.server_of(&opening(second, 1001));
        }
    }
}

fn ttl_expired() {
    each_opening(|bench, packet| {
        for ttl in [0, 1] {
            bench.expect_told(&Frame { ttl, ..packet.clone() }, packet.destination.ip(), Told::Expired);
        }
        bench.server_of(&Frame { ttl: 2, ..packet });
    });
    each_answer(|bench, answer, request| {
        bench.expect_told(&Frame { ttl: 1, ..answer.clone() }, request.destination.ip(), Told::Expired);
    });
}

fn packet_too_big() {
    for method in METHODS {
        let mut bench = Bench::serving(method, 1);
        for family in FAMILIES {
            bench.way(family, 1, INGRESS, 600);
            let outer = match (method, family) {
                (ForwardingMethod::Nat | ForwardingMethod::Dr, _) => 0,
                (ForwardingMethod::Tun, Family::V4) => 20,
                (ForwardingMethod::Tun, Family::V6) => 40,
            };
            for protocol in PROTOCOLS {
                let packet = opening(service(family, protocol), 1000);
                let of_length = |length: usize| packet.clone().payload(&vec![7; length - packet.packet_length()]);
                let told = Told::TooBig(u16::try_from(600 - outer).expect("small"));
                bench.expect_told(&of_length(601 - outer), family.vip(0), told);
                bench.expect_told(&of_length(1400), family.vip(0), told);
                bench.server_of(&of_length(600 - outer));
                // Padding is no part of the packet.
                bench.server_of(&Frame { padding: vec![0; 40], ..of_length(600 - outer) });
            }
        }
    }
}

#[test]
fn whose_packet_is_too_big_is_told_so_though_others_have_used_up_the_answers_to_them() {
    in_namespace(|| {
        // Two answers of a kind in a tick.
        let mut bench = Bench::load(&LoadOptions { reject_rate: 1, ..OPTIONS });
        bench.serve_all(ForwardingMethod::Dr, 1);
        for family in FAMILIES {
            bench.way(family, 1, INGRESS, 1280);
            let packet = opening(service(family, Protocol::Udp), 1000);
            let expired = Frame { ttl: 1, ..packet.clone() };
            let big = packet.clone().payload(&[7; 1300]);
            bench.steady_tick();
            while bench.send(&expired).verdict == Verdict::Transmit {}
            bench.expect_told(&big, family.vip(0), Told::TooBig(1280));
        }
    });
}

#[test]
fn a_dropped_packet_leaves_no_connection_and_no_count() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Nat, 1);
        for family in FAMILIES {
            bench.way(family, 1, INGRESS, 60);
            let service = service(family, Protocol::Tcp);
            let big = opening(service, 1000).payload(&[0; 100]);
            bench.expect_told(&big, family.vip(0), Told::TooBig(60));
            let data = Frame { transport: Transport::Tcp { flags: ACK }, ..opening(service, 1000) };
            bench.expect_refusal(&data.bytes(), DropReason::NoConnection);
        }
        for statistics in bench.datapath.statistics().expect("can be read") {
            assert_eq!(statistics.counters, lb_common::counters::Counters::default());
        }
        // Nor a way back.
        let real = (Family::V4.real(1), NAT_PORT).into();
        bench
            .expect_untouched(&Frame::tcp(real, Family::V4.client(1000), ACK).macs(real_mac(1), super::scene::OUR_MAC));
    });
}
