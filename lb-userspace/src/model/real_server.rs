//! The machine that serves. Identity is the address alone; the rest are settings.

use std::net::SocketAddr;

use lb_common::service::ForwardingMethod;

use super::Weight;

/// One real server of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealServer {
    /// Address and port; the port is the virtual server's own unless the forwarding method is NAT, and 0 where that serves
    /// all ports.
    pub address: SocketAddr,
    /// Its share of new connections.
    pub weight: Weight,
    /// How packets reach it.
    pub forwarding: ForwardingMethod,
    /// How many connections it takes.
    pub thresholds: Thresholds,
}

/// Limits on a real server's connections, active and inactive together; the zeros of the default set none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// With so many it takes no new one.
    pub upper: u32,
    /// With fewer than this it takes new ones again; zero: three quarters of `upper`. Never above `upper`.
    pub lower: u32,
}
