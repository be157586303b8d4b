//! The XDP data path: its program, its maps, and where it is attached.
//!
//! Which interfaces and neighbours exist is [`crate::host`]'s and [`crate::nexthop`]'s to find out.

mod adopt;
pub mod adoptable;
pub mod attach;
pub mod capacity;
mod chains;
pub mod decap;
mod detach;
mod entries;
mod found;
mod live_index;
mod mapped;
mod maps;
pub mod object;
pub mod origin;
pub mod packet_log;
pub mod pins;
mod places;
mod prefix_tree;
mod prefixes;
mod real_servers;
mod rest;
mod runs;
mod slots;
pub mod statistics;
pub mod table;
pub mod tables;
mod way;

pub use tables::XdpDatapath;
