//! Ways back to clients, `client_hops`, that no connection uses any more: they are freed for others.
//!
//! Packets make an entry when they come by a new way, and put its number into their connection's slot; they never free one.
//! The sweep sees all slots in a round, but never at one moment, so an entry goes in steps, of which each has its reason:
//!
//! 1. At the end of a round in which no slot named it, it retires: no further connection gets its number. It must stay
//!    readable. A slot that the sweep had passed already may have got the number later in the round; and a packet may have
//!    taken the number just before, to put it into its slot just after.
//! 2. At the end of the next round, one that is named again is handed out again. In that round the sweep has seen every slot
//!    that names it: such a slot got the number before the entry retired, or from a packet that was under way then. That
//!    packet was through when the round's first slice began, a pause after the last one's end, which is longer than any packet
//!    takes. Since then no slot can have got the number from anywhere: it was not handed out, and a packet that changes a slot
//!    puts in what the slot had, or a number that it was handed out.
//! 3. One that is not named is free, but not before the next slice. A packet may have read the number from its slot just
//!    before the slot was given up and the sweep saw it; now it reads the entry, which nobody must write anew meanwhile. Again
//!    the pause between two slices is longer than that packet takes.
//!
//! So an entry is freed one to three rounds after its last use. With every change of routes, connections get new numbers at
//! their next reply, and the old entries go this way too; connections without a reply keep theirs as long as they last.
//!
//! Only packets move an entry from free to readable, and only this file moves it on and back, each by a compare-and-swap.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use lb_common::CLIENT_HOPS_LENGTH;
use lb_common::real::{ClientHop, hop_state};

use super::words::Tables;

const HOP_WORDS: usize = size_of::<ClientHop>() / 8;
const BITS: usize = 64;
const LENGTH: usize = CLIENT_HOPS_LENGTH as usize / BITS;

/// The numbers of ways back that slots name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named([u64; LENGTH]);

impl Default for Named {
    fn default() -> Self {
        Self([0; LENGTH])
    }
}

impl Named {
    /// Notes that a slot names `hop`; zero, which is none, may be noted too.
    pub fn note(&mut self, hop: u16) {
        let hop = usize::from(hop);
        if let Some(word) = self.0.get_mut(hop / BITS) {
            *word |= 1 << (hop % BITS);
        }
    }

    fn holds(&self, hop: u16) -> bool {
        let hop = usize::from(hop);
        self.0.get(hop / BITS).is_some_and(|word| word >> (hop % BITS) & 1 != 0)
    }
}

/// What is kept from one round to the next.
#[derive(Clone, Debug, Default)]
pub struct Hops {
    /// Retired, and named by no slot in a whole round since.
    unused: Vec<u16>,
}

impl Hops {
    /// Frees what the last round has shown to be unused. To be called at least 10 ms after that.
    /// Returns how many they were.
    pub fn free(&mut self, tables: &Tables<'_>) -> usize {
        let unused = std::mem::take(&mut self.unused);
        let freed = unused.into_iter().filter_map(|hop| word_of(tables, hop));
        freed.filter(|word| move_on(word, hop_state::RETIRING, hop_state::FREE)).count()
    }

    /// Retires entries, or takes them back, at the end of a round over all slots, which named those in `named`. At least
    /// 10 ms goes by before the next round.
    pub fn end_round(&mut self, tables: &Tables<'_>, named: &Named) {
        let (entries, _) = tables.client_hops.as_chunks::<HOP_WORDS>();
        for (hop, [word, ..]) in (0_u16..).zip(entries) {
            match (state(word.load(Acquire)), named.holds(hop)) {
                (hop_state::READABLE, false) => {
                    move_on(word, hop_state::READABLE, hop_state::RETIRING);
                }
                (hop_state::RETIRING, true) => {
                    move_on(word, hop_state::RETIRING, hop_state::READABLE);
                }
                (hop_state::RETIRING, false) => self.unused.push(hop),
                // Free, being written, or in use.
                _ => {}
            }
        }
    }
}

/// The word of an entry that has its state.
fn word_of<'a>(tables: &Tables<'a>, hop: u16) -> Option<&'a AtomicU64> {
    let [word, ..] = tables.client_hops.as_chunks::<HOP_WORDS>().0.get(usize::from(hop))?;
    Some(word)
}

fn state(word: u64) -> u32 {
    let [_, _, _, _, a, b, c, d] = word.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// The word of an entry in another state.
fn in_state(word: u64, state: u32) -> u64 {
    let ([a, b, c, d, ..], [e, f, g, h]) = (word.to_ne_bytes(), state.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Whether the entry was in state `from`, and is now in state `to`.
fn move_on(word: &AtomicU64, from: u32, to: u32) -> bool {
    let old = word.load(Acquire);
    state(old) == from && word.compare_exchange(old, in_state(old, to), AcqRel, Relaxed).is_ok()
}

#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod tests;
