//! The connection table as a kernel LRU hash map: the control of `cargo xtask bench program`, in no daemon.
//!
//! The same words behind the same functions as in `conntrack.rs`. What the map evicts nobody sees, so counts only rise; and
//! real servers of several virtual servers behind `nat` are not told apart.

use aya_ebpf::bindings::BPF_ANY;
use lb_common::connection::{AGE_MAX, Meta, State};

use crate::{clock, load, maps, word};

/// Answers of [`enter_connection`].
pub mod entry {
    /// The connection has an entry.
    pub const ENTERED: u32 = 0;
    /// The kernel took none.
    pub const REFUSED: u32 = 1;
}

/// No place.
pub const NO_SLOT: u32 = u32::MAX;

/// A connection's entry.
#[derive(Clone, Copy)]
pub struct Place(*mut u64);

/// What a look-up finds.
#[derive(Clone, Copy)]
pub enum Lookup {
    /// The entry, and its word as it was read.
    Found(Place, Meta),
    /// No entry.
    Missing,
    /// Never: the kernel locks for itself.
    #[expect(dead_code, reason = "the other table's answer")]
    Locked,
}

impl Place {
    /// Notes the coarse time of a packet; false where the entry has outlived its state's timeout.
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
        // SAFETY: an entry's word, which the kernel keeps until the program ends; octets 4 and 5 are the time.
        unsafe { word::write(self.0.cast::<u16>().add(2), now) };
        true
    }

    /// Moves the connection to `state`.
    #[inline(always)]
    pub fn advance(self, meta: Meta, state: u8) {
        // SAFETY: as in `touch`.
        if unsafe { word::swap(self.0, meta.0, meta.moved(state, clock::tick()).0) } {
            load::count_connection(meta.real_server().into(), meta.state().into(), state.into());
        }
    }

    /// As [`Place::advance`], and notes the way back to the client: in one change with the rest, so that it is never noted for
    /// another connection, which the slot was given to meanwhile.
    #[inline(always)]
    pub fn reroute(self, meta: Meta, state: u8, client_hop: u16) {
        // SAFETY: as in `touch`.
        let moved = unsafe { word::swap(self.0, meta.0, meta.moved(state, clock::tick()).led_back_by(client_hop).0) };
        if moved {
            load::count_connection(meta.real_server().into(), meta.state().into(), state.into());
        }
    }

    /// Forgets the connection; false where another CPU has changed the entry meanwhile.
    #[inline(always)]
    pub fn free(self, meta: Meta) -> bool {
        // SAFETY: as in `touch`.
        let freed = unsafe { word::swap(self.0, meta.0, Meta::FREE.0) };
        if freed {
            load::count_connection(meta.real_server().into(), meta.state().into(), State::FREE.into());
        }
        freed
    }

    /// Gives a persistence template another real server.
    #[inline(always)]
    pub fn redirect(self, meta: Meta, real: u16, generation: u8) {
        let new = Meta::new(real, State::TEMPLATE_NEW, generation, clock::tick(), 0);
        // SAFETY: as in `touch`.
        unsafe { word::swap(self.0, meta.0, new.0) };
    }

    /// Entries have no numbers.
    #[inline(always)]
    pub fn numbered(_: u32) -> Option<(Self, Meta)> {
        None
    }
}

/// The entry of `key`: of a persistence template if `template`, else of a connection.
#[inline(always)]
pub fn find(key: u64, template: bool) -> Lookup {
    let Some(entry) = maps::CONNECTIONS.get_ptr_mut([key, template.into()]) else { return Lookup::Missing };
    // SAFETY: as in `Place::touch`.
    let meta = Meta(unsafe { word::read(entry) });
    if meta.state() == State::FREE { Lookup::Missing } else { Lookup::Found(Place(entry), meta) }
}

/// Entries have no numbers.
#[inline(always)]
pub fn find_number(_: u64) -> u32 {
    NO_SLOT
}

/// The timeout of a state, in ticks.
#[inline(always)]
pub fn timeout(state: u8) -> u16 {
    let ticks = (&raw const maps::TIMEOUTS).cast::<u16>();
    // SAFETY: an element of the table; volatile, because user space sets it when the program is loaded.
    unsafe { word::read(ticks.add(word::seven_bits(state.into()))) }
}

/// Enters a connection under `key` with `meta` as its word. One of [`entry`].
#[inline(always)]
pub fn enter_connection(key: u64, meta: u64, _: u64, _: u64, _: u64) -> u32 {
    insert(key, meta)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn insert(key: u64, meta: u64) -> u32 {
    let meta = Meta(meta);
    let is_template = State::is_template(meta.state());
    match maps::CONNECTIONS.insert([key, is_template.into()], meta.0, u64::from(BPF_ANY)) {
        Ok(()) => {
            load::count_connection(meta.real_server().into(), State::FREE.into(), meta.state().into());
            if let Some(counters) = maps::TABLE_COUNTERS.get_ptr_mut(0) {
                // SAFETY: this CPU's own element; nothing else writes it while the program runs.
                unsafe { (*counters).inserted += 1 };
            }
            entry::ENTERED
        }
        Err(_) => entry::REFUSED,
    }
}

/// The map makes room for whomever.
#[inline(always)]
pub fn is_crowded(_: u64) -> u32 {
    0
}
