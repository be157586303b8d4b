//! Which places in the fixed-size maps are taken. Pure bookkeeping; the maps themselves are in `tables.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use lb_common::service::VirtualServerEntry;

use super::chains::Chains;
use super::places::Places;
use super::rest::Resting;
use super::runs::Runs;
use crate::model::Service;

/// Who holds which index.
#[derive(Debug)]
pub struct Slots {
    indexes: BTreeMap<Service, u32>,
    published: BTreeMap<Service, VirtualServerEntry>,
    resting: Resting<u32>,
    /// Real servers.
    pub places: Places,
    /// Elements of `scheduler_rings`.
    pub runs: Runs,
    /// Real servers by what replies show of them.
    pub chains: Chains,
}

impl Slots {
    /// Nothing taken of so many places for real servers and so many chunks of `scheduler_rings`.
    pub fn new(places: u32, ring_chunks: u32) -> Self {
        Self {
            indexes: BTreeMap::new(),
            published: BTreeMap::new(),
            resting: Resting::default(),
            places: Places::new(places),
            runs: Runs::new(ring_chunks),
            chains: Chains::default(),
        }
    }

    /// `service` has been published as `entry` since before this process; false, and nothing is noted, where another virtual
    /// server has its index or a part of its runs.
    pub fn found(&mut self, service: Service, entry: VirtualServerEntry) -> bool {
        let is_taken = self.indexes.contains_key(&service) || self.indexes.values().any(|index| *index == entry.index);
        if is_taken || !self.runs.found(entry.ring) || !self.runs.found(entry.chunks) {
            return false;
        }
        self.indexes.insert(service, entry.index);
        self.published.insert(service, entry);
        true
    }

    /// What is published for `service`.
    pub fn published(&self, service: &Service) -> Option<VirtualServerEntry> {
        self.published.get(service).copied()
    }

    /// Notes what was published for `service`.
    pub fn publish(&mut self, service: Service, entry: VirtualServerEntry) {
        self.published.insert(service, entry);
    }

    /// Forgets what was published for `service`; its index, its real servers and its runs are released one by one.
    pub fn withdraw(&mut self, service: &Service) {
        self.published.remove(service);
    }

    /// Every virtual server.
    pub fn virtual_servers(&self) -> impl Iterator<Item = (Service, VirtualServerEntry)> {
        self.published.iter().map(|(service, entry)| (*service, *entry))
    }

    /// The index of `service`, published or not.
    pub fn index(&self, service: &Service) -> Option<u32> {
        self.indexes.get(service).copied()
    }

    /// Gives `service`, which has none, the lowest index below `limit` that is free and has rested.
    pub fn take_index(&mut self, service: Service, now: Instant, limit: u32) -> Option<u32> {
        drop(self.resting.rested(now));
        let taken: BTreeSet<u32> = self.indexes.values().copied().collect();
        let index = (0..limit).find(|index| !taken.contains(index) && !self.resting.holds(*index, now))?;
        self.indexes.insert(service, index);
        Some(index)
    }

    /// Frees the index of `service` at `now`.
    pub fn release_index(&mut self, service: &Service, now: Instant) {
        if let Some(index) = self.indexes.remove(service) {
            self.resting.push(index, now);
        }
    }

    /// When there may be more virtual servers than now; `None` where nothing rests.
    pub fn rests_until(&self) -> Option<Instant> {
        self.resting.until()
    }
}

#[cfg(test)]
mod tests {
    use lb_common::net::Protocol;

    use super::*;
    use crate::datapath::xdp::rest::REST;

    #[test]
    fn indexes_are_given_lowest_first_and_rest_in_between() {
        let service = |port| Service { address: ([10, 0, 0, 1], port).into(), protocol: Protocol::Tcp };
        let now = Instant::now();
        let mut slots = Slots::new(8, 1);
        assert_eq!(slots.take_index(service(1), now, 2), Some(0));
        assert_eq!(slots.take_index(service(2), now, 2), Some(1));
        assert_eq!(slots.index(&service(2)), Some(1));
        slots.release_index(&service(1), now);
        assert_eq!(slots.take_index(service(3), now, 2), None);
        assert_eq!(slots.rests_until(), Some(now + REST));
        assert_eq!(slots.take_index(service(3), now + REST, 2), Some(0));
        assert_eq!(slots.take_index(service(4), now + REST, 2), None);
    }
}
