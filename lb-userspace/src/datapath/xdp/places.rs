//! Who holds which place in `real_servers`: pure bookkeeping.
//!
//! Places come in chunks of eight, a chunk belongs to one virtual server, so that its load words are compared together. A
//! place is given to the next real server when the connections of the last have ended; before, only where room is short.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use lb_common::real::LANES;

use super::rest::Resting;
use crate::model::Service;

/// A real server of a virtual server, as far as it has a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tenant {
    /// The virtual server.
    pub service: Service,
    /// What for. Real servers before the sorry server.
    pub role: Role,
    /// Address and port.
    pub address: SocketAddr,
}

/// What a virtual server has a real server for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// To be scheduled.
    Real,
    /// For when no other takes a connection.
    Sorry,
}

/// All places.
#[derive(Debug)]
pub struct Places {
    count: u16,
    by_tenant: BTreeMap<Tenant, u16>,
    by_index: BTreeMap<u16, Tenant>,
    /// Chunks of each virtual server, in the order in which it got them.
    chunks: BTreeMap<Service, Vec<u16>>,
    resting: Resting<u16>,
    /// By index, of places that have ever been given: their last generation.
    generations: BTreeMap<u16, u32>,
    /// Since when a removed real server is waiting for its last connection.
    leaving: BTreeMap<u16, Instant>,
}

impl Places {
    /// So many places, all free; a number that does not fill a chunk is rounded down.
    pub fn new(count: u32) -> Self {
        let count = u16::try_from(count).unwrap_or(u16::MAX) / LANE_COUNT * LANE_COUNT;
        Self {
            count,
            by_tenant: BTreeMap::new(),
            by_index: BTreeMap::new(),
            chunks: BTreeMap::new(),
            resting: Resting::default(),
            generations: BTreeMap::new(),
            leaving: BTreeMap::new(),
        }
    }

    /// `tenant` has had the place at `index`, in this generation, since before this process. False, and nothing is noted, where
    /// that cannot be: there is no such place, the place or the tenant has another, or the chunk is another virtual server's.
    pub fn found(&mut self, tenant: Tenant, index: u16, generation: u32) -> bool {
        let chunk = chunk_of(index);
        let is_others =
            |(service, chunks): (&Service, &Vec<u16>)| *service != tenant.service && chunks.contains(&chunk);
        let is_taken = self.by_index.contains_key(&index) || self.by_tenant.contains_key(&tenant);
        if index >= self.count || is_taken || self.chunks.iter().any(is_others) {
            return false;
        }
        self.by_tenant.insert(tenant, index);
        self.by_index.insert(index, tenant);
        self.generations.insert(index, generation);
        let chunks = self.chunks.entry(tenant.service).or_default();
        if !chunks.contains(&chunk) {
            chunks.push(chunk);
        }
        true
    }

    /// The place of `tenant`.
    pub fn find(&self, tenant: &Tenant) -> Option<u16> {
        self.by_tenant.get(tenant).copied()
    }

    /// Who has a place.
    pub fn tenant(&self, index: u16) -> Option<Tenant> {
        self.by_index.get(&index).copied()
    }

    /// Everybody who has a place, by virtual server, role and address.
    pub fn all(&self) -> impl Iterator<Item = (Tenant, u16)> {
        self.by_tenant.iter().map(|(tenant, index)| (*tenant, *index))
    }

    /// Those of `service`, by role and address.
    pub fn of(&self, service: Service) -> impl Iterator<Item = (Tenant, u16)> {
        let lowest = SocketAddr::from(([0, 0, 0, 0], 0));
        let first = Tenant { service, role: Role::Real, address: lowest };
        let rest = self.by_tenant.range(first..);
        rest.take_while(move |(tenant, _)| tenant.service == service).map(|(tenant, index)| (*tenant, *index))
    }

    /// Gives `tenant`, who has none, a place: the lowest of its virtual server's chunks that has rested and, by `is_idle`,
    /// has no connections; else one of a new chunk; else one that still has connections. `None` where there is none now.
    pub fn take(&mut self, tenant: Tenant, now: Instant, is_idle: impl Fn(u16) -> bool) -> Option<u16> {
        drop(self.resting.rested(now));
        let service = tenant.service;
        let mut lane = self.free_lane(service, now, &is_idle);
        if lane.is_none()
            && let Some(chunk) = self.free_chunk(now, &is_idle)
        {
            self.chunks.entry(service).or_default().push(chunk);
            lane = self.free_lane(service, now, &is_idle);
        }
        let index = lane.or_else(|| self.free_lane(service, now, |_| true))?;
        self.by_tenant.insert(tenant, index);
        self.by_index.insert(index, tenant);
        Some(index)
    }

    /// Frees a place at `now`, and its chunk with its last place.
    pub fn release(&mut self, index: u16, now: Instant) {
        let Some(tenant) = self.by_index.remove(&index) else { return };
        self.by_tenant.remove(&tenant);
        self.leaving.remove(&index);
        self.resting.push(index, now);
        let chunk = chunk_of(index);
        if lanes(chunk).any(|lane| self.by_index.contains_key(&lane)) {
            return;
        }
        if let Some(chunks) = self.chunks.get_mut(&tenant.service) {
            chunks.retain(|own| *own != chunk);
        }
        self.chunks.retain(|_, chunks| !chunks.is_empty());
    }

    /// The generation of a place's next tenant: its low octet, which slots hold, is never zero, and differs from those of the
    /// 254 tenants before.
    pub fn next_generation(&mut self, index: u16) -> u32 {
        let last = self.generations.entry(index).or_insert(0);
        *last = last.wrapping_add(1);
        if *last & 0xff == 0 {
            *last = last.wrapping_add(1);
        }
        *last
    }

    /// The last tenant of a place that is free had this generation.
    pub fn had(&mut self, index: u16, generation: u32) {
        self.generations.insert(index, generation);
    }

    /// The place's real server is removed at `now`, and keeps the place for its connections; no news where it was before.
    pub fn leave(&mut self, index: u16, now: Instant) {
        self.leaving.entry(index).or_insert(now);
    }

    /// The place's real server is back.
    pub fn stay(&mut self, index: u16) {
        self.leaving.remove(&index);
    }

    /// Places of removed real servers, and since when they are removed.
    pub fn leaving(&self) -> impl Iterator<Item = (u16, Instant)> {
        self.leaving.iter().map(|(index, since)| (*index, *since))
    }

    /// The chunks of `service` that hold any of `indexes`, in the order in which it got them.
    pub fn chunks_with(&self, service: Service, indexes: &[u16]) -> Vec<u16> {
        let mut chunks = self.chunks.get(&service).cloned().unwrap_or_default();
        chunks.retain(|chunk| indexes.iter().any(|index| chunk_of(*index) == *chunk));
        chunks
    }

    /// When there may be more room than now; `None` where nothing rests.
    pub fn rests_until(&self) -> Option<Instant> {
        self.resting.until()
    }

    /// How many places there are.
    pub fn capacity(&self) -> u32 {
        self.count.into()
    }

    /// The first place in the chunks of `service` that is free, has rested and is fit.
    fn free_lane(&self, service: Service, now: Instant, is_fit: impl Fn(u16) -> bool) -> Option<u16> {
        let mut lanes = self.chunks.get(&service).into_iter().flatten().flat_map(|chunk| lanes(*chunk));
        lanes.find(|index| !self.by_index.contains_key(index) && !self.resting.holds(*index, now) && is_fit(*index))
    }

    /// The first chunk that nobody has, of which every place has rested; one without connections rather than one with.
    fn free_chunk(&self, now: Instant, is_idle: &impl Fn(u16) -> bool) -> Option<u16> {
        let taken: BTreeSet<u16> = self.chunks.values().flatten().copied().collect();
        let free = || (0..self.count / LANE_COUNT).filter(|chunk| !taken.contains(chunk));
        let rested = || free().filter(|chunk| lanes(*chunk).all(|index| !self.resting.holds(index, now)));
        rested().find(|chunk| lanes(*chunk).all(is_idle)).or_else(|| rested().next())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it is 8")]
const LANE_COUNT: u16 = LANES as u16;

/// The chunks of `indexes`, in the order of the first index in each.
pub fn chunks_of(indexes: impl IntoIterator<Item = u16>) -> Vec<u16> {
    let mut seen = BTreeSet::new();
    indexes.into_iter().map(chunk_of).filter(|chunk| seen.insert(*chunk)).collect()
}

/// The chunk that a place is in.
pub fn chunk_of(index: u16) -> u16 {
    index / LANE_COUNT
}

/// The place's number within its chunk.
pub fn lane_of(index: u16) -> u16 {
    index % LANE_COUNT
}

fn lanes(chunk: u16) -> impl Iterator<Item = u16> {
    let first = chunk * LANE_COUNT;
    first..first + LANE_COUNT
}

#[cfg(test)]
mod tests {
    use lb_common::net::Protocol;

    use super::*;
    use crate::datapath::xdp::rest::REST;

    fn tenant(service: u16, n: u8) -> Tenant {
        let service = Service { address: ([10, 0, 0, 1], service).into(), protocol: Protocol::Tcp };
        Tenant { service, role: Role::Real, address: ([10, 0, 1, n], 80).into() }
    }

    fn take(places: &mut Places, service: u16, n: u8, now: Instant) -> Option<u16> {
        places.take(tenant(service, n), now, |_| true)
    }

    #[test]
    fn lanes_are_filled_lowest_first_and_chunks_are_one_virtual_servers() {
        let now = Instant::now();
        let mut places = Places::new(24);
        assert_eq!(take(&mut places, 1, 1, now), Some(0));
        assert_eq!(take(&mut places, 2, 1, now), Some(8));
        let indexes: Vec<_> = (2..=9).map(|n| take(&mut places, 1, n, now)).collect();
        assert_eq!(indexes, [1, 2, 3, 4, 5, 6, 7, 16].map(Some));
        assert_eq!(take(&mut places, 3, 1, now), None);
        let service = tenant(1, 1).service;
        assert_eq!(places.chunks_with(service, &[0, 5, 16]), [0, 2]);
        assert_eq!(places.chunks_with(service, &[16]), [2]);
        assert_eq!(places.of(service).count(), 9);
        assert_eq!(places.find(&tenant(1, 9)), Some(16));
    }

    #[test]
    fn chunks_are_told_once_in_the_order_of_the_places() {
        assert_eq!(chunks_of([17, 40, 16, 3, 47, 18]), [2, 5, 0]);
        assert!(chunks_of([]).is_empty());
    }

    #[test]
    fn every_virtual_server_that_there_may_be_gets_a_chunk() {
        let now = Instant::now();
        let mut places = Places::new(lb_common::REAL_PLACES_MAX);
        let indexes: Vec<_> = (0..1024).map(|service| take(&mut places, service, 1, now)).collect();
        assert!(indexes.into_iter().eq((0..1024).map(|service| Some(service * 8))));
        // As do all others of 4096 real servers, and one virtual server's in order.
        let more: Vec<_> = (2..=5).map(|n| take(&mut places, 1023, n, now)).collect();
        assert_eq!(more, [8185, 8186, 8187, 8188].map(Some));
        assert_eq!(places.capacity(), 16_384);
    }

    #[test]
    fn a_place_rests_before_it_is_given_again() {
        let now = Instant::now();
        let mut places = Places::new(8);
        take(&mut places, 1, 1, now);
        take(&mut places, 1, 2, now);
        places.release(0, now);
        assert_eq!(take(&mut places, 1, 3, now), Some(2));
        assert_eq!(places.rests_until(), Some(now + REST));
        assert_eq!(take(&mut places, 1, 4, now + REST), Some(0));
    }

    #[test]
    fn a_chunk_is_anybodys_again_when_its_last_place_is_free() {
        let now = Instant::now();
        let mut places = Places::new(8);
        take(&mut places, 1, 1, now);
        take(&mut places, 1, 2, now);
        places.release(0, now);
        assert_eq!(take(&mut places, 2, 1, now + REST), None);
        places.release(1, now);
        assert_eq!(take(&mut places, 2, 1, now), None);
        assert_eq!(take(&mut places, 2, 1, now + REST), Some(0));
    }

    #[test]
    fn a_place_with_connections_is_the_last_to_be_given() {
        let now = Instant::now();
        let mut places = Places::new(16);
        let mut take = |service, n| places.take(tenant(service, n), now, |index| index != 1 && index != 3);
        // The second chunk is the first that is wholly idle.
        let indexes: Vec<_> = (1..=14).map(|n| take(1, n)).collect();
        assert_eq!(indexes, [8, 9, 10, 11, 12, 13, 14, 15, 0, 2, 4, 5, 6, 7].map(Some));
        assert_eq!([15, 16, 17].map(|n| take(1, n)), [Some(1), Some(3), None]);
    }

    #[test]
    fn the_low_octet_of_a_generation_is_never_zero_and_comes_again_after_255() {
        let mut places = Places::new(8);
        let generations: Vec<u32> = (0..600).map(|_| places.next_generation(3)).collect();
        assert_eq!(generations[..3], [1, 2, 3]);
        assert_eq!(generations[254..256], [255, 257]);
        assert!(generations.iter().all(|generation| generation & 0xff != 0));
        assert!(generations.windows(255).all(|some| some[1..].iter().all(|other| other & 0xff != some[0] & 0xff)));
        assert_eq!(places.next_generation(4), 1);
    }

    #[test]
    fn a_sorry_server_has_a_place_beside_the_real_server_of_the_same_address() {
        let now = Instant::now();
        let mut places = Places::new(8);
        let sorry = Tenant { role: Role::Sorry, ..tenant(1, 1) };
        assert_eq!(places.take(sorry, now, |_| true), Some(0));
        assert_eq!(take(&mut places, 1, 1, now), Some(1));
        let order: Vec<_> = places.of(sorry.service).map(|(tenant, _)| tenant.role).collect();
        assert_eq!(order, [Role::Real, Role::Sorry]);
    }

    #[test]
    fn what_is_found_is_as_if_it_had_been_taken_here() {
        let now = Instant::now();
        let mut places = Places::new(24);
        assert!(places.found(tenant(1, 1), 17, 6));
        assert!(places.found(tenant(1, 2), 2, 255));
        // Taken, had already, another virtual server's chunk, and no place at all.
        for (other, index) in [(tenant(1, 3), 17), (tenant(1, 2), 3), (tenant(2, 1), 18), (tenant(1, 4), 24)] {
            assert!(!places.found(other, index, 1), "{other:?}");
        }
        assert_eq!((places.find(&tenant(1, 1)), places.tenant(2)), (Some(17), Some(tenant(1, 2))));
        assert_eq!([17, 2, 3].map(|index| places.next_generation(index)), [7, 257, 1]);
        assert_eq!(take(&mut places, 2, 1, now), Some(8));
        assert_eq!(take(&mut places, 1, 3, now), Some(16));
    }

    #[test]
    fn a_removed_real_server_leaves_once_and_may_come_back() {
        let now = Instant::now();
        let mut places = Places::new(8);
        take(&mut places, 1, 1, now);
        places.leave(0, now);
        places.leave(0, now + REST);
        assert_eq!(places.leaving().collect::<Vec<_>>(), [(0, now)]);
        places.stay(0);
        assert_eq!(places.leaving().count(), 0);
        places.leave(0, now);
        places.release(0, now);
        assert_eq!(places.leaving().count(), 0);
    }
}
