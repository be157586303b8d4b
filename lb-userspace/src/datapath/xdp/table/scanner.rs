//! The scan of the connection table, slice by slice: what is done when. No thread and no clock: these are `task.rs`'s.

use std::time::Duration;

use lb_common::connection::{TICK_SHIFT, Timeouts};
use lb_common::hash::Secret;

use super::audit::{Audits, CountRepair};
use super::hops::Hops;
use super::loads::{LoadRepair, Looks};
use super::sweep::{Census, Sweep, Swept, Time};
use super::words::Tables;

/// From one slice to the next. With 32 slices a round takes 4 s, so a connection ends at most so late: half a percent of 15
/// minutes. Ten million connections are 520,000 slots a slice, 2 ms, 1.6 % of a CPU; and no slice takes memory and caches
/// from a CPU that forwards for longer than that.
pub const PAUSE: Duration = Duration::from_millis(125);
/// Slices of a round.
const SLICES: usize = 32;
/// Most buckets of a slice; rounds over tables of more than twenty million connections take longer than 4 s.
const SLICE_MAX: usize = 131_072;
/// Rounds from one audit to the next. It reads the whole table twice at once: 0.15 s for ten million connections.
const AUDIT_ROUNDS: u32 = 15;

/// What the program is loaded with and does not change.
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    /// How long idle connections are remembered.
    pub timeouts: Timeouts,
    /// By which connections find their buckets.
    pub secret: Secret,
    /// The kernel's jiffies in a second.
    pub jiffies_per_second: u32,
}

/// What the scan has found and done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What was in the table in the last round that is complete.
    pub census: Census,
    /// Rounds that are complete.
    pub rounds: u64,
    /// Connections and templates that ended because their time was over.
    pub expired: u64,
    /// Counters and loads of real servers that were wrong and were put right.
    pub repaired: u64,
}

/// Where the scan stands.
#[derive(Debug)]
pub struct Scanner {
    constants: Constants,
    next: usize,
    round: u32,
    swept: Swept,
    hops: Hops,
    looks: Looks,
    audits: Audits,
    report: Report,
}

impl Scanner {
    /// A scan that begins at the start of the table.
    pub fn new(constants: Constants) -> Self {
        Self {
            constants,
            next: 0,
            round: 0,
            swept: Swept::default(),
            hops: Hops::default(),
            looks: Looks::default(),
            audits: Audits::default(),
            report: Report::default(),
        }
    }

    /// One that begins at the start of the table, after another that has found and done what is in `report`.
    pub fn after(constants: Constants, report: Report) -> Self {
        Self { report, ..Self::new(constants) }
    }

    /// Goes over the next slice at the coarse tick `now`, and looks at the loads. Returns the loads that it put right.
    ///
    /// Between two slices every packet must be through that was under way when the first ended, as in [`PAUSE`].
    pub fn slice(&mut self, tables: &Tables<'_>, now: u16) -> Vec<LoadRepair> {
        let Constants { timeouts, secret, jiffies_per_second } = &self.constants;
        self.hops.free(tables);
        let buckets = tables.bucket_count();
        let length = buckets.div_ceil(SLICES).clamp(1, SLICE_MAX);
        let time =
            Time { now, round: self.round, round_ticks: round_ticks(buckets.div_ceil(length), *jiffies_per_second) };
        let end = self.next.saturating_add(length);
        Sweep::new(*tables, timeouts, secret, time).run(self.next, end, &mut self.swept);
        self.next = end;
        if end >= buckets {
            self.end_round(tables);
        }
        let repairs = self.looks.look(tables);
        self.report.repaired += u64::try_from(repairs.len()).unwrap_or(0);
        repairs
    }

    fn end_round(&mut self, tables: &Tables<'_>) {
        let Swept { census, expired, hops } = std::mem::take(&mut self.swept);
        self.hops.end_round(tables, &hops);
        self.report.census = census;
        self.report.expired += expired;
        self.report.rounds += 1;
        self.round = self.round.wrapping_add(1);
        self.next = 0;
    }

    /// Whether the slice before has ended a round after which the counters are to be audited: every minute, and while they
    /// seem wrong, after each.
    pub fn is_audit_due(&self) -> bool {
        let turn = self.round.is_multiple_of(AUDIT_ROUNDS) || self.audits.is_suspicious();
        self.next == 0 && turn
    }

    /// Audits the counters; see [`Audits::audit`]. Returns those that it put right.
    pub fn audit(&mut self, tables: &Tables<'_>, pause: impl FnMut()) -> Vec<CountRepair> {
        let repairs = self.audits.audit(tables, pause);
        self.report.repaired += u64::try_from(repairs.len()).unwrap_or(0);
        repairs
    }

    /// What was found and done until now.
    pub fn report(&self) -> Report {
        self.report
    }
}

/// Coarse ticks that a round of `slices` slices takes, rounded up, at least 1.
fn round_ticks(slices: usize, jiffies_per_second: u32) -> u32 {
    let milliseconds = PAUSE.as_millis() * u128::try_from(slices).unwrap_or(u128::MAX);
    let jiffies = milliseconds * u128::from(jiffies_per_second) / 1000;
    u32::try_from(jiffies.div_ceil(1 << TICK_SHIFT)).unwrap_or(u32::MAX).max(1)
}
