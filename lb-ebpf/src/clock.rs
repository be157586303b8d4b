//! The time: jiffies, which the verifier inlines to one load.

use aya_ebpf::helpers::bpf_jiffies64;
use lb_common::connection::TICK_SHIFT;

/// The coarse time: jiffies / 256, modulo 65,536.
#[inline(always)]
pub fn tick() -> u16 {
    long_tick() as u16
}

/// The same modulo 2^32, for what may lie unused for hours.
#[inline(always)]
pub fn long_tick() -> u32 {
    // SAFETY: the helper has no precondition.
    let jiffies = unsafe { bpf_jiffies64() };
    (jiffies >> TICK_SHIFT) as u32
}
