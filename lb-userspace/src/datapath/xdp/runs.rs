//! Which chunks of `scheduler_rings` are taken: runs of elements for rings and for lists of chunks. Pure bookkeeping.
//!
//! A run that is given up rests for a moment: packets may be reading it.

use std::collections::BTreeMap;
use std::time::Instant;

use lb_common::service::{RING_CHUNK, Run};

use super::rest::Resting;

/// The chunks of the map, and who has them.
#[derive(Debug)]
pub struct Runs {
    chunks: u32,
    /// Length in chunks by first chunk; of runs at rest too.
    taken: BTreeMap<u32, u32>,
    resting: Resting<u32>,
}

impl Runs {
    /// A map of so many chunks, all free.
    pub fn new(chunks: u32) -> Self {
        Self { chunks, taken: BTreeMap::new(), resting: Resting::default() }
    }

    /// Size of the map, in chunks.
    pub fn capacity(&self) -> u32 {
        self.chunks
    }

    /// A free run of `length` elements, from the first gap on that holds it; `None` where there is none now.
    pub fn take(&mut self, length: u32, now: Instant) -> Option<Run> {
        for start in self.resting.rested(now) {
            self.taken.remove(&start);
        }
        let wanted = chunks_for(length);
        if wanted == 0 {
            return Some(Run::EMPTY);
        }
        let mut free = 0;
        for (start, length) in &self.taken {
            if start - free >= wanted {
                break;
            }
            free = start + length;
        }
        if self.chunks.checked_sub(free)? < wanted {
            return None;
        }
        self.taken.insert(free, wanted);
        Some(Run { start: free * CHUNK, length })
    }

    /// Notes that a run was taken before this process; false, and nothing is noted, where it is none of this map or another
    /// has a part of it.
    pub fn found(&mut self, run: Run) -> bool {
        let (start, chunks) = (run.start / CHUNK, chunks_for(run.length));
        let Some(end) = start.checked_add(chunks).filter(|end| *end <= self.chunks) else { return false };
        let before = self.taken.range(..end).next_back();
        let is_taken = before.is_some_and(|(other, length)| other + length > start);
        if !run.start.is_multiple_of(CHUNK) || (is_taken && chunks != 0) {
            return false;
        }
        if chunks != 0 {
            self.taken.insert(start, chunks);
        }
        true
    }

    /// Gives up a run at `now`, once nothing names it any more.
    pub fn release(&mut self, run: Run, now: Instant) {
        if run.length != 0 {
            self.resting.push(run.start / CHUNK, now);
        }
    }

    /// When there may be more room than now; `None` where nothing rests.
    pub fn rests_until(&self) -> Option<Instant> {
        self.resting.until()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "it is 32")]
const CHUNK: u32 = RING_CHUNK as u32;

/// Chunks that a run of `length` elements takes.
pub fn chunks_for(length: u32) -> u32 {
    length.div_ceil(CHUNK)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::datapath::xdp::rest::REST;

    fn run(start: u32, length: u32) -> Option<Run> {
        Some(Run { start, length })
    }

    #[test]
    fn a_run_goes_into_the_first_gap_of_chunks_that_holds_it() {
        let now = Instant::now();
        let mut runs = Runs::new(4);
        assert_eq!(runs.take(33, now), run(0, 33));
        assert_eq!(runs.take(1, now), run(64, 1));
        assert_eq!(runs.take(32, now), run(96, 32));
        assert_eq!(runs.take(1, now), None);
        runs.release(Run { start: 64, length: 1 }, now);
        assert_eq!(runs.take(32, now + REST), run(64, 32));
    }

    #[test]
    fn a_run_that_was_given_up_is_not_given_away_before_it_has_rested() {
        let now = Instant::now();
        let mut runs = Runs::new(1);
        let first = runs.take(5, now).unwrap();
        runs.release(first, now);
        assert_eq!(runs.take(5, now + REST / 2), None);
        assert_eq!(runs.rests_until(), Some(now + REST));
        assert_eq!(runs.take(5, now + REST), run(0, 5));
        assert_eq!(runs.rests_until(), None);
    }

    #[test]
    fn a_run_of_nothing_has_room_in_a_full_map() {
        let now = Instant::now();
        let mut runs = Runs::new(1);
        assert_eq!(runs.take(32, now), run(0, 32));
        assert_eq!(runs.take(0, now), Some(Run::EMPTY));
        runs.release(Run::EMPTY, now);
        assert_eq!(runs.take(1, now + REST), None);
        assert_eq!(runs.capacity(), 1);
    }

    #[test]
    fn what_is_larger_than_the_map_has_no_room() {
        assert_eq!(Runs::new(2).take(65, Instant::now()), None);
    }

    #[test]
    fn a_run_that_is_found_is_taken_and_no_two_overlap() {
        let now = Instant::now();
        let mut runs = Runs::new(6);
        let found = |runs: &mut Runs, start, length| runs.found(Run { start, length });
        assert!(found(&mut runs, 32, 33) && found(&mut runs, 0, 0));
        // In it, around it, no multiple, past the end.
        for (start, length) in [(64, 1), (0, 128), (16, 4), (160, 64), (u32::MAX - 31, 1)] {
            assert!(!found(&mut runs, start, length), "{start}");
        }
        assert!(found(&mut runs, 0, 32));
        assert_eq!(runs.take(64, now), run(96, 64));
        runs.release(Run { start: 32, length: 33 }, now);
        assert_eq!(runs.take(64, now + REST), run(32, 64));
    }

    proptest! {
        /// A virtual server's ring and list of chunks are written anew beside the old ones, as with each drain.
        #[test]
        fn thrice_the_room_is_enough_to_exchange_runs_for_ever(turns in prop::collection::vec(0_usize..5, 1..500)) {
            let lengths = [(65_521, 8), (4096, 8), (1, 8), (131_071, 600), (40, 48)];
            let chunks: u32 = lengths.iter().map(|(ring, list)| chunks_for(*ring) + chunks_for(*list)).sum();
            let (mut runs, mut now) = (Runs::new(3 * chunks), Instant::now());
            let mut both = |index: usize, old: Option<[Run; 2]>| {
                now += REST;
                let (ring, list) = lengths[index];
                let new = [runs.take(ring, now).unwrap(), runs.take(list, now).unwrap()];
                old.into_iter().flatten().for_each(|run| runs.release(run, now));
                new
            };
            let mut present: Vec<[Run; 2]> = (0..lengths.len()).map(|index| both(index, None)).collect();
            for index in turns {
                present[index] = both(index, Some(present[index]));
            }
        }
    }
}
