//! What packets do to slots and counters, in plain Rust, for tests of what user space does at the same time.

use std::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};

use lb_common::connection::{Meta, SLOTS, State};
use lb_common::hash;
use lb_common::real::load;
use lb_common::service::NONE;

use super::memory::SECRET;
use super::words::{Counts, Tables};

/// One CPU that forwards. Its changes are whole when `turns` is even.
pub struct Cpu<'a> {
    pub tables: Tables<'a>,
    pub turns: &'a AtomicU64,
    random: u64,
    now: u16,
}

impl<'a> Cpu<'a> {
    pub fn new(tables: Tables<'a>, turns: &'a AtomicU64, seed: u64) -> Self {
        Self { tables, turns, random: seed, now: 0 }
    }

    /// Packets of random connections to random real servers until `stop`.
    pub fn forward(&mut self, connections: u64, stop: &AtomicBool) {
        while !stop.load(Relaxed) {
            self.turns.fetch_add(1, AcqRel);
            let random = self.draw();
            self.packet(random % connections + 1, random >> 32);
            self.turns.fetch_add(1, AcqRel);
            // One CPU for two threads: let the other one in.
            if random.is_multiple_of(64) {
                std::thread::yield_now();
            }
        }
    }

    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash::mix(self.random)
    }

    /// One packet of the connection `key`: what it is, `random` decides.
    pub fn packet(&mut self, key: u64, random: u64) {
        self.now = self.now.wrapping_add(u16::from(random.is_multiple_of(1000)));
        match self.find(key) {
            None => self.insert(key, u16::try_from(random % self.tables.real_server_count() as u64).unwrap()),
            Some((slot, meta)) => match (meta.state(), random % 8) {
                (State::OPENING, 0..4) => self.change(slot, meta, State::SETTLING),
                (State::OPENING | State::SETTLING | State::ESTABLISHED, 4) => {
                    self.change(slot, meta, State::CLIENT_FIN)
                }
                (State::OPENING | State::SETTLING | State::ESTABLISHED, 5) => self.change(slot, meta, State::CLOSED),
                (State::SETTLING, _) => self.change(slot, meta, State::ESTABLISHED),
                (State::CLIENT_FIN | State::CLOSED, _) => self.free(slot, meta),
                _ => {}
            },
        }
    }

    fn candidates(&self, key: u64) -> Vec<usize> {
        let (one, two) = hash::buckets(key, u32::try_from(self.tables.bucket_count()).unwrap(), &SECRET);
        [one, two].into_iter().flat_map(|bucket| (0..SLOTS).map(move |slot| bucket as usize * SLOTS + slot)).collect()
    }

    fn words(&self, slot: usize) -> &'a [AtomicU64; 2] {
        &self.tables.connections.as_chunks().0[slot]
    }

    fn find(&self, key: u64) -> Option<(usize, Meta)> {
        self.candidates(key).into_iter().find_map(|slot| {
            let [found, meta] = self.words(slot);
            let is_it = found.load(SeqCst) == key;
            let meta = Meta(meta.load(SeqCst));
            let is_in_use = ![State::FREE, State::LOCKED].contains(&meta.state());
            (is_it && is_in_use && found.load(SeqCst) == key).then_some((slot, meta))
        })
    }

    /// Takes a free slot, or displaces the first half-open or closing connection.
    fn insert(&mut self, key: u64, real_server: u16) {
        let takeable = |slot: &usize| {
            let meta = Meta(self.words(*slot)[1].load(SeqCst));
            (meta.state() == State::FREE || State::class(meta.state()) <= 3).then_some((*slot, meta))
        };
        let candidates = self.candidates(key);
        let free = candidates.iter().filter_map(takeable).find(|(_, meta)| meta.state() == State::FREE);
        let Some((slot, old)) = free.or_else(|| candidates.iter().find_map(takeable)) else { return };
        let [word, meta] = self.words(slot);
        if meta.compare_exchange(old.0, Meta::LOCKED.0, SeqCst, SeqCst).is_err() {
            return;
        }
        word.store(key, SeqCst);
        self.count(real_server, State::OPENING, 1);
        if old.state() != State::FREE {
            self.count(old.real_server(), old.state(), -1);
        }
        meta.store(Meta::new(real_server, State::OPENING, 1, self.now, 0).0, SeqCst);
    }

    fn change(&self, slot: usize, old: Meta, state: u8) {
        let new = old.moved(state, self.now);
        if self.words(slot)[1].compare_exchange(old.0, new.0, SeqCst, SeqCst).is_ok()
            && State::is_active(old.state()) != State::is_active(state)
        {
            self.count(old.real_server(), state, 1);
            self.count(old.real_server(), old.state(), -1);
        }
    }

    fn free(&self, slot: usize, old: Meta) {
        if self.words(slot)[1].compare_exchange(old.0, 0, SeqCst, SeqCst).is_ok() {
            self.count(old.real_server(), old.state(), -1);
        }
    }

    fn count(&self, real_server: u16, state: u8, by: i64) {
        let (entry, index) = (self.tables.real_server(real_server).unwrap(), usize::from(real_server));
        let (counts, loads) = (&self.tables.counts[index], &self.tables.loads[index]);
        let is_active = State::is_active(state);
        let change = Counts { active: if is_active { by } else { 0 }, inactive: if is_active { 0 } else { by } };
        let old = Counts::from_word(counts.fetch_add(change.to_word(), SeqCst));
        let active = old.active + change.active;
        let mut cost = if is_active { entry.active_cost() } else { entry.inactive_cost() };
        // From 0 to 1 and back, and from the limit to one more and back.
        let (low, high) = (old.active.min(active), old.active.max(active));
        if is_active && low == 0 {
            cost += entry.busy_cost();
        }
        if is_active && entry.active_limit() != NONE && high == i64::from(entry.active_limit()) + 1 {
            cost += load::OVERFLOWING;
        }
        loads.fetch_add(cost.wrapping_mul(by.cast_unsigned()), SeqCst);
        let total = old.total() + by;
        if by > 0 && entry.is_overloaded(total) {
            loads.fetch_or(load::OVERLOADED, SeqCst);
        } else if by < 0 && entry.is_relieved(total) {
            loads.fetch_and(!load::OVERLOADED, SeqCst);
        }
    }
}

/// Waits until every CPU has finished what it was at.
pub fn quiesce(turns: &[AtomicU64]) {
    for turns in turns {
        let begun = turns.load(SeqCst);
        while begun % 2 == 1 && turns.load(SeqCst) == begun {
            std::thread::yield_now();
        }
    }
}
