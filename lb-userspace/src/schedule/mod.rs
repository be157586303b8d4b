//! How real servers are chosen: what user space computes ahead so that the packet path only looks up, adds and compares.
//!
//! Pure: weights and addresses in, numbers out. Where these lie in the kernel is [`crate::datapath`]'s to know.

pub mod cost;
pub mod index;
pub mod maglev;
pub mod ring;
pub mod slow_start;
