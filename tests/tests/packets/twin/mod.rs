//! The program and its model side by side: the same frames into both, and everything compared.

mod installed;
mod many;
mod scenario;
mod sequences;

use std::fmt::Debug;

use lb_common::connection::{Bucket, Meta, Slot, TableCounters, TupleBucket};
use lb_common::counters::Counters;
use lb_common::drop_reason::DropReason;
use lb_common::real::{CountChunk, LoadChunk, load};
use lb_userspace::datapath::xdp::object::LoadOptions;
use lb_userspace::model::VirtualServer;
use nix::sched::sched_getcpu;

use super::bench::{Bench, Sent, Verdict, assert_same, stay_on};
use super::frame::Frame;
use super::model::state::State;
use super::model::table::{Entry, Table};
use super::model::{Model, Outcome, Settings};
use super::scene::INGRESS;

/// The program, and the model in the same state.
pub struct Twin {
    pub bench: Bench,
    pub model: Model,
}

impl Twin {
    /// With nothing installed yet. The thread stays on its CPU, which has a budget of its own for answers to refused packets.
    pub fn new(bench: Bench) -> Self {
        stay_on(sched_getcpu().expect("the kernel tells"));
        let LoadOptions { timeouts, secret, .. } = bench.options();
        let table = Table::new(bench.buckets(), timeouts, secret);
        let settings = Settings { secret, rejects_per_tick: bench.rejects_per_tick() };
        Self { bench, model: Model::new(settings, table) }
    }

    /// Installs `servers`, and nothing else.
    pub fn install(&mut self, servers: &[VirtualServer]) {
        self.bench.install(servers);
        self.follow(servers);
    }

    /// Takes everything out, connections included.
    pub fn clear(&mut self) {
        self.install(&[]);
        self.bench.clear();
        self.model.clear();
    }

    /// Sends a frame through both.
    #[track_caller]
    pub fn send(&mut self, frame: &Frame) -> Outcome {
        self.send_bytes(&frame.bytes(), frame)
    }

    /// As [`Twin::send`], with what to show of it where they differ.
    #[track_caller]
    pub fn send_bytes(&mut self, bytes: &[u8], frame: &impl Debug) -> Outcome {
        let (mut later, before) = (self.model.clone(), self.bench.steady_tick());
        let sent = self.bench.send_bytes(bytes);
        let after = self.bench.tick();
        let mut outcome = self.model.take(bytes, before);
        if after != before && !self.is_as_in(&self.model.table.clone()) {
            // This machine stood still for some milliseconds, and the packet came in another tick.
            outcome = later.take(bytes, after);
            self.model = later;
        }
        compare(&sent, &outcome, bytes, frame);
        outcome
    }

    /// Whether the connection table is `expected`.
    fn is_as_in(&mut self, expected: &Table) -> bool {
        (0..).zip(&expected.buckets).all(|(index, expected)| {
            let slots = self.bench.get::<Bucket>("connections", index).slots;
            let last_seen = slots.map(|slot| (slot.state != 0).then_some(slot.last_seen));
            expected.map(|entry| entry.map(|entry| entry.last_seen)) == last_seen
        })
    }

    /// Makes everything in the table `ticks` older.
    pub fn age(&mut self, ticks: u16) {
        self.bench.age(ticks);
        for entry in self.model.table.buckets.iter_mut().flatten().flatten() {
            entry.last_seen = entry.last_seen.wrapping_sub(ticks);
        }
        for known in self.model.fragments.values_mut() {
            known.since = known.since.wrapping_sub(ticks);
        }
    }

    /// Compares the connection table, slot by slot, after `event`.
    #[track_caller]
    pub fn compare_tables(&mut self, event: &impl Debug) {
        for index in 0..self.bench.buckets() {
            let bucket: Bucket = self.bench.get("connections", index);
            let expected = self.model.table.buckets[usize::try_from(index).expect("fits")];
            for (lane, (slot, expected)) in bucket.slots.iter().zip(&expected).enumerate() {
                let found = self.entry(*slot, (index, lane), expected.is_some_and(|entry| entry.tuple.is_some()));
                assert_eq!(found, *expected, "slot {lane} of bucket {index} after {event:?}");
            }
        }
    }

    fn entry(&mut self, slot: Slot, place: (u32, usize), is_wide: bool) -> Option<Entry> {
        if slot.state == 0 {
            assert_eq!(Meta::from(slot), Meta::FREE, "a free slot holds nothing but a key");
            return None;
        }
        let Slot { key, real_server: real, state, generation, last_seen, client_hop: _ } = slot;
        let state = State::numbered(state).unwrap_or_else(|| panic!("{state:#x} is no state"));
        let tuple = is_wide.then(|| {
            let tuple = self.bench.get::<TupleBucket>("tuples", place.0).tuples[place.1];
            (tuple.client, tuple.client_port.number(), tuple.vip_port.number())
        });
        Some(Entry { key, real, generation, state, last_seen, tuple })
    }

    /// Compares every counter there is.
    #[track_caller]
    pub fn compare_counters(&mut self) {
        self.compare_loads();
        assert_eq!(self.bench.sum::<TableCounters>("table_counters", 0), self.model.table.counters);
        for server in &self.model.services {
            let index = u32::from(server.index);
            let expected = self.model.virtual_counters.get(&server.index).copied().unwrap_or_default();
            assert_eq!(self.bench.sum::<Counters>("vs_counters", index), expected, "virtual server {index}");
            assert_eq!(self.bench.get::<u64>("rr_cursors", index), server.cursor, "virtual server {index}");
        }
        for index in self.model.reals.keys() {
            let expected = self.model.real_counters.get(index).copied().unwrap_or_default();
            assert_eq!(self.bench.sum::<Counters>("rs_counters", (*index).into()), expected, "real server {index}");
        }
        for reason in DropReason::ALL {
            let expected = self.model.drops.get(&reason).copied().unwrap_or_default();
            assert_eq!(self.bench.sum::<u64>("drops", reason as u32), expected, "{reason:?}");
        }
    }

    /// The connections of each real server: as the model counts, as its table holds, and as the program counts.
    fn compare_loads(&mut self) {
        let recount = self.model.recount();
        for real in self.model.reals.values() {
            let (chunk, lane) = (u32::from(real.index) / 8, usize::from(real.index) % 8);
            let counts = self.bench.get::<CountChunk>("server_counts", chunk).lanes[lane];
            assert_eq!((counts.active, counts.inactive), (real.active, real.inactive), "{real:?}");
            assert_eq!(recount.get(&real.index).copied().unwrap_or_default(), (real.active, real.inactive), "{real:?}");
            let server = self.model.services.iter().find(|server| server.index == real.virtual_server);
            let Some(server) = server.filter(|server| server.sorry != Some(real.index)) else { continue };
            let word = self.bench.get::<LoadChunk>("server_loads", chunk).lanes[lane];
            assert_eq!(word & load::NO_WEIGHT == 0, real.takes_any(), "{real:?}, {word:#x}");
            if real.takes_any() {
                assert_eq!(word & load::OVERLOADED != 0, real.is_overloaded, "{real:?}, {word:#x}");
                assert_eq!(word < load::UNAVAILABLE, real.is_available(server.scheduler), "{real:?}, {word:#x}");
            }
        }
    }
}

#[track_caller]
fn compare(sent: &Sent, outcome: &Outcome, bytes: &[u8], frame: &impl Debug) {
    let (verdict, dropped, expected) = match outcome {
        Outcome::Passed => (Verdict::Pass, None, bytes),
        Outcome::Sent { ifindex: INGRESS, bytes } => (Verdict::Transmit, None, bytes.as_slice()),
        Outcome::Sent { bytes, .. } => (Verdict::Redirect, None, bytes.as_slice()),
        Outcome::Refused { reason, bytes } => (Verdict::Transmit, Some(*reason), bytes.as_slice()),
        Outcome::Dropped(reason) => (Verdict::Drop, Some(*reason), sent.frame.as_slice()),
    };
    assert_eq!((sent.verdict, sent.dropped), (verdict, dropped), "{frame:?}");
    assert_same(&sent.frame, expected, frame);
}
