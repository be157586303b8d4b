//! Where user space knows no way, the program asks the kernel's routing table: what it makes of each answer.
//!
//! Interfaces and routes are those of the test's own namespace: a veth pair, of which one end is never used.

use std::process::Command;

use evenkeel_tests::lab;
use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;

use super::bench::{Bench, Verdict, assert_same, in_namespace};
use super::forwarding::{translated, tunnelled};
use super::frame::{ACK, Frame, SYN};
use super::oracle::Told;
use super::replies::back;
use super::scene::{FAMILIES, Family, METHODS, Mac, UNLISTED, answer, opening, real_server, service};

/// Of the interface towards the real servers.
pub const OUT_MAC: Mac = [0x02, 0, 0, 0, 0x0e, 0x01];
/// What the kernel's neighbour table says of real server 1 and of the client.
pub const NEIGHBOUR_MAC: Mac = [0x02, 0, 0, 0, 0x0e, 0x02];

#[test]
fn without_a_route_the_packet_is_dropped() {
    in_namespace(no_route);
}

#[test]
fn without_a_neighbour_the_packet_is_dropped() {
    in_namespace(no_neighbour);
}

#[test]
fn where_the_host_does_not_forward_the_packet_is_dropped() {
    in_namespace(forwarding_disabled);
}

#[test]
fn a_packet_larger_than_the_route_takes_is_dropped() {
    in_namespace(packet_too_big);
}

/// Every method with one real server to which no way is known.
fn each_unresolved(scene: impl Fn(&Bench, ForwardingMethod, Family)) {
    for method in METHODS {
        let mut bench = Bench::serving(method, 1);
        for family in FAMILIES {
            bench.no_way(family, 1);
            scene(&bench, method, family);
        }
    }
}

fn all_are_dropped(reason: DropReason) {
    each_unresolved(|bench, _, family| {
        bench.expect_drop(&opening(service(family, Protocol::Tcp), 1000).bytes(), reason);
        bench.expect_drop(&opening(service(family, Protocol::Udp), 1000).bytes(), reason);
    });
}

pub fn forwarding_disabled() {
    all_are_dropped(DropReason::ForwardingDisabled);
}

pub fn no_route() {
    forward();
    all_are_dropped(DropReason::NoRoute);
    if !lab::available() {
        return;
    }
    ip(&["link set lo up"]);
    for kind in ["blackhole", "unreachable", "prohibit"] {
        ip(&[&format!("route replace {kind} 198.51.100.0/24"), &format!("-6 route replace {kind} 2001:db8:11::/48")]);
        all_are_dropped(DropReason::NoRoute);
        ip(&[&format!("-6 route del {kind} 2001:db8:11::/48")]);
    }
}

pub fn no_neighbour() {
    if !lab::available() {
        return;
    }
    connect_real_servers(1500);
    all_are_dropped(DropReason::NoNeighbour);
}

#[test]
fn a_way_of_the_kernels_by_an_interface_without_the_program_is_not_taken() {
    in_namespace(unlisted_interface);
}

pub fn unlisted_interface() {
    if !lab::available() {
        return;
    }
    forward();
    ip(&[
        &format!("link add out index {UNLISTED} address 02:00:00:00:0e:01 type veth peer name far"),
        "link set out up",
        "link set far up",
        "addr add 198.51.100.254/24 dev out",
        "-6 addr add 2001:db8:11:2233:4455:66:d:800d/64 dev out nodad",
    ]);
    introduce_real_server();
    all_are_dropped(DropReason::UnlistedInterface);
}

pub fn packet_too_big() {
    if !lab::available() {
        return;
    }
    connect_real_servers(1300);
    introduce_real_server();
    each_unresolved(|bench, method, family| {
        let outer = match (method, family) {
            (ForwardingMethod::Nat | ForwardingMethod::Dr, _) => 0,
            (ForwardingMethod::Tun, Family::V4) => 20,
            (ForwardingMethod::Tun, Family::V6) => 40,
        };
        let packet = opening(service(family, Protocol::Udp), 1000);
        let of_length = |length: usize| packet.clone().payload(&vec![7; length - packet.packet_length()]);
        let told = Told::TooBig(u16::try_from(1300 - outer).expect("small"));
        bench.expect_told(&of_length(1301 - outer), family.vip(0), told);
        assert_eq!(bench.send(&of_length(1300 - outer)).verdict, Verdict::Redirect);
    });
}

#[test]
fn a_way_that_only_the_kernel_knows_is_taken() {
    in_namespace(|| {
        if !lab::available() {
            return;
        }
        connect_real_servers(1500);
        introduce_real_server();
        each_unresolved(|bench, method, family| {
            let packet = opening(service(family, Protocol::Tcp), 1000);
            let known = match method {
                ForwardingMethod::Nat => translated(&packet, family),
                ForwardingMethod::Dr => packet.sent_on(NEIGHBOUR_MAC),
                ForwardingMethod::Tun => tunnelled(&packet, family),
            };
            bench.expect(&packet, Verdict::Redirect, &known.macs(OUT_MAC, NEIGHBOUR_MAC));
        });
    });
}

#[test]
fn a_nat_answer_takes_the_route_to_the_client_that_the_kernel_knows() {
    in_namespace(|| {
        if !lab::available() {
            return;
        }
        connect_real_servers(1300);
        let mut bench = Bench::serving(ForwardingMethod::Nat, 1);
        let answers = FAMILIES.map(|family| {
            let request = opening(service(family, Protocol::Tcp), 1000);
            bench.server_of(&request);
            let real = real_server(family, ForwardingMethod::Nat, 1);
            (answer(&request, real, 1, SYN | ACK), request)
        });
        // By the veth, once it knows the client: the same network in IPv6, a route in IPv4.
        ip(&["route add 192.0.2.0/24 dev out"]);
        for (answer, request) in &answers {
            // No neighbour yet: back to where the request came from.
            bench.expect(answer, Verdict::Transmit, &back(answer, request));
        }
        for family in FAMILIES {
            introduce(&family.client(0).ip().to_string());
        }
        // The program remembers the way; the daemon watches the kernel's tables and tells.
        bench.expect(&answers[0].0, Verdict::Transmit, &back(&answers[0].0, &answers[0].1));
        bench.datapath.routes_changed().expect("the map takes it");
        for (answer, request) in &answers {
            bench.expect(answer, Verdict::Redirect, &back(answer, request).macs(OUT_MAC, NEIGHBOUR_MAC));
            let big = answer.clone().payload(&vec![1; 1301 - answer.packet_length()]);
            bench.expect_told(&big, request.destination.ip(), Told::TooBig(1300));
        }
    });
}

#[test]
fn a_nat_answer_to_a_client_that_the_routes_forbid_is_dropped() {
    in_namespace(|| {
        if !lab::available() {
            return;
        }
        forward();
        ip(&["link set lo up"]);
        let bench = Bench::serving(ForwardingMethod::Nat, 1);
        for kind in ["blackhole", "unreachable", "prohibit"] {
            ip(&[&format!("route replace {kind} 192.0.2.0/24"), &format!("-6 route replace {kind} 2001:db8:11::/48")]);
            for family in FAMILIES {
                let request = opening(service(family, Protocol::Tcp), 1000);
                bench.server_of(&request);
                let real = real_server(family, ForwardingMethod::Nat, 1);
                let answer: Frame = answer(&request, real, 1, SYN | ACK);
                bench.expect_drop(&answer.bytes(), DropReason::NoRoute);
            }
            ip(&[&format!("-6 route del {kind} 2001:db8:11::/48")]);
        }
    });
}

#[test]
fn a_known_way_is_taken_without_asking_the_kernel() {
    in_namespace(|| {
        // Here the kernel would say that it does not forward.
        let bench = Bench::serving(ForwardingMethod::Dr, 1);
        for family in FAMILIES {
            let packet = opening(service(family, Protocol::Tcp), 1000);
            let sent = bench.send(&packet);
            assert_eq!(sent.verdict, Verdict::Transmit);
            assert_same(&sent.frame, &packet.sent_on(super::scene::real_mac(1)).bytes(), &packet);
        }
    });
}

/// Lets the namespace forward.
fn forward() {
    // /proc/sys/net shows the settings of the thread that looks.
    for setting in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{setting}"), "1").expect("a setting of the namespace");
    }
}

/// Forwarding on, and an interface towards the real servers' networks.
fn connect_real_servers(mtu: u32) {
    forward();
    ip(&[
        "link add out address 02:00:00:00:0e:01 type veth peer name far",
        &format!("link set out mtu {mtu} up"),
        "link set far up",
        "addr add 198.51.100.254/24 dev out",
        "-6 addr add 2001:db8:11:2233:4455:66:d:800d/64 dev out nodad",
    ]);
}

/// Forwarding on, and the client behind an interface of its own, known to the kernel.
pub fn connect_clients() {
    connect_real_servers(1500);
    ip(&["route add 192.0.2.0/24 dev out"]);
    FAMILIES.iter().for_each(|family| introduce(&family.client(0).ip().to_string()));
}

/// Tells the kernel of real server 1.
fn introduce_real_server() {
    FAMILIES.iter().for_each(|family| introduce(&family.real(1).to_string()));
}

fn introduce(address: &str) {
    ip(&[&format!("neigh replace {address} lladdr 02:00:00:00:0e:02 dev out nud permanent")]);
}

/// Runs `ip` in the thread's namespace, once for each line.
pub fn ip(lines: &[&str]) {
    for line in lines {
        let output = Command::new("ip").args(line.split_whitespace()).output().expect("ip is installed");
        assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
