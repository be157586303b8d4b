//! Indexes of virtual servers and of real servers: a seed under which each key finds its bucket, and no bucket overflows.
//!
//! The packet path reads one cache line and compares four keys, without a second try anywhere.

use std::collections::BTreeSet;

use lb_common::hash::index_bucket;
use lb_common::service::{IndexBucket, IndexEntry};

/// Seeds that are tried. With half a key a bucket, the most that `service_index` may have, about every second one does not fit.
const SEEDS: u32 = 1000;

/// An index and its seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// What [`index_bucket`] takes.
    pub seed: u32,
    /// As many as were asked for.
    pub buckets: Vec<IndexBucket>,
}

/// Why there is no index of some keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Two entries have the same key: the hashes of two IPv6 addresses, where it is no mistake.
    #[error("two addresses have the same hash {0:#x}; change one of them, or the port")]
    Duplicate(u64),
    /// There are too many keys for so many buckets.
    #[error("no seed spreads {keys} keys over {buckets} buckets of four")]
    TooFull {
        /// The keys.
        keys: usize,
        /// The buckets.
        buckets: u32,
    },
}

impl Index {
    /// An index of `entries` in `mask` + 1 buckets, a power of two, under the first seed from `first_seed` on that fits.
    ///
    /// # Errors
    ///
    /// [`IndexError`].
    pub fn build(entries: &[IndexEntry], mask: u32, first_seed: u32) -> Result<Self, IndexError> {
        let mut keys = BTreeSet::new();
        if let Some(twice) = entries.iter().find(|entry| !keys.insert(entry.key)) {
            return Err(IndexError::Duplicate(twice.key));
        }
        let too_full = IndexError::TooFull { keys: entries.len(), buckets: mask.saturating_add(1) };
        let mut seeds = (0..SEEDS).map(|turn| first_seed.wrapping_add(turn));
        seeds.find_map(|seed| Self::under(seed, entries, mask)).ok_or(too_full)
    }

    /// The index under `seed`; `None` where a bucket overflows.
    fn under(seed: u32, entries: &[IndexEntry], mask: u32) -> Option<Self> {
        let length = usize::try_from(mask).ok()?.checked_add(1)?;
        let mut buckets = vec![IndexBucket::default(); length];
        for entry in entries {
            let bucket = buckets.get_mut(usize::try_from(index_bucket(entry.key, seed, mask)).ok()?)?;
            *bucket.entries.iter_mut().find(|place| place.key == 0)? = *entry;
        }
        Some(Self { seed, buckets })
    }
}

#[cfg(test)]
mod tests {
    use lb_common::hash::{index_key, mix};
    use lb_common::net::{Address, Port, Protocol};
    use proptest::prelude::*;

    use super::*;

    fn entry(key: u64, index: u32) -> IndexEntry {
        IndexEntry { key, index, flags: 7 }
    }

    /// What the packet path does.
    fn find(index: &Index, mask: u32, key: u64) -> Option<u32> {
        let bucket = &index.buckets[index_bucket(key, index.seed, mask) as usize];
        bucket.entries.iter().find(|entry| entry.key == key).map(|entry| entry.index)
    }

    #[test]
    fn as_many_services_as_there_may_be_fit_into_4096_buckets() {
        let vip = Address::from(std::net::IpAddr::from([203, 0, 113, 1]));
        let key = |port: u16| index_key(&vip, Port::new(port), Protocol::Tcp);
        let entries: Vec<IndexEntry> = (0..1024).map(|port| entry(key(port), port.into())).collect();
        let index = Index::build(&entries, 4095, 0).unwrap();
        assert_eq!(index.buckets.len(), 4096);
        for port in 0..1024 {
            assert_eq!(find(&index, 4095, key(port)), Some(port.into()));
        }
        assert_eq!(find(&index, 4095, key(1024)), None);
    }

    #[test]
    fn an_overflow_takes_another_seed() {
        // Five keys for two buckets of four: 1 of 16 seeds puts all into one bucket.
        let entries: Vec<IndexEntry> = (1..=5).map(|n| entry(mix(n), 0)).collect();
        let buckets = |seed| entries.iter().map(move |entry| index_bucket(entry.key, seed, 1));
        let bad = (0..).find(|seed| buckets(*seed).all(|bucket| bucket == 0)).unwrap();
        assert_eq!(Index::under(bad, &entries, 1), None);
        assert!(Index::build(&entries, 1, bad).unwrap().seed > bad);
    }

    #[test]
    fn a_key_cannot_be_there_twice() {
        assert_eq!(Index::build(&[entry(5, 1), entry(6, 2), entry(5, 3)], 15, 0), Err(IndexError::Duplicate(5)));
    }

    #[test]
    fn what_no_seed_fits_is_refused() {
        let entries: Vec<IndexEntry> = (1..=9).map(|key| entry(key, 0)).collect();
        assert_eq!(Index::build(&entries, 1, 0), Err(IndexError::TooFull { keys: 9, buckets: 2 }));
    }

    #[test]
    fn an_index_of_nothing_is_empty_under_the_first_seed() {
        assert_eq!(Index::build(&[], 0, 3), Ok(Index { seed: 3, buckets: vec![IndexBucket::default()] }));
    }

    proptest! {
        #[test]
        fn every_key_is_found_and_no_other(keys in prop::collection::btree_set(1_u64.., 0..200), other in 1_u64..) {
            let entries: Vec<IndexEntry> = keys.iter().zip(0..).map(|(key, index)| entry(*key, index)).collect();
            let index = Index::build(&entries, 255, 0).unwrap();
            for one in &entries {
                prop_assert_eq!(find(&index, 255, one.key), Some(one.index));
            }
            prop_assert_eq!(find(&index, 255, other).is_some(), keys.contains(&other));
        }
    }
}
