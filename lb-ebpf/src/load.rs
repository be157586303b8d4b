//! What connections cost their real servers: counts and loads, changed when a connection's state changes.
//!
//! Never once a packet: a connection moves them when it begins, is established, closes and ends.

use lb_common::connection::State;
use lb_common::real::{RealServerEntry, load};
use lb_common::service::NONE;

use crate::{maps, word};

/// Whether a real server takes new connections.
#[inline(always)]
pub fn is_available(real: u32) -> bool {
    word_of(real) < load::UNAVAILABLE
}

/// Whether a real server has a weight, however loaded it is.
///
/// By the weight itself: of its word in `server_loads` single bits may be wrong for a moment while user space writes it.
#[inline(always)]
pub fn has_weight(real: u32) -> bool {
    maps::REAL_SERVERS.get(real).is_some_and(|real| real.weight != 0)
}

/// A real server's word in `server_loads`; that of an unavailable one where there is none.
#[inline(always)]
pub fn word_of(real: u32) -> u64 {
    match maps::SERVER_LOADS.get_ptr_mut(real / 8) {
        // SAFETY: a lane of a live map element.
        Some(chunk) => unsafe { word::read((chunk as *const u64).add(word::lane(real.into()))) },
        None => u64::MAX,
    }
}

const ONE_ACTIVE: u64 = 1 << 32;

/// [`count`], as a function of its own: verified once, not on every path that leads here.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn count_connection(index: u32, from: u32, to: u32) -> u32 {
    count(index, from as u8, to as u8);
    0
}

/// Notes that a connection of `index` went from one state to another; [`State::FREE`] before its begin and after its end.
#[inline(always)]
pub fn count(index: u32, from: u8, to: u8) {
    let (from_active, from_inactive) = share(from);
    let (to_active, to_inactive) = share(to);
    let active = to_active.wrapping_sub(from_active);
    let inactive = to_inactive.wrapping_sub(from_inactive);
    if active == 0 && inactive == 0 {
        return;
    }
    let Some(real) = maps::REAL_SERVERS.get(index) else { return };
    let Some(counts) = maps::SERVER_COUNTS.get_ptr_mut(index / 8) else { return };
    let Some(loads) = maps::SERVER_LOADS.get_ptr_mut(index / 8) else { return };
    // SAFETY: a lane of a live map element.
    let counts = unsafe { (counts as *mut u64).add(word::lane(index.into())) };
    // SAFETY: as above.
    let lane = unsafe { (loads as *mut u64).add(word::lane(index.into())) };
    let change = active.wrapping_mul(ONE_ACTIVE).wrapping_add(inactive);
    // SAFETY: as above.
    let before = unsafe { word::add(counts, change) };
    let cost = active.wrapping_mul(real.active_cost).wrapping_add(inactive.wrapping_mul(real.inactive_cost));
    let cost = cost.wrapping_add(steps(real, before >> 32, active));
    if cost != 0 {
        // SAFETY: as above.
        unsafe { word::add(lane, cost) };
    }
    if real.upper_threshold != 0 {
        let after = before.wrapping_add(change);
        let total = |counts: u64| (counts >> 32) + (counts & 0xffff_ffff);
        // SAFETY: as above.
        unsafe { limit(real, lane, total(before), total(after)) };
    }
}

/// What active and inactive connections a state stands for.
#[inline(always)]
fn share(state: u8) -> (u64, u64) {
    if State::is_active(state) {
        (1, 0)
    } else if state == State::FREE || State::is_template(state) {
        (0, 0)
    } else {
        (0, 1)
    }
}

/// What the load changes by beyond the costs, where `before` active connections change by `active`, one up or down.
#[inline(always)]
fn steps(real: &RealServerEntry, before: u64, active: u64) -> u64 {
    let mut step = 0_u64;
    if active == 1 {
        if before == 0 {
            step = real.busy_cost;
        }
        if real.active_limit != NONE && before == u64::from(real.active_limit) {
            step = step.wrapping_add(load::OVERFLOWING);
        }
    } else if active != 0 {
        if before == 1 {
            step = 0_u64.wrapping_sub(real.busy_cost);
        }
        if real.active_limit != NONE && before == u64::from(real.active_limit) + 1 {
            step = step.wrapping_sub(load::OVERFLOWING);
        }
    }
    step
}

/// Sets or clears the mark of a real server that has reached its thresholds.
#[inline(always)]
unsafe fn limit(real: &RealServerEntry, lane: *mut u64, before: u64, after: u64) {
    let (upper, lower) = (u64::from(real.upper_threshold), u64::from(real.lower_threshold));
    if after > before {
        if after >= upper {
            // SAFETY: the caller's.
            unsafe { word::set(lane, load::OVERLOADED) };
        }
    } else if after < before {
        let is_below = if lower != 0 { after < lower } else { after * 4 < upper * 3 };
        if is_below {
            // SAFETY: the caller's.
            unsafe { word::clear(lane, load::OVERLOADED) };
        }
    }
}
