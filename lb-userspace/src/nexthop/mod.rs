//! The ways to real servers: route, next hop, Ethernet address and MTU, found by netlink and kept fresh.
//!
//! Tells what it found; writing it into the data path is the daemon's.

mod neighbour;
mod resolve;
mod task;

pub use neighbour::release;
pub use resolve::{Found, Resolution, Resolver};
pub use task::watch;
