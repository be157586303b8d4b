//! The XDP data path: its program, its maps, and where it is attached.
//!
//! Which interfaces and neighbours exist is [`crate::host`]'s and [`crate::nexthop`]'s to find out.

pub mod attach;
pub mod decap;
mod detach;
mod maps;
pub mod object;
pub mod packet_log;
pub mod pins;
mod slots;
pub mod statistics;
pub mod tables;

pub use tables::XdpDatapath;
