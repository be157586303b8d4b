//! Real servers in their places: entry, load and chain of each, from its installation to its last connection.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::time::Instant;

use lb_common::counters::Counters;
use lb_common::real::{RealServerEntry, ServerCounts, load, real_flag};
use lb_common::service::{ForwardingMethod, NONE, Scheduler};

use super::chains::Source;
use super::entries::{self, RealServer};
use super::places::{Role, Tenant};
use super::rest::REST;
use super::tables::{Placed, Way, XdpDatapath, sleep_until};
use crate::datapath::{DatapathError, Servers, Settings};
use crate::model::{Removal, Service, Thresholds, Weight};
use crate::schedule::cost::{Cost, costs, load_word};

impl XdpDatapath {
    /// Sets the way to every real server with address `address`, now and when one is added.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel.
    pub fn set_way(&mut self, address: IpAddr, way: Way) -> Result<(), DatapathError> {
        self.ways.insert(address, way);
        let places: Vec<u16> = self
            .slots
            .places
            .all()
            .filter(|(tenant, _)| tenant.address.ip() == address)
            .map(|(_, index)| index)
            .collect();
        for index in places {
            let mut entry = self.real_server(index)?;
            entry.next_hop = way.next_hop(entry.forwarding);
            entry.tunnel_source = way.tunnel_source(entry.forwarding);
            entry.tunnel_spread = way.tunnel_spread(entry.forwarding);
            self.views.real_servers.set(index.into(), &entry)?;
        }
        Ok(())
    }

    /// The way to `address` as it was set; `None` where that has not happened yet, and entries may have one from earlier.
    pub fn known_way(&self, address: IpAddr) -> Option<Way> {
        self.ways.get(&address).copied()
    }

    /// The way to `address`, as last set.
    pub fn way(&self, address: IpAddr) -> Way {
        self.ways.get(&address).copied().unwrap_or(Way::UNKNOWN)
    }

    /// Frees the places of removed real servers whose last connection has ended, by what is counted; returns how many.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel.
    pub fn release_idle(&mut self) -> Result<usize, DatapathError> {
        let now = Instant::now();
        let mut freed = 0;
        // A packet that chose it just before it was removed may be entering its connection.
        let left: Vec<u16> =
            self.slots.places.leaving().filter(|(_, since)| *since + REST <= now).map(|(index, _)| index).collect();
        for index in left {
            if self.counts(index)? == ServerCounts::default() {
                self.free(index)?;
                freed += 1;
            }
        }
        Ok(freed)
    }

    /// Installs the real servers of `service`, number `virtual_server`, and the sorry server. Others stay as they are.
    pub(super) fn place(
        &mut self,
        service: Service,
        virtual_server: u32,
        servers: &Servers,
    ) -> Result<Placed, DatapathError> {
        if servers.policy.removed_real_server == Removal::Expire {
            self.expire_removed(service, servers)?;
        }
        let wanted = wanted(servers);
        let places = match self.take_places(service, &wanted) {
            Err(DatapathError::Full { .. }) if self.release_idle()? > 0 => self.take_places(service, &wanted)?,
            taken => taken?,
        };
        let mut placed = Placed { real_servers: Vec::new(), sorry_server: None };
        for (real, index) in wanted.into_iter().zip(places) {
            self.write(service, virtual_server, servers, (&real, index))?;
            match real.role {
                Role::Real => placed.real_servers.push(index),
                Role::Sorry => placed.sorry_server = Some(index),
            }
        }
        Ok(placed)
    }

    /// Lets go of those real servers of `service` that it has no more: at once, or when their last connection ends.
    pub(super) fn retire(&mut self, service: Service, servers: &Servers) -> Result<(), DatapathError> {
        let gone = self.slots.places.of(service).filter(|(tenant, _)| !is_wanted(tenant, servers));
        let gone: Vec<u16> = gone.map(|(_, index)| index).collect();
        for index in gone {
            match servers.policy.removed_real_server {
                Removal::Keep => self.leave(index, entries::flags(service, &servers.policy))?,
                Removal::Expire => self.free(index)?,
            }
        }
        Ok(())
    }

    /// Frees a place, which nothing names but the chain of its replies.
    pub(super) fn free(&mut self, index: u16) -> Result<(), DatapathError> {
        self.load(index)?.fetch_or(load::NO_WEIGHT, AcqRel);
        if let Some(tenant) = self.slots.places.tenant(index) {
            self.unlink(source(&tenant), index)?;
        }
        // Its connections stay counted until the table has none of them; they cost nothing any more.
        let entry = self.real_server(index)?;
        // Void first: a packet may be reading the rest.
        self.views.real_servers.set(index.into(), &RealServerEntry { generation: 0, ..entry })?;
        self.views.real_servers.set(index.into(), &entries::free_place(entry.next_same))?;
        self.load(index)?.store(load::NO_WEIGHT, Release);
        self.slots.places.release(index, Instant::now());
        Ok(())
    }

    /// Its connections in the table, of an earlier real server in its place too; no less than none.
    pub(super) fn counts(&self, index: u16) -> Result<ServerCounts, DatapathError> {
        Ok(counts_of(self.views.counts.word(index.into())?.load(Acquire)))
    }

    pub(super) fn real_server(&self, index: u16) -> Result<RealServerEntry, DatapathError> {
        self.views.real_servers.get(index.into())
    }

    /// Places for all of `wanted`, or for none that had none before.
    fn take_places(&mut self, service: Service, wanted: &[RealServer]) -> Result<Vec<u16>, DatapathError> {
        let (mut places, mut new) = (Vec::new(), Vec::new());
        for RealServer { role, address, .. } in wanted {
            let tenant = Tenant { service, role: *role, address: *address };
            if let Some(index) = self.slots.places.find(&tenant) {
                places.push(index);
                continue;
            }
            let Some(index) = self.take_place(tenant) else {
                new.into_iter().for_each(|index| self.slots.places.release(index, Instant::now()));
                return Err(DatapathError::Full {
                    table: "real_servers",
                    capacity: self.slots.places.capacity(),
                    remedy: self.remedy_for_places(),
                });
            };
            places.push(index);
            new.push(index);
        }
        Ok(places)
    }

    /// Gives up places of `service` that removed real servers still have for their connections, which are to end now.
    fn expire_removed(&mut self, service: Service, servers: &Servers) -> Result<(), DatapathError> {
        let leaving: Vec<u16> = self.slots.places.leaving().map(|(index, _)| index).collect();
        for index in leaving {
            let tenant = self.slots.places.tenant(index);
            if tenant.is_some_and(|tenant| tenant.service == service && !is_wanted(&tenant, servers)) {
                self.free(index)?;
            }
        }
        Ok(())
    }

    /// What to do when there is no place for a real server.
    fn remedy_for_places(&self) -> Cow<'static, str> {
        const EIGHTS: &str =
            "each virtual server takes its places by eights; restart with the configuration that needs so many";
        match self.slots.places.leaving().count() {
            0 => EIGHTS.into(),
            removed => format!(
                "{removed} of them are of removed real servers that still have connections; wait until these end (`evenkeel \
                 status` shows how many), or write removed_real_server = \"expire\"; {EIGHTS}"
            )
            .into(),
        }
    }

    fn take_place(&mut self, tenant: Tenant) -> Option<u16> {
        let counts = &self.views.counts;
        let is_idle = |index: u16| counts.word(index.into()).is_ok_and(|word| word.load(Acquire) == 0);
        let places = &mut self.slots.places;
        loop {
            match places.take(tenant, Instant::now(), is_idle) {
                Some(index) => return Some(index),
                None => sleep_until(places.rests_until()?),
            }
        }
    }

    /// Writes a real server's entry, chain and load. What is in use changes in place.
    fn write(
        &mut self,
        service: Service,
        virtual_server: u32,
        servers: &Servers,
        (real, index): (&RealServer, u16),
    ) -> Result<(), DatapathError> {
        let present = self.real_server(index)?;
        let source = Source { address: real.address, protocol: service.protocol };
        let mut entry = real.entry(service, virtual_server, &self.way(real.address.ip()));
        // Connections follow a generation; those of another forwarding method or an earlier tenant must not.
        let is_same = present.generation != 0 && present.forwarding == entry.forwarding;
        entry.generation = if is_same { present.generation } else { self.slots.places.next_generation(index) };
        if present.generation == 0 {
            self.maps.set_per_cpu("rs_counters", index.into(), Counters::default())?;
        }
        if !is_same {
            self.load(index)?.fetch_or(load::NO_WEIGHT, AcqRel);
            self.unlink(source, index)?;
            // No packet takes the new entry for the old one, or half of each for either.
            self.views.real_servers.set(index.into(), &RealServerEntry { generation: 0, ..present })?;
        }
        let is_nat = entry.forwarding == ForwardingMethod::Nat;
        if is_nat {
            entry.next_same = self.slots.chains.neighbours(&source, index).after.map_or(NONE, u32::from);
        }
        self.views.real_servers.set(index.into(), &entry)?;
        self.slots.places.stay(index);
        if is_nat {
            self.link(source, index, service, entries::flags(service, &servers.policy))?;
        }
        let scheduler = servers.policy.scheduler;
        let is_scheduled_as_before = self.slots.published(&service).is_some_and(|entry| entry.scheduler == scheduler);
        let follows = is_same && is_scheduled_as_before && !has_rank(scheduler) && costs_the_same(&present, &entry);
        if !follows || (!self.is_settled && !self.load_fits(index, real)?) {
            self.rewrite_load(index, real)?;
        }
        Ok(())
    }

    /// Makes replies find the real server at `index`, whose entry has its successor, and a virtual server with these flags.
    fn link(&mut self, source: Source, index: u16, service: Service, flags: u32) -> Result<(), DatapathError> {
        match self.slots.chains.neighbours(&source, index).before {
            None => self.lead_replies(source, index, service, flags)?,
            Some(before) => self.set_next(before, index.into())?,
        }
        self.slots.chains.insert(source, index);
        self.lead_address(source.address.ip())
    }

    /// Makes replies pass the real server at `index` by; one that they do not find is left alone.
    fn unlink(&mut self, source: Source, index: u16) -> Result<(), DatapathError> {
        if !self.slots.chains.holds(&source, index) {
            return Ok(());
        }
        let neighbours = self.slots.chains.neighbours(&source, index);
        match (neighbours.before, neighbours.after) {
            (Some(before), after) => self.set_next(before, after.map_or(NONE, u32::from))?,
            (None, Some(after)) => {
                if let Some(tenant) = self.slots.places.tenant(after) {
                    let flags = self.slots.published(&tenant.service).map_or(0, |entry| entry.flags);
                    self.lead_replies(source, after, tenant.service, flags)?;
                }
            }
            (None, None) => self.reply_index.remove(entries::reply_key(source), Instant::now())?,
        }
        self.slots.chains.remove(&source, index);
        self.lead_address(source.address.ip())
    }

    pub(super) fn set_next(&mut self, index: u16, next_same: u32) -> Result<(), DatapathError> {
        let entry = self.real_server(index)?;
        self.views.real_servers.set(index.into(), &RealServerEntry { next_same, ..entry })
    }

    /// Keeps a real server for its connections only, behind a virtual server with these flags.
    fn leave(&mut self, index: u16, service_flags: u32) -> Result<(), DatapathError> {
        self.load(index)?.fetch_or(load::NO_WEIGHT, AcqRel);
        let entry = self.real_server(index)?;
        let flags = entry.flags | real_flag::REMOVED;
        self.views.real_servers.set(index.into(), &RealServerEntry { weight: 0, flags, ..entry })?;
        self.slots.places.leave(index, Instant::now());
        match self.slots.places.tenant(index) {
            Some(tenant) if self.slots.chains.holds(&source(&tenant), index) => {
                self.link(source(&tenant), index, tenant.service, service_flags)
            }
            _ => Ok(()),
        }
    }

    /// Makes the load what the counts say. What packets add meanwhile is not lost; where it was added at the old cost, or
    /// after it was counted here, the table's scan repairs it.
    fn rewrite_load(&self, index: u16, real: &RealServer) -> Result<(), DatapathError> {
        let word = self.load(index)?;
        let mut present = word.load(Acquire);
        loop {
            let was_overloaded = present & load::OVERLOADED != 0;
            let new = load_word(&real.cost, self.counts(index)?, real.weight, real.thresholds, was_overloaded);
            match word.compare_exchange_weak(present, new, AcqRel, Acquire) {
                Ok(_) => return Ok(()),
                Err(changed) => present = changed,
            }
        }
    }

    /// Whether the load is what the counts say. Others may be about to change either.
    fn load_fits(&self, index: u16, real: &RealServer) -> Result<bool, DatapathError> {
        let present = self.load(index)?.load(Acquire);
        let was_overloaded = present & load::OVERLOADED != 0;
        Ok(load_word(&real.cost, self.counts(index)?, real.weight, real.thresholds, was_overloaded) == present)
    }

    pub(super) fn load(&self, index: u16) -> Result<&AtomicU64, DatapathError> {
        self.views.loads.word(index.into())
    }
}

fn is_wanted(tenant: &Tenant, servers: &Servers) -> bool {
    match tenant.role {
        Role::Real => servers.real_servers.contains_key(&tenant.address),
        Role::Sorry => servers.sorry_server.is_some_and(|(address, _)| address == tenant.address),
    }
}

/// Everybody who is to have a place: real servers in the order of their addresses, then the sorry server.
fn wanted(servers: &Servers) -> Vec<RealServer> {
    let weights: Vec<Weight> = servers.real_servers.values().map(|settings| settings.weight).collect();
    let costs = costs(servers.policy.scheduler, &weights);
    let real = |((address, settings), cost): ((&SocketAddr, &Settings), Cost)| {
        let Settings { weight, forwarding, thresholds } = *settings;
        RealServer { role: Role::Real, address: *address, forwarding, weight, thresholds, cost }
    };
    let sorry = servers.sorry_server.map(|(address, forwarding)| {
        let thresholds = Thresholds::default();
        RealServer { role: Role::Sorry, address, forwarding, weight: Weight::ZERO, thresholds, cost: Cost::FREE }
    });
    servers.real_servers.iter().zip(costs).map(real).chain(sorry).collect()
}

fn source(tenant: &Tenant) -> Source {
    Source { address: tenant.address, protocol: tenant.service.protocol }
}

/// Whether the load of a real server follows from its connections as before.
fn costs_the_same(present: &RealServerEntry, entry: &RealServerEntry) -> bool {
    let costs = |entry: &RealServerEntry| {
        let thresholds = (entry.upper_threshold, entry.lower_threshold);
        (entry.active_cost, entry.inactive_cost, entry.busy_cost, entry.active_limit, entry.weight, thresholds)
    };
    costs(present) == costs(entry)
}

/// Whether loads begin with a rank among all real servers, which is in no entry.
fn has_rank(scheduler: Scheduler) -> bool {
    matches!(scheduler, Scheduler::Fo | Scheduler::Ovf)
}

/// A word of `server_counts`. Of two changes that overtake each other one may be missing: less than none is none.
fn counts_of(word: u64) -> ServerCounts {
    let [a, b, c, d, ..] = word.to_le_bytes();
    let inactive = i32::from_le_bytes([a, b, c, d]);
    let active = word.wrapping_sub(i64::from(inactive).cast_unsigned()) >> 32;
    let active = u32::try_from(active).unwrap_or(0).cast_signed();
    let count = |number: i32| u32::try_from(number).unwrap_or(0);
    ServerCounts { inactive: count(inactive), active: count(active) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_holds_both_counts_and_neither_is_less_than_none() {
        let counts = |active, inactive| ServerCounts { active, inactive };
        assert_eq!(counts_of(3 << 32 | 5), counts(3, 5));
        // An inactive connection less before it was there: 3 and -1.
        assert_eq!(counts_of((3 << 32_u64) - 1), counts(3, 0));
        assert_eq!(counts_of(0_u64.wrapping_sub(1 << 32) | 5), counts(0, 5));
        assert_eq!(counts_of(u64::MAX), counts(0, 0));
    }
}
