//! How long is too long: limits are meant for a processor, and an emulated one (`cargo xtask vm`) is much slower.

use std::time::Duration;

/// How much slower an emulated processor may be.
const EMULATED: u32 = 10;

/// `limit`, or a multiple of it where the environment has `EVENKEEL_EMULATED=1`.
pub fn patience(limit: Duration) -> Duration {
    if is_emulated() { limit * EMULATED } else { limit }
}

/// Whether this runs in a virtual machine of `cargo xtask vm`.
pub fn is_emulated() -> bool {
    std::env::var_os("EVENKEEL_EMULATED").is_some_and(|value| value == "1")
}
