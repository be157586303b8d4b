//! What should be installed: the configuration, less what operators drain, with weights that rise slowly. Pure: time is given.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lb_common::service::Scheduler;

use crate::datapath::{Servers, ServiceTable};
use crate::model::{RealServer, Service, VirtualServer, Weight};
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

/// The scheduler in whose place one is while a weight rises: without weights, nobody could have less than the others.
const fn weighted(scheduler: Scheduler) -> Scheduler {
    match scheduler {
        Scheduler::Rr => Scheduler::Wrr,
        Scheduler::Lc => Scheduler::Wlc,
        other => other,
    }
}

/// By how much weights are multiplied while one rises.
#[derive(Clone, Copy, Debug)]
struct Scale {
    factor: u16,
    /// Whether every real server that has a weight counts the same, whatever it is.
    is_equal: bool,
}

impl Scale {
    /// Steps that a weight of 1 rises in.
    const STEPS: u16 = 100;

    fn of_server(server: &VirtualServer) -> Self {
        let is_equal = matches!(server.policy.scheduler, Scheduler::Rr | Scheduler::Lc);
        let heaviest = server.real_servers.iter().map(|real| real.weight.get()).max().unwrap_or(1).max(1);
        let factor = match server.policy.scheduler {
            // Weights are limits there, or ranks.
            Scheduler::Ovf | Scheduler::Fo => 1,
            _ if is_equal => Self::STEPS,
            _ => Self::STEPS.min(u16::MAX / heaviest),
        };
        Self { factor, is_equal }
    }

    fn of(self, weight: Weight) -> Weight {
        let Self { factor, is_equal } = self;
        let weight = if is_equal { weight.get().min(1) } else { weight.get() };
        Weight::new(weight.saturating_mul(factor))
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

    /// The table that takes most room, of those that [`Desired::table`] may become.
    pub fn largest_table(&self) -> ServiceTable {
        let largest = |server: &VirtualServer| {
            let mut servers = Servers::new(server, self.hz);
            if server.policy.slow_start > Duration::ZERO {
                servers.policy.scheduler = weighted(servers.policy.scheduler);
            }
            (server.service, servers)
        };
        self.virtual_servers.iter().map(largest).collect()
    }

    fn servers(&self, server: &VirtualServer, now: Instant) -> Servers {
        let mut servers = Servers::new(server, self.hz);
        let scale = self.scale(server);
        if scale.is_some() {
            servers.policy.scheduler = weighted(servers.policy.scheduler);
        }
        for (address, settings) in &mut servers.real_servers {
            let member = (server.service, *address);
            if self.drained.contains_key(&member) {
                settings.weight = Weight::ZERO;
                continue;
            }
            let Some(scale) = scale else { continue };
            let weight = scale.of(settings.weight);
            settings.weight = match self.rising.get(&member) {
                Some(since) => {
                    let ramp = Ramp { weight: weight.get(), duration: server.policy.slow_start };
                    Weight::new(ramp.weight_after(now.saturating_duration_since(*since)))
                }
                None => weight,
            };
        }
        servers
    }

    /// What weights are multiplied by while one of the virtual server's rises, so that also a weight of 1 can; `None` while
    /// none does.
    fn scale(&self, server: &VirtualServer) -> Option<Scale> {
        let is_rising = |real: &RealServer| self.rising.contains_key(&(server.service, real.address));
        server.real_servers.iter().any(is_rising).then(|| Scale::of_server(server))
    }

    /// The scheduler that `installed` stands for, while one is in another's place.
    pub fn shown_scheduler(&self, service: Service, installed: Scheduler) -> Scheduler {
        let configured = self.virtual_server(service).filter(|server| self.scale(server).is_some());
        let configured = configured.map(|server| server.policy.scheduler);
        configured.filter(|configured| weighted(*configured) == installed).unwrap_or(installed)
    }

    /// The weight that `installed` stands for, while weights are multiplied: the configured one, or as much of it as a real server
    /// has that rises.
    pub fn shown_weight(&self, (service, address): &Member, installed: u32) -> u32 {
        let Some(server) = self.virtual_server(*service) else { return installed };
        let Some(scale) = self.scale(server) else { return installed };
        let real = server.real_servers.iter().find(|real| real.address == *address);
        let configured = real.map_or(Weight::ZERO, |real| real.weight);
        match u32::from(scale.of(configured).get()) {
            0 => installed.div_ceil(scale.factor.into()),
            whole => u32::from(configured.get()).saturating_mul(installed).div_ceil(whole),
        }
    }

    /// Whether a real server's weight is on its way up.
    pub fn is_rising(&self, member: &Member) -> bool {
        self.rising.contains_key(member)
    }

    fn virtual_server(&self, service: Service) -> Option<&VirtualServer> {
        self.virtual_servers.iter().find(|server| server.service == service)
    }

    /// Takes real servers out of the schedule, for `span` or until they are given back; their connections go on.
    ///
    /// Returns those that it was said of; none where nothing is selected.
    pub fn drain(&mut self, selector: &Selector, span: Option<Duration>, now: Instant) -> Vec<Member> {
        let members = self.selected(selector);
        for member in &members {
            // A time that the clock cannot tell is for ever.
            self.drained.insert(*member, span.and_then(|span| now.checked_add(span)));
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

    /// Every drained real server, and until when.
    pub fn drains(&self) -> impl Iterator<Item = (Member, Option<Instant>)> {
        self.drained.iter().map(|(member, until)| (*member, *until))
    }

    /// Every real server whose weight is on its way up, and since when.
    pub fn rises(&self) -> impl Iterator<Item = (Member, Instant)> {
        self.rising.iter().map(|(member, since)| (*member, *since))
    }

    /// Has a real server's weight be on its way up since then, where it is there, has a slow start, and is not drained.
    pub fn rise_since(&mut self, member: Member, since: Instant) {
        if !self.drained.contains_key(&member) {
            self.rise(member, since);
        }
    }

    /// Goes on from what is `installed`, by virtual server those real servers that take connections: others rise slowly, as
    /// after a change of the configuration.
    pub fn go_on_from(&mut self, installed: &BTreeMap<Service, BTreeSet<SocketAddr>>, now: Instant) {
        let is_new = |member: &Member| installed.get(&member.0).is_some_and(|reals| !reals.contains(&member.1));
        let new: Vec<Member> = serving(&self.virtual_servers).into_iter().filter(is_new).collect();
        for member in new {
            if !self.rising.contains_key(&member) {
                self.rise_since(member, now);
            }
        }
    }

    /// Takes another configuration. What was drained and is still there stays drained; real servers that are new, or had
    /// weight 0, rise slowly.
    pub fn replace(&mut self, virtual_servers: Vec<VirtualServer>, now: Instant) {
        let (before, after) = (serving(&self.virtual_servers), serving(&virtual_servers));
        let known: BTreeSet<Service> = self.virtual_servers.iter().map(|server| server.service).collect();
        self.virtual_servers = virtual_servers;
        let members: BTreeSet<Member> = self.members().collect();
        self.drained.retain(|member, _| members.contains(member));
        self.rising.retain(|member, _| after.contains(member));
        for member in after.difference(&before) {
            // All real servers of a new virtual server are equally fresh.
            if known.contains(&member.0) {
                self.rise_since(*member, now);
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
        let server = self.virtual_server(*service)?;
        let real = server.real_servers.iter().find(|real| real.address == *address)?;
        Some(Ramp { weight: Scale::of_server(server).of(real.weight).get(), duration: server.policy.slow_start })
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

/// The real servers that are to have a weight.
fn serving(servers: &[VirtualServer]) -> BTreeSet<Member> {
    let members = |server: &VirtualServer| {
        let service = server.service;
        let weighted = server.real_servers.iter().filter(|real| real.weight != Weight::ZERO);
        weighted.map(|real| (service, real.address)).collect::<Vec<_>>()
    };
    servers.iter().flat_map(members).collect()
}

#[cfg(test)]
mod tests;
