//! What should be installed: the configuration, less what operators drain, with weights that rise slowly. Pure: time is given.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::datapath::{Servers, ServiceTable};
use crate::model::{Service, VirtualServer, Weight};
use crate::schedule::slow_start::Ramp;

/// A real server of a virtual server.
pub type Member = (Service, SocketAddr);

/// Which real servers an operator means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// Their address.
    pub ip: IpAddr,
    /// Their port; `None`: any.
    pub port: Option<u16>,
    /// The virtual server that they belong to; `None`: every one.
    pub service: Option<Service>,
}

impl Selector {
    fn selects(&self, (service, address): &Member) -> bool {
        self.ip == address.ip()
            && self.port.is_none_or(|port| port == address.port())
            && self.service.is_none_or(|wanted| wanted == *service)
    }
}

/// The desired state and what changes it.
#[derive(Clone, Debug)]
pub struct Desired {
    virtual_servers: Vec<VirtualServer>,
    hz: u32,
    /// Until when; `None`: until an operator says otherwise.
    drained: BTreeMap<Member, Option<Instant>>,
    /// Since when its weight rises.
    rising: BTreeMap<Member, Instant>,
}

impl Desired {
    /// The configuration's virtual servers as they stand, on a kernel with `hz` jiffies a second.
    ///
    /// Nothing rises slowly at the start: all real servers are equally fresh then.
    pub fn new(virtual_servers: Vec<VirtualServer>, hz: u32) -> Self {
        Self { virtual_servers, hz, drained: BTreeMap::new(), rising: BTreeMap::new() }
    }

    /// The configured virtual servers.
    pub fn virtual_servers(&self) -> &[VirtualServer] {
        &self.virtual_servers
    }

    /// What should be installed at `now`.
    pub fn table(&self, now: Instant) -> ServiceTable {
        self.virtual_servers.iter().map(|server| (server.service, self.servers(server, now))).collect()
    }

    fn servers(&self, server: &VirtualServer, now: Instant) -> Servers {
        let mut servers = Servers::new(server, self.hz);
        for (address, settings) in &mut servers.real_servers {
            let member = (server.service, *address);
            if self.drained.contains_key(&member) {
                settings.weight = Weight::ZERO;
            } else if let Some(since) = self.rising.get(&member) {
                let ramp = Ramp { weight: settings.weight.get(), duration: server.policy.slow_start };
                settings.weight = Weight::new(ramp.weight_after(now.saturating_duration_since(*since)));
            }
        }
        servers
    }

    /// Takes real servers out of the schedule, for `span` or until they are given back; their connections go on.
    ///
    /// Returns those that it was said of; none where nothing is selected.
    pub fn drain(&mut self, selector: &Selector, span: Option<Duration>, now: Instant) -> Vec<Member> {
        let members = self.selected(selector);
        for member in &members {
            self.drained.insert(*member, span.map(|span| now + span));
            self.rising.remove(member);
        }
        members
    }

    /// Gives drained real servers back. Returns them; none where no drained one is selected.
    pub fn undrain(&mut self, selector: &Selector, now: Instant) -> Vec<Member> {
        let members: Vec<Member> = self.drained.keys().filter(|member| selector.selects(member)).copied().collect();
        members.iter().for_each(|member| self.give_back(member, now));
        members
    }

    /// Until when a real server is drained; `None` when it is not, `Some(None)` without an end.
    pub fn drained(&self, member: &Member) -> Option<Option<Instant>> {
        self.drained.get(member).copied()
    }

    /// Takes another configuration. What was drained and is still there stays drained; real servers that are new, or had
    /// weight 0, rise slowly.
    pub fn replace(&mut self, virtual_servers: Vec<VirtualServer>, now: Instant) {
        let serving = |servers: &[VirtualServer]| -> BTreeSet<Member> {
            let members = |server: &VirtualServer| {
                let service = server.service;
                let weighted = server.real_servers.iter().filter(|real| real.weight != Weight::ZERO);
                weighted.map(|real| (service, real.address)).collect::<Vec<_>>()
            };
            servers.iter().flat_map(members).collect()
        };
        let (before, after) = (serving(&self.virtual_servers), serving(&virtual_servers));
        let known: BTreeSet<Service> = self.virtual_servers.iter().map(|server| server.service).collect();
        self.virtual_servers = virtual_servers;
        let members: BTreeSet<Member> = self.members().collect();
        self.drained.retain(|member, _| members.contains(member));
        self.rising.retain(|member, _| after.contains(member));
        for member in after.difference(&before) {
            // All real servers of a new virtual server are equally fresh.
            if known.contains(&member.0) && !self.drained.contains_key(member) {
                self.rise(*member, now);
            }
        }
    }

    /// Ends what has ended by `now`. Returns the real servers whose drain is over.
    pub fn expire(&mut self, now: Instant) -> Vec<Member> {
        let is_over = |until: &Option<Instant>| until.is_some_and(|until| until <= now);
        let over: Vec<Member> = self.drained.iter().filter(|(_, until)| is_over(until)).map(|(m, _)| *m).collect();
        over.iter().for_each(|member| self.give_back(member, now));
        let risen: Vec<Member> = self.rising.keys().filter(|m| self.next_rise(m, now).is_none()).copied().collect();
        for member in risen {
            self.rising.remove(&member);
        }
        over
    }

    /// When [`Desired::expire`] is due and [`Desired::table`] changes by itself; `None` while there is nothing to wait for.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let drains = self.drained.values().flatten().copied();
        let rises = self.rising.keys().map(|member| self.next_rise(member, now).unwrap_or(now));
        drains.chain(rises).min()
    }

    fn give_back(&mut self, member: &Member, now: Instant) {
        self.drained.remove(member);
        self.rise(*member, now);
    }

    fn rise(&mut self, member: Member, now: Instant) {
        if self.ramp(&member).is_some_and(|ramp| ramp.duration > Duration::ZERO) {
            self.rising.insert(member, now);
        }
    }

    /// When a rising weight changes next; `None` once it has arrived.
    fn next_rise(&self, member: &Member, now: Instant) -> Option<Instant> {
        let since = *self.rising.get(member)?;
        let next = self.ramp(member)?.next_after(now.saturating_duration_since(since))?;
        Some(since + next)
    }

    fn ramp(&self, (service, address): &Member) -> Option<Ramp> {
        let server = self.virtual_servers.iter().find(|server| server.service == *service)?;
        let real = server.real_servers.iter().find(|real| real.address == *address)?;
        Some(Ramp { weight: real.weight.get(), duration: server.policy.slow_start })
    }

    fn selected(&self, selector: &Selector) -> Vec<Member> {
        self.members().filter(|member| selector.selects(member)).collect()
    }

    fn members(&self) -> impl Iterator<Item = Member> {
        let reals = |server: &VirtualServer| {
            let service = server.service;
            server.real_servers.iter().map(|real| (service, real.address)).collect::<Vec<_>>()
        };
        self.virtual_servers.iter().flat_map(reals)
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(weights(&desired, 1, now), [1, 10]);
        assert_eq!(weights(&desired, 1, now + 5 * SECOND), [5, 10]);
        assert_eq!(desired.deadline(now + 5 * SECOND), Some(now + 6 * SECOND));
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
}
