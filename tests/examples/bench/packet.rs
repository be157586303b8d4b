//! Who is who in the measurements, and the packets that they send. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use lb_common::bench::{BenchConfig, FIRST_PORT, FRAME_LENGTH, Order, PACKET_OFFSET, PACKET_WORDS};

use crate::matrix::{Family, Path};

/// The director's Ethernet address.
pub const DIRECTOR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
/// That of the router before the clients.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0c];

/// The virtual server's port.
pub const PORT: u16 = 80;
/// The real servers' port with `nat`.
pub const NAT_PORT: u16 = 8080;

/// TCP header flags, RFC 9293 §3.1.
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

const TCP: u8 = 6;

/// The Ethernet address of real server `n`.
pub const fn real_mac(n: u16) -> [u8; 6] {
    let [high, low] = n.to_be_bytes();
    [0x02, 0, 0, 0x01, high, low]
}

impl Family {
    /// The virtual server.
    pub fn vip(self) -> SocketAddr {
        let address = match self {
            Self::V4 => Ipv4Addr::new(203, 0, 113, 100).into(),
            Self::V6 => network(0x100, 1),
        };
        SocketAddr::new(address, PORT)
    }

    /// The director's own address, the outer source of tunnelled packets.
    pub fn director(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(198, 18, 255, 254).into(),
            Self::V6 => network(0x200, 0xffff),
        }
    }

    /// Real server `n` as `path` reaches it: only `nat` changes the port.
    pub fn real(self, path: Path, n: u16) -> SocketAddr {
        let [high, low] = n.to_be_bytes();
        let address = match self {
            Self::V4 => Ipv4Addr::new(198, 18, high, low).into(),
            Self::V6 => network(0x200, n),
        };
        let port = match path {
            Path::NatRequest | Path::NatReply => NAT_PORT,
            Path::Dr | Path::Tun => PORT,
        };
        SocketAddr::new(address, port)
    }

    /// The client of flow 0.
    pub fn client(self) -> SocketAddr {
        let address = match self {
            Self::V4 => Ipv4Addr::new(100, 64, 0, 0).into(),
            Self::V6 => network(0x300, 0),
        };
        SocketAddr::new(address, FIRST_PORT)
    }
}

/// Host `n` of one of the networks set apart for documentation.
fn network(subnet: u16, n: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x11, subnet, 0, 0, 0, n).into()
}

/// The settings with which packets like those of `path` come to the director, with these TCP flags; none sends yet.
pub fn config(family: Family, path: Path, flags: u8) -> BenchConfig {
    let is_reply = path == Path::NatReply;
    let (client, vip, real) = (family.client(), family.vip(), family.real(path, 0));
    let (source, destination, mac) = if is_reply { (real, client, real_mac(0)) } else { (client, vip, ROUTER_MAC) };
    let packet = ip_packet(source, destination, flags);
    // Where the last four octets of the client's address and the ports lie, in words of the packet.
    let (address_word, ports_word) = match (family, is_reply) {
        (Family::V4, false) => (3, 5_u32),
        (Family::V4, true) => (4, 5),
        (Family::V6, false) => (5, 10),
        (Family::V6, true) => (9, 10),
    };
    let packet: [u32; PACKET_WORDS] = words(&packet);
    let ethertype: u16 = if family == Family::V4 { 0x0800 } else { 0x86dd };
    BenchConfig {
        ethernet: words(&[DIRECTOR_MAC, mac].concat()),
        ethertype: ethertype.to_be(),
        reserved: 0,
        packet,
        address_word,
        ports_word,
        ports: packet.get(ports_word as usize).copied().unwrap_or_default(),
        port_shift: if is_reply { 16 } else { 0 },
        first_address: last_word(client.ip()),
        flows: 1,
        order: Order::Sequential,
        program: 0,
        next: 0,
        address_shift: 0,
        padding: 0,
    }
}

/// Clients of whom each is in a prefix of its own, or beside it: [`LISTED_LENGTH`] bits of the word in which they differ, of
/// IPv6 the second one.
pub fn listed(family: Family, config: BenchConfig) -> BenchConfig {
    let (address_word, first_address) = match family {
        Family::V4 => (config.address_word, config.first_address),
        Family::V6 => (3, 0x0011_0300),
    };
    BenchConfig { address_word, first_address, address_shift: 32 - LISTED_LENGTH + 1, ..config }
}

/// Bits of the word in which clients differ that a prefix of [`prefixes`] has.
const LISTED_LENGTH: u32 = 26;

/// A prefix for each of `count` clients of [`listed`], in which it is, or that lies between it and the next.
pub fn prefixes(family: Family, count: u32, holds_client: bool) -> Vec<IpNet> {
    let first = match family {
        Family::V4 => last_word(family.client().ip()),
        Family::V6 => 0x0011_0300,
    };
    let beside = if holds_client { 0 } else { 1 << (32 - LISTED_LENGTH) };
    let prefix = |n: u32| {
        let word = first.wrapping_add(n << (32 - LISTED_LENGTH + 1)).wrapping_add(beside);
        let (address, length): (IpAddr, u32) = match family {
            Family::V4 => (Ipv4Addr::from_bits(word).into(), LISTED_LENGTH),
            Family::V6 => (Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(word) << 64).into(), 32 + LISTED_LENGTH),
        };
        IpNet::new(address, u8::try_from(length).unwrap_or(u8::MAX)).ok()
    };
    (0..count).filter_map(prefix).collect()
}

fn last_word(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => v4.to_bits(),
        #[expect(clippy::cast_possible_truncation, reason = "the last of four words is what is wanted")]
        IpAddr::V6(v6) => v6.to_bits() as u32,
    }
}

/// Words of `bytes` as the machine reads them; missing bytes are zero.
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = [0; N];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(4)) {
        let mut octets = [0; 4];
        octets.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        *word = u32::from_ne_bytes(octets);
    }
    words
}

/// A TCP segment with as much payload as fits into the frame.
fn ip_packet(source: SocketAddr, destination: SocketAddr, flags: u8) -> Vec<u8> {
    let length = FRAME_LENGTH - PACKET_OFFSET;
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let segment = segment(source, destination, flags, length - 20);
            let [high, low] = total_length(length);
            let mut header = vec![0x45, 0, high, low, 0x12, 0x34, 0x40, 0, 64, TCP, 0, 0];
            header.extend([from.octets(), to.octets()].concat());
            set_checksum(&mut header, 10, 0);
            [header, segment].concat()
        }
        (from, to) => {
            let segment = segment(source, destination, flags, length - 40);
            let [high, low] = total_length(segment.len());
            let header = vec![0x60, 0, 0, 0, high, low, TCP, 64];
            [header, octets(from), octets(to), segment].concat()
        }
    }
}

/// A TCP segment of `length` bytes with its checksum.
fn segment(source: SocketAddr, destination: SocketAddr, flags: u8, length: usize) -> Vec<u8> {
    let mut segment = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    // Sequence and acknowledgement number, offset of 20 bytes, flags, window, checksum, urgent pointer.
    segment.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    segment.resize(length, 0);
    let pseudo = sum(&octets(source.ip())) + sum(&octets(destination.ip())) + u64::from(TCP) + length as u64;
    set_checksum(&mut segment, 16, pseudo);
    segment
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn total_length(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// Writes the Internet checksum (RFC 1071) of `bytes` and of what sums up to `rest`.
fn set_checksum(bytes: &mut [u8], at: usize, rest: u64) {
    let mut total = sum(bytes) + rest;
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    let checksum = u16::try_from(total).map_or(0, |folded| !folded).to_be_bytes();
    bytes.iter_mut().skip(at).zip(checksum).for_each(|(to, from)| *to = from);
}

/// The sum of the 16-bit words.
fn sum(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| pair.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    bytes.chunks(2).map(word).sum()
}

const _: () = assert!(PACKET_WORDS * 4 >= 40 + 20);

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(config: &BenchConfig) -> Vec<u8> {
        config.packet.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// Over all words of correct bytes with their checksum, the sum folds to all ones (RFC 1071 §1).
    fn folds_to_ones(mut total: u64) -> bool {
        while total > 0xffff {
            total = (total >> 16) + (total & 0xffff);
        }
        total == 0xffff
    }

    #[test]
    fn a_request_has_its_client_where_the_program_writes_it() {
        let v4 = config(Family::V4, Path::Dr, SYN);
        let packet = bytes(&v4);
        assert_eq!(packet[12..16], [100, 64, 0, 0]);
        assert_eq!((v4.address_word * 4, v4.ports_word * 4, v4.port_shift), (12, 20, 0));
        assert_eq!(packet[20..24], [4, 0, 0, 80]);
        assert_eq!(packet[33], SYN);
        let v6 = config(Family::V6, Path::Tun, ACK);
        let packet = bytes(&v6);
        assert_eq!(packet[8..24], [0x20, 1, 0xd, 0xb8, 0, 0x11, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((v6.address_word * 4, v6.ports_word * 4, v6.port_shift), (20, 40, 0));
        assert_eq!((packet[40..44].to_vec(), packet[53]), (vec![4, 0, 0, 80], ACK));
    }

    #[test]
    fn each_listed_client_is_in_a_prefix_of_its_own_or_beside_it() {
        for family in Family::ALL {
            let listed = listed(family, config(family, Path::Dr, SYN));
            let ([within, beside], count) = ([true, false].map(|holds| prefixes(family, 100, holds)), 100);
            for n in 0..count {
                let (word, _) = lb_common::bench::client(listed.first_address, listed.address_shift, n);
                let mut packet = bytes(&listed);
                let at = usize::try_from(listed.address_word).unwrap() * 4;
                packet[at..at + 4].copy_from_slice(&word.to_be_bytes());
                let client: IpAddr = match family {
                    Family::V4 => <[u8; 4]>::try_from(&packet[12..16]).unwrap().into(),
                    Family::V6 => <[u8; 16]>::try_from(&packet[8..24]).unwrap().into(),
                };
                let n = usize::try_from(n).unwrap();
                assert_eq!(within.iter().position(|prefix| prefix.contains(&client)), Some(n), "{client}");
                assert!(!beside.iter().any(|prefix| prefix.contains(&client)), "{client}");
            }
        }
    }

    #[test]
    fn a_reply_has_its_client_as_destination() {
        let v4 = config(Family::V4, Path::NatReply, ACK);
        let packet = bytes(&v4);
        assert_eq!(packet[12..24], [198, 18, 0, 0, 100, 64, 0, 0, 0x1f, 0x90, 4, 0]);
        assert_eq!((v4.address_word * 4, v4.ports_word * 4, v4.port_shift), (16, 20, 16));
        let v6 = config(Family::V6, Path::NatReply, ACK);
        assert_eq!((v6.address_word * 4, v6.ports_word * 4, v6.port_shift), (36, 40, 16));
        assert_eq!(bytes(&v6)[40..44], [0x1f, 0x90, 4, 0]);
    }

    #[test]
    fn lengths_and_checksums_of_the_first_packet_are_right() {
        for path in Path::ALL {
            let packet = bytes(&config(Family::V4, path, ACK));
            assert_eq!(packet[2..4], [0, 64]);
            assert!(folds_to_ones(sum(&packet[..20])));
            assert!(folds_to_ones(sum(&packet[12..]) + 6 + 44));
            let packet = bytes(&config(Family::V6, path, ACK));
            assert_eq!(packet[4..6], [0, 24]);
            assert!(folds_to_ones(sum(&packet[8..]) + 6 + 24));
        }
    }

    #[test]
    fn the_frame_is_for_the_director() {
        let config = config(Family::V6, Path::NatReply, ACK);
        let macs: Vec<u8> = config.ethernet.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(macs, [2, 0, 0, 0, 0, 1, 2, 0, 0, 1, 0, 0]);
        assert_eq!(config.ethertype.to_ne_bytes(), [0x86, 0xdd]);
    }
}
