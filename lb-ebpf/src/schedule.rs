//! Which real server a new connection gets.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use lb_common::drop_reason::DropReason;
use lb_common::real::RealServerEntry;
use lb_common::service::{Scheduler, VirtualServerEntry};

use crate::maps;

/// A real server and its index.
#[derive(Clone, Copy)]
pub struct Choice {
    pub index: u32,
    pub real: &'static RealServerEntry,
}

/// The real server for a new connection to `service`.
#[inline(always)]
pub fn choose(service: &VirtualServerEntry) -> Result<Choice, DropReason> {
    match service.scheduler {
        Scheduler::Rr => round_robin(service),
    }
}

/// The real server at `index`, if it still belongs to virtual server `service` and is of `generation`.
#[inline(always)]
pub fn recall(index: u32, service: &VirtualServerEntry, generation: u32) -> Option<Choice> {
    let real = maps::REAL_SERVERS.get(index)?;
    (real.virtual_server == service.index && real.generation == generation).then_some(Choice { index, real })
}

/// The next of the ring, in strict order over all CPUs.
#[inline(always)]
fn round_robin(service: &VirtualServerEntry) -> Result<Choice, DropReason> {
    let length = u64::from(service.ring_length);
    if length == 0 {
        return Err(DropReason::NoRealServer);
    }
    let cursor = maps::RR_CURSORS.get_ptr_mut(service.index).ok_or(DropReason::NoRealServer)?;
    // SeqCst, because LLVM 22 drops the result of a relaxed fetch-and-add on BPF: every connection got turn 1.
    // SAFETY: the pointer is to a live array element, which CPUs change by atomic addition only.
    let turn = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(cursor, 1) };
    let slot = service.ring_start + (turn % length) as u32;
    let index = *maps::SCHEDULER_RINGS.get(slot).ok_or(DropReason::NoRealServer)?;
    let real = maps::REAL_SERVERS.get(index).ok_or(DropReason::NoRealServer)?;
    // A ring given to another virtual server while we read it names real servers that are not ours.
    if real.generation == 0 || real.virtual_server != service.index {
        return Err(DropReason::NoRealServer);
    }
    Ok(Choice { index, real })
}
