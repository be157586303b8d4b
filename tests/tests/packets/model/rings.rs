//! The schedulers' rings, made independently by the papers, to compare with what user space has installed.

/// Smooth weighted round robin, one whole round: everybody gains its weight at each step, and who has most goes next and pays
/// the sum of all. By the index of the weight; of equals the first.
pub fn smooth(weights: &[u32]) -> Vec<usize> {
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    let gains: Vec<i64> = weights.iter().map(|weight| i64::from(weight / divisor)).collect();
    let total: i64 = gains.iter().sum();
    let mut credits = vec![0; weights.len()];
    let mut ring = Vec::new();
    for _ in 0..total {
        credits.iter_mut().zip(&gains).for_each(|(credit, gain)| *credit += gain);
        let most = credits.iter().copied().max().expect("somebody has a weight");
        let next = credits.iter().position(|credit| *credit == most).expect("just found");
        credits[next] -= total;
        ring.push(next);
    }
    ring
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Maglev's table (Eisenbud et al., NSDI 2016, section 3.4, pseudocode 1), of prime `size`.
///
/// Each backend has a permutation of the places, by `offset` and `skip`, and takes the next free one of it in turn. With
/// weights, the heaviest has a turn in each round, and one of weight w in n * w / heaviest of any first n rounds, rounded up.
pub fn maglev(backends: &[Backend], size: usize) -> Vec<usize> {
    let heaviest = backends.iter().map(|backend| backend.weight).max().expect("somebody");
    let turns_in = |rounds: usize, backend: &Backend| (rounds * backend.weight).div_ceil(heaviest);
    let mut next = vec![0; backends.len()];
    let mut entry: Vec<Option<usize>> = vec![None; size];
    let mut filled = 0;
    for round in 0.. {
        for (i, backend) in backends.iter().enumerate() {
            if turns_in(round + 1, backend) == turns_in(round, backend) {
                continue;
            }
            let mut place = backend.permutation(next[i], size);
            while entry[place].is_some() {
                next[i] += 1;
                place = backend.permutation(next[i], size);
            }
            entry[place] = Some(i);
            next[i] += 1;
            filled += 1;
            if filled == size {
                return entry.into_iter().flatten().collect();
            }
        }
    }
    unreachable!("the heaviest takes a place in each round")
}

/// A backend of [`maglev`].
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Below the size.
    pub offset: usize,
    /// At least one, below the size.
    pub skip: usize,
    pub weight: usize,
}

impl Backend {
    fn permutation(&self, j: usize, size: usize) -> usize {
        (self.offset + j * self.skip) % size
    }
}

#[test]
fn the_example_of_the_paper() {
    // Table 1: B0 starts at 3 and skips 4, B1 at 0 and skips 2, B2 at 3 and skips 1; the table before a change.
    let backend = |offset, skip| Backend { offset, skip, weight: 1 };
    assert_eq!(maglev(&[backend(3, 4), backend(0, 2), backend(3, 1)], 7), [1, 0, 1, 0, 2, 2, 0]);
    // Without B1, as the table's last column has it.
    assert_eq!(maglev(&[backend(3, 4), backend(3, 1)], 7), [0, 0, 0, 0, 1, 1, 1]);
}

#[test]
fn half_the_weight_takes_every_other_turn() {
    let backend = |offset, weight| Backend { offset, skip: 1, weight };
    // Rounds: 0 by A, 3 by B; 1 by A; 2 by A, 4 by B; 5 by A; 6 by A.
    assert_eq!(maglev(&[backend(0, 2), backend(3, 1)], 7), [0, 0, 0, 1, 1, 0, 0]);
}

#[test]
fn the_example_of_smooth_weighted_round_robin() {
    // 5, 1, 1: a a b a c a a, as nginx's author gives it; a common divisor changes nothing.
    assert_eq!(smooth(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
    assert_eq!(smooth(&[10, 2, 2]), [0, 0, 1, 0, 2, 0, 0]);
}
