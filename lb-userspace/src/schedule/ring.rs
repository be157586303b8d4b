//! Rings: real servers in the order in which `rr` and `wrr` go through them.
//!
//! A ring holds positions in the list of weights that it was made from. Weight 0 is in none.

/// Most elements of a ring of [`smooth`].
pub const RING_MAX: usize = 4096;

/// Each real server of some weight once, in the order of `weights`.
pub fn each_once(weights: &[u16]) -> Vec<usize> {
    (0..).zip(weights).filter(|(_, weight)| **weight != 0).map(|(position, _)| position).collect()
}

/// The real servers of the highest weight, and of those the first: the one that `fo` prefers.
pub fn highest(weights: &[u16]) -> Vec<usize> {
    let highest = weights.iter().copied().max().filter(|weight| *weight != 0);
    weights.iter().position(|weight| Some(*weight) == highest).into_iter().collect()
}

/// Each real server as often as its weight says, as evenly interleaved as nginx's smooth weighted round robin does it.
///
/// As long as the sum of the weights divided by their greatest common divisor, which makes the shares exact. Where that is
/// more than [`RING_MAX`], the shares are rounded to so many elements by largest remainder, and nobody gets less than one.
pub fn smooth(weights: &[u16]) -> Vec<usize> {
    let weights = reduced(bounded(reduced(weights.iter().copied().map(i64::from).collect())));
    let total: i64 = weights.iter().sum();
    let mut ring = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
    // Each element raises everybody by the own weight and lowers the one who is chosen, the highest, by the sum of all.
    let mut standings: Vec<i64> = vec![0; weights.len()];
    for _ in 0..total {
        let mut chosen = None;
        for (position, (standing, weight)) in standings.iter_mut().zip(&weights).enumerate() {
            *standing += weight;
            if chosen.is_none_or(|(_, highest)| *standing > highest) {
                chosen = Some((position, *standing));
            }
        }
        let Some((position, _)) = chosen else { break };
        ring.push(position);
        if let Some(standing) = standings.get_mut(position) {
            *standing -= total;
        }
    }
    ring
}

/// The weights divided by their greatest common divisor.
fn reduced(weights: Vec<i64>) -> Vec<i64> {
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    weights.into_iter().map(|weight| weight / divisor).collect()
}

/// The greatest common divisor; zero counts as a multiple of everything.
fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// The weights, or shares of [`RING_MAX`] in their proportion where their sum is above that.
fn bounded(weights: Vec<i64>) -> Vec<i64> {
    let seats = i64::try_from(RING_MAX).unwrap_or(i64::MAX);
    if weights.iter().sum::<i64>() <= seats {
        return weights;
    }
    // Who is due less than one element gets one; the others share the rest, which may put another one below one element.
    let mut is_least: Vec<bool> = vec![false; weights.len()];
    loop {
        let least = i64::try_from(is_least.iter().filter(|is_least| **is_least).count()).unwrap_or(seats);
        let left = (seats - least).max(0);
        let sharing: i64 = weights.iter().zip(&is_least).filter(|(_, least)| !**least).map(|(weight, _)| weight).sum();
        let mut is_settled = true;
        for (weight, is_least) in weights.iter().zip(&mut is_least) {
            if *weight != 0 && !*is_least && weight * left < sharing {
                *is_least = true;
                is_settled = false;
            }
        }
        if is_settled {
            return shares(&weights, &is_least, left, sharing);
        }
    }
}

/// `seats` by largest remainder among those that are not `is_least`, whose weights' sum is `sharing`; one each for those.
fn shares(weights: &[i64], is_least: &[bool], seats: i64, sharing: i64) -> Vec<i64> {
    let sharing = sharing.max(1);
    let share = |(weight, is_least): (&i64, &bool)| if *is_least { 1 } else { weight * seats / sharing };
    let mut shares: Vec<i64> = weights.iter().zip(is_least).map(share).collect();
    let given: i64 = shares.iter().zip(is_least).filter(|(_, least)| !**least).map(|(share, _)| share).sum();
    let mut remainders: Vec<(i64, &mut i64)> = Vec::new();
    for ((weight, is_least), share) in weights.iter().zip(is_least).zip(&mut shares) {
        if *weight != 0 && !is_least {
            remainders.push((weight * seats % sharing, share));
        }
    }
    // Stable: of equal remainders, the first.
    remainders.sort_by_key(|(remainder, _)| -remainder);
    let left = usize::try_from(seats - given).unwrap_or(0);
    remainders.into_iter().take(left).for_each(|(_, share)| *share += 1);
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(ring: &[usize], servers: usize) -> Vec<usize> {
        let mut counts = vec![0; servers];
        ring.iter().for_each(|position| counts[*position] += 1);
        counts
    }

    #[test]
    fn the_example_of_nginx_is_interleaved_as_nginx_does() {
        // Weights 5:1:1 give a a b a c a a, says the commit that brought it to nginx.
        assert_eq!(smooth(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn weights_one_to_three_are_interleaved_by_hand() {
        // Standings after raising, of weights 1, 2, 3: (1 2 3) c, (2 4 0) b, (3 0 3) a (the first of equals), (-2 2 6) c,
        // (-1 4 3) b, (0 0 6) c.
        assert_eq!(smooth(&[1, 2, 3]), [2, 1, 0, 2, 1, 2]);
    }

    #[test]
    fn a_common_divisor_makes_no_longer_ring() {
        assert_eq!(smooth(&[100, 200]), [1, 0, 1]);
        assert_eq!(smooth(&[65535]), [0]);
        assert_eq!(smooth(&[7, 0, 7]), [0, 2]);
    }

    #[test]
    fn weight_zero_is_in_no_ring() {
        assert!(smooth(&[0, 0]).is_empty());
        assert!(smooth(&[]).is_empty());
        assert_eq!(each_once(&[3, 0, 1]), [0, 2]);
        assert!(highest(&[0, 0]).is_empty());
    }

    #[test]
    fn the_highest_weight_is_preferred_and_of_equals_the_first() {
        assert_eq!(highest(&[1, 5, 5, 2]), [1]);
    }

    #[test]
    fn a_ring_that_would_be_too_long_is_rounded_by_largest_remainder() {
        // 4096 * 60001 / 100002 = 2457.59, 4096 * 40001 / 100002 = 1638.41; 2458 and 1638 are twice 1229 and 819.
        assert_eq!(counts(&smooth(&[60001, 40001]), 2), [1229, 819]);
        // 4096 * 50003 / 90004 = 2275.59, 4096 * 40001 / 90004 = 1820.41, and nothing divides both of 2276 and 1820 but 4.
        assert_eq!(counts(&smooth(&[50003, 40001]), 2), [569, 455]);
        // 1 of 65536 is less than one element and gets one; the other has the rest.
        assert_eq!(counts(&smooth(&[65535, 1]), 2), [4095, 1]);
    }

    #[test]
    fn as_many_real_servers_as_elements_get_one_each() {
        let weights: Vec<u16> = (0..4096).map(|n| 1 + n % 1000).collect();
        assert!(counts(&smooth(&weights), 4096).iter().all(|count| *count == 1));
    }

    proptest! {
        #[test]
        fn short_rings_have_exact_shares(weights in prop::collection::vec(0_u16..64, 0..20)) {
            let counts = counts(&smooth(&weights), weights.len());
            for (one, count) in weights.iter().zip(&counts) {
                for (other, count_of_other) in weights.iter().zip(&counts) {
                    prop_assert_eq!(count * usize::from(*other), count_of_other * usize::from(*one));
                }
            }
        }

        #[test]
        fn long_rings_are_within_an_element_of_the_share_or_have_one(
            weights in prop::collection::vec(prop_oneof![Just(0), any::<u16>()], 0..40),
        ) {
            let ring = smooth(&weights);
            prop_assert!(ring.len() <= RING_MAX);
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            for (weight, count) in weights.iter().zip(counts(&ring, weights.len())) {
                let (weight, count) = (u64::from(*weight), count as u64);
                prop_assert_eq!(weight == 0, count == 0);
                // The share of the whole ring, rounded either way; up to 40 elements less where others were raised to one.
                let share = weight * ring.len() as u64 / total.max(1);
                prop_assert!(count <= share + 1 && count + 40 >= share, "{} of {}", count, share);
            }
        }
    }
}
