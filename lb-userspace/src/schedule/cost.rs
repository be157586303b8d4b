//! What connections cost, so that the least loaded real server is the one with the smallest word in `server_loads`.
//!
//! IPVS compares fractions with a multiplication for each real server. Here each connection adds a whole number instead, in
//! proportion to 1 / weight, and the packet path only compares. The words, their parts and their reader: [`lb_common::real`].

use lb_common::real::{ServerCounts, load};
use lb_common::service::{NONE, Scheduler};

use crate::model::{Thresholds, Weight};

/// The number that stands for 1 / weight, at most this, is exact where that is enough for the smallest weight; else it is
/// rounded. With it, ten million active connections leave the bits of availability alone.
const INVERSE_MAX: u64 = 1 << 20;
/// IPVS's: an active connection counts as much as so many inactive ones.
const ACTIVE: u64 = 256;

/// What makes a real server's load out of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Of an active connection.
    pub active: u64,
    /// Of an inactive one.
    pub inactive: u64,
    /// Of having any active connection.
    pub busy: u64,
    /// Active connections above which it takes no new one; [`NONE`]: no limit.
    pub active_limit: u32,
    /// Without any connection.
    pub base: u64,
}

impl Cost {
    /// For real servers whose load nobody compares.
    pub const FREE: Self = Self { active: 0, inactive: 0, busy: 0, active_limit: NONE, base: 0 };
}

/// The costs of a virtual server's real servers with these weights, given in the order of their addresses.
///
/// `lc`: 256 and 1. `wlc`, `twos`: 256 × c and c, where c is in proportion to 1 / weight. `sed`: c, and c at the start. `nq`:
/// as `sed`, but whoever has an active connection comes after all who have none. `fo`, `ovf`: connections cost nothing, the
/// start is the lower the higher the weight, and for equals by their order. The others choose by ring: nothing costs anything.
pub fn costs(scheduler: Scheduler, weights: &[Weight]) -> Vec<Cost> {
    let inverse = Inverse::of(weights);
    let ranked = (0_u64..).zip(weights);
    let cost = |(rank, weight): (u64, &Weight)| {
        let c = inverse.of_weight(*weight);
        // Above the rank of any other: fewer than 65536 real servers.
        let by_weight = u64::from(u16::MAX - weight.get()) << 16 | rank.min(u64::from(u16::MAX));
        match scheduler {
            Scheduler::Lc => Cost { active: ACTIVE, inactive: 1, ..Cost::FREE },
            Scheduler::Wlc | Scheduler::Twos => Cost { active: ACTIVE * c, inactive: c, ..Cost::FREE },
            Scheduler::Sed => Cost { active: c, base: c, ..Cost::FREE },
            Scheduler::Nq => Cost { active: c, base: c, busy: load::BUSY, ..Cost::FREE },
            Scheduler::Fo => Cost { base: by_weight, ..Cost::FREE },
            Scheduler::Ovf => Cost { base: by_weight, active_limit: weight.get().into(), ..Cost::FREE },
            Scheduler::Rr | Scheduler::Wrr | Scheduler::Sh | Scheduler::Dh | Scheduler::Mh => Cost::FREE,
        }
    };
    ranked.map(cost).collect()
}

/// The word of a real server in `server_loads`.
///
/// `was_overloaded`: whether it had reached its upper threshold and not yet fallen below the lower one.
pub fn load_word(
    cost: &Cost,
    counts: ServerCounts,
    weight: Weight,
    thresholds: Thresholds,
    was_overloaded: bool,
) -> u64 {
    let Cost { active, inactive, busy, active_limit, base } = *cost;
    let busy = if counts.active == 0 { 0 } else { busy };
    let mut word = base + u64::from(counts.active) * active + u64::from(counts.inactive) * inactive + busy;
    if weight == Weight::ZERO {
        word |= load::NO_WEIGHT;
    }
    if active_limit != NONE && counts.active > active_limit {
        word |= load::OVERFLOWING;
    }
    if is_overloaded(counts, thresholds, was_overloaded) {
        word |= load::OVERLOADED;
    }
    word
}

fn is_overloaded(counts: ServerCounts, thresholds: Thresholds, was_overloaded: bool) -> bool {
    let connections = u64::from(counts.active) + u64::from(counts.inactive);
    let (upper, lower) = (u64::from(thresholds.upper), u64::from(thresholds.lower));
    let is_below_lower = if lower == 0 { connections * 4 < upper * 3 } else { connections < lower };
    upper != 0 && (connections >= upper || was_overloaded && !is_below_lower)
}

/// What is divided by a weight, to give whole numbers in proportion to 1 / weight.
struct Inverse {
    dividend: u64,
}

impl Inverse {
    /// The least common multiple of the weights; where that is too large, a number that gives the smallest weight the most.
    fn of(weights: &[Weight]) -> Self {
        let weights = || weights.iter().map(|weight| u64::from(weight.get())).filter(|weight| *weight != 0);
        let largest = weights().min().unwrap_or(1) * INVERSE_MAX;
        let mut multiple = 1;
        for weight in weights() {
            multiple = multiple / greatest_common_divisor(multiple, weight) * weight;
            if multiple > largest {
                return Self { dividend: largest };
            }
        }
        Self { dividend: multiple }
    }

    /// At least 1; 1 also for weight 0, which takes no new connection.
    fn of_weight(&self, weight: Weight) -> u64 {
        match u64::from(weight.get()) {
            0 => 1,
            weight => (self.dividend + weight / 2) / weight,
        }
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FREE: Thresholds = Thresholds { upper: 0, lower: 0 };

    fn weights(weights: &[u16]) -> Vec<Weight> {
        weights.iter().copied().map(Weight::new).collect()
    }

    fn counts(active: u32, inactive: u32) -> ServerCounts {
        ServerCounts { active, inactive }
    }

    /// Which real servers get so many new connections, each established before the next comes; the first of equals.
    fn picks(scheduler: Scheduler, of: &[u16], connections: usize) -> Vec<usize> {
        let (weights, mut active) = (weights(of), vec![0; of.len()]);
        let costs = costs(scheduler, &weights);
        let mut picks = Vec::new();
        for _ in 0..connections {
            let word = |n: usize| load_word(&costs[n], counts(active[n], 0), weights[n], FREE, false);
            let least = (0..of.len()).min_by_key(|n| word(*n)).unwrap();
            assert!(word(least) < load::UNAVAILABLE);
            active[least] += 1;
            picks.push(least);
        }
        picks
    }

    #[test]
    fn an_active_connection_costs_lc_as_much_as_256_others() {
        let costs = costs(Scheduler::Lc, &weights(&[1, 500]));
        for cost in &costs {
            assert_eq!(load_word(cost, counts(3, 5), Weight::ONE, FREE, false), 773);
        }
    }

    #[test]
    fn costs_are_in_inverse_proportion_to_weights() {
        // The least common multiple of 1, 2, 3 and 10 is 30.
        let all = costs(Scheduler::Wlc, &weights(&[1, 2, 3, 10]));
        assert_eq!(all.iter().map(|cost| cost.inactive).collect::<Vec<_>>(), [30, 15, 10, 3]);
        assert_eq!(all.iter().map(|cost| cost.active).collect::<Vec<_>>(), [7680, 3840, 2560, 768]);
        let all = costs(Scheduler::Twos, &weights(&[65535, 65534]));
        assert_eq!(all.iter().map(|cost| cost.inactive).collect::<Vec<_>>(), [65534, 65535]);
        // 65535 * 65534 / 3 is above 2^20, which the smallest gets now: 3 * 2^20 / 65535 = 48.0007.
        let all = costs(Scheduler::Twos, &weights(&[65535, 0, 65534, 3]));
        assert_eq!(all.iter().map(|cost| cost.inactive).collect::<Vec<_>>(), [48, 1, 48, 1_048_576]);
    }

    #[test]
    fn wlc_gives_sixteen_connections_to_weights_one_two_three_ten() {
        // All begin at 0, so each gets one, in order. Then the smallest of connections / weight:
        // 1, 1/2, 1/3, 1/10: the last until it has 4 of 10 > 1/3: connections 5, 6, 7.
        // 1, 1/2, 1/3, 4/10: the third (2/3). 1, 1/2, 2/3, 4/10: the last (5/10): 9.
        // 1, 1/2, 2/3, 5/10: the second (1), the first of equals: 10. The last (6/10): 11, (7/10): 12. The third (1): 13.
        // The last (8/10): 14, (9/10): 15, (10/10): 16.
        let expected = [0, 1, 2, 3, 3, 3, 3, 2, 3, 1, 3, 3, 2, 3, 3, 3];
        assert_eq!(picks(Scheduler::Wlc, &[1, 2, 3, 10], 16), expected);
    }

    #[test]
    fn sed_expects_the_shortest_delay_with_the_new_connection() {
        // (connections + 1) / weight, with weights 1 and 3: (1, 1/3), (1, 2/3), (1, 1), (2, 1), (2, 4/3), (2, 5/3), (2, 2).
        assert_eq!(picks(Scheduler::Sed, &[1, 3], 7), [1, 1, 0, 1, 1, 1, 0]);
    }

    #[test]
    fn nq_takes_an_idle_real_server_before_a_faster_busy_one() {
        // The idle ones by weight, then as sed: 2/1, 2/3, 2/2.
        assert_eq!(picks(Scheduler::Nq, &[1, 3, 2], 4), [1, 2, 0, 1]);
    }

    #[test]
    fn fo_prefers_the_highest_weight_and_of_equals_the_first() {
        assert_eq!(picks(Scheduler::Fo, &[1, 9, 9, 5], 3), [1, 1, 1]);
    }

    #[test]
    fn ovf_goes_on_to_the_next_weight_when_one_has_more_connections_than_its_weight() {
        assert_eq!(picks(Scheduler::Ovf, &[1, 2, 2], 8), [1, 1, 1, 2, 2, 2, 0, 0]);
        let [cost] = costs(Scheduler::Ovf, &weights(&[2]))[..] else { panic!("one") };
        assert!(load_word(&cost, counts(2, 9), Weight::new(2), FREE, false) < load::UNAVAILABLE);
        assert_eq!(load_word(&cost, counts(3, 0), Weight::new(2), FREE, false) & load::OVERFLOWING, load::OVERFLOWING);
    }

    #[test]
    fn what_goes_by_ring_has_only_the_bits_of_availability() {
        for scheduler in [Scheduler::Rr, Scheduler::Wrr, Scheduler::Sh, Scheduler::Dh, Scheduler::Mh] {
            let [cost, _] = costs(scheduler, &weights(&[3, 4]))[..] else { panic!("two") };
            assert_eq!(load_word(&cost, counts(9, 9), Weight::ONE, FREE, false), 0);
            assert_eq!(load_word(&cost, counts(9, 9), Weight::ZERO, FREE, false), load::NO_WEIGHT);
        }
    }

    #[test]
    fn it_is_overloaded_from_the_upper_threshold_until_below_the_lower() {
        let word = |connections: u32, lower, was| {
            load_word(&Cost::FREE, counts(connections - 1, 1), Weight::ONE, Thresholds { upper: 10, lower }, was)
        };
        assert_eq!(word(9, 4, false), 0);
        assert_eq!(word(10, 4, false), load::OVERLOADED);
        assert_eq!(word(4, 4, true), load::OVERLOADED);
        assert_eq!(word(3, 4, true), 0);
        // Three quarters of 10 are 7.5.
        assert_eq!(word(8, 0, true), load::OVERLOADED);
        assert_eq!(word(7, 0, true), 0);
        assert_eq!(load_word(&Cost::FREE, counts(9, 9), Weight::ONE, FREE, true), 0);
    }

    #[test]
    fn ten_million_connections_on_the_smallest_weight_are_no_bits_of_availability() {
        let all = costs(Scheduler::Wlc, &weights(&[1, 65535, 65534]));
        // 10,000,000 * 256 * 2^20 = 2.7e15, and 2^56 = 7.2e16.
        assert_eq!(load_word(&all[0], counts(10_000_000, 0), Weight::ONE, FREE, false), 2_684_354_560_000_000);
        const { assert!(2_684_354_560_000_000_u64 < 1 << load::COST_BITS) };
    }

    /// IPVS's comparison: `a` before `b` by cross multiplication.
    fn is_less(scheduler: Scheduler, a: (u16, ServerCounts), b: (u16, ServerCounts)) -> bool {
        let overhead = |counts: ServerCounts| match scheduler {
            Scheduler::Sed => u128::from(counts.active) + 1,
            _ => u128::from(counts.active) * 256 + u128::from(counts.inactive),
        };
        overhead(a.1) * u128::from(b.0) < overhead(b.1) * u128::from(a.0)
    }

    proptest! {
        #[test]
        fn loads_compare_as_ipvs_multiplies(
            servers in prop::collection::vec((1_u16..=16, 0_u32..100_000, 0_u32..1_000_000), 2..12),
            is_sed: bool,
        ) {
            // The least common multiple of 1..=16 is 720,720, which is below 2^20.
            let scheduler = if is_sed { Scheduler::Sed } else { Scheduler::Wlc };
            let all: Vec<Weight> = servers.iter().map(|(weight, _, _)| Weight::new(*weight)).collect();
            let costs = costs(scheduler, &all);
            for (one, (weight, active, inactive)) in costs.iter().zip(&servers) {
                for (other, (weight_of_other, active_of_other, inactive_of_other)) in costs.iter().zip(&servers) {
                    let a = (*weight, counts(*active, *inactive));
                    let b = (*weight_of_other, counts(*active_of_other, *inactive_of_other));
                    let word = |cost, counts| load_word(cost, counts, Weight::ONE, FREE, false);
                    prop_assert_eq!(word(one, a.1) < word(other, b.1), is_less(scheduler, a, b));
                }
            }
        }

        #[test]
        fn rounded_costs_are_within_a_thirtieth_of_the_truth(
            all in prop::collection::vec(1_u16.., 3..10),
        ) {
            let all = weights(&all);
            for (cost, weight) in costs(Scheduler::Wlc, &all).iter().zip(&all) {
                for (other, weight_of_other) in costs(Scheduler::Wlc, &all).iter().zip(&all) {
                    let one = cost.inactive * u64::from(weight.get());
                    let two = other.inactive * u64::from(weight_of_other.get());
                    prop_assert!(one.abs_diff(two) * 15 <= two, "{} {}", one, two);
                }
            }
        }
    }
}
