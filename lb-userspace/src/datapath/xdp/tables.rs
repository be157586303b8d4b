//! The maps of the XDP program, filled and read back as [`Datapath`] asks.
//!
//! Order is what keeps packets safe: real servers are complete before a ring or chunk names them, ring and chunks before the
//! virtual server does, and the virtual server before the index leads to it. On removal the reverse: nothing goes while
//! something names it. What packets may still be reading rests before it is written again: `rest.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Release;
use std::thread;
use std::time::Instant;

use aya::Ebpf;
use lb_common::counters::Counters;
use lb_common::interface::InterfaceEntry;
use lb_common::net::{Address, MacAddress};
use lb_common::real::{CountChunk, LANES, LoadChunk, RealServerEntry, load};
use lb_common::service::{
    IndexEntry, Lookups, RING_CHUNK, RingChunk, Run, Scheduler, ServiceKey, VirtualServerEntry, service_flag,
};
use lb_common::{ABI_VERSION, INTERFACES_LENGTH, VIRTUAL_SERVERS_MAX};
use tracing::info;

use super::chains::{Replying, Source};
use super::entries::{self, Behind};
use super::live_index::{LiveIndex, Put};
use super::mapped::Mapped;
use super::maps::Maps;
use super::places::{chunk_of, chunks_of, lane_of};
use super::prefix_tree::PrefixTree;
use super::prefixes::{Named, Prefixes};
use super::rest::REST;
use super::slots::Slots;
use super::table::{denied, memory_maps::MappedTables};
pub use super::way::Way;
use crate::datapath::{Change, Datapath, DatapathError, Servers, ServiceTable, Settings};
use crate::model::{Service, Thresholds, Weight};
use crate::schedule::index::IndexError;

/// The loaded program and its maps.
pub struct XdpDatapath {
    pub(super) maps: Maps,
    pub(super) views: Views,
    pub(super) slots: Slots,
    pub(super) service_index: LiveIndex<Led>,
    pub(super) reply_index: LiveIndex<Replying>,
    pub(super) prefixes: Prefixes,
    pub(super) ways: BTreeMap<IpAddr, Way>,
    /// Whether everything was written by this process, so that what it would write again is there.
    pub(super) is_settled: bool,
    pub(super) own_addresses: BTreeSet<IpAddr>,
}

/// What an entry of `service_index` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Led {
    /// A virtual server.
    Service(Service),
    /// An address that has virtual servers: what of its packets has no ports is told from others' by that.
    Vip(IpAddr),
}

/// The maps that are changed while packets use them, as memory.
pub(super) struct Views {
    pub services: Mapped<VirtualServerEntry>,
    pub real_servers: Mapped<RealServerEntry>,
    pub loads: Mapped<LoadChunk>,
    pub counts: Mapped<CountChunk>,
    pub rings: Mapped<RingChunk>,
    pub lookups: Mapped<Lookups>,
}

impl Views {
    pub fn of(maps: &Maps) -> Result<Self, DatapathError> {
        Ok(Self {
            services: maps.mapped("services")?,
            real_servers: maps.mapped("real_servers")?,
            loads: maps.mapped("server_loads")?,
            counts: maps.mapped("server_counts")?,
            rings: maps.mapped("scheduler_rings")?,
            lookups: maps.mapped("lookups")?,
        })
    }
}

impl Datapath for XdpDatapath {
    fn installed(&mut self) -> Result<ServiceTable, DatapathError> {
        let mut table = ServiceTable::new();
        let mut by_index = BTreeMap::new();
        for (key, entry) in self.maps.virtual_servers()? {
            let service =
                Service { address: SocketAddr::new(key.vip.into(), key.port.number()), protocol: key.protocol };
            let policy = entries::policy(&entry).ok_or_else(|| DatapathError::Foreign {
                map: "virtual_servers",
                found: format!("persistence of {} ticks for {service}", entry.persistence_timeout),
            })?;
            by_index.insert(entry.index, (service, entry.sorry_server));
            let access = entries::clients(&entry);
            table.insert(service, Servers { policy, access, real_servers: BTreeMap::new(), sorry_server: None });
        }
        for index in 0..self.views.real_servers.length() {
            let entry = self.views.real_servers.get(index)?;
            let Some((service, sorry_server)) = by_index.get(&entry.virtual_server) else { continue };
            let is_there = entry.generation != 0 && !entries::is_removed(&entry);
            let Some(servers) = table.get_mut(service).filter(|_| is_there) else { continue };
            let address = entries::address(&entry);
            if *sorry_server == index {
                servers.sorry_server = Some((address, entry.forwarding));
            } else {
                servers.real_servers.insert(address, settings(&entry)?);
            }
        }
        Ok(table)
    }

    fn apply(&mut self, change: &Change) -> Result<(), DatapathError> {
        match change {
            Change::Put(service, servers) => self.put(*service, servers),
            Change::Remove(service) => self.remove(*service),
        }
    }
}

fn settings(entry: &RealServerEntry) -> Result<Settings, DatapathError> {
    let weight = u16::try_from(entry.weight).map_err(|_| DatapathError::Foreign {
        map: "real_servers",
        found: format!("weight {} for {}", entry.weight, entries::address(entry)),
    })?;
    let thresholds = Thresholds { upper: entry.upper_threshold, lower: entry.lower_threshold };
    Ok(Settings { weight: Weight::new(weight), forwarding: entry.forwarding, thresholds })
}

impl XdpDatapath {
    /// Begins with the freshly created maps of `ebpf`.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] where the object lacks a map or one has another type.
    pub fn new(ebpf: Ebpf) -> Result<Self, DatapathError> {
        let mut maps = Maps::new(ebpf);
        maps.set("abi_version", 0, ABI_VERSION)?;
        let mut datapath = Self::over(maps)?;
        // A word of zero would be the least loaded of all.
        datapath.views.loads.words().iter().for_each(|word| word.store(load::NO_WEIGHT, Release));
        datapath.routes_changed()?;
        Ok(datapath)
    }

    /// Over maps of which nothing is known yet.
    pub(super) fn over(maps: Maps) -> Result<Self, DatapathError> {
        let views = Views::of(&maps)?;
        let service_index = LiveIndex::new(maps.mapped("service_index")?);
        let reply_index = LiveIndex::new(maps.mapped("reply_index")?);
        let slots = Slots::new(views.real_servers.length(), views.rings.length());
        let prefixes = Prefixes::new(maps.mapped("prefixes")?);
        let (ways, own_addresses) = (BTreeMap::new(), BTreeSet::new());
        let is_settled = true;
        Ok(Self { maps, views, slots, service_index, reply_index, prefixes, ways, own_addresses, is_settled })
    }

    /// The loaded object, to attach and to pin.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        self.maps.ebpf()
    }

    /// Tells the program of an interface that it is, or will be, attached to; `part_of` is the index of the bond that it is a
    /// slave of.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Full`] where another interface has the place, [`DatapathError::Map`] from the kernel.
    pub fn set_interface(&mut self, ifindex: u32, mac: MacAddress, part_of: Option<u32>) -> Result<(), DatapathError> {
        let index = ifindex % INTERFACES_LENGTH;
        let present: InterfaceEntry = self.maps.get("interfaces", index)?;
        if present.ifindex != 0 && present.ifindex != ifindex {
            return Err(DatapathError::Full {
                table: "interfaces",
                capacity: INTERFACES_LENGTH,
                remedy: "two interfaces' indexes differ by a multiple of 256; create one of them again".into(),
            });
        }
        self.maps.set("interfaces", index, InterfaceEntry { ifindex, mac, reserved: 0, part_of: part_of.unwrap_or(0) })
    }

    /// Tells the program this host's own addresses, to which no reply is rewritten. Connections heed it from the next
    /// [`XdpDatapath::routes_changed`] on.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel, also where there are more than [`lb_common::OWN_ADDRESSES_MAX`].
    pub fn set_own_addresses(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), DatapathError> {
        let gone: Vec<IpAddr> = self.own_addresses.difference(addresses).copied().collect();
        for address in gone {
            self.maps.remove::<Address, u32>(OWN_ADDRESSES, &address.into())?;
            self.own_addresses.remove(&address);
        }
        let new: Vec<IpAddr> = addresses.difference(&self.own_addresses).copied().collect();
        for address in new {
            self.maps.insert(OWN_ADDRESSES, Address::from(address), 1_u32)?;
            self.own_addresses.insert(address);
        }
        Ok(())
    }

    /// Tells the program that routes or neighbours have changed, so that it looks up the ways back to clients again.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel.
    pub fn routes_changed(&mut self) -> Result<(), DatapathError> {
        let present = self.views.lookups.get(0)?;
        let routes = present.routes.wrapping_add(1).max(1);
        self.views.lookups.set(0, &Lookups { routes, ..present })
    }

    pub(super) fn put(&mut self, service: Service, servers: &Servers) -> Result<(), DatapathError> {
        let is_new = self.slots.published(&service).is_none();
        let result = self.install(service, servers);
        if is_new && result.is_err() {
            // No packet has come by it.
            self.remove(service)?;
        }
        result
    }

    fn install(&mut self, service: Service, servers: &Servers) -> Result<(), DatapathError> {
        let index = self.index_of(service)?;
        let Placed { real_servers, sorry_server } = self.place(service, index, servers)?;
        let weights: Vec<(SocketAddr, Weight)> =
            servers.real_servers.iter().map(|(address, settings)| (*address, settings.weight)).collect();
        let ring = entries::ring(servers.policy.scheduler, &weights);
        let ring: Vec<u16> = ring.into_iter().filter_map(|position| real_servers.get(position).copied()).collect();
        let chunks = self.chunks(service, servers.policy.scheduler, &weights, &real_servers);
        let lanes = lanes(&chunks, &real_servers);
        let ring = self.write_run(&ring)?;
        let chunks = self.write_run(&chunks).inspect_err(|_| self.slots.runs.release(ring, Instant::now()))?;
        let Named { run: prefixes, digest } = self.prefixes.take(service, servers.access.as_ref())?;
        let behind = Behind { ring, chunks, lanes, sorry_server, prefixes, digest };
        let entry = entries::virtual_server(service, index, &servers.policy, &behind);
        let before = self.slots.published(&service);
        self.views.services.set(index, &entry)?;
        self.release_runs(service);
        self.slots.publish(service, entry);
        self.lead_to(service, &entry)?;
        self.prefixes.keep_only(service, digest);
        self.maps.put_virtual_server(service.into(), entry)?;
        if before.is_some_and(|before| before.prefixes_digest != digest) {
            self.end_denied(service, &entry, servers)?;
        }
        self.retire(service, servers)
    }

    /// Ends the connections of clients that are served no longer.
    fn end_denied(&self, service: Service, entry: &VirtualServerEntry, servers: &Servers) -> Result<(), DatapathError> {
        let Some(list) = servers.access.as_ref().and_then(|clients| clients.list.as_ref()) else { return Ok(()) };
        // Until then a packet may enter a connection that the list before let in.
        sleep_until(Instant::now() + REST);
        let tables = MappedTables::of(self)?;
        let ended = denied::end(&tables.tables(), entry.index, &PrefixTree::new(list));
        if ended != 0 {
            info!(virtual_server = %service, connections = ended, "connections of clients that are denied now have ended");
        }
        Ok(())
    }

    /// Where the real servers of `service` are, these with these weights, for schedulers that compare loads.
    fn chunks(
        &self,
        service: Service,
        scheduler: Scheduler,
        weights: &[(SocketAddr, Weight)],
        real_servers: &[u16],
    ) -> Vec<u16> {
        if entries::rotates(scheduler) {
            return self.slots.places.chunks_with(service, real_servers);
        }
        let mut by_weight: Vec<_> = weights.iter().map(|(_, weight)| Reverse(*weight)).zip(real_servers).collect();
        by_weight.sort_by_key(|(weight, _)| *weight);
        chunks_of(by_weight.into_iter().map(|(_, index)| *index))
    }

    pub(super) fn remove(&mut self, service: Service) -> Result<(), DatapathError> {
        self.service_index.remove(entries::service_key(service), Instant::now())?;
        self.maps.remove_virtual_server(ServiceKey::from(service))?;
        self.release_runs(service);
        self.slots.withdraw(&service);
        self.lead_to_vip(service.address.ip())?;
        self.set_all_ports(None)?;
        let places: Vec<u16> = self.slots.places.of(service).map(|(_, index)| index).collect();
        for index in places {
            self.free(index)?;
        }
        self.prefixes.release(service);
        self.slots.release_index(&service, Instant::now());
        Ok(())
    }

    /// The index of a virtual server; a new one's counters and cursor are zero.
    fn index_of(&mut self, service: Service) -> Result<u32, DatapathError> {
        if let Some(index) = self.slots.index(&service) {
            return Ok(index);
        }
        let slots = &mut self.slots;
        let index = loop {
            match (slots.take_index(service, Instant::now(), VIRTUAL_SERVERS_MAX), slots.rests_until()) {
                (Some(index), _) => break index,
                (None, Some(until)) => sleep_until(until),
                (None, None) => {
                    return Err(DatapathError::Full {
                        table: "virtual_servers",
                        capacity: VIRTUAL_SERVERS_MAX,
                        remedy: "run a second instance for the rest".into(),
                    });
                }
            }
        };
        self.maps.set("rr_cursors", index, 0_u64)?;
        self.maps.set_per_cpu("vs_counters", index, Counters::default())?;
        Ok(index)
    }

    /// Writes `elements` where no published run lies, so that packets go on by the old one until it is replaced.
    fn write_run(&mut self, elements: &[u16]) -> Result<Run, DatapathError> {
        let runs = &mut self.slots.runs;
        let length = u32::try_from(elements.len()).unwrap_or(u32::MAX);
        let run = loop {
            match (runs.take(length, Instant::now()), runs.rests_until()) {
                (Some(run), _) => break run,
                (None, Some(until)) => sleep_until(until),
                (None, None) => {
                    return Err(DatapathError::Full {
                        table: "scheduler_rings",
                        capacity: runs.capacity(),
                        remedy: "restart with the configuration that needs so much".into(),
                    });
                }
            }
        };
        let first = run.start / u32::try_from(RING_CHUNK).unwrap_or(1);
        for (chunk, some) in (first..).zip(elements.chunks(RING_CHUNK)) {
            let mut value = RingChunk { elements: [0; RING_CHUNK] };
            value.elements.iter_mut().zip(some).for_each(|(place, element)| *place = *element);
            self.views.rings.set(chunk, &value)?;
        }
        Ok(run)
    }

    /// Gives up the runs of what is published, which packets come to no longer.
    fn release_runs(&mut self, service: Service) {
        if let Some(before) = self.slots.published(&service) {
            self.slots.runs.release(before.ring, Instant::now());
            self.slots.runs.release(before.chunks, Instant::now());
        }
    }

    /// Makes packets come to a virtual server.
    fn lead_to(&mut self, service: Service, entry: &VirtualServerEntry) -> Result<(), DatapathError> {
        self.set_all_ports(Some(entry))?;
        let key = entries::service_key(service);
        let entry = IndexEntry { key, index: entry.index, flags: entry.flags };
        self.enter_service(service, Led::Service(service), entry)?;
        self.lead_to_vip(service.address.ip())
    }

    /// Notes that an address has virtual servers, or that it has none any more.
    fn lead_to_vip(&mut self, vip: IpAddr) -> Result<(), DatapathError> {
        let key = entries::vip_key(vip);
        let published = self.slots.virtual_servers().find(|(service, _)| service.address.ip() == vip);
        let Some((service, index)) = published.map(|(service, entry)| (service, entry.index)) else {
            return self.service_index.remove(key, Instant::now());
        };
        self.enter_service(service, Led::Vip(vip), IndexEntry { key, index, flags: 0 })
    }

    fn enter_service(&mut self, service: Service, owner: Led, entry: IndexEntry) -> Result<(), DatapathError> {
        let entered = enter(&mut self.service_index, self.views.lookups.word(SERVICES)?, owner, entry)?;
        entered.map_err(|source| DatapathError::Index { map: "service_index", service, source })
    }

    /// Tells packets whether a virtual server, or one that is `new`, serves all ports.
    pub(super) fn set_all_ports(&mut self, new: Option<&VirtualServerEntry>) -> Result<(), DatapathError> {
        let published = self.slots.virtual_servers().map(|(_, entry)| entry.flags).chain(new.map(|entry| entry.flags));
        let all_ports = u32::from(published.fold(0, |all, flags| all | flags) & service_flag::ALL_PORTS != 0);
        let present = self.views.lookups.get(0)?;
        if present.all_ports == all_ports {
            return Ok(());
        }
        self.views.lookups.set(0, &Lookups { all_ports, ..present })
    }

    /// Makes the replies of `source` lead to the real server at `index`, of virtual server `service` with these flags.
    pub(super) fn lead_replies(
        &mut self,
        source: Source,
        index: u16,
        service: Service,
        flags: u32,
    ) -> Result<(), DatapathError> {
        let entry = IndexEntry { key: entries::reply_key(source), index: index.into(), flags };
        self.enter_reply(service, Replying::Source(source), entry)
    }

    /// Notes that packets of `address` may be replies, or that none is any more.
    pub(super) fn lead_address(&mut self, address: IpAddr) -> Result<(), DatapathError> {
        let key = entries::address_key(address);
        let index = self.slots.chains.any_of(address);
        let Some((index, tenant)) = index.and_then(|index| Some((index, self.slots.places.tenant(index)?))) else {
            return self.reply_index.remove(key, Instant::now());
        };
        self.enter_reply(tenant.service, Replying::Address(address), IndexEntry { key, index: index.into(), flags: 0 })
    }

    fn enter_reply(&mut self, service: Service, owner: Replying, entry: IndexEntry) -> Result<(), DatapathError> {
        let entered = enter(&mut self.reply_index, self.views.lookups.word(REPLIES)?, owner, entry)?;
        entered.map_err(|source| DatapathError::Index { map: "reply_index", service, source })
    }
}

pub(super) const OWN_ADDRESSES: &str = "own_addresses";

/// The words of [`Lookups`] that tell the valid copies.
const SERVICES: usize = std::mem::offset_of!(Lookups, services) / 8;
const REPLIES: usize = std::mem::offset_of!(Lookups, replies) / 8;

/// Where a virtual server's real servers are, in the order of their addresses.
pub(super) struct Placed {
    pub real_servers: Vec<u16>,
    pub sorry_server: Option<u16>,
}

/// Lanes from the first chunk's first to the last that one of `indexes` has.
fn lanes(chunks: &[u16], indexes: &[u16]) -> u32 {
    let [before @ .., last] = chunks else { return 0 };
    let lanes = indexes.iter().filter(|index| chunk_of(**index) == *last).map(|index| usize::from(lane_of(*index)) + 1);
    u32::try_from(before.len() * LANES + lanes.max().unwrap_or(0)).unwrap_or(u32::MAX)
}

/// Puts `entry` into an index of which `valid` tells the copy that packets use.
fn enter<Owner: Copy + PartialEq>(
    index: &mut LiveIndex<Owner>,
    valid: &AtomicU64,
    owner: Owner,
    entry: IndexEntry,
) -> Result<Result<(), IndexError>, DatapathError> {
    loop {
        match index.put(owner, entry, Instant::now())? {
            Put::Done => return Ok(Ok(())),
            Put::Switch(word) => {
                valid.store(word, Release);
                index.switched(word, Instant::now());
                return Ok(Ok(()));
            }
            Put::Wait(until) => sleep_until(until),
            Put::Refused(error) => return Ok(Err(error)),
        }
    }
}

/// Waits for what rests, which is soon over.
pub(super) fn sleep_until(until: Instant) {
    thread::sleep(until.saturating_duration_since(Instant::now()));
}

#[cfg(test)]
pub(super) mod tests;
