//! The connection table as a kernel LRU hash map: the control of `cargo xtask bench program`, in no daemon.
//!
//! The same words behind the same functions as in `conntrack.rs`. What the map evicts nobody sees, so counts only rise; and
//! real servers of several virtual servers behind `nat` are not told apart.

use aya_ebpf::bindings::BPF_ANY;
use lb_common::connection::{Meta, State};

pub use crate::place::{LOCKED_SLOT, Lookup, NO_SLOT, Place, entry, timeout};
use crate::{load, maps, word};

/// Entries have no numbers.
#[inline(always)]
pub fn numbered(_: u32) -> Option<(Place, Meta)> {
    None
}

/// The entry of `key`: of a persistence template if `template`, else of a connection.
#[inline(always)]
pub fn find(key: u64, template: bool) -> Lookup {
    let Some(entry) = maps::CONNECTIONS.get_ptr_mut([key, template.into()]) else { return Lookup::Missing };
    // SAFETY: an entry's word, which the kernel keeps until the program ends.
    let meta = Meta(unsafe { word::read(entry) });
    if meta.state() == State::FREE { Lookup::Missing } else { Lookup::Found(Place(entry), meta) }
}

/// Entries have no numbers.
#[inline(always)]
pub fn find_number(_: u64) -> u32 {
    NO_SLOT
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
