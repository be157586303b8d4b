//! Ways back in plain memory, alone and beside packets in other threads.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use lb_common::connection::{Meta, State, TIMEOUT_MAX, Timeouts};
use lb_common::hash;

use super::super::memory::{Memory, Real, SECRET, Virtual};
use super::super::packet_path::quiesce;
use super::super::scanner::{Constants, Scanner};
use super::*;

const BUCKETS: usize = 8;

fn memory() -> Memory {
    let memory = Memory::new(BUCKETS, 8);
    memory.put_virtual(0, Virtual::PLAIN);
    memory.put_real(3, Real::PLAIN);
    memory
}

fn scanner() -> Scanner {
    let timeouts = Timeouts::new(TIMEOUT_MAX, TIMEOUT_MAX, TIMEOUT_MAX, TIMEOUT_MAX, TIMEOUT_MAX);
    Scanner::new(Constants { timeouts, secret: SECRET, jiffies_per_second: 250 })
}

/// What a connection that goes back by `hop` has in its slot.
fn meta(hop: u16) -> Meta {
    Meta::new(3, State::ESTABLISHED, 1, 0, hop)
}

fn state_of(tables: &Tables<'_>, hop: u16) -> u32 {
    state(word_of(tables, hop).unwrap().load(SeqCst))
}

fn put(tables: &Tables<'_>, hop: u16, routes: u32, state: u32) {
    word_of(tables, hop).unwrap().store(in_state(routes.into(), state), SeqCst);
}

/// The state of `hop` after each of three rounds, before which something happens.
fn rounds(tables: &Tables<'_>, hop: u16, before: impl Fn(u32)) -> [u32; 3] {
    let mut scanner = scanner();
    [0, 1, 2].map(|round| {
        before(round);
        for _ in 0..BUCKETS {
            scanner.slice(tables, 0);
        }
        state_of(tables, hop)
    })
}

#[test]
fn a_way_retires_after_a_round_without_use_and_is_free_after_another() {
    let memory = memory();
    let tables = memory.tables();
    put(&tables, 7, 5, hop_state::READABLE);
    put(&tables, 4095, 5, hop_state::READABLE);
    put(&tables, 9, 5, hop_state::WRITING);
    memory.put(63, 1, meta(4095));
    let states = rounds(&tables, 7, |_| {});
    assert_eq!(states, [hop_state::RETIRING, hop_state::RETIRING, hop_state::FREE]);
    assert_eq!([4095, 9].map(|hop| state_of(&tables, hop)), [hop_state::READABLE, hop_state::WRITING]);
    // What packets remember of it stays until it is written anew.
    assert_eq!(word_of(&tables, 7).unwrap().load(SeqCst) & 0xffff_ffff, 5);
}

#[test]
fn a_way_is_free_a_slice_after_the_round_that_showed_it_unused() {
    let memory = memory();
    let (tables, mut hops) = (memory.tables(), Hops::default());
    put(&tables, 7, 5, hop_state::READABLE);
    hops.end_round(&tables, &Named::default());
    assert_eq!((hops.free(&tables), state_of(&tables, 7)), (0, hop_state::RETIRING));
    hops.end_round(&tables, &Named::default());
    assert_eq!(state_of(&tables, 7), hop_state::RETIRING);
    assert_eq!((hops.free(&tables), state_of(&tables, 7)), (1, hop_state::FREE));
    assert_eq!(hops.free(&tables), 0);
}

#[test]
fn a_way_that_is_named_again_is_handed_out_again() {
    let memory = memory();
    let tables = memory.tables();
    put(&tables, 7, 5, hop_state::READABLE);
    // A packet had taken the number before the entry retired, and put it into its slot after the first round.
    let states = rounds(&tables, 7, |round| {
        if round == 1 {
            memory.put(0, 1, meta(7));
        }
    });
    assert_eq!(states, [hop_state::RETIRING, hop_state::READABLE, hop_state::READABLE]);
}

#[test]
fn no_number_is_past_the_notes() {
    let mut named = Named::default();
    named.note(0);
    named.note(64);
    named.note(u16::MAX);
    assert!(named.holds(0) && named.holds(64) && !named.holds(1) && !named.holds(u16::MAX));
}

#[test]
fn freed_slots_name_no_way() {
    let memory = memory();
    let tables = memory.tables();
    put(&tables, 7, 5, hop_state::READABLE);
    memory.put(0, 1, Meta(meta(7).0 & !0x00ff_0000));
    assert_eq!(rounds(&tables, 7, |_| {})[0], hop_state::RETIRING);
}

/// A CPU that does what packets do to `client_hops` and to the numbers in slots. A way is a number, which stands in each word
/// of its entry, and as the key of the connections that it leads back to.
struct Cpu<'a> {
    tables: Tables<'a>,
    random: u64,
}

/// More than there are entries for: numbers are short.
const WAYS: u64 = 200;
const ENTRIES: u64 = 60;

impl Cpu<'_> {
    fn forward(&mut self, turns: &AtomicU64, stop: &AtomicBool) {
        while !stop.load(SeqCst) {
            let turn = Turn::begin(turns);
            self.packet();
            drop(turn);
            if self.random.is_multiple_of(16) {
                std::thread::yield_now();
            }
        }
    }

    fn packet(&mut self) {
        self.random = hash::mix(self.random.wrapping_add(0x9e37_79b9_7f4a_7c15));
        let slots: &[[AtomicU64; 2]] = self.tables.connections.as_chunks().0;
        let [key, word] = &slots[usize::try_from(self.random % slots.len() as u64).unwrap()];
        let (old, way) = (Meta(word.load(SeqCst)), key.load(SeqCst));
        if word.load(SeqCst) != old.0 {
            return;
        }
        match (old.state(), self.random >> 32 & 7) {
            (State::LOCKED, _) => {}
            (State::FREE, _) => self.open(key, word, old),
            (_, 0) => swap(word, old, Meta::FREE),
            (_, 1) => {
                // Routes have changed: the number is looked for again.
                let hop = self.learn(way);
                std::thread::yield_now();
                swap(word, old, old.led_back_by(hop));
            }
            // A reply, whose slot may be given up from now on.
            _ if old.client_hop() != 0 => {
                std::thread::yield_now();
                let [state_word, a, b, c] = &self.tables.client_hops.as_chunks().0[usize::from(old.client_hop())];
                assert!(state(state_word.load(SeqCst)) >= hop_state::READABLE, "{old:?}");
                assert_eq!([a, b, c].map(|word| word.load(SeqCst)), [way; 3], "{old:?}");
            }
            _ => {}
        }
    }

    fn open(&self, key: &AtomicU64, word: &AtomicU64, old: Meta) {
        let way = 1 + (self.random >> 40) % WAYS;
        let hop = self.learn(way);
        std::thread::yield_now();
        if word.compare_exchange(old.0, Meta::LOCKED.0, SeqCst, SeqCst).is_ok() {
            key.store(way, SeqCst);
            // A time of its own, and none that is over: no connection's word comes again while a packet holds it.
            let seen = u16::try_from(256 + (self.random >> 16) % 65_000).unwrap();
            word.store(Meta::new(3, State::ESTABLISHED, 1, seen, hop).0, SeqCst);
        }
    }

    fn learn(&self, way: u64) -> u16 {
        for probe in 0..8 {
            let number = u16::try_from(1 + hash::mix(way).wrapping_add(probe) % ENTRIES).unwrap();
            let [word, a, b, c] = &self.tables.client_hops.as_chunks().0[usize::from(number)];
            let fields = [a, b, c];
            let old = word.load(SeqCst);
            let claimed = in_state(0, hop_state::WRITING);
            if state(old) == hop_state::FREE && word.compare_exchange(old, claimed, SeqCst, SeqCst).is_ok() {
                for field in fields {
                    field.store(way, SeqCst);
                }
                word.store(in_state(0, hop_state::READABLE), SeqCst);
                return number;
            }
            if state(old) == hop_state::READABLE && fields.map(|field| field.load(SeqCst)) == [way; 3] {
                return number;
            }
        }
        0
    }
}

/// A packet's time; it ends also where an assertion fails, for those who wait for it.
struct Turn<'a>(&'a AtomicU64);

impl<'a> Turn<'a> {
    fn begin(turns: &'a AtomicU64) -> Self {
        turns.fetch_add(1, SeqCst);
        Self(turns)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Where another CPU was quicker, its word stands.
fn swap(word: &AtomicU64, old: Meta, new: Meta) {
    word.compare_exchange(old.0, new.0, SeqCst, SeqCst).ok();
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn no_connection_ever_goes_back_by_anothers_way() {
    let memory = memory();
    let (tables, mut scanner) = (memory.tables(), scanner());
    let (stop, turns) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    let mut freed = 0;
    std::thread::scope(|scope| {
        for (turns, random) in turns.iter().zip([1, 2]) {
            let (mut cpu, stop) = (Cpu { tables, random }, &stop);
            scope.spawn(move || cpu.forward(turns, stop));
        }
        // Also where this panics: the scope waits for its threads.
        let _stop = StopOnDrop(&stop);
        let begun = Instant::now();
        // For a second, and on a loaded machine until enough has happened.
        while begun.elapsed() < Duration::from_secs(1) || (freed <= 100 && begun.elapsed() < Duration::from_secs(60)) {
            let retiring = |hop: &u16| state_of(&tables, *hop) == hop_state::RETIRING;
            let before: Vec<u16> = (1..=60).filter(retiring).collect();
            scanner.slice(&tables, 0);
            freed += before.iter().filter(|hop| state_of(&tables, **hop) != hop_state::RETIRING).count();
            quiesce(&turns);
        }
    });
    assert!(freed > 100, "{freed}");
    // Without connections, every entry is free in the third round.
    for [_, word] in tables.connections.as_chunks().0 {
        word.store(0, SeqCst);
    }
    for _ in 0..3 * BUCKETS {
        scanner.slice(&tables, 0);
    }
    assert!((0..4096).all(|hop| state_of(&tables, hop) == hop_state::FREE));
}
