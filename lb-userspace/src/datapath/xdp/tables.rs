//! The maps of the XDP program, filled and read back as [`Datapath`] asks.
//!
//! Order is what keeps packets safe: real servers and ring are complete before the virtual server points at them, and the
//! virtual server is gone before they go.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use aya::Ebpf;
use lb_common::counters::Counters;
use lb_common::interface::InterfaceEntry;
use lb_common::net::{Address, MacAddress, Port};
use lb_common::real::{NextHop, RealServerEntry};
use lb_common::service::{ForwardingMethod, ServiceKey, VirtualServerEntry};
use lb_common::{ABI_VERSION, INTERFACES_LENGTH, SCHEDULER_RINGS_LENGTH, VIRTUAL_SERVERS_MAX};

use super::maps::Maps;
use super::slots::Slots;
use crate::datapath::{Change, Datapath, DatapathError, Servers, ServiceTable, Settings};
use crate::model::{Service, Weight};

/// The way to an address: what [`crate::nexthop`] found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The next hop.
    pub next_hop: NextHop,
    /// Our own address on that way, the outer source of tunnelled packets.
    pub source: Option<IpAddr>,
    /// Whether a router stands before the address: `dr` cannot go that way.
    pub is_routed: bool,
}

impl Way {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self { next_hop: NextHop::UNRESOLVED, source: None, is_routed: false };

    fn next_hop(&self, forwarding: ForwardingMethod) -> NextHop {
        match forwarding {
            ForwardingMethod::Dr if self.is_routed => NextHop::UNUSABLE,
            ForwardingMethod::Nat | ForwardingMethod::Dr | ForwardingMethod::Tun => self.next_hop,
        }
    }
}

/// The loaded program and its maps.
pub struct XdpDatapath {
    pub(super) maps: Maps,
    pub(super) slots: Slots,
    ways: BTreeMap<IpAddr, Way>,
    generation: u32,
}

impl Datapath for XdpDatapath {
    fn installed(&mut self) -> Result<ServiceTable, DatapathError> {
        let mut table = ServiceTable::new();
        let mut by_index = BTreeMap::new();
        for (key, entry) in self.maps.virtual_servers()? {
            let address = SocketAddr::new(key.vip.into(), key.port.number());
            let service = Service { address, protocol: key.protocol };
            by_index.insert(entry.index, service);
            table.insert(service, Servers { scheduler: entry.scheduler, real_servers: BTreeMap::new() });
        }
        for entry in self.maps.real_servers()? {
            let owner = by_index.get(&entry.virtual_server).filter(|_| entry.generation != 0);
            let Some(servers) = owner.and_then(|service| table.get_mut(service)) else { continue };
            let address = SocketAddr::new(entry.address.into(), entry.port.number());
            let weight = u16::try_from(entry.weight).map_err(|_| DatapathError::Foreign {
                map: "real_servers",
                found: format!("weight {} for {address}", entry.weight),
            })?;
            let settings = Settings { weight: Weight::new(weight), forwarding: entry.forwarding };
            servers.real_servers.insert(address, settings);
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

impl XdpDatapath {
    /// Takes over the freshly created maps of `ebpf`.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] where the object lacks a map or one has another type.
    pub fn new(ebpf: Ebpf) -> Result<Self, DatapathError> {
        let mut maps = Maps::new(ebpf);
        maps.set("abi_version", 0, ABI_VERSION)?;
        Ok(Self { maps, slots: Slots::default(), ways: BTreeMap::new(), generation: 0 })
    }

    /// The loaded object, to attach and to pin.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        self.maps.ebpf()
    }

    /// Tells the program of an interface that it is, or will be, attached to.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Full`] where another interface has the place, [`DatapathError::Map`] from the kernel.
    pub fn set_interface(&mut self, ifindex: u32, mac: MacAddress) -> Result<(), DatapathError> {
        let index = ifindex % INTERFACES_LENGTH;
        let present: InterfaceEntry = self.maps.get("interfaces", index)?;
        if present.ifindex != 0 && present.ifindex != ifindex {
            return Err(DatapathError::Full {
                table: "interfaces",
                capacity: INTERFACES_LENGTH,
                remedy: "two interfaces' indexes differ by a multiple of 256; create one of them again",
            });
        }
        self.maps.set("interfaces", index, InterfaceEntry { ifindex, mac, reserved: [0; 3] })
    }

    /// Sets the way to every real server with address `address`, now and when one is added.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel.
    pub fn set_way(&mut self, address: IpAddr, way: Way) -> Result<(), DatapathError> {
        self.ways.insert(address, way);
        let indexes: Vec<u32> =
            self.slots.real_servers().filter(|(_, _, a)| a.ip() == address).map(|(index, _, _)| index).collect();
        for index in indexes {
            let mut entry: RealServerEntry = self.maps.get("real_servers", index)?;
            entry.next_hop = way.next_hop(entry.forwarding);
            entry.tunnel_source = tunnel_source(entry.forwarding, &way);
            self.maps.set("real_servers", index, entry)?;
        }
        Ok(())
    }

    /// The way to `address`, as last set.
    pub fn way(&self, address: IpAddr) -> Way {
        self.ways.get(&address).copied().unwrap_or(Way::UNKNOWN)
    }

    fn put(&mut self, service: Service, servers: &Servers) -> Result<(), DatapathError> {
        let index = match self.slots.published(&service) {
            Some(entry) => entry.index,
            None => self.take_virtual_server()?,
        };
        let mut ring = Vec::new();
        for (address, settings) in &servers.real_servers {
            let slot = self.put_real_server(service, index, *address, settings)?;
            if settings.weight != Weight::ZERO {
                ring.push(slot);
            }
        }
        let entry = self.write_ring(index, servers, &ring)?;
        self.maps.put_virtual_server(service.into(), entry)?;
        self.slots.publish(service, entry);
        self.release_real_servers(service, |address| !servers.real_servers.contains_key(address))
    }

    fn remove(&mut self, service: Service) -> Result<(), DatapathError> {
        self.maps.remove_virtual_server(ServiceKey::from(service))?;
        self.slots.withdraw(&service);
        self.release_real_servers(service, |_| true)
    }

    /// An index for a new virtual server, its counters and cursor at zero.
    fn take_virtual_server(&mut self) -> Result<u32, DatapathError> {
        let index = self.slots.free_virtual_server(VIRTUAL_SERVERS_MAX).ok_or(DatapathError::Full {
            table: "virtual_servers",
            capacity: VIRTUAL_SERVERS_MAX,
            remedy: "run a second instance for the rest",
        })?;
        self.maps.set("rr_cursors", index, 0_u64)?;
        self.maps.set_per_cpu("vs_counters", index, Counters::default())?;
        Ok(index)
    }

    /// Writes a real server's entry; returns its index.
    fn put_real_server(
        &mut self,
        service: Service,
        virtual_server: u32,
        address: SocketAddr,
        settings: &Settings,
    ) -> Result<u32, DatapathError> {
        let known = self.slots.real_server(&service, &address);
        let capacity = self.maps.real_servers_max()?;
        let index = match known {
            Some(index) => index,
            None => self.slots.take_real_server(service, address, capacity).ok_or(DatapathError::Full {
                table: "real_servers",
                capacity,
                remedy: "restart with the configuration that has so many",
            })?,
        };
        let present: RealServerEntry = self.maps.get("real_servers", index)?;
        // Connections follow a generation; those of another forwarding method or an earlier tenant must not.
        let keeps = known.is_some() && present.forwarding == settings.forwarding && present.generation != 0;
        let generation = if keeps { present.generation } else { self.next_generation() };
        if known.is_none() {
            self.maps.set_per_cpu("rs_counters", index, Counters::default())?;
        }
        let way = self.way(address.ip());
        let entry = RealServerEntry {
            address: address.ip().into(),
            tunnel_source: tunnel_source(settings.forwarding, &way),
            port: Port::new(address.port()),
            reserved: 0,
            forwarding: settings.forwarding,
            weight: settings.weight.get().into(),
            virtual_server,
            generation,
            next_hop: way.next_hop(settings.forwarding),
            reserved_tail: [0; 13],
        };
        self.maps.set("real_servers", index, entry)?;
        Ok(index)
    }

    /// Writes `ring` where no published ring lies, so that packets go on by the old one until it is replaced.
    fn write_ring(&mut self, index: u32, servers: &Servers, ring: &[u32]) -> Result<VirtualServerEntry, DatapathError> {
        let full = DatapathError::Full {
            table: "scheduler_rings",
            capacity: SCHEDULER_RINGS_LENGTH,
            remedy: "run a second instance for some virtual servers",
        };
        let length = u32::try_from(ring.len()).unwrap_or(u32::MAX);
        let ring_start = self.slots.free_ring(length, SCHEDULER_RINGS_LENGTH).ok_or(full)?;
        for (offset, slot) in (ring_start..).zip(ring) {
            self.maps.set("scheduler_rings", offset, *slot)?;
        }
        Ok(VirtualServerEntry { index, scheduler: servers.scheduler, ring_start, ring_length: length })
    }

    fn release_real_servers(
        &mut self,
        service: Service,
        is_gone: impl Fn(&SocketAddr) -> bool,
    ) -> Result<(), DatapathError> {
        let gone: Vec<u32> =
            self.slots.real_servers().filter(|(_, s, a)| *s == service && is_gone(a)).map(|(i, _, _)| i).collect();
        for index in gone {
            self.maps.set("real_servers", index, FREE)?;
            self.slots.release_real_server(index);
        }
        Ok(())
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1).max(1);
        self.generation
    }
}

/// A slot that no real server holds.
const FREE: RealServerEntry = RealServerEntry {
    address: Address::UNSPECIFIED,
    tunnel_source: Address::UNSPECIFIED,
    port: Port::new(0),
    reserved: 0,
    forwarding: ForwardingMethod::Nat,
    weight: 0,
    virtual_server: 0,
    generation: 0,
    next_hop: NextHop::UNRESOLVED,
    reserved_tail: [0; 13],
};

fn tunnel_source(forwarding: ForwardingMethod, way: &Way) -> Address {
    match forwarding {
        ForwardingMethod::Tun => way.source.map_or(Address::UNSPECIFIED, Address::from),
        ForwardingMethod::Nat | ForwardingMethod::Dr => Address::UNSPECIFIED,
    }
}
