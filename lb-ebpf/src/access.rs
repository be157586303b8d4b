//! Whether a virtual server serves a client at all: its allowed and denied prefixes.
//!
//! Asked for what may begin a connection; one that is known began when its client was let in, and user space ends those that a
//! new list shuts out.

use lb_common::drop_reason::DropReason;
use lb_common::net::Address;
use lb_common::prefix::{self, value};
use lb_common::service::service_flag;

use crate::service::{self, Hit};
use crate::{maps, word};

/// Nothing if the virtual server of `hit` serves the client at `source`; else that is counted for it.
#[inline(always)]
pub fn check(source: &Address, hit: Hit) -> Result<(), DropReason> {
    if hit.flags & service_flag::FILTERED == 0 {
        return Ok(());
    }
    let Some(service) = service::by_index(hit.index) else { return Ok(()) };
    // SAFETY: a word of a live map element.
    let run = unsafe { word::read(&raw const service.prefixes) };
    if run.length == 0 {
        return Ok(());
    }
    let [first, second] = source.halves();
    let mut found = if source.is_ipv4() {
        find_prefix(run.start, 0, u64::from(u32::from_be((second >> 32) as u32)))
    } else {
        find_prefix(run.start, 0, u64::from_be(first))
    };
    if found & value::SECOND_HALF != 0 {
        found = find_prefix(run.start, found & !value::SECOND_HALF, u64::from_be(second));
    }
    if found == value::PERMITTED {
        return Ok(());
    }
    if let Some(counters) = maps::VS_COUNTERS.get_ptr_mut(hit.index) {
        // SAFETY: this CPU's own element; nothing else writes it while the program runs.
        unsafe { (*counters).denied += 1 };
    }
    Err(DropReason::Denied)
}

/// What `number` leads to by the table at line `table` of the run that begins at line `start`; denied where it is broken.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn find_prefix(start: u32, table: u32, number: u64) -> u32 {
    prefix::find(start, table, number, |line| maps::PREFIXES.get(line), word::negative_mask).unwrap_or(value::DENIED)
}
