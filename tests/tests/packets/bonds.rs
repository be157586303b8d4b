//! Frames that come in by a bond's slave come in by the bond: native XDP runs on the slave, and the context says so.

use lb_common::net::{MacAddress, Protocol};
use lb_common::service::ForwardingMethod;

use super::bench::{Bench, Verdict, in_namespace};
use super::replies::back;
use super::scene::{ELSEWHERE, FAMILIES, INGRESS, OUR_MAC, answer, opening, real_server, service};
use super::{forwarding, frame};

#[test]
fn clients_behind_a_bond_are_answered_by_the_bond() {
    in_namespace(|| {
        let mut bench = Bench::serving(ForwardingMethod::Nat, 1);
        let mac = MacAddress { octets: OUR_MAC };
        bench.datapath.set_interface(INGRESS, mac, Some(ELSEWHERE)).expect("it has its place");
        for family in FAMILIES {
            bench.way(family, 1, ELSEWHERE, 1500);
            let request = opening(service(family, Protocol::Tcp), 1000);
            bench.expect(&request, Verdict::Redirect, &forwarding::translated(&request, family));
            // No route leads to the client, so the answer goes where the request came from.
            let real = real_server(family, ForwardingMethod::Nat, 1);
            let answer = answer(&request, real, 1, frame::SYN | frame::ACK);
            bench.expect(&answer, Verdict::Redirect, &back(&answer, &request));
        }
    });
}
