//! Drains, slow starts and changes of configuration, at times that are given.

use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Scheduler};

use super::*;
use crate::model::{Policy, RealServer, Thresholds};

const SECOND: Duration = Duration::from_secs(1);

fn real(n: u8, weight: u16) -> RealServer {
    RealServer {
        address: ([10, 0, 1, n], 80).into(),
        weight: Weight::new(weight),
        forwarding: ForwardingMethod::Dr,
        thresholds: Thresholds::default(),
    }
}

fn service(last: u8) -> Service {
    Service { address: ([10, 0, 0, last], 80).into(), protocol: Protocol::Tcp }
}

fn virtual_server(last: u8, reals: &[RealServer], slow_start: Duration) -> VirtualServer {
    VirtualServer {
        name: None,
        service: service(last),
        policy: Policy { slow_start, ..Policy::new(Scheduler::Wlc) },
        access: None,
        real_servers: reals.to_vec(),
        sorry_server: None,
    }
}

fn selector(n: u8) -> Selector {
    Selector { ip: IpAddr::from([10, 0, 1, n]), port: None, service: None }
}

fn weights(desired: &Desired, last: u8, now: Instant) -> Vec<u16> {
    let table = desired.table(now);
    table[&service(last)].real_servers.values().map(|settings| settings.weight.get()).collect()
}

#[test]
fn a_drain_of_an_address_holds_in_every_virtual_server_until_it_is_undone() {
    let now = Instant::now();
    let servers = [1, 2].map(|last| virtual_server(last, &[real(1, 5), real(2, 7)], Duration::ZERO));
    let mut desired = Desired::new(servers.to_vec(), 250);
    let both = vec![(service(1), real(1, 0).address), (service(2), real(1, 0).address)];
    assert_eq!(desired.drain(&selector(1), None, now), both);
    assert_eq!((weights(&desired, 1, now), weights(&desired, 2, now)), (vec![0, 7], vec![0, 7]));
    assert_eq!(desired.drained(&both[0]), Some(None));
    assert_eq!(desired.undrain(&selector(1), now), both);
    assert_eq!(weights(&desired, 1, now), [5, 7]);
    assert_eq!(desired.undrain(&selector(1), now), []);
}

#[test]
fn a_selector_with_port_and_virtual_server_takes_no_other() {
    let now = Instant::now();
    let servers = [1, 2].map(|last| virtual_server(last, &[real(1, 5)], Duration::ZERO));
    let mut desired = Desired::new(servers.to_vec(), 250);
    let one = Selector { port: Some(80), service: Some(service(2)), ..selector(1) };
    assert_eq!(desired.drain(&one, None, now), [(service(2), real(1, 0).address)]);
    assert_eq!(weights(&desired, 1, now), [5]);
    assert_eq!(desired.drain(&Selector { port: Some(81), ..selector(1) }, None, now), []);
}

#[test]
fn a_drain_for_a_minute_ends_by_itself() {
    let now = Instant::now();
    let mut desired = Desired::new(vec![virtual_server(1, &[real(1, 5)], Duration::ZERO)], 250);
    desired.drain(&selector(1), Some(60 * SECOND), now);
    assert_eq!(desired.deadline(now), Some(now + 60 * SECOND));
    assert_eq!(desired.expire(now + 59 * SECOND), []);
    assert_eq!(weights(&desired, 1, now + 59 * SECOND), [0]);
    assert_eq!(desired.expire(now + 60 * SECOND), [(service(1), real(1, 0).address)]);
    assert_eq!(weights(&desired, 1, now + 60 * SECOND), [5]);
    assert_eq!(desired.deadline(now + 60 * SECOND), None);
}

#[test]
fn what_comes_back_rises_over_its_slow_start() {
    let now = Instant::now();
    let mut desired = Desired::new(vec![virtual_server(1, &[real(1, 10), real(2, 10)], 10 * SECOND)], 250);
    assert_eq!(weights(&desired, 1, now), [10, 10]);
    desired.drain(&selector(1), None, now);
    desired.undrain(&selector(1), now);
    // A hundred times as heavy while it lasts.
    assert_eq!(weights(&desired, 1, now), [1, 1000]);
    assert_eq!(weights(&desired, 1, now + 5 * SECOND), [500, 1000]);
    let member = |n| (service(1), real(n, 0).address);
    assert_eq!([(1, 500), (2, 1000)].map(|(n, installed)| desired.shown_weight(&member(n), installed)), [5, 10]);
    assert_eq!([1, 2].map(|n| desired.is_rising(&member(n))), [true, false]);
    assert_eq!(desired.deadline(now + 5 * SECOND), Some(now + 5 * SECOND + SECOND / 10));
    desired.expire(now + 10 * SECOND);
    assert_eq!(weights(&desired, 1, now + 10 * SECOND), [10, 10]);
    assert_eq!(desired.deadline(now + 10 * SECOND), None);
}

#[test]
fn a_new_configuration_keeps_drains_and_lets_new_real_servers_rise() {
    let now = Instant::now();
    let mut desired = Desired::new(vec![virtual_server(1, &[real(1, 10), real(2, 0)], 10 * SECOND)], 250);
    desired.drain(&selector(1), None, now);
    let reals = [real(1, 10), real(2, 10), real(3, 10)];
    let fresh = virtual_server(2, &[real(4, 10)], 10 * SECOND);
    desired.replace(vec![virtual_server(1, &reals, 10 * SECOND), fresh], now);
    // Drained, had weight 0, new; and one of a new virtual server.
    assert_eq!(weights(&desired, 1, now), [0, 1, 1]);
    assert_eq!(weights(&desired, 2, now), [10]);
    desired.replace(vec![virtual_server(1, &[real(3, 10)], 10 * SECOND)], now);
    assert_eq!(desired.undrain(&selector(1), now), []);
}

#[test]
fn also_weights_of_one_and_schedulers_without_weights_start_slowly() {
    let now = Instant::now();
    for (scheduler, meanwhile) in [(Scheduler::Lc, Scheduler::Wlc), (Scheduler::Rr, Scheduler::Wrr)] {
        let mut server = virtual_server(1, &[real(1, 1), real(2, 7)], 10 * SECOND);
        server.policy.scheduler = scheduler;
        let mut desired = Desired::new(vec![server], 250);
        desired.drain(&selector(1), None, now);
        desired.undrain(&selector(1), now);
        assert_eq!(weights(&desired, 1, now + SECOND), [10, 100]);
        assert_eq!(desired.table(now)[&service(1)].policy.scheduler, meanwhile);
        desired.expire(now + 10 * SECOND);
        assert_eq!(weights(&desired, 1, now + 10 * SECOND), [1, 7]);
        assert_eq!(desired.table(now + 10 * SECOND)[&service(1)].policy.scheduler, scheduler);
    }
}

#[test]
fn while_one_rises_scheduler_and_weights_are_shown_as_they_are_configured() {
    let now = Instant::now();
    for scheduler in [Scheduler::Rr, Scheduler::Lc, Scheduler::Wlc] {
        let mut server = virtual_server(1, &[real(1, 7), real(2, 7), real(3, 7), real(4, 0)], 10 * SECOND);
        server.policy.scheduler = scheduler;
        let mut desired = Desired::new(vec![server], 250);
        desired.drain(&selector(1), None, now);
        desired.undrain(&selector(1), now);
        desired.drain(&selector(3), None, now);
        let shown = |desired: &Desired, now: Instant| -> Vec<u32> {
            let installed = desired.table(now).remove(&service(1)).unwrap().real_servers;
            let weight = |(address, settings): (&SocketAddr, &crate::datapath::Settings)| {
                desired.shown_weight(&(service(1), *address), settings.weight.get().into())
            };
            installed.iter().map(weight).collect()
        };
        // Half of seven; the second does not rise, the third is drained, the fourth has none.
        assert_eq!(shown(&desired, now + 5 * SECOND), [4, 7, 0, 0], "{}", scheduler.name());
        assert_eq!(shown(&desired, now), [1, 7, 0, 0]);
        let installed = desired.table(now)[&service(1)].policy.scheduler;
        assert_eq!(desired.shown_scheduler(service(1), installed), scheduler);
        // What is installed against all expectation is shown as it is.
        assert_eq!(desired.shown_scheduler(service(1), Scheduler::Mh), Scheduler::Mh);
        desired.expire(now + 10 * SECOND);
        assert_eq!(shown(&desired, now + 10 * SECOND), [7, 7, 0, 0]);
        assert_eq!(desired.shown_scheduler(service(1), scheduler), scheduler);
    }
}

/// As after a change of the configuration: what takes connections in the tables that are gone on with goes on, the rest rises.
#[test]
fn what_installed_tables_lack_rises() {
    let now = Instant::now();
    let servers = [1, 2].map(|last| virtual_server(last, &[real(1, 100), real(2, 100), real(3, 0)], 100 * SECOND));
    let mut desired = Desired::new(servers.to_vec(), 250);
    desired.drain(&Selector { service: Some(service(1)), ..selector(1) }, None, now);
    // The second virtual server is new, so that all are equally fresh there.
    desired.go_on_from(&[(service(1), BTreeSet::new())].into(), now);
    assert_eq!(desired.rises().collect::<Vec<_>>(), [((service(1), real(2, 0).address), now)]);
    // One that rises already does not begin anew, and one that the tables have does not begin.
    let later = now + SECOND;
    desired.undrain(&selector(1), later);
    desired.go_on_from(&[(service(1), [real(1, 0).address].into())].into(), later + SECOND);
    let rises = [((service(1), real(1, 0).address), later), ((service(1), real(2, 0).address), now)];
    assert_eq!(desired.rises().collect::<Vec<_>>(), rises);
}
