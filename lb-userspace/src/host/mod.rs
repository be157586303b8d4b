//! What the daemon must know of the host, and the few things that it changes there and puts back.

pub mod firewall;
pub mod journal;
pub mod link;
pub mod offload;
pub mod preflight;
pub mod service_manager;
pub mod stack;
pub mod undo;

use nix::time::{ClockId, clock_getres};

/// The kernel's timer frequency (`CONFIG_HZ`), in which connections are timed.
///
/// The coarse clocks advance once a jiffy, so their resolution is its length.
pub fn jiffies_per_second() -> u32 {
    const TYPICAL: u32 = 250;
    let Ok(length) = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE) else { return TYPICAL };
    let nanoseconds = u32::try_from(length.tv_nsec()).unwrap_or(0);
    1_000_000_000_u32.checked_div(nanoseconds).unwrap_or(TYPICAL).clamp(24, 10_000)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_timer_frequency_is_one_that_kernels_are_built_with() {
        assert!([100, 250, 300, 1000].contains(&super::jiffies_per_second()), "{}", super::jiffies_per_second());
    }
}
