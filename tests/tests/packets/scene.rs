//! Who is who in these tests: addresses of the client, the director, the VIPs and the real servers, in both families.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;
use lb_userspace::model::Service;

use super::frame::{Frame, Transport};

pub type Mac = [u8; 6];

/// The director's, on the interface that all frames come in by.
pub const OUR_MAC: Mac = [0x02, 0, 0, 0, 0, 0x01];
pub const CLIENT_MAC: Mac = [0x02, 0, 0, 0, 0, 0x0c];

/// The loopback device of the test's namespace: the kernel runs test frames as if they had come in there.
pub const INGRESS: u32 = 1;
/// Another interface; it need not exist to be redirected to.
pub const ELSEWHERE: u32 = 7;
/// An interface that the program is not attached to; those below are.
pub const UNLISTED: u32 = 32;

/// The virtual servers' port.
pub const PORT: u16 = 80;
/// The real servers' port with `nat`.
pub const NAT_PORT: u16 = 8080;

pub const METHODS: [ForwardingMethod; 3] = [ForwardingMethod::Nat, ForwardingMethod::Dr, ForwardingMethod::Tun];
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// The client, from `port`.
    pub fn client(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address([192, 0, 2, 10], 0xc), port)
    }

    /// The director's own address, the outer source of tunnelled packets.
    pub fn director(self) -> IpAddr {
        self.address([198, 51, 100, 254], 0xd)
    }

    /// The VIP number `n`, 0..=99.
    pub fn vip(self, n: u8) -> IpAddr {
        self.address([203, 0, 113, 100 + n], 0xf00 + u16::from(n))
    }

    /// The address of real server `n`.
    pub fn real(self, n: u8) -> IpAddr {
        self.address([198, 51, 100, n], 0x5e00 + u16::from(n))
    }

    /// An address of the client's network that nobody has.
    pub fn stranger(self) -> IpAddr {
        self.address([192, 0, 2, 99], 0xbad)
    }

    fn address(self, v4: [u8; 4], v6: u16) -> IpAddr {
        match self {
            Self::V4 => v4.into(),
            // Every word differs from zero, so that one left out of a checksum shows.
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x11, 0x2233, 0x4455, 0x66, v6, 0x8000 | v6).into(),
        }
    }
}

/// The Ethernet address of real server `n`.
pub fn real_mac(n: u8) -> Mac {
    [0x02, 0, 0, 0, 0x01, n]
}

/// The number of the real server with this Ethernet address.
pub fn number_of(mac: &[u8]) -> Option<u8> {
    (1..=250).find(|n| real_mac(*n) == mac)
}

/// The first VIP's virtual server.
pub fn service(family: Family, protocol: Protocol) -> Service {
    Service { address: SocketAddr::new(family.vip(0), PORT), protocol }
}

/// Real server `n` as `method` reaches it: only `nat` can change the port.
pub fn real_server(family: Family, method: ForwardingMethod, n: u8) -> SocketAddr {
    let port = match method {
        ForwardingMethod::Nat => NAT_PORT,
        ForwardingMethod::Dr | ForwardingMethod::Tun => PORT,
    };
    SocketAddr::new(family.real(n), port)
}

/// A packet from the client's `port` to `service`, which for TCP and SCTP opens a connection.
pub fn opening(service: Service, port: u16) -> Frame {
    let family = if service.address.is_ipv4() { Family::V4 } else { Family::V6 };
    match service.protocol {
        Protocol::Tcp => Frame::tcp(family.client(port), service.address, super::frame::SYN),
        Protocol::Udp => Frame::udp(family.client(port), service.address),
        Protocol::Sctp => Frame::sctp(family.client(port), service.address, &[super::sctp_frame::kind::INIT]),
    }
}

/// The answer of real server `n` to `request`, of which TCP says `flags`, as it comes to the director.
pub fn answer(request: &Frame, real: SocketAddr, n: u8, flags: u8) -> Frame {
    let transport = match request.transport {
        Transport::Tcp { .. } => Transport::Tcp { flags },
        Transport::Udp { has_checksum } => Transport::Udp { has_checksum },
        Transport::Sctp { .. } => Transport::Sctp { chunks: super::sctp_frame::saying(flags) },
        Transport::Other { protocol } => Transport::Other { protocol },
    };
    Frame::new(real, request.source, transport).macs(real_mac(n), OUR_MAC)
}
