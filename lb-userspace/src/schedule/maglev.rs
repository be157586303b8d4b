//! The table of `sh`, `dh` and `mh`: Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! A real server's preferences follow from its address and port alone, by a hash without secret: two directors, and one
//! after a restart, make the same table, whatever the order of their real servers. The paper fills the table in turns, one
//! element a turn; with weights the heaviest gets an element in every round, and one of weight w in w / heaviest of the
//! rounds, the first among them. So everybody of some weight has at least one element, and only the proportion of weights
//! counts.
//!
//! Without one of n real servers, 1/n of the keys must move, and some others do: measured 10.2 % with 10, 2.9 % with
//! 40, 1.6 % with 100, 0.9 % with 655 of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;

use lb_common::hash::{mix, scheduling};
use lb_common::net::Address;

/// Elements of a table, and of one with more real servers than [`SERVERS_MAX`]: primes, the largest that IPVS's `mh` has too.
///
/// One size for nearly all: between tables of two sizes nearly all keys move. A small one would save memory, but more keys
/// than the real server's own move with it when a real server goes.
const SIZES: [u32; 2] = [65_521, 131_071];
/// Real servers that have a hundred elements each in the smaller table, which keeps shares within one percent of equal
/// (section 3.4 of the paper).
const SERVERS_MAX: usize = 655;

/// Set apart the two hashes of a real server. Arbitrary; a change moves every client when two versions run side by side.
const OFFSET: u64 = 0x6f66_6673_6574_0001;
const SKIP: u64 = 0x736b_6970_0000_0002;

/// A real server to be found by hash, and its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What its preferences follow from.
    pub address: SocketAddr,
    /// Its share of the table, relative to the others'; zero: none.
    pub weight: u16,
}

/// The length of the table for so many real servers, those of weight 0 included, so that a drain does not change it.
pub const fn size(servers: usize) -> u32 {
    let [usual, large] = SIZES;
    if servers <= SERVERS_MAX { usual } else { large }
}

/// For each element of the table the position of its real server in `candidates`; empty where none has any weight.
pub fn table(candidates: &[Candidate]) -> Vec<usize> {
    let size = size(candidates.len());
    let heaviest = candidates.iter().map(|candidate| candidate.weight).max().unwrap_or(0);
    let mut fillers: Vec<Filler> = (0..).zip(candidates).map(|(at, one)| Filler::new(at, one, size)).collect();
    fillers.retain(|filler| filler.weight != 0);
    fillers.sort_unstable_by_key(|filler| filler.address);
    let mut table: Vec<Option<usize>> = vec![None; usize::try_from(size).unwrap_or(0)];
    // Who has the next turn: by round, and in each round by address.
    let mut turns: BinaryHeap<Reverse<(u64, usize)>> = (0..fillers.len()).map(|rank| Reverse((0, rank))).collect();
    for _ in 0..size {
        let Some(Reverse((_, rank))) = turns.pop() else { break };
        let Some(filler) = fillers.get_mut(rank) else { break };
        filler.take(&mut table);
        turns.push(Reverse((filler.next_round(heaviest), rank)));
    }
    table.into_iter().flatten().collect()
}

/// A real server that fills its elements in.
struct Filler {
    position: usize,
    address: SocketAddr,
    weight: u16,
    /// The element that it would like best of those that it has not asked for yet.
    preferred: u32,
    /// How far its next preference lies, modulo `size`.
    skip: u32,
    size: u32,
    /// Elements that it has.
    taken: u64,
}

impl Filler {
    fn new(position: usize, candidate: &Candidate, size: u32) -> Self {
        let Candidate { address, weight } = *candidate;
        let hash = scheduling(Address::from(address.ip()).halves(), address.port());
        let below = |hash: u64, limit: u32| u32::try_from(hash % u64::from(limit)).unwrap_or(0);
        let preferred = below(mix(hash ^ OFFSET), size);
        let skip = below(mix(hash ^ SKIP), size - 1) + 1;
        Self { position, address, weight, preferred, skip, size, taken: 0 }
    }

    /// The round, counted from 0, of its next turn: of n rounds it has a turn in n * weight / heaviest, rounded up.
    fn next_round(&self, heaviest: u16) -> u64 {
        self.taken * u64::from(heaviest) / u64::from(self.weight.max(1))
    }

    /// Takes the free element that it prefers; there must be one.
    fn take(&mut self, table: &mut [Option<usize>]) {
        // `size` is prime, so its preferences go through every element.
        for _ in 0..self.size {
            let element = usize::try_from(self.preferred).ok().and_then(|index| table.get_mut(index));
            self.preferred = (self.preferred + self.skip) % self.size;
            if let Some(element @ None) = element {
                *element = Some(self.position);
                self.taken += 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(number: u16, weight: u16) -> Candidate {
        let [high, low] = number.to_be_bytes();
        Candidate { address: ([10, 1, high, low], 8080).into(), weight }
    }

    fn equal(servers: u16) -> Vec<Candidate> {
        (0..servers).map(|number| candidate(number, 1)).collect()
    }

    /// Pseudo-code 1 of the paper as it stands there, with `offset` and `skip` of section 3.4.
    fn paper(candidates: &[Candidate]) -> Vec<usize> {
        let m = usize::try_from(size(candidates.len())).unwrap();
        let n = candidates.len();
        let modulo = |hash: u64, m: usize| usize::try_from(hash % u64::try_from(m).unwrap()).unwrap();
        let mut sorted: Vec<(SocketAddr, usize)> = (0..n).map(|i| (candidates[i].address, i)).collect();
        sorted.sort();
        let mut permutation: Vec<Vec<usize>> = vec![Vec::new(); n];
        for i in 0..n {
            let (name, _) = sorted[i];
            let hash = scheduling(Address::from(name.ip()).halves(), name.port());
            let offset = modulo(mix(hash ^ 0x6f66_6673_6574_0001), m);
            let skip = modulo(mix(hash ^ 0x736b_6970_0000_0002), m - 1) + 1;
            permutation[i] = (0..m).map(|j| (offset + j * skip) % m).collect();
        }
        let mut next = vec![0; n];
        let mut entry = vec![None; m];
        let mut filled = 0;
        loop {
            for i in 0..n {
                let mut c = permutation[i][next[i]];
                while entry[c].is_some() {
                    next[i] += 1;
                    c = permutation[i][next[i]];
                }
                entry[c] = Some(sorted[i].1);
                next[i] += 1;
                filled += 1;
                if filled == m {
                    return entry.into_iter().flatten().collect();
                }
            }
        }
    }

    fn counts(table: &[usize], servers: usize) -> Vec<usize> {
        let mut counts = vec![0; servers];
        table.iter().for_each(|position| counts[*position] += 1);
        counts
    }

    #[test]
    fn the_table_of_equal_weights_is_that_of_the_paper() {
        for servers in [1, 2, 3, 7, 40, 41, 100] {
            let candidates = equal(servers);
            assert_eq!(table(&candidates), paper(&candidates), "{servers} real servers");
        }
    }

    #[test]
    fn a_table_has_a_hundred_elements_a_real_server_up_to_1310_of_them() {
        assert_eq!((size(0), size(655)), (65_521, 65_521));
        assert_eq!((size(656), size(4096)), (131_071, 131_071));
    }

    #[test]
    fn without_any_weight_there_is_no_table() {
        assert!(table(&[]).is_empty());
        assert!(table(&[candidate(1, 0), candidate(2, 0)]).is_empty());
    }

    #[test]
    fn a_table_is_the_same_everywhere() {
        // Written down once; a change here moves every client of sh, dh and mh when two versions run side by side.
        let table = table(&[candidate(1, 1), candidate(2, 2), candidate(3, 3)]);
        assert_eq!(table[..16], [0, 1, 0, 2, 1, 2, 2, 0, 1, 1, 2, 1, 0, 2, 2, 2]);
    }

    #[test]
    fn shares_follow_the_weights_within_an_element_or_two() {
        // 65,521 elements for 1 + 2 + 3 + 10 = 16 parts: 4095.1, 8190.1, 12,285.2, 40,950.6.
        let candidates: Vec<Candidate> = (0..).zip([1, 2, 3, 10]).map(|(n, weight)| candidate(n, weight)).collect();
        let counts = counts(&table(&candidates), 4);
        for (count, share) in counts.iter().zip([4095_usize, 8190, 12_285, 40_951]) {
            assert!(count.abs_diff(share) <= 2, "{counts:?}");
        }
    }

    #[test]
    fn equal_weights_of_any_size_make_the_table_of_weight_one() {
        let heavy: Vec<Candidate> = equal(9).into_iter().map(|one| Candidate { weight: 65535, ..one }).collect();
        assert_eq!(table(&heavy), table(&equal(9)));
    }

    #[test]
    fn the_lightest_beside_the_heaviest_still_has_an_element() {
        assert_eq!(counts(&table(&[candidate(1, 65535), candidate(2, 1)]), 2), [65_520, 1]);
    }

    #[test]
    fn without_one_of_n_about_an_nth_of_the_keys_moves() {
        for servers in [2_u16, 3, 10, 40, 100, 655] {
            let candidates = equal(servers);
            let before = table(&candidates);
            let mut moved_at_worst = 0;
            for gone in [0, servers / 2, servers - 1] {
                let mut rest = candidates.clone();
                rest.remove(usize::from(gone));
                let after = table(&rest);
                let moves = |(before, after): (&usize, &usize)| candidates[*before] != rest[*after];
                moved_at_worst = moved_at_worst.max(before.iter().zip(&after).filter(|pair| moves(*pair)).count());
            }
            let per_mille = 1000 * moved_at_worst / before.len();
            println!("{servers} real servers: {per_mille} per mille of the keys move, {} are due", 1000 / servers);
            assert!(per_mille <= 1000 / usize::from(servers) + 12, "{servers}: {per_mille}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn the_order_of_the_real_servers_does_not_matter(
            (one, other) in prop::collection::btree_map(any::<u16>(), 0_u16..8, 1..30)
                .prop_map(|map| map.into_iter().map(|(n, weight)| candidate(n, weight)).collect::<Vec<_>>())
                .prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
        ) {
            let addresses = |list: &[Candidate]| -> Vec<SocketAddr> {
                table(list).into_iter().map(|position| list[position].address).collect()
            };
            prop_assert_eq!(addresses(&one), addresses(&other));
        }

        #[test]
        fn everybody_has_a_share_by_weight(weights in prop::collection::vec(any::<u16>(), 1..60)) {
            let candidates: Vec<Candidate> = (0..).zip(&weights).map(|(n, weight)| candidate(n, *weight)).collect();
            let table = table(&candidates);
            let total: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
            for (weight, count) in weights.iter().zip(counts(&table, weights.len())) {
                let weight = usize::from(*weight);
                prop_assert_eq!(weight == 0, count == 0);
                // Rounds are cut off after at most one element for everybody too many: 1 % of the share, as there are 100
                // elements a real server, and one for the rounding up.
                let share = weight * table.len() / total.max(1);
                prop_assert!(count <= share + 2 && count + share / 60 + 2 >= share, "{} of {}", count, share);
            }
        }
    }
}
