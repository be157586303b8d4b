//! The lab's addressing plan, the same in every lab; labs don't meet, since each has namespaces of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Address of the virtual server, on the director's `eth0` (and on `lo` of real servers for DR and TUN).
pub const VIP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// The same for IPv6: fd77::100.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);
/// The client.
pub const CLIENT4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
/// The client: fd77::10.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x10);
/// The director in the clients' subnet.
pub const DIRECTOR4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The director in the clients' subnet: fd77::1.
pub const DIRECTOR6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// The director in the real servers' subnet, their default route for NAT.
pub const DIRECTOR_SERVERS4: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
/// The director in the real servers' subnet: fd77:1::1.
pub const DIRECTOR_SERVERS6: Ipv6Addr = Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 1);

/// Port of the HTTP server on every real server.
pub const HTTP_PORT: u16 = 80;
/// Port of the UDP echo server on every real server.
pub const UDP_PORT: u16 = 5353;

/// Both addresses of the virtual server.
pub fn vips() -> [IpAddr; 2] {
    [IpAddr::V4(VIP4), IpAddr::V6(VIP6)]
}

/// Address of real server `number` (from 1): 10.77.1.11, .12, …
pub fn real4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 1, number.saturating_add(10))
}

/// IPv6 address of real server `number`, which *looks* like the IPv4 one: fd77:1::11, ::12, …
pub fn real6(number: u8) -> Ipv6Addr {
    let decimal = u16::from(number.saturating_add(10));
    let digits = ((decimal / 100) << 8) | ((decimal / 10 % 10) << 4) | (decimal % 10);
    Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_server_addresses_read_alike() {
        assert_eq!((real4(1).to_string(), real6(1).to_string()), ("10.77.1.11".into(), "fd77:1::11".into()));
        assert_eq!((real4(10).to_string(), real6(10).to_string()), ("10.77.1.20".into(), "fd77:1::20".into()));
        assert_eq!((real4(16).to_string(), real6(16).to_string()), ("10.77.1.26".into(), "fd77:1::26".into()));
    }
}
