//! A real server: a namespace with an HTTP server and a UDP echo server.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::address::{real4, real6};
use super::http::HttpServer;
use super::namespace::Namespace;
use super::udp_echo::UdpEcho;

/// One of the machines that serve; both servers run from the start.
#[derive(Debug)]
pub struct RealServer {
    number: u8,
    name: String,
    http: Option<HttpServer>,
    udp: Option<UdpEcho>,
    namespace: Namespace,
}

impl RealServer {
    pub(super) fn start(number: u8, namespace: Namespace) -> Result<Self> {
        let mut made = Self { number, name: format!("real{number}"), http: None, udp: None, namespace };
        made.start_http()?;
        made.start_udp()?;
        Ok(made)
    }

    /// `real1`, as its servers call themselves.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// 10.77.1.11 for `real1`.
    pub fn address4(&self) -> Ipv4Addr {
        real4(self.number)
    }

    /// fd77:1::11 for `real1`.
    pub fn address6(&self) -> Ipv6Addr {
        real6(self.number)
    }

    /// Where it lives.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The HTTP server, unless it was stopped.
    pub fn http(&self) -> Option<&HttpServer> {
        self.http.as_ref()
    }

    /// The UDP echo server, unless it was stopped.
    pub fn udp(&self) -> Option<&UdpEcho> {
        self.udp.as_ref()
    }

    /// Starts the HTTP server, with its count at 0, if it was stopped.
    pub fn start_http(&mut self) -> Result<()> {
        if self.http.is_none() {
            self.http = Some(HttpServer::start(&self.namespace, &self.name)?);
        }
        Ok(())
    }

    /// Closes port 80: connections are refused.
    pub fn stop_http(&mut self) {
        self.http = None;
    }

    /// Starts the UDP echo server, with its count at 0, if it was stopped.
    pub fn start_udp(&mut self) -> Result<()> {
        if self.udp.is_none() {
            self.udp = Some(UdpEcho::start(&self.namespace, &self.name)?);
        }
        Ok(())
    }

    /// Closes the UDP port.
    pub fn stop_udp(&mut self) {
        self.udp = None;
    }
}
