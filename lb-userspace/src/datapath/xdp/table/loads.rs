//! Whether each real server's word in `server_loads` is what its connections make of it.
//!
//! Counts and load are two words, changed one after the other, and user space changes the costs of real servers that are in
//! use, so a load may stay wrong by what was added at the old cost. A wrong load is wrong by the same number at every look,
//! whatever comes and goes; a change that is seen half done is not there at the next look. So each slice of the scan looks,
//! and the number is subtracted after [`AGREEMENTS`] looks that agree.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use lb_common::real::load;
use lb_common::service::{NONE, Scheduler};

use super::words::{Counts, RealServerWords, Tables};

/// Looks that must agree on the error before it is repaired: 2 s of a scan.
pub const AGREEMENTS: u32 = 16;

/// The looks' memory.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    suspects: Vec<Suspicion>,
}

/// A load that was put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadRepair {
    /// Index of the real server.
    pub real_server: u16,
    /// What it was.
    pub from: u64,
    /// What it is now.
    pub to: u64,
}

/// That a load is too high by `excess`, wrapping.
#[derive(Clone, Copy, Debug, Default)]
struct Suspicion {
    excess: u64,
    looks: u32,
}

impl Looks {
    /// Looks at every real server once, and repairs what has been wrong in the last [`AGREEMENTS`] looks.
    pub fn look(&mut self, tables: &Tables<'_>) -> Vec<LoadRepair> {
        self.suspects.resize(tables.real_server_count(), Suspicion::default());
        let mut repairs = Vec::new();
        for (index, suspicion) in (0_u16..).zip(&mut self.suspects) {
            let Some((word, from, to)) = compare(tables, index) else { continue };
            let excess = from.wrapping_sub(to);
            let looks = if excess == suspicion.excess { suspicion.looks + 1 } else { 1 };
            *suspicion = Suspicion { excess, looks: looks.min(AGREEMENTS) };
            // Where the word has moved on since it was read, the next look tries again.
            if excess != 0 && looks >= AGREEMENTS && word.compare_exchange(from, to, Relaxed, Relaxed).is_ok() {
                *suspicion = Suspicion::default();
                repairs.push(LoadRepair { real_server: index, from, to });
            }
        }
        repairs
    }
}

/// The load of the real server at `index`, as it is and as it should be; `None` where there is none, or where its counts move
/// while they are looked at.
fn compare<'a>(tables: &Tables<'a>, index: u16) -> Option<(&'a AtomicU64, u64, u64)> {
    let entry = tables.real_server(index).filter(|entry| entry.generation() != 0)?;
    let scheduler = tables.service(entry.virtual_server())?.scheduler()?;
    let word = tables.loads.get(usize::from(index))?;
    let counts = tables.counts(index)?;
    let from = word.load(Acquire);
    (tables.counts(index)? == counts).then(|| (word, from, expected(&entry, scheduler, counts, from)))
}

/// What [`crate::schedule::cost::load_word`] makes of `counts`, where it was `word` before.
fn expected(entry: &RealServerWords<'_>, scheduler: Scheduler, counts: Counts, word: u64) -> u64 {
    let base = match scheduler {
        Scheduler::Sed | Scheduler::Nq => entry.active_cost(),
        // A rank that is in no other map. Connections cost nothing there, so nothing can have changed it.
        Scheduler::Fo | Scheduler::Ovf => word & ((1 << load::COST_BITS) - 1),
        Scheduler::Rr
        | Scheduler::Wrr
        | Scheduler::Lc
        | Scheduler::Wlc
        | Scheduler::Sh
        | Scheduler::Dh
        | Scheduler::Mh
        | Scheduler::Twos => 0,
    };
    let Counts { active, inactive } = counts;
    let of = |count: i64, cost: u64| cost.wrapping_mul(count.cast_unsigned());
    let cost = base.wrapping_add(of(active, entry.active_cost())).wrapping_add(of(inactive, entry.inactive_cost()));
    let limit = entry.active_limit();
    // Between the thresholds the mark is right either way.
    let was_overloaded = word & load::OVERLOADED != 0 && entry.has_thresholds() && !entry.is_relieved(counts.total());
    let marks = [
        (active > 0, entry.busy_cost()),
        (limit != NONE && active > i64::from(limit), load::OVERFLOWING),
        (entry.is_overloaded(counts.total()) || was_overloaded, load::OVERLOADED),
        (entry.weight() == 0, load::NO_WEIGHT),
    ];
    marks.into_iter().filter(|(is_set, _)| *is_set).fold(cost, |word, (_, mark)| word.wrapping_add(mark))
}
