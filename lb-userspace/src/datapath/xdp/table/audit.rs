//! The recount: whether what is counted for each real server is what the table holds, while the packet path changes both.
//!
//! No look at the table is a look at one moment, so one count proves nothing. The table is read twice, quickly, and the
//! counters once in between, with a pause on either side that every change of slot and counter which is under way outlasts
//! only if its CPU was stopped. A slot that was the same both times held that connection when the counters were read. A slot
//! that was not may or may not have counted. So the truth lies between two bounds, which are one where nothing happened, and
//! a counter outside of them is wrong. What could still deceive is a slot that was left and taken again between the two looks,
//! for the same real server by a connection that had come as far, or a CPU that stood still in the middle of a change; not
//! three times running and by the same number. After [`AGREEMENTS`] audits that agree, the counter is moved to the nearer bound: never past the
//! truth. A busy real server is repaired up to its churn at once, and the rest when it has a quiet moment.

use std::sync::atomic::Ordering::{Acquire, Relaxed};

use lb_common::connection::{Meta, State};

use super::words::{Counts, Tables};

/// Audits that must find a counter wrong, and agree on the error, before it is repaired.
pub const AGREEMENTS: u32 = 3;

/// The recount's memory from one audit to the next.
#[derive(Clone, Debug, Default)]
pub struct Audits {
    suspects: Vec<[Suspicion; 2]>,
}

/// A counter that was put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountRepair {
    /// Index of the real server.
    pub real_server: u16,
    /// What was counted too much, or where negative, too little.
    pub excess: Counts,
}

/// That a counter is too high by `low` to `high`.
#[derive(Clone, Copy, Debug, Default)]
struct Suspicion {
    low: i64,
    high: i64,
    audits: u32,
}

/// What two looks at the table say of a real server's connections.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    active: i64,
    inactive: i64,
    /// Slots that may have held one more of either kind.
    uncertain: i64,
}

impl Audits {
    /// Recounts, and repairs what has been wrong in the last [`AGREEMENTS`] audits. `pause` returns when no change of a slot
    /// and its counter is under way any more that was when it was called.
    ///
    /// Takes two bytes a slot until it returns.
    pub fn audit(&mut self, tables: &Tables<'_>, mut pause: impl FnMut()) -> Vec<CountRepair> {
        let before: Vec<Held> = tables.slots().map(|slot| Held::from(slot.meta())).collect();
        pause();
        let counters: Vec<Counts> = tables.counts.iter().map(|word| Counts::from_word(word.load(Acquire))).collect();
        pause();
        let tallies = tally(tables, &before, counters.len());
        self.suspects.resize(counters.len(), Default::default());
        let mut repairs = Vec::new();
        for (((index, suspicions), counter), tally) in (0_u16..).zip(&mut self.suspects).zip(counters).zip(tallies) {
            let [active, inactive] = suspicions;
            let excess = Counts {
                active: active.observe(counter.active - tally.active, tally.uncertain),
                inactive: inactive.observe(counter.inactive - tally.inactive, tally.uncertain),
            };
            if excess != Counts::default() {
                if let Some(word) = tables.counts.get(usize::from(index)) {
                    word.fetch_sub(excess.to_word(), Relaxed);
                }
                repairs.push(CountRepair { real_server: index, excess });
            }
        }
        repairs
    }

    /// Whether the last audit found a counter wrong that it has not repaired.
    pub fn is_suspicious(&self) -> bool {
        self.suspects.iter().flatten().any(|suspicion| suspicion.audits != 0)
    }
}

fn tally(tables: &Tables<'_>, before: &[Held], servers: usize) -> Vec<Tally> {
    let mut tallies = vec![Tally::default(); servers];
    for (slot, before) in tables.slots().zip(before) {
        let after = Held::from(slot.meta());
        if after == *before {
            if let Some((tally, held)) = after.real_server().and_then(|index| Some((tallies.get_mut(index)?, after))) {
                if held.is_active() { tally.active += 1 } else { tally.inactive += 1 }
            }
            continue;
        }
        let [one, other] = [before.real_server(), after.real_server()];
        for index in [one, other.filter(|_| one != other)].into_iter().flatten() {
            if let Some(tally) = tallies.get_mut(index) {
                tally.uncertain += 1;
            }
        }
    }
    tallies
}

impl Suspicion {
    /// Takes in that the counter is too high by `high` less up to `uncertain`; returns by how much to lower it now.
    fn observe(&mut self, high: i64, uncertain: i64) -> i64 {
        let low = high - uncertain;
        let is_right = |low: i64, high: i64| low <= 0 && high >= 0;
        let (both_low, both_high) = (low.max(self.low), high.min(self.high));
        let agrees = self.audits != 0 && both_low <= both_high;
        *self = match (is_right(low, high), agrees) {
            (true, _) => Self::default(),
            (false, true) => Self { low: both_low, high: both_high, audits: self.audits + 1 },
            (false, false) => Self { low, high, audits: 1 },
        };
        if self.audits < AGREEMENTS {
            return 0;
        }
        let excess = if self.low > 0 { self.low } else { self.high };
        *self = Self::default();
        excess
    }
}

/// What a slot held, in two bytes: the real server's index × 4 + how far the connection had come. Zero: nothing that is counted.
///
/// A connection goes from one stage to the next and never back, and is counted alike throughout a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held(u16);

const NOT_COUNTED: u16 = 0;
const INACTIVE: u16 = 1;
const ACTIVE: u16 = 2;
const CLOSING: u16 = 3;

/// By a state's number: its stage.
const STAGES: [u16; 128] = {
    let mut stages = [NOT_COUNTED; 128];
    let mut state = 0_u8;
    while state < 128 {
        if State::name(state).is_some() && !State::is_template(state) {
            // Of a connection that is inactive and not closing: UDP, which has no other stage, or SCTP before it is established.
            let stage = match (State::is_active(state), State::is_closing(state)) {
                (true, _) => ACTIVE,
                (false, true) => CLOSING,
                (false, false) => INACTIVE,
            };
            #[expect(clippy::indexing_slicing, reason = "computed at compile time")]
            {
                stages[state as usize] = stage;
            }
        }
        state += 1;
    }
    stages
};

const _: () = assert!(lb_common::REAL_PLACES_MAX <= 1 << 14);

impl From<Meta> for Held {
    fn from(meta: Meta) -> Self {
        match STAGES.get(usize::from(meta.state())) {
            None | Some(&NOT_COUNTED) => Self(0),
            Some(stage) => Self(meta.real_server() << 2 | stage),
        }
    }
}

impl Held {
    fn real_server(self) -> Option<usize> {
        (self.0 != 0).then_some(usize::from(self.0 >> 2))
    }

    fn is_active(self) -> bool {
        self.0 & 3 == ACTIVE
    }
}
