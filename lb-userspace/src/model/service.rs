//! The identity of a virtual server.

use std::fmt;
use std::net::SocketAddr;

use lb_common::net::{Port, Protocol};
use lb_common::service::ServiceKey;

/// (VIP, port, protocol): what clients address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// The virtual IP and its port.
    pub address: SocketAddr,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl From<Service> for ServiceKey {
    fn from(service: Service) -> Self {
        let Service { address, protocol } = service;
        Self::new(address.ip().into(), Port::new(address.port()), protocol)
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, protocol } = self;
        write!(f, "{} {address}", protocol.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_prints_as_operators_name_it() {
        let service = Service { address: "10.0.0.100:80".parse().unwrap(), protocol: Protocol::Tcp };
        assert_eq!(service.to_string(), "tcp 10.0.0.100:80");
        let service = Service { address: "[fd77::100]:5353".parse().unwrap(), protocol: Protocol::Udp };
        assert_eq!(service.to_string(), "udp [fd77::100]:5353");
    }

    #[test]
    fn the_map_key_holds_address_port_and_protocol() {
        let service = Service { address: "10.0.0.100:80".parse().unwrap(), protocol: Protocol::Udp };
        let key = ServiceKey::from(service);
        assert_eq!(key.vip.octets, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 100]);
        assert_eq!((key.port.number(), key.protocol as u32), (80, 17));
    }
}
