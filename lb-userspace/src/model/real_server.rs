//! The machine that serves. Identity is the address alone; the rest are settings.

use std::net::SocketAddr;

use lb_common::service::ForwardingMethod;

use super::Weight;

/// One real server of a virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealServer {
    /// Address and port; the port is the virtual server's own unless the forwarding method is NAT.
    pub address: SocketAddr,
    /// Its share of new connections.
    pub weight: Weight,
    /// How packets reach it.
    pub forwarding: ForwardingMethod,
}
