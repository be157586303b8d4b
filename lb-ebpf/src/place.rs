//! A connection's word in the connection table: its state and age, and their changes.
//!
//! Of whatever kind the table is: `conntrack.rs` and its control `conntrack_lru.rs` find and enter, this is what they find.

use lb_common::connection::{AGE_MAX, Meta, State};

use crate::{clock, load, maps, word};

/// No place.
pub const NO_SLOT: u32 = u32::MAX;

/// A place that is being rewritten: which connection it will hold is not known.
pub const LOCKED_SLOT: u32 = u32::MAX - 1;

/// Answers of `enter_connection`.
pub mod entry {
    /// The connection has a slot.
    pub const ENTERED: u32 = 0;
    /// No slot could be had.
    pub const REFUSED: u32 = 1;
}

/// Where a connection's slot is.
#[derive(Clone, Copy)]
pub struct Place(pub *mut u64);

/// What a look-up finds.
#[derive(Clone, Copy)]
pub enum Lookup {
    /// The slot, and its second word as it was read.
    Found(Place, Meta),
    /// No slot.
    Missing,
    /// A slot that is being rewritten: nothing may be entered now.
    #[cfg_attr(feature = "lru", expect(dead_code, reason = "the kernel locks for itself there"))]
    Locked,
}

impl Place {
    /// Notes the coarse time of a packet; false where the slot has outlived its state's timeout.
    #[inline(always)]
    pub fn touch(self, meta: Meta) -> bool {
        let now = clock::tick();
        let age = now.wrapping_sub(meta.last_seen());
        if age == 0 || age > AGE_MAX {
            return true;
        }
        if age > timeout(meta.state()) {
            return false;
        }
        // Two bytes: a store of the whole word could bring back a slot that was freed meanwhile.
        // SAFETY: the slot's second word, in a live map element; octets 4 and 5 are the time.
        unsafe { word::write(self.0.cast::<u16>().add(2), now) };
        true
    }

    /// Moves the connection to `state`; where another CPU was quicker, its word stands.
    #[inline(always)]
    pub fn advance(self, meta: Meta, state: u8) {
        // SAFETY: the slot's second word, in a live map element.
        let moved = unsafe { word::swap(self.0, meta.0, meta.moved(state, clock::tick()).0) };
        if moved {
            load::count_connection(meta.real_server().into(), meta.state().into(), state.into());
        }
    }

    /// As [`Place::advance`], and notes the way back to the client: in one change with the rest, so that it is never noted for
    /// another connection, which the slot was given to meanwhile.
    #[inline(always)]
    pub fn reroute(self, meta: Meta, state: u8, client_hop: u16) {
        // SAFETY: as in `advance`.
        let moved = unsafe { word::swap(self.0, meta.0, meta.moved(state, clock::tick()).led_back_by(client_hop).0) };
        if moved {
            load::count_connection(meta.real_server().into(), meta.state().into(), state.into());
        }
    }

    /// Forgets the connection; false where another CPU has changed the slot meanwhile.
    #[inline(always)]
    pub fn free(self, meta: Meta) -> bool {
        // SAFETY: as in `advance`.
        let freed = unsafe { word::swap(self.0, meta.0, Meta::FREE.0) };
        if freed {
            load::count_connection(meta.real_server().into(), meta.state().into(), State::FREE.into());
        }
        freed
    }

    /// Gives a persistence template another real server, unless another CPU does.
    #[inline(always)]
    pub fn redirect(self, meta: Meta, real: u16, generation: u8) {
        let new = Meta::new(real, State::TEMPLATE_NEW, generation, clock::tick(), 0);
        // SAFETY: as in `advance`; templates are not counted.
        unsafe { word::swap(self.0, meta.0, new.0) };
    }
}

/// The timeout of [`State::OPENING`], in ticks.
#[cfg(not(feature = "lru"))]
#[inline(always)]
pub fn half_open_timeout() -> u16 {
    // SAFETY: an element of the table, as in `timeout`.
    unsafe { word::read((&raw const maps::TIMEOUTS).cast::<u16>().add(State::OPENING as usize)) }
}

/// The timeout of a state, in ticks.
#[inline(always)]
pub fn timeout(state: u8) -> u16 {
    let ticks = (&raw const maps::TIMEOUTS).cast::<u16>();
    // SAFETY: an element of the table; volatile, because user space sets it when the program is loaded.
    unsafe { word::read(ticks.add(word::seven_bits(state.into()))) }
}
