//! `service_index` and `reply_index`, changed while packets look things up in them.
//!
//! An entry is two words, key and value. A key is added by writing the value and then the key, removed by clearing the key,
//! and led elsewhere by writing the value: each is one word. A place whose key is gone rests before it gets another, for a
//! packet that has read the old key and not yet the value. Where a bucket has no room, the other copy is built under another
//! seed, and one store in `lookups` switches to it.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Instant;

use lb_common::hash::index_bucket;
use lb_common::service::{IndexBucket, IndexEntry, Lookups};

use super::mapped::Mapped;
use super::rest::Resting;
use crate::datapath::DatapathError;
use crate::schedule::index::{Index, IndexError};

/// An index from what `Owner` identifies, and which of its two copies is valid.
pub struct LiveIndex<Owner> {
    buckets: Mapped<IndexBucket>,
    /// Buckets of a copy, less one.
    mask: u32,
    seed: u32,
    /// 0 or 1.
    copy: u32,
    /// Whose key each is.
    owners: BTreeMap<u64, Owner>,
    /// Entries that were cleared, each by bucket of the map and place in it.
    resting: Resting<(u32, usize)>,
    /// When the other copy was left.
    left: Resting<()>,
}

/// What became of an entry that was to be put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there.
    Done,
    /// It is in the other copy, which is to take effect by this word in `lookups`.
    Switch(u64),
    /// There is no room for it before this time.
    Wait(Instant),
    /// There is no room.
    Refused(IndexError),
}

impl<Owner: Copy + PartialEq> LiveIndex<Owner> {
    /// The empty index in `buckets`, an even number of them.
    pub fn new(buckets: Mapped<IndexBucket>) -> Self {
        let mask = (buckets.length() / 2).saturating_sub(1);
        let (resting, left) = (Resting::default(), Resting::default());
        Self { buckets, mask, seed: 0, copy: 0, owners: BTreeMap::new(), resting, left }
    }

    /// The index that lies in `buckets`, of which `word` in `lookups` tells the valid copy. Nobody owns a key yet.
    pub fn found(buckets: Mapped<IndexBucket>, word: u64) -> Self {
        let mut index = Self::new(buckets);
        (index.seed, index.copy) = parts(word);
        index
    }

    /// Everything that packets find in it.
    ///
    /// # Errors
    ///
    /// As [`LiveIndex::put`].
    pub fn entries(&self) -> Result<Vec<IndexEntry>, DatapathError> {
        let mut entries = Vec::new();
        for bucket in 0..=self.mask {
            let present = self.buckets.get(self.start(self.copy) + bucket)?.entries;
            entries.extend(present.into_iter().filter(|entry| entry.key != 0));
        }
        Ok(entries)
    }

    /// Notes that a key in it is `owner`'s.
    pub fn own(&mut self, key: u64, owner: Owner) {
        self.owners.insert(key, owner);
    }

    /// Makes `entry.key`, which is `owner`'s, lead where `entry` says, whether it was there or not.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`], where the index is not as long as it was said to be.
    pub fn put(&mut self, owner: Owner, entry: IndexEntry, now: Instant) -> Result<Put, DatapathError> {
        if self.owners.get(&entry.key).is_some_and(|present| *present != owner) {
            return Ok(Put::Refused(IndexError::Duplicate(entry.key)));
        }
        drop(self.resting.rested(now));
        let bucket = self.bucket(entry.key);
        let places = self.places(bucket)?;
        let present = places.iter().find(|[key, _]| key.load(Acquire) == entry.key);
        let is_free = |at: usize, key: &AtomicU64| key.load(Acquire) == 0 && !self.resting.holds((bucket, at), now);
        let free = || places.iter().enumerate().find(|(at, [key, _])| is_free(*at, key)).map(|(_, place)| place);
        let Some([key, value]) = present.or_else(free) else {
            return self.rebuild(owner, entry, now);
        };
        value.store(u64::from(entry.index) | u64::from(entry.flags) << 32, Release);
        key.store(entry.key, Release);
        self.owners.insert(entry.key, owner);
        Ok(Put::Done)
    }

    /// Removes a key; one that is not there is no error.
    ///
    /// # Errors
    ///
    /// As [`LiveIndex::put`].
    pub fn remove(&mut self, key: u64, now: Instant) -> Result<(), DatapathError> {
        let bucket = self.bucket(key);
        let at = self.places(bucket)?.iter().position(|[present, _]| present.load(Acquire) == key);
        if let Some(at) = at {
            if let Some([present, _]) = self.places(bucket)?.get(at) {
                present.store(0, Release);
            }
            self.resting.push((bucket, at), now);
        }
        self.owners.remove(&key);
        Ok(())
    }

    /// The word that [`Put::Switch`] gave is in `lookups` since `now`.
    pub fn switched(&mut self, word: u64, now: Instant) {
        (self.seed, self.copy) = parts(word);
        self.resting = Resting::default();
        self.left.push((), now);
    }

    /// Builds the other copy, with `entry` in addition.
    fn rebuild(&mut self, owner: Owner, entry: IndexEntry, now: Instant) -> Result<Put, DatapathError> {
        drop(self.left.rested(now));
        if let Some(until) = self.left.until() {
            return Ok(Put::Wait(until));
        }
        let mut entries = vec![entry];
        entries.extend(self.entries()?);
        let built = match Index::build(&entries, self.mask, self.seed.wrapping_add(1)) {
            Ok(built) => built,
            Err(error) => return Ok(Put::Refused(error)),
        };
        let other = 1 - self.copy;
        for (bucket, value) in (self.start(other)..).zip(&built.buckets) {
            self.buckets.set(bucket, value)?;
        }
        self.owners.insert(entry.key, owner);
        Ok(Put::Switch(Lookups::word(built.seed, other)))
    }

    fn bucket(&self, key: u64) -> u32 {
        self.start(self.copy) + index_bucket(key, self.seed, self.mask)
    }

    /// The first bucket of a copy.
    fn start(&self, copy: u32) -> u32 {
        copy * (self.mask + 1)
    }

    /// Key and value of each entry of a bucket.
    fn places(&self, bucket: u32) -> Result<&[[AtomicU64; 2]], DatapathError> {
        Ok(self.buckets.element(bucket)?.as_chunks().0)
    }
}

/// Seed and copy, 0 or 1, in a word of `lookups`.
fn parts(word: u64) -> (u32, u32) {
    let [a, b, c, d, copy, ..] = word.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from(copy & 1))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::datapath::xdp::mapped::tests::file_of;
    use crate::datapath::xdp::rest::REST;

    /// An index of `buckets` buckets a copy, and another view of it.
    fn index(buckets: u32) -> (File, LiveIndex<u64>, Mapped<IndexBucket>) {
        use std::os::fd::AsFd as _;
        let (file, mapped) = file_of(2 * buckets);
        let view = Mapped::new("view", file.as_fd(), 2 * buckets).unwrap();
        (file, LiveIndex::new(mapped), view)
    }

    fn entry(key: u64, index: u32) -> IndexEntry {
        IndexEntry { key, index, flags: 5 }
    }

    /// What the packet path finds under `word` in `lookups`.
    fn find(view: &Mapped<IndexBucket>, word: u64, key: u64) -> Option<(u32, u32)> {
        let buckets = view.length() / 2;
        let (seed, copy) = (u32::try_from(word & 0xffff_ffff).unwrap(), u32::try_from(word >> 32).unwrap());
        let bucket = index_bucket(key, seed, buckets - 1) + copy * buckets;
        let found = view.get(bucket).unwrap().entries.into_iter().find(|entry| entry.key == key);
        found.map(|entry| (entry.index, entry.flags))
    }

    #[test]
    fn a_key_is_added_led_elsewhere_and_removed_in_place() {
        let now = Instant::now();
        let (_file, mut index, view) = index(16);
        assert_eq!(index.put(1, entry(77, 3), now).unwrap(), Put::Done);
        assert_eq!(find(&view, 0, 77), Some((3, 5)));
        assert_eq!(index.put(1, entry(77, 4), now).unwrap(), Put::Done);
        assert_eq!(find(&view, 0, 77), Some((4, 5)));
        index.remove(77, now).unwrap();
        index.remove(78, now).unwrap();
        assert_eq!(find(&view, 0, 77), None);
    }

    /// Keys of the first of four buckets under `seed`.
    fn crowd(seed: u32) -> impl Iterator<Item = u64> {
        (1..).filter(move |key| index_bucket(*key, seed, 3) == 0)
    }

    #[test]
    fn a_cleared_place_rests_and_a_full_bucket_makes_another_copy() {
        let now = Instant::now();
        let (_file, mut index, view) = index(4);
        let keys: Vec<u64> = crowd(0).take(5).collect();
        for key in &keys[..4] {
            assert_eq!(index.put(0, entry(*key, 1), now).unwrap(), Put::Done);
        }
        index.remove(keys[0], now).unwrap();
        let Put::Switch(word) = index.put(0, entry(keys[4], 2), now).unwrap() else { panic!("the place rests") };
        assert_eq!(word >> 32, 1);
        // The valid copy is as it was until the switch, the other one whole before it.
        assert_eq!(find(&view, 0, keys[4]), None);
        assert_eq!(find(&view, word, keys[4]), Some((2, 5)));
        assert_eq!(find(&view, word, keys[1]), Some((1, 5)));
        assert_eq!(find(&view, word, keys[0]), None);
        index.switched(word, now);
        index.remove(keys[4], now).unwrap();
        assert_eq!(find(&view, word, keys[4]), None);
        assert_eq!(find(&view, word, keys[1]), Some((1, 5)));
    }

    #[test]
    fn an_index_that_is_found_is_read_under_its_seed() {
        use std::os::fd::AsFd as _;
        let now = Instant::now();
        let (file, mut index, view) = index(4);
        for key in crowd(0).take(4) {
            index.put(key, entry(key, 1), now).unwrap();
        }
        let last = crowd(0).nth(4).unwrap();
        let Put::Switch(word) = index.put(last, entry(last, 2), now).unwrap() else { panic!("its bucket is full") };
        let mut found = LiveIndex::found(Mapped::new("again", file.as_fd(), 8).unwrap(), word);
        let mut keys: Vec<u64> = found.entries().unwrap().iter().map(|entry| entry.key).collect();
        keys.sort_unstable();
        assert!(keys.iter().copied().eq(crowd(0).take(5)));
        keys.iter().for_each(|key| found.own(*key, *key));
        assert_eq!(found.put(7, entry(last, 3), now).unwrap(), Put::Refused(IndexError::Duplicate(last)));
        assert_eq!(found.put(last, entry(last, 3), now).unwrap(), Put::Done);
        assert_eq!(find(&view, word, last), Some((3, 5)));
    }

    #[test]
    fn a_cleared_place_that_has_rested_is_used_again() {
        let now = Instant::now();
        let (_file, mut index, view) = index(4);
        let keys: Vec<u64> = crowd(0).take(5).collect();
        keys[..4].iter().for_each(|key| assert_eq!(index.put(0, entry(*key, 1), now).unwrap(), Put::Done));
        index.remove(keys[2], now).unwrap();
        assert_eq!(index.put(0, entry(keys[4], 2), now + REST).unwrap(), Put::Done);
        assert_eq!(find(&view, 0, keys[4]), Some((2, 5)));
    }

    #[test]
    fn a_copy_that_was_left_rests_too() {
        let now = Instant::now();
        let (_file, mut index, _view) = index(4);
        let full = |index: &mut LiveIndex<u64>, seed, at| {
            let puts = crowd(seed).map(|key| index.put(0, entry(key, 1), at).unwrap());
            puts.into_iter().find(|put| *put != Put::Done).unwrap()
        };
        let Put::Switch(word) = full(&mut index, 0, now) else { panic!("the other copy was never used") };
        index.switched(word, now);
        let seed = u32::try_from(word & 0xffff_ffff).unwrap();
        assert_eq!(full(&mut index, seed, now), Put::Wait(now + REST));
        assert!(matches!(full(&mut index, seed, now + REST), Put::Switch(_)));
    }

    #[test]
    fn two_owners_cannot_have_one_key() {
        let now = Instant::now();
        let (_file, mut index, view) = index(4);
        index.put(1, entry(9, 1), now).unwrap();
        assert_eq!(index.put(2, entry(9, 2), now).unwrap(), Put::Refused(IndexError::Duplicate(9)));
        assert_eq!(find(&view, 0, 9), Some((1, 5)));
        index.remove(9, now).unwrap();
        assert_eq!(index.put(2, entry(9, 2), now + REST).unwrap(), Put::Done);
    }

    #[test]
    fn what_no_copy_has_room_for_is_refused() {
        let now = Instant::now();
        let (_file, mut index, _view) = index(1);
        (1..=4).for_each(|key| assert_eq!(index.put(0, entry(key, 1), now).unwrap(), Put::Done));
        let refused = IndexError::TooFull { keys: 5, buckets: 1 };
        assert_eq!(index.put(0, entry(5, 1), now).unwrap(), Put::Refused(refused));
    }
}
