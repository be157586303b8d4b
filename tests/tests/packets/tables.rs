//! The kernel's tables hold what they were told to, through any changes: the property of a data path, on the real maps.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;
use lb_userspace::datapath::Datapath as _;
use lb_userspace::model::{Service, Weight};
use lb_userspace::reconcile::plan;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::bench::{Bench, in_namespace};
use super::scene::{FAMILIES, Family, INGRESS, METHODS, PROTOCOLS, opening, real_server};

/// Real servers by number, each with its weight.
type Reals = BTreeMap<u8, u16>;
/// Virtual servers by the number of their VIP and their protocol.
type Spec = BTreeMap<(u8, bool, bool), (usize, Reals)>;

/// Up to twelve virtual servers, of three VIPs a family, with up to five real servers each.
fn spec() -> impl Strategy<Value = Spec> {
    let reals = btree_map(1..=5_u8, 0..3_u16, 0..5);
    btree_map((0..3_u8, any::<bool>(), any::<bool>()), (0..METHODS.len(), reals), 0..8)
}

/// The first table empty or not, then changed up to three times; half the time only a little.
fn history() -> impl Strategy<Value = Vec<Spec>> {
    let little = (spec(), vec((0..5_u16, any::<bool>()), 1..4)).prop_map(|(spec, changes)| {
        let mut history = vec![spec.clone()];
        for (change, real) in changes {
            let mut next = history.last().cloned().unwrap_or_default();
            match next.iter_mut().next() {
                Some((_, (_, reals))) if real => drop(reals.insert(u8::try_from(change).unwrap_or(0) + 1, change % 3)),
                Some((_, (_, reals))) if change == 0 => reals.clear(),
                Some(_) if change == 1 => drop(next.pop_first()),
                Some((_, (_, reals))) => reals.values_mut().for_each(|weight| *weight = change),
                None => {}
            }
            history.push(next);
        }
        history
    });
    prop_oneof![vec(spec(), 1..4), little]
}

fn family(is_v6: bool) -> Family {
    if is_v6 { Family::V6 } else { Family::V4 }
}

/// Makes the bench want `spec`, and nothing else.
fn want(bench: &mut Bench, spec: &Spec) {
    let mut wanted = Vec::new();
    for ((vip, is_v6, is_udp), (method, reals)) in spec {
        let family = family(*is_v6);
        let address = SocketAddr::new(family.vip(*vip), super::scene::PORT);
        let service = Service { address, protocol: PROTOCOLS[usize::from(*is_udp)] };
        let method = METHODS[*method];
        let reals: Vec<_> = reals.iter().map(|(n, weight)| (real_server(family, method, *n), *weight)).collect();
        wanted.push((service, method, reals));
    }
    let gone: Vec<_> = bench.desired.keys().filter(|s| !wanted.iter().any(|(w, _, _)| w == *s)).copied().collect();
    gone.into_iter().for_each(|service| bench.withdraw(service));
    wanted.iter().for_each(|(service, method, reals)| bench.serve(*service, *method, reals));
}

#[test]
fn after_any_changes_nothing_is_left_to_do_and_packets_go_where_the_table_says() {
    in_namespace(|| {
        let bench = std::cell::RefCell::new(Bench::empty());
        for family in FAMILIES {
            (1..=5).for_each(|n| bench.borrow_mut().way(family, n, INGRESS, 1500));
        }
        let ports = AtomicU16::new(1024);
        let mut runner = TestRunner::new(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() });
        let result = runner.run(&history(), |history| {
            let mut bench = bench.borrow_mut();
            for spec in history {
                want(&mut bench, &spec);
                let installed = bench.datapath.installed().expect("can be read");
                prop_assert_eq!(plan(&bench.desired, &installed), []);
                every_real_server_has_its_turn(&bench, &ports);
            }
            Ok(())
        });
        result.unwrap_or_else(|failure| panic!("{failure}"));
    });
}

/// As many connections to each virtual server as it has real servers of some weight: one for each.
fn every_real_server_has_its_turn(bench: &Bench, ports: &AtomicU16) {
    for (service, servers) in &bench.desired {
        let live = servers.real_servers.iter().filter(|(_, settings)| settings.weight != Weight::ZERO);
        let expected: Vec<SocketAddr> = live.map(|(address, _)| *address).collect();
        let mut chosen: Vec<SocketAddr> = Vec::new();
        for _ in &expected {
            let n = bench.server_of(&opening(*service, ports.fetch_add(1, Ordering::Relaxed)));
            let family = family(service.address.is_ipv6());
            chosen.extend(expected.iter().filter(|address| address.ip() == family.real(n)));
        }
        chosen.sort();
        assert_eq!(chosen, expected, "{service}");
        if expected.is_empty() {
            let frame = opening(*service, ports.fetch_add(1, Ordering::Relaxed));
            bench.expect_refusal(&frame.bytes(), lb_common::drop_reason::DropReason::NoRealServer);
        }
    }
}

#[test]
fn a_real_server_of_two_virtual_servers_has_two_places() {
    in_namespace(|| {
        let mut bench = Bench::empty();
        let real = real_server(Family::V4, ForwardingMethod::Nat, 1);
        let services = PROTOCOLS.map(|protocol: Protocol| super::scene::service(Family::V4, protocol));
        services.iter().for_each(|service| bench.serve(*service, ForwardingMethod::Nat, &[(real, 1)]));
        bench.serve(services[0], ForwardingMethod::Nat, &[(real, 9)]);
        let installed = bench.datapath.installed().expect("can be read");
        let weights = services.map(|service| installed[&service].real_servers[&real].weight.get());
        assert_eq!(weights, [9, 1]);
    });
}
