//! The connection table: buckets of eight slots, of which each key has two, and who may take whose place.

use lb_common::connection::{SLOTS, TableCounters, Timeouts};
use lb_common::hash::{self, Secret};
use lb_common::net::Address;

use super::state::State;

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: u64,
    pub real: u16,
    pub generation: u8,
    pub state: State,
    pub last_seen: u16,
    /// Client, its port and the port that it addressed, where the key does not hold them.
    pub tuple: Option<(Address, u16, u16)>,
}

impl Entry {
    /// Ticks since its last packet. One that is up to 15 ticks ahead has just been seen, by another CPU.
    pub fn age(&self, now: u16) -> u16 {
        let ahead = self.last_seen.wrapping_sub(now);
        if (1..16).contains(&ahead) { 0 } else { now.wrapping_sub(self.last_seen) }
    }
}

/// A bucket's number and a slot's in it.
pub type Place = (usize, usize);

/// What a look-up is for: templates and connections have keys of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Connection,
    Template,
}

/// The whole table.
#[derive(Clone, Debug)]
pub struct Table {
    pub buckets: Vec<[Option<Entry>; SLOTS]>,
    pub counters: TableCounters,
    timeouts: Timeouts,
    secret: Secret,
}

/// What became of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is in; the slot was free.
    Free(Place),
    /// It is in, in place of another one.
    Displaced(Place, Entry),
    /// There was no slot that it may take.
    Refused,
}

impl Table {
    pub fn new(buckets: u32, timeouts: Timeouts, secret: Secret) -> Self {
        let buckets = vec![[None; SLOTS]; usize::try_from(buckets).expect("fits")];
        Self { buckets, counters: TableCounters::default(), timeouts, secret }
    }

    /// The slots that may hold `key`, in the order of a look-up.
    pub fn candidates(&self, key: u64) -> Vec<Place> {
        let (one, two) = self.both_buckets(key);
        [one, two].into_iter().flat_map(|bucket| (0..SLOTS).map(move |slot| (bucket, slot))).collect()
    }

    pub fn at(&self, place: Place) -> Option<Entry> {
        self.buckets[place.0][place.1]
    }

    pub fn set(&mut self, place: Place, entry: Option<Entry>) {
        self.buckets[place.0][place.1] = entry;
    }

    /// The slot of `key`.
    pub fn find(&self, key: u64, kind: Kind) -> Option<(Place, Entry)> {
        let held = self.candidates(key).into_iter().filter_map(|place| Some((place, self.at(place)?)));
        held.into_iter().find(|(_, e)| e.key == key && e.state.is_template() == (kind == Kind::Template))
    }

    /// Every slot that is taken.
    pub fn entries(&self) -> impl Iterator<Item = (Place, Entry)> {
        let places = (0..self.buckets.len()).flat_map(|bucket| (0..SLOTS).map(move |slot| (bucket, slot)));
        places.filter_map(|place| Some((place, self.at(place)?)))
    }

    /// How long `state` lasts without a packet.
    pub fn timeout(&self, state: State) -> u16 {
        self.timeouts.ticks[usize::from(state.number())]
    }

    pub fn is_expired(&self, entry: &Entry, now: u16) -> bool {
        entry.age(now) > self.timeout(entry.state)
    }

    /// Whether there is a slot, free or not, that a newcomer of `state` could have.
    pub fn has_room(&self, key: u64, state: State, now: u16) -> bool {
        self.free_slot(key).is_some() || self.victim(key, state, now).is_some()
    }

    /// Enters a newcomer that the table does not hold yet.
    pub fn insert(&mut self, entry: Entry, now: u16) -> Inserted {
        let inserted = match (self.free_slot(entry.key), self.victim(entry.key, entry.state, now)) {
            (Some(place), _) => Inserted::Free(place),
            (None, Some(place)) => Inserted::Displaced(place, self.at(place).expect("a victim is there")),
            (None, None) => Inserted::Refused,
        };
        self.count(&inserted, now);
        match inserted {
            Inserted::Free(place) | Inserted::Displaced(place, _) => self.set(place, Some(entry)),
            Inserted::Refused => {}
        }
        inserted
    }

    fn count(&mut self, inserted: &Inserted, now: u16) {
        match inserted {
            Inserted::Free(_) => self.counters.inserted += 1,
            Inserted::Displaced(_, victim) => {
                self.counters.inserted += 1;
                match self.rank(victim, now) {
                    1 => self.counters.reclaimed += 1,
                    2 => self.counters.evicted_half_open += 1,
                    3 => self.counters.evicted_closing += 1,
                    _ => self.counters.evicted_established += 1,
                }
            }
            Inserted::Refused => self.counters.refused += 1,
        }
    }

    fn both_buckets(&self, key: u64) -> (usize, usize) {
        let (one, two) = hash::buckets(key, u32::try_from(self.buckets.len()).expect("fits"), &self.secret);
        (usize::try_from(one).expect("fits"), usize::try_from(two).expect("fits"))
    }

    /// Bucket one is filled to six slots first, then the emptier of the two.
    fn free_slot(&self, key: u64) -> Option<Place> {
        let (one, two) = self.both_buckets(key);
        let free = |bucket: usize| self.buckets[bucket].iter().position(Option::is_none).map(|slot| (bucket, slot));
        let taken = |bucket: usize| self.buckets[bucket].iter().flatten().count();
        let is_first_preferred = taken(one) < 6 || taken(one) <= taken(two) || taken(two) == SLOTS;
        match (free(one), free(two)) {
            (Some(in_one), _) if is_first_preferred => Some(in_one),
            (_, in_two) => in_two,
        }
    }

    /// An expired one is worth less than any; one established by a single packet, and silent for as long as a half-open one may
    /// be, no more than a closing one.
    fn rank(&self, entry: &Entry, now: u16) -> u8 {
        match entry.state {
            _ if self.is_expired(entry, now) => 1,
            State::Settling if entry.age(now) > self.timeout(State::Opening) => 3,
            state => state.class(),
        }
    }

    /// Whose place a newcomer of `state` takes where none is free: the least protected, of those the oldest.
    fn victim(&self, key: u64, state: State, now: u16) -> Option<Place> {
        let rank = |entry: &Entry| self.rank(entry, now);
        let mut best: Option<(Place, u8, u16)> = None;
        for place in self.candidates(key) {
            let Some(entry) = self.at(place) else { continue };
            let (class, age) = (rank(&entry), entry.age(now));
            let is_better = best.is_none_or(|(_, least, oldest)| class < least || class == least && age > oldest);
            if is_better {
                best = Some((place, class, age));
            }
        }
        // Closing connections go before any newcomer; those established by more than one packet for nobody.
        best.filter(|(_, class, _)| *class <= state.class().max(3) && *class < 5).map(|(place, _, _)| place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = Secret { words: [11, 22] };

    /// Half-open 10 ticks, established 100, closing 20, reset 5, UDP 50, templates 1000.
    fn table(buckets: u32) -> Table {
        Table::new(buckets, Timeouts::new(10, 100, 20, 5, 50), SECRET)
    }

    fn entry(key: u64, state: State, last_seen: u16) -> Entry {
        Entry { key, real: 1, generation: 1, state, last_seen, tuple: None }
    }

    /// With one bucket, both candidates are the same eight slots.
    fn full(state: State) -> Table {
        let mut table = table(1);
        for key in 0..8 {
            let slot = usize::try_from(key).expect("small");
            assert_eq!(table.insert(entry(key, state, 100), 100), Inserted::Free((0, slot)));
        }
        table
    }

    #[test]
    fn a_newcomer_never_takes_the_place_of_a_better_protected_connection() {
        // By hand from the classes: 2 and 3 for everybody, 4 only for one of class 4, 5 for nobody.
        let takers = |victim| [State::Opening, State::Settling].map(|new| full(victim).has_room(99, new, 100));
        assert_eq!(takers(State::Opening), [true, true]);
        assert_eq!(takers(State::Closed), [true, true]);
        assert_eq!(takers(State::Settling), [false, true]);
        assert_eq!(takers(State::Established), [false, false]);
        assert_eq!(takers(State::Template), [false, false]);
    }

    #[test]
    fn an_expired_connection_makes_room_for_anybody() {
        let mut table = full(State::Established);
        assert_eq!(table.insert(entry(99, State::Opening, 200), 200), Inserted::Refused);
        let last = table.at((0, 0)).expect("taken");
        let inserted = table.insert(entry(99, State::Opening, 201), 201);
        assert_eq!(inserted, Inserted::Displaced((0, 0), last), "all are as old, so it is the first");
        assert_eq!((table.counters.inserted, table.counters.reclaimed, table.counters.refused), (9, 1, 1));
    }

    #[test]
    fn of_equals_the_oldest_goes() {
        let mut table = full(State::Opening);
        let mut oldest = table.at((0, 5)).expect("taken");
        oldest.last_seen = 99;
        table.set((0, 5), Some(oldest));
        assert_eq!(table.insert(entry(99, State::Opening, 101), 101), Inserted::Displaced((0, 5), oldest));
        assert_eq!(table.counters.evicted_half_open, 1);
    }

    #[test]
    fn the_first_bucket_is_filled_to_six_then_the_emptier_one() {
        let mut table = table(2);
        let is_one_then_two = |key: &u64| hash::buckets(*key, 2, &SECRET) == (0, 1);
        let placed: Vec<usize> = (0..)
            .filter(is_one_then_two)
            .take(16)
            .map(|key| match table.insert(entry(key, State::Opening, 0), 0) {
                Inserted::Free((bucket, _)) => bucket,
                other => panic!("{other:?}"),
            })
            .collect();
        // Six; then six in the other, which is emptier until both have six; then in turn, the first first.
        assert_eq!(placed, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn a_little_ahead_is_no_age_and_ages_count_across_the_wrap() {
        assert_eq!(entry(1, State::Udp, 10).age(9), 0);
        assert_eq!(entry(1, State::Udp, 65_535).age(4), 5);
        assert_eq!(entry(1, State::Udp, 100).age(1000), 900);
    }
}
