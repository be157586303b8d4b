//! What memory itself costs: a chain of reads from user space in as many bytes as the connection table has.
//!
//! Each read waits for the one before it, and leads to a line that no predictor knows: no table of that size can be read
//! in random order for less, once it has outgrown the caches.

use std::hint::black_box;
use std::time::Duration;

use lb_common::bench::{below, next_random};
use lb_common::connection::{Bucket, buckets_for};
use nix::time::{ClockId, clock_gettime};

use crate::cost::{Cost, Spread};

const RUNS: u32 = 5;
const READS: u32 = 1_000_000;

/// Words of a line, which is as long as a bucket; the first is the next line's index.
const WORDS: usize = size_of::<Bucket>() / size_of::<u32>();

/// The median cost of a read in the memory of a table for `flows` connections.
pub fn dependent_read(flows: u32) -> Option<Cost> {
    let lines = chain(buckets_for(flows));
    let mut at = 0;
    let runs = (0..RUNS).map(|_| {
        let start = own_time()?;
        for _ in 0..READS {
            at = next(&lines, at);
        }
        black_box(at);
        Cost::of(u64::try_from((own_time()? - start).as_nanos()).ok()?, READS.into())
    });
    Spread::of(runs.collect::<Option<_>>()?).map(|spread| spread.median)
}

/// Time that this thread has run, without what others took of the CPU, as the kernel's figure for programs leaves it out.
fn own_time() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok().map(Duration::from)
}

fn next(lines: &[[u32; WORDS]], at: u32) -> u32 {
    lines.get(at as usize).and_then(|line| line.first()).copied().unwrap_or_default()
}

/// `count` lines that lead through each other in one random circle.
fn chain(count: u32) -> Vec<[u32; WORDS]> {
    let mut order: Vec<u32> = (0..count).collect();
    let mut random = 1;
    for last in (1..count).rev() {
        random = next_random(random);
        order.swap(last as usize, below(random, last + 1) as usize);
    }
    let mut lines = vec![[0; WORDS]; count as usize];
    let following = order.iter().cycle().skip(1);
    for (from, to) in order.iter().zip(following) {
        if let Some(word) = lines.get_mut(*from as usize).and_then(|line| line.first_mut()) {
            *word = *to;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_leads_through_every_line_once() {
        let lines = chain(1000);
        let mut seen = vec![false; 1000];
        let mut at = 0;
        for _ in 0..1000 {
            assert!(!std::mem::replace(&mut seen[at as usize], true));
            at = next(&lines, at);
        }
        assert_eq!(at, 0);
    }
}
