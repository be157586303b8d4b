//! Going on with the maps of an earlier daemon: reading back who has what, and making whole what it has left half done.
//!
//! The program on the interfaces uses the maps all the while, so everything is written in the order that any change keeps to.
//! Connections are not touched: slots, counts and ways back to clients stay as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Instant;

use aya::Ebpf;
use lb_common::INTERFACES_LENGTH;
use lb_common::connection::Timeouts;
use lb_common::interface::InterfaceEntry;
use lb_common::net::{Address, MacAddress, Port, Protocol};
use lb_common::real::{NextHopState, RealServerEntry, load};
use lb_common::service::{ForwardingMethod, IndexEntry, NONE, Refusal, Scheduler, ServiceKey, VirtualServerEntry};

use super::chains::{Replying, Source};
use super::entries;
use super::found::{self, Found};
use super::live_index::LiveIndex;
use super::maps::{KeyOctets, Maps};
use super::places::Role;
use super::prefixes::Prefixes;
use super::rest::REST;
use super::slots::Slots;
use super::tables::{Led, OWN_ADDRESSES, Views, XdpDatapath, sleep_until};
use crate::datapath::{DatapathError, ServiceTable};
use crate::model::Service;

impl XdpDatapath {
    /// Goes on with the maps of `ebpf`, which another daemon has filled and changes no more; packets may be using them. From
    /// now on idle times are `timeouts`.
    ///
    /// [`XdpDatapath::settle`] is to follow, and nothing else that changes virtual servers before it.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Foreign`] where the maps hold what this version cannot have written, not even half of it; nothing is
    /// changed then. [`DatapathError::Map`] from the kernel.
    pub fn adopt(ebpf: Ebpf, timeouts: Timeouts) -> Result<Self, DatapathError> {
        let mut datapath = Self::over(Maps::new(ebpf))?;
        datapath.read_back(timeouts)?;
        Ok(datapath)
    }

    /// Reads back who has what in the maps, whoever has changed them meanwhile, and makes whole what is half done; otherwise as
    /// [`XdpDatapath::adopt`].
    ///
    /// # Errors
    ///
    /// As [`XdpDatapath::adopt`].
    pub fn read_back(&mut self, timeouts: Timeouts) -> Result<(), DatapathError> {
        let lookups = self.views.lookups.get(0)?;
        let service_index = LiveIndex::found(self.maps.mapped("service_index")?, lookups.services);
        let reply_index = LiveIndex::found(self.maps.mapped("reply_index")?, lookups.replies);
        let virtual_servers = virtual_servers(&self.maps, &self.views, &service_index.entries()?)?;
        let real_servers = real_servers(&self.views)?;
        let slots = Slots::new(self.views.real_servers.length(), self.views.rings.length());
        let Found { slots, strays, chains } =
            found::sort_out(&virtual_servers, &real_servers, slots, Instant::now()).map_err(foreign("real_servers"))?;
        let mut prefixes = Prefixes::new(self.maps.mapped("prefixes")?);
        for (service, entry) in &virtual_servers {
            if !prefixes.found(*service, entry.prefixes) {
                let found = format!("a list of clients of {service} at line {}, beside another", entry.prefixes.start);
                return Err(foreign("prefixes")(found));
            }
        }
        // What the other daemon gave up a moment ago may still be in use.
        sleep_until(Instant::now() + REST);
        (self.slots, self.service_index, self.reply_index) = (slots, service_index, reply_index);
        (self.prefixes, self.ways, self.is_settled) = (prefixes, BTreeMap::new(), false);
        let own_addresses = self.maps.keys::<Address, u32>(OWN_ADDRESSES)?;
        self.own_addresses = own_addresses.into_iter().map(IpAddr::from).collect();
        self.heal_services()?;
        self.heal_replies(&chains)?;
        self.heal_places(&real_servers, &strays)?;
        self.maps.set("timeouts", 0, timeouts)
    }

    /// Tells the program that it is on no other interfaces than those with these indexes.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel.
    pub fn keep_interfaces(&mut self, ifindexes: &[u32]) -> Result<(), DatapathError> {
        const NONE: InterfaceEntry = InterfaceEntry { ifindex: 0, mac: MacAddress::ZERO, reserved: 0, part_of: 0 };
        for index in 0..INTERFACES_LENGTH {
            let present: InterfaceEntry = self.maps.get("interfaces", index)?;
            if present.ifindex != 0 && !ifindexes.contains(&present.ifindex) {
                self.maps.set("interfaces", index, NONE)?;
            }
        }
        Ok(())
    }

    /// The virtual servers that were found, each with those of its real servers that have a weight.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel.
    pub fn weighted(&self) -> Result<BTreeMap<Service, BTreeSet<SocketAddr>>, DatapathError> {
        let mut weighted = BTreeMap::new();
        for (service, _) in self.slots.virtual_servers() {
            let mut reals = BTreeSet::new();
            for (tenant, index) in self.slots.places.of(service).filter(|(tenant, _)| tenant.role == Role::Real) {
                let entry = self.real_server(index)?;
                if entry.weight != 0 && !entries::is_removed(&entry) {
                    reals.insert(tenant.address);
                }
            }
            weighted.insert(service, reals);
        }
        Ok(weighted)
    }

    /// Serves `desired` and nothing else: everything is written once, whether it seems to be there or not. Returns how many
    /// virtual servers were removed.
    ///
    /// # Errors
    ///
    /// With the first failure, once all has been tried.
    pub fn settle(&mut self, desired: &ServiceTable) -> Result<usize, DatapathError> {
        let present: Vec<Service> = self.slots.virtual_servers().map(|(service, _)| service).collect();
        let gone: Vec<Service> = present.into_iter().filter(|service| !desired.contains_key(service)).collect();
        let mut result = self.set_all_ports(None);
        for service in &gone {
            result = result.and(self.remove(*service));
        }
        for (service, servers) in desired {
            result = result.and(self.put(*service, servers));
        }
        result?;
        self.is_settled = true;
        Ok(gone.len())
    }

    /// Packets come to virtual servers that are there, and to no others.
    fn heal_services(&mut self) -> Result<(), DatapathError> {
        let mut owners = BTreeMap::new();
        for (service, _) in self.slots.virtual_servers() {
            let vip = service.address.ip();
            owners.insert(entries::service_key(service), Led::Service(service));
            owners.insert(entries::vip_key(vip), Led::Vip(vip));
        }
        for entry in self.service_index.entries()? {
            match owners.get(&entry.key) {
                Some(owner) => self.service_index.own(entry.key, *owner),
                None => self.service_index.remove(entry.key, Instant::now())?,
            }
        }
        Ok(())
    }

    /// Replies find every real server of their source, in order, and no other.
    fn heal_replies(&mut self, chains: &BTreeMap<Source, BTreeSet<u16>>) -> Result<(), DatapathError> {
        let addresses: BTreeSet<IpAddr> = chains.keys().map(|source| source.address.ip()).collect();
        let mut owners = BTreeMap::new();
        owners.extend(chains.keys().map(|source| (entries::reply_key(*source), Replying::Source(*source))));
        owners.extend(addresses.iter().map(|address| (entries::address_key(*address), Replying::Address(*address))));
        let entered = self.reply_index.entries()?;
        for entry in &entered {
            if let Some(owner) = owners.get(&entry.key) {
                self.reply_index.own(entry.key, *owner);
            }
        }
        for (source, chain) in chains {
            let mut next = NONE;
            for index in chain.iter().rev() {
                if self.real_server(*index)?.next_same != next {
                    self.set_next(*index, next)?;
                }
                next = u32::from(*index);
            }
            let head = chain.first().and_then(|index| Some((*index, self.slots.places.tenant(*index)?)));
            if let Some((index, tenant)) = head {
                let flags = self.slots.published(&tenant.service).map_or(0, |entry| entry.flags);
                self.lead_replies(*source, index, tenant.service, flags)?;
            }
        }
        for address in addresses {
            self.lead_address(address)?;
        }
        for entry in entered.iter().filter(|entry| !owners.contains_key(&entry.key)) {
            self.reply_index.remove(entry.key, Instant::now())?;
        }
        Ok(())
    }

    /// Whoever is not there, or is of no virtual server, takes no connection and has none.
    fn heal_places(&mut self, real_servers: &[(u16, RealServerEntry)], strays: &[u16]) -> Result<(), DatapathError> {
        for (index, entry) in real_servers {
            let is_stray = strays.contains(index);
            if entry.generation != 0 && !is_stray {
                continue;
            }
            if is_stray {
                self.slots.places.had(*index, entry.generation);
                self.views.real_servers.set((*index).into(), &RealServerEntry { generation: 0, ..*entry })?;
            }
            // Its costs too, or what its last connections are taken off by would be missing from the load.
            let free = entries::free_place(entry.next_same);
            if is_stray || *entry != free {
                self.views.real_servers.set((*index).into(), &free)?;
            }
            if self.load(*index)?.load(Acquire) != load::NO_WEIGHT {
                self.load(*index)?.store(load::NO_WEIGHT, Release);
            }
        }
        Ok(())
    }
}

/// Virtual servers that packets come to, or that are told to people: while one is made or removed, it is only either.
fn virtual_servers(
    maps: &Maps,
    views: &Views,
    entered: &[IndexEntry],
) -> Result<BTreeMap<Service, VirtualServerEntry>, DatapathError> {
    let mut virtual_servers = BTreeMap::new();
    let mut names = BTreeMap::new();
    for (key, entry) in maps.virtual_server_octets()? {
        let at = offset_of!(VirtualServerEntry, index);
        let index = entry.get(at..).and_then(<[u8]>::first_chunk).map_or(NONE, |octets| u32::from_ne_bytes(*octets));
        let name = service(&key).ok_or_else(|| foreign("virtual_servers")(format!("key {key:?}")))?;
        names.insert(index, name);
    }
    let indexes: BTreeSet<u32> = names.keys().copied().chain(entered.iter().map(|entry| entry.index)).collect();
    for index in indexes {
        let (service, entry) = virtual_server(views, index)?;
        let keys = [entries::service_key(service), entries::vip_key(service.address.ip())];
        let leads_here = |entered: &&IndexEntry| entered.index == index;
        let is_right = names.get(&index).is_none_or(|name| *name == service)
            && entered.iter().filter(leads_here).all(|entered| keys.contains(&entered.key));
        if !is_right || virtual_servers.insert(service, entry).is_some() {
            return Err(foreign("services")(format!("{service} at index {index}, beside another")));
        }
    }
    Ok(virtual_servers)
}

/// The virtual server at `index`, once its numbers are known to mean something.
fn virtual_server(views: &Views, index: u32) -> Result<(Service, VirtualServerEntry), DatapathError> {
    let number = |offset| views.services.number(index, offset);
    let key = offset_of!(VirtualServerEntry, key);
    let refusals = [offset_of!(VirtualServerEntry, no_real_server), offset_of!(VirtualServerEntry, unknown_connection)];
    let scheduler = number(offset_of!(VirtualServerEntry, scheduler))?;
    let protocol = number(key + offset_of!(ServiceKey, protocol))?;
    let mut is_known = Scheduler::ALL.into_iter().any(|known| known as u32 == scheduler)
        && u8::try_from(protocol).ok().and_then(Protocol::from_number).is_some()
        && number(offset_of!(VirtualServerEntry, index))? == index;
    for offset in refusals {
        is_known &= Refusal::from_number(number(offset)?).is_some();
    }
    if !is_known {
        return Err(foreign("services")(format!("scheduler {scheduler} and protocol {protocol} at index {index}")));
    }
    let entry = views.services.get(index)?;
    let ServiceKey { vip, port, reserved: _, protocol } = entry.key;
    Ok((Service { address: SocketAddr::new(vip.into(), port.number()), protocol }, entry))
}

/// All places, once their numbers are known to mean something.
fn real_servers(views: &Views) -> Result<Vec<(u16, RealServerEntry)>, DatapathError> {
    let state = offset_of!(RealServerEntry, next_hop) + offset_of!(lb_common::real::NextHop, state);
    let mut real_servers = Vec::new();
    for index in 0..u16::try_from(views.real_servers.length()).unwrap_or(u16::MAX) {
        let number = |offset| views.real_servers.number(index.into(), offset);
        let (forwarding, state) = (number(offset_of!(RealServerEntry, forwarding))?, number(state)?);
        if ForwardingMethod::from_number(forwarding).is_none() || NextHopState::from_number(state).is_none() {
            let found = format!("forwarding method {forwarding} and next hop state {state} at index {index}");
            return Err(foreign("real_servers")(found));
        }
        real_servers.push((index, views.real_servers.get(index.into())?));
    }
    Ok(real_servers)
}

/// The virtual server that a key of `virtual_servers` names.
fn service(key: &KeyOctets) -> Option<Service> {
    let vip = Address { octets: *key.get(offset_of!(ServiceKey, vip)..)?.first_chunk()? };
    let port = u16::from_ne_bytes(*key.get(offset_of!(ServiceKey, port)..)?.first_chunk()?);
    let protocol = u32::from_ne_bytes(*key.get(offset_of!(ServiceKey, protocol)..)?.first_chunk()?);
    let protocol = Protocol::from_number(u8::try_from(protocol).ok()?)?;
    Some(Service { address: SocketAddr::new(vip.into(), Port::new(port).number()), protocol })
}

fn foreign(map: &'static str) -> impl Fn(String) -> DatapathError {
    move |found| DatapathError::Foreign { map, found }
}
