//! What is balanced: virtual servers and the real servers behind them. Pure values, no file and no kernel.

mod access_list;
mod real_server;
mod service;
mod virtual_server;
mod weight;

pub use access_list::{Access, AccessList};
pub use real_server::{RealServer, Thresholds};
pub use service::Service;
pub use virtual_server::{Persistence, Policy, Removal, VirtualServer};
pub use weight::Weight;
