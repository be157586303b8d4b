//! How full the connection table may be: connections come and go at the fill that `connections_max` stands for, and hardly
//! one finds no free slot in either of its buckets.
//!
//! Only occupation is simulated, by the rule that the packet path chooses a free slot by; that the program follows the rule
//! is what the reference model in `packets` is compared for.

#![expect(clippy::indexing_slicing, reason = "buckets are below the length by which they were drawn")]

use lb_common::connection::{SLOTS, buckets_for};
use lb_common::hash::{self, Secret};

/// SplitMix64, for numbers that are random enough and the same every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash::mix(self.0)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).expect("fits")).expect("fits")
    }
}

/// How many slots of each bucket are taken.
struct Occupation {
    buckets: Vec<usize>,
    secret: Secret,
}

impl Occupation {
    /// The bucket that a newcomer goes to: its first until that holds six, then the emptier of the two.
    fn enter(&mut self, key: u64) -> Option<usize> {
        let length = u32::try_from(self.buckets.len()).expect("fits");
        let (one, two) = hash::buckets(key, length, &self.secret);
        let (one, two) = (one as usize, two as usize);
        let (first, second) = (self.buckets[one], self.buckets[two]);
        let bucket = if first < 6 || (first < SLOTS && (first <= second || second == SLOTS)) { one } else { two };
        (self.buckets[bucket] < SLOTS).then(|| {
            self.buckets[bucket] += 1;
            bucket
        })
    }
}

#[test]
fn at_sixty_percent_fewer_than_one_newcomer_in_ten_thousand_finds_no_free_slot() {
    const CONNECTIONS: usize = 600_000;
    const TURNOVERS: usize = 6;
    let length = buckets_for(u32::try_from(CONNECTIONS).expect("fits"));
    let mut table = Occupation { buckets: vec![0; length as usize], secret: Secret { words: [0x5eed, 0xfeed] } };
    let mut random = Random(1);
    let mut live: Vec<usize> = (0..CONNECTIONS).filter_map(|_| table.enter(random.next())).collect();
    let refused_at_first = CONNECTIONS - live.len();
    let mut refused = 0;
    for _ in 0..CONNECTIONS * TURNOVERS {
        let gone = random.below(live.len());
        table.buckets[live.swap_remove(gone)] -= 1;
        match table.enter(random.next()) {
            Some(bucket) => live.push(bucket),
            None => refused += 1,
        }
    }
    let newcomers = CONNECTIONS * TURNOVERS;
    println!("{refused_at_first} of {CONNECTIONS} refused while it fills, {refused} of {newcomers} afterwards");
    assert!(refused_at_first * 10_000 < CONNECTIONS && refused * 10_000 < newcomers);
}
