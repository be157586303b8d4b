//! Which places in the fixed-size maps are taken. Pure bookkeeping; the maps themselves are in `tables.rs`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::service::VirtualServerEntry;

use crate::model::Service;

/// Who holds which index.
#[derive(Debug, Default)]
pub struct Slots {
    virtual_servers: BTreeMap<Service, VirtualServerEntry>,
    real_servers: BTreeMap<u32, (Service, SocketAddr)>,
}

impl Slots {
    /// What is published for `service`.
    pub fn published(&self, service: &Service) -> Option<VirtualServerEntry> {
        self.virtual_servers.get(service).copied()
    }

    /// Notes what was published for `service`.
    pub fn publish(&mut self, service: Service, entry: VirtualServerEntry) {
        self.virtual_servers.insert(service, entry);
    }

    /// Forgets `service`; its real servers are released one by one.
    pub fn withdraw(&mut self, service: &Service) {
        self.virtual_servers.remove(service);
    }

    /// The lowest index below `limit` that no virtual server has.
    pub fn free_virtual_server(&self, limit: u32) -> Option<u32> {
        let taken: Vec<u32> = self.virtual_servers.values().map(|entry| entry.index).collect();
        (0..limit).find(|index| !taken.contains(index))
    }

    /// The index of a real server of `service`.
    pub fn real_server(&self, service: &Service, address: &SocketAddr) -> Option<u32> {
        self.real_servers.iter().find(|(_, (s, a))| s == service && a == address).map(|(index, _)| *index)
    }

    /// Gives the lowest free index below `limit` to a real server of `service`.
    pub fn take_real_server(&mut self, service: Service, address: SocketAddr, limit: u32) -> Option<u32> {
        let index = (0..limit).find(|index| !self.real_servers.contains_key(index))?;
        self.real_servers.insert(index, (service, address));
        Some(index)
    }

    /// Frees a real server's index.
    pub fn release_real_server(&mut self, index: u32) {
        self.real_servers.remove(&index);
    }

    /// Every real server: index, virtual server, address.
    pub fn real_servers(&self) -> impl Iterator<Item = (u32, Service, SocketAddr)> {
        self.real_servers.iter().map(|(index, (service, address))| (*index, *service, *address))
    }

    /// Every virtual server.
    pub fn virtual_servers(&self) -> impl Iterator<Item = (Service, VirtualServerEntry)> {
        self.virtual_servers.iter().map(|(service, entry)| (*service, *entry))
    }

    /// The start of a run of `length` ring elements below `limit` that no published ring uses.
    pub fn free_ring(&self, length: u32, limit: u32) -> Option<u32> {
        let mut taken: Vec<(u32, u32)> =
            self.virtual_servers.values().map(|entry| (entry.ring_start, entry.ring_length)).collect();
        taken.sort_unstable();
        let mut start = 0;
        for (taken_start, taken_length) in taken {
            if taken_start.saturating_sub(start) >= length {
                break;
            }
            start = start.max(taken_start + taken_length);
        }
        (start + length <= limit).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::net::Protocol;
    use lb_common::service::Scheduler;

    use super::*;

    fn service(port: u16) -> Service {
        Service { address: ([10, 0, 0, 1], port).into(), protocol: Protocol::Tcp }
    }

    fn ring(index: u32, ring_start: u32, ring_length: u32) -> VirtualServerEntry {
        VirtualServerEntry { index, scheduler: Scheduler::Rr, ring_start, ring_length }
    }

    #[test]
    fn a_ring_goes_into_the_first_gap_that_holds_it() {
        let mut slots = Slots::default();
        slots.publish(service(1), ring(0, 0, 3));
        slots.publish(service(2), ring(1, 5, 3));
        assert_eq!(slots.free_ring(2, 16), Some(3));
        assert_eq!(slots.free_ring(3, 16), Some(8));
        assert_eq!(slots.free_ring(9, 16), None);
    }

    #[test]
    fn a_ring_of_nothing_has_room_in_full_tables() {
        let mut slots = Slots::default();
        slots.publish(service(1), ring(0, 0, 16));
        assert_eq!(slots.free_ring(0, 16), Some(0));
    }

    #[test]
    fn freed_indexes_are_given_again_lowest_first() {
        let mut slots = Slots::default();
        let address = |n: u8| SocketAddr::from(([10, 0, 1, n], 80));
        assert_eq!(slots.take_real_server(service(1), address(1), 2), Some(0));
        assert_eq!(slots.take_real_server(service(1), address(2), 2), Some(1));
        assert_eq!(slots.take_real_server(service(1), address(3), 2), None);
        slots.release_real_server(0);
        assert_eq!(slots.take_real_server(service(1), address(3), 2), Some(0));
        assert_eq!(slots.real_server(&service(1), &address(1)), None);
    }
}
