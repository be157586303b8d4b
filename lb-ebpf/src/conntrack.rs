//! The connection table: look-up, insertion, state and age of a connection's slot.
//!
//! Cache-line buckets in an array, two candidates a connection, no lock: ARCHITECTURE.md has the protocol. Nothing outside
//! this file touches a slot.

use lb_common::connection::{AGE_MAX, Bucket, Meta, SLOTS, State, Tuple};
use lb_common::hash;
use lb_common::net::{Address, Port};

pub use crate::place::{LOCKED_SLOT, Lookup, NO_SLOT, Place, entry, timeout};
use crate::{clock, load, maps, word};

/// A connection or template that wants a slot.
struct Newcomer {
    key: u64,
    meta: Meta,
    client: [u64; 2],
    ports: u64,
}

/// Most connections a bucket holds before a newcomer looks at its other one.
const PRIMARY_FILL: u64 = 6;

/// The place that [`crate::replies::find_other`] has numbered.
#[inline(always)]
pub fn numbered(number: u32) -> Option<(Place, Meta)> {
    let bucket = maps::CONNECTIONS.get_ptr_mut(number / SLOTS as u32)?;
    // SAFETY: a slot of a live map element.
    let second = unsafe { (bucket as *mut u64).add(word::lane(number.into()) * 2 + 1) };
    // SAFETY: as above.
    Some((Place(second), Meta(unsafe { word::read(second) })))
}

/// The slot of `key`: of a persistence template if `template`, else of a connection.
#[inline(always)]
pub fn find(key: u64, template: bool) -> Lookup {
    let (one, two) = candidates(key);
    let Some(bucket) = maps::CONNECTIONS.get_ptr_mut(one) else { return Lookup::Missing };
    let first = search(bucket, key, template);
    if let Lookup::Found(..) = first {
        return first;
    }
    let Some(bucket) = maps::CONNECTIONS.get_ptr_mut(two) else { return Lookup::Missing };
    match (search(bucket, key, template), first) {
        // A slot that somebody takes may hold the key of the connection it held once.
        (Lookup::Missing, Lookup::Locked) => Lookup::Locked,
        (second, _) => second,
    }
}

/// The number of the place that [`find`] would find for a connection; [`NO_SLOT`] where there is none, and [`LOCKED_SLOT`] where
/// one is being rewritten.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn find_number(key: u64) -> u32 {
    let (one, two) = candidates(key);
    let mut missed = NO_SLOT;
    for bucket in [one, two] {
        let Some(slots) = maps::CONNECTIONS.get_ptr_mut(bucket) else { return NO_SLOT };
        match search(slots, key, false) {
            Lookup::Found(place, _) => {
                let offset = (place.0 as u64).wrapping_sub(slots as u64) >> 4;
                return bucket * SLOTS as u32 + (offset as u32 & 7);
            }
            Lookup::Locked => missed = LOCKED_SLOT,
            Lookup::Missing => {}
        }
    }
    missed
}

#[inline(always)]
fn candidates(key: u64) -> (u32, u32) {
    hash::buckets(key, maps::BUCKETS.load(), &maps::SECRET.load())
}

#[inline(always)]
fn search(bucket: *mut Bucket, key: u64, template: bool) -> Lookup {
    let words = bucket.cast::<u64>();
    let mut missed = Lookup::Missing;
    let mut slot = 0;
    while slot < SLOTS {
        // SAFETY: a word of a live map element, like those below.
        let (first, second) = unsafe { (words.add(slot * 2), words.add(slot * 2 + 1)) };
        // SAFETY: as above.
        if unsafe { word::read(first) } == key {
            // SAFETY: as above.
            let meta = Meta(unsafe { word::read(second) });
            let state = meta.state();
            if state == State::LOCKED {
                missed = Lookup::Locked;
            }
            // A freed slot keeps its key; one that was given away since has another.
            let is_held = state != State::FREE && state != State::LOCKED && State::is_template(state) == template;
            // SAFETY: as above.
            if is_held && unsafe { word::read(first) } == key {
                return Lookup::Found(Place(second), meta);
            }
        }
        slot += 1;
    }
    missed
}

/// Enters a connection under `key` with `meta` as its second word; `client` (two halves) and `ports` (the client's, and
/// from bit 16 the one that it addressed) for `tuples`. One of [`entry`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn enter_connection(key: u64, meta: u64, client_a: u64, client_b: u64, ports: u64) -> u32 {
    let (one, two) = candidates(key);
    let meta = Meta(meta);
    let newcomer = Newcomer { key, meta, client: [client_a, client_b], ports };
    let both = u64::from(one) | u64::from(two) << 32;
    for _ in 0..2 {
        let mut number = free_slot(one, two);
        let highest = if number == NO_SLOT {
            number = victim(both, State::class(meta.state()).into());
            highest_class(State::class(meta.state()))
        } else {
            0
        };
        if number == NO_SLOT {
            tally(|counters| counters.refused += 1);
            return entry::REFUSED;
        }
        if claim(number, highest, &newcomer) {
            tally(|counters| counters.inserted += 1);
            return entry::ENTERED;
        }
    }
    tally(|counters| counters.lost_races += 1);
    entry::REFUSED
}

/// 1 if a SYN for `key` would find no slot, else 0.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn is_crowded(key: u64) -> u32 {
    let (one, two) = candidates(key);
    let both = u64::from(one) | u64::from(two) << 32;
    u32::from(free_slot(one, two) == NO_SLOT && victim(both, State::class(State::OPENING).into()) == NO_SLOT)
}

/// Changes this CPU's counters of the table.
#[inline(always)]
fn tally(change: impl Fn(&mut lb_common::connection::TableCounters)) {
    if let Some(counters) = maps::TABLE_COUNTERS.get_ptr_mut(0) {
        // SAFETY: this CPU's own element; nothing else writes it while the program runs.
        change(unsafe { &mut *counters });
    }
}

/// The number of the free slot that a newcomer takes, in one of two buckets.
///
/// Straight-line: a branch for each slot would be 2^16 paths to verify.
#[inline(always)]
fn free_slot(one: u32, two: u32) -> u32 {
    let (Some(first), Some(second)) = (maps::CONNECTIONS.get_ptr_mut(one), maps::CONNECTIONS.get_ptr_mut(two)) else {
        return NO_SLOT;
    };
    let first = room(first);
    let first_occupied = first >> 8;
    if first_occupied < PRIMARY_FILL {
        return one * SLOTS as u32 + (first & 7) as u32;
    }
    let second = room(second);
    let second_occupied = second >> 8;
    let has_room = |occupied: u64| occupied < SLOTS as u64;
    if has_room(first_occupied) && (first_occupied <= second_occupied || !has_room(second_occupied)) {
        return one * SLOTS as u32 + (first & 7) as u32;
    }
    if has_room(second_occupied) {
        return two * SLOTS as u32 + (second & 7) as u32;
    }
    NO_SLOT
}

/// How many slots are occupied, times 256, plus the first that is not.
#[inline(always)]
fn room(bucket: *mut Bucket) -> u64 {
    let words = bucket.cast::<u64>();
    let (mut occupied, mut free) = (SLOTS as u64, 0);
    let mut slot = SLOTS;
    while slot > 0 {
        slot -= 1;
        // SAFETY: a word of a live map element.
        let meta = unsafe { word::read(words.add(slot * 2 + 1)) };
        let is_free = word::is_negative((meta & 0x00ff_0000).wrapping_sub(1));
        occupied -= is_free;
        free ^= (free ^ slot as u64) & 0_u64.wrapping_sub(is_free);
    }
    occupied << 8 | free
}

/// The number of the slot that a newcomer of class `class` may take from another connection, of the two buckets in the
/// halves of `buckets`.
///
/// Expired ones first, then by class, oldest first. Straight-line, as [`free_slot`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn victim(buckets: u64, class: u32) -> u32 {
    let now = u64::from(clock::tick());
    // One after the other: fewer values at a time lie on the stack, of which there are 32 bytes left here (Linux 6.1).
    let (one, two) = (buckets as u32, (buckets >> 32) as u32);
    let Some(bucket) = maps::CONNECTIONS.get_ptr_mut(one) else { return NO_SLOT };
    let best = weakest(bucket, 0, now, u64::MAX >> 1);
    let Some(bucket) = maps::CONNECTIONS.get_ptr_mut(two) else { return NO_SLOT };
    let best = weakest(bucket, SLOTS as u64, now, best);
    if best >> RANK_CLASS > u64::from(highest_class(class as u8)) {
        return NO_SLOT;
    }
    let bucket = if best & SLOTS as u64 == 0 { one } else { two };
    bucket * SLOTS as u32 + (best & 7) as u32
}

/// A rank has the class from this bit on, below it 65,535 less the age, and in the low four bits the slot.
const RANK_CLASS: u64 = 20;

/// Class of connections that are established by one packet.
const SETTLING_CLASS: u64 = 4;
/// Class of connections that are closing.
const CLOSING_CLASS: u64 = 3;

/// The highest class that a newcomer of `class` may displace: never established connections that are in use, but always
/// those that are closing.
#[inline(always)]
fn highest_class(class: u8) -> u8 {
    class.clamp(3, 4)
}

/// The smallest rank of a bucket's slots and `best`.
#[inline(always)]
fn weakest(bucket: *mut Bucket, offset: u64, now: u64, best: u64) -> u64 {
    let words = bucket.cast::<u64>();
    let mut best = best;
    let (mut slot, slots) = (0, word::slots());
    while slot < slots {
        // SAFETY: a word of a live map element.
        let meta = unsafe { word::read(words.add(word::lane(slot as u64) * 2 + 1)) };
        let rank = rank(meta, now) | offset | slot as u64;
        let less = rank.wrapping_sub(best);
        best = best.wrapping_add(less & word::negative_mask(less));
        slot += 1;
    }
    best
}

#[inline(always)]
fn rank(meta: u64, now: u64) -> u64 {
    let state = meta >> 16 & 0xff;
    let age = now.wrapping_sub(meta >> 32) & 0xffff;
    // A tick that is ahead of ours is no age.
    let age = age & !word::negative_mask(u64::from(AGE_MAX).wrapping_sub(age));
    let limit = u64::from(timeout(state as u8));
    let is_expired = word::negative_mask(limit.wrapping_sub(age));
    let class = state >> 4;
    // One packet after the SYN proves no more than the SYN does: a sender that nobody answers to may have made it up.
    let is_settling = word::negative_mask((class ^ SETTLING_CLASS).wrapping_sub(1));
    let is_silent = word::negative_mask(u64::from(crate::place::half_open_timeout()).wrapping_sub(age));
    let class = class ^ ((SETTLING_CLASS ^ CLOSING_CLASS) & is_settling & is_silent);
    let class = class ^ ((class ^ 1) & is_expired);
    class << RANK_CLASS | (0xffff - age) << 4
}

/// Takes slot `number` for a newcomer, a free one if `highest` is 0, else one of a class up to that; false where another CPU
/// was quicker.
#[inline(always)]
fn claim(number: u32, highest: u8, newcomer: &Newcomer) -> bool {
    let Newcomer { key, meta, client, ports } = *newcomer;
    let bucket = number / SLOTS as u32;
    let lane = word::lane(number.into());
    let Some(slots) = maps::CONNECTIONS.get_ptr_mut(bucket) else { return false };
    // SAFETY: a slot of a live map element.
    let (first, second) = unsafe {
        let first = (slots as *mut u64).add(lane * 2);
        (first, first.add(1))
    };
    // SAFETY: as above.
    let old = Meta(unsafe { word::read(second) });
    let mut class = 0;
    if old.state() != State::FREE {
        class = rank(old.0, clock::tick().into()) >> RANK_CLASS;
        if class > u64::from(highest) {
            return false;
        }
    }
    // SAFETY: as above.
    if !unsafe { word::swap(second, old.0, Meta::LOCKED.0) } {
        return false;
    }
    if old.state() != State::FREE {
        displaced(old, class);
    }
    // SAFETY: as above; the slot is ours until its second word is written.
    unsafe { word::write(first, key) };
    if maps::WIDE_TUPLES.load() != 0
        && let Some(tuples) = maps::TUPLES.get_ptr_mut(bucket)
    {
        let words = [client[0] as u32, (client[0] >> 32) as u32, client[1] as u32, (client[1] >> 32) as u32];
        let tuple = Tuple {
            client: Address::from_words(words),
            client_port: Port::new(ports as u16),
            vip_port: Port::new((ports >> 16) as u16),
        };
        // SAFETY: an element of a live map; only the holder of the slot writes it.
        unsafe { word::write((tuples as *mut Tuple).add(lane), tuple) };
    }
    load::count(meta.real_server().into(), State::FREE, meta.state());
    // SAFETY: as above.
    unsafe { word::write(second, meta.0) };
    true
}

/// Takes a displaced connection off its real server's counts, and says so in the counters.
#[inline(always)]
fn displaced(old: Meta, class: u64) {
    load::count_connection(old.real_server().into(), old.state().into(), State::FREE.into());
    match class {
        0 | 1 => tally(|counters| counters.reclaimed += 1),
        2 => tally(|counters| counters.evicted_half_open += 1),
        3 => tally(|counters| counters.evicted_closing += 1),
        _ => tally(|counters| counters.evicted_established += 1),
    }
}
