//! Evenkeel's user space, in reading order.
//!
//! ```text
//! config ─► daemon ─► reconcile ─► datapath (xdp) ─► maps and programs in the kernel
//!             │  ▲                    └── schedule: rings, hash tables, costs of connections
//!             │  └── nexthop: routes, neighbours, MTU by netlink
//!             └───── control ◄── evenkeel status
//! instance: lock, socket, pins, journal; what it made goes when it is dropped
//! ```

pub mod cli;
pub mod config;
pub mod model;

pub mod daemon;
pub mod handover;
pub mod instance;
pub mod status;

pub mod schedule;

pub mod datapath;
pub mod reconcile;

pub mod control;
pub mod error;
pub mod host;
pub mod nexthop;
