//! A readable builder of frames: says what is in each header, and computes every length and checksum from scratch.
//!
//! Shares no code with what is tested; [`internet_checksum`] is the plain sum of RFC 1071.

use std::net::{IpAddr, SocketAddr};

use super::scene::{CLIENT_MAC, Mac, OUR_MAC};
use super::sctp_frame::{self, Chunk};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// What stands behind the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        flags: u8,
    },
    /// With a checksum or, as IPv4 allows, without.
    Udp {
        has_checksum: bool,
    },
    /// A payload stands in a chunk of padding behind these.
    Sctp {
        chunks: Vec<Chunk>,
    },
    /// Another protocol, of which only the number matters.
    Other {
        protocol: u8,
    },
}

/// An outer header, of either family.
#[derive(Clone, Debug)]
pub struct Outer {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Type of service or traffic class.
    pub class: u8,
    /// IPv4 only.
    pub identification: u16,
    /// IPv4 only.
    pub dont_fragment: bool,
    /// IPv6 only.
    pub flow_label: u32,
}

/// A frame in words; [`Frame::bytes`] makes bytes of it.
#[derive(Clone, Debug)]
pub struct Frame {
    pub mac_to: Mac,
    pub mac_from: Mac,
    pub outer: Option<Outer>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Type of service or traffic class.
    pub class: u8,
    /// IPv4 only.
    pub identification: u16,
    /// IPv4 only.
    pub dont_fragment: bool,
    /// IPv4 only.
    pub more_fragments: bool,
    /// IPv4 only, in units of 8 bytes.
    pub fragment_offset: u16,
    /// IPv4 only, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv6 only.
    pub flow_label: u32,
    /// IPv6 only: number and contents of each extension header; the first byte of the contents is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub transport: Transport,
    pub payload: Vec<u8>,
    /// What Ethernet puts behind a short packet.
    pub padding: Vec<u8>,
}

impl Frame {
    /// A TCP segment from a client's side to us.
    pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Self {
        Self::new(source, destination, Transport::Tcp { flags })
    }

    /// A UDP packet from a client's side to us.
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new(source, destination, Transport::Udp { has_checksum: true })
    }

    /// An SCTP packet from a client's side to us, with these chunks as they mostly are.
    pub fn sctp(source: SocketAddr, destination: SocketAddr, kinds: &[u8]) -> Self {
        let chunks = kinds.iter().map(|kind| Chunk::new(*kind)).collect();
        Self::new(source, destination, Transport::Sctp { chunks })
    }

    /// Any packet from a client's side to us.
    pub fn new(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Self {
        Self {
            mac_to: OUR_MAC,
            mac_from: CLIENT_MAC,
            outer: None,
            source,
            destination,
            ttl: 64,
            class: 0,
            identification: 0x1234,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            options: Vec::new(),
            flow_label: 0,
            extensions: Vec::new(),
            transport,
            payload: Vec::new(),
            padding: Vec::new(),
        }
    }

    /// The same with this payload.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// The same between these Ethernet addresses.
    pub fn macs(mut self, from: Mac, to: Mac) -> Self {
        (self.mac_from, self.mac_to) = (from, to);
        self
    }

    /// What leaves us for the station `to`: from our address, with one less to live.
    pub fn sent_on(&self, to: Mac) -> Self {
        Self { ttl: self.ttl - 1, ..self.clone() }.macs(OUR_MAC, to)
    }

    /// The frame as it lies on the wire, without its checksum (FCS).
    pub fn bytes(&self) -> Vec<u8> {
        let is_ipv4 = self.outer.as_ref().map_or(self.source.is_ipv4(), |outer| outer.source.is_ipv4());
        let ethertype: u16 = if is_ipv4 { 0x0800 } else { 0x86dd };
        let mut bytes = [self.mac_to, self.mac_from].concat();
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(self.packet());
        bytes.extend(&self.padding);
        bytes
    }

    /// Length of the packet that a tunnel would carry, in bytes.
    pub fn packet_length(&self) -> usize {
        self.inner_packet().len()
    }

    fn packet(&self) -> Vec<u8> {
        let inner = self.inner_packet();
        let Some(outer) = &self.outer else { return inner };
        let protocol = if self.source.is_ipv4() { 4 } else { 41 };
        match (outer.source, outer.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let flags = u16::from(outer.dont_fragment) << 14;
                let header = Ipv4Header {
                    class: outer.class,
                    identification: outer.identification,
                    flags,
                    ttl: 64,
                    protocol,
                    addresses: [source.octets(), destination.octets()],
                    options: &[],
                };
                header.before(&inner)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    class: outer.class,
                    flow_label: outer.flow_label,
                    hop_limit: 64,
                    next_header: protocol,
                    addresses: [source.octets(), destination.octets()],
                };
                header.before(&inner)
            }
            mixed => panic!("an outer header of two families: {mixed:?}"),
        }
    }

    fn inner_packet(&self) -> Vec<u8> {
        let transport = self.transport_bytes();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let marks = u16::from(self.dont_fragment) << 14 | u16::from(self.more_fragments) << 13;
                let header = Ipv4Header {
                    class: self.class,
                    identification: self.identification,
                    flags: marks | self.fragment_offset,
                    ttl: self.ttl,
                    protocol: self.protocol(),
                    addresses: [source.octets(), destination.octets()],
                    options: &self.options,
                };
                header.before(&transport)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut numbers = self.extensions.iter().map(|(number, _)| *number).chain([self.protocol()]);
                let header = Ipv6Header {
                    class: self.class,
                    flow_label: self.flow_label,
                    hop_limit: self.ttl,
                    next_header: numbers.next().expect("the protocol at least"),
                    addresses: [source.octets(), destination.octets()],
                };
                let mut behind = Vec::new();
                for ((_, contents), next) in self.extensions.iter().zip(numbers) {
                    behind.push(next);
                    behind.extend(&contents[1..]);
                }
                behind.extend(transport);
                header.before(&behind)
            }
            mixed => panic!("a packet of two families: {mixed:?}"),
        }
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp { .. } => 17,
            Transport::Sctp { .. } => 132,
            Transport::Other { protocol } => protocol,
        }
    }

    fn transport_bytes(&self) -> Vec<u8> {
        let ports = [self.source.port().to_be_bytes(), self.destination.port().to_be_bytes()].concat();
        match &self.transport {
            Transport::Tcp { flags } => {
                // Sequence and acknowledgement number, offset of 20 bytes, flags, window, checksum, urgent pointer.
                let rest = [1, 2, 3, 4, 5, 6, 7, 8, 0x50, *flags, 0xfa, 0xf0, 0, 0, 0, 0];
                self.with_checksum([ports, rest.to_vec(), self.payload.clone()].concat(), 16)
            }
            Transport::Udp { has_checksum } => {
                let length = u16::try_from(8 + self.payload.len()).expect("fits in a packet").to_be_bytes();
                let segment = [&ports[..], &length, &[0, 0], &self.payload].concat();
                if *has_checksum { self.with_checksum(segment, 6) } else { segment }
            }
            Transport::Sctp { chunks } => {
                sctp_frame::bytes([self.source.port(), self.destination.port()], chunks, &self.payload)
            }
            Transport::Other { .. } => self.payload.clone(),
        }
    }

    fn with_checksum(&self, mut segment: Vec<u8>, at: usize) -> Vec<u8> {
        let sum = transport_checksum(self.source.ip(), self.destination.ip(), self.protocol(), &segment);
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    }
}

/// An IPv4 header without its lengths and checksum, which [`Ipv4Header::before`] computes.
pub struct Ipv4Header<'a> {
    pub class: u8,
    pub identification: u16,
    pub flags: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub addresses: [[u8; 4]; 2],
    pub options: &'a [u8],
}

impl Ipv4Header<'_> {
    pub fn before(&self, behind: &[u8]) -> Vec<u8> {
        let length = 20 + self.options.len();
        let total = u16::try_from(length + behind.len()).expect("fits in a packet");
        let mut header = vec![0x40 | u8::try_from(length / 4).expect("at most 15 words"), self.class];
        header.extend(total.to_be_bytes());
        header.extend(self.identification.to_be_bytes());
        header.extend(self.flags.to_be_bytes());
        header.extend([self.ttl, self.protocol, 0, 0]);
        header.extend(self.addresses.concat());
        header.extend(self.options);
        let sum = internet_checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(behind);
        header
    }
}

/// An IPv6 header without its length.
pub struct Ipv6Header {
    pub class: u8,
    pub flow_label: u32,
    pub hop_limit: u8,
    pub next_header: u8,
    pub addresses: [[u8; 16]; 2],
}

impl Ipv6Header {
    pub fn before(&self, behind: &[u8]) -> Vec<u8> {
        let first = 6 << 28 | u32::from(self.class) << 20 | self.flow_label;
        let length = u16::try_from(behind.len()).expect("fits in a packet");
        let mut header = first.to_be_bytes().to_vec();
        header.extend(length.to_be_bytes());
        header.extend([self.next_header, self.hop_limit]);
        header.extend(self.addresses.concat());
        header.extend(behind);
        header
    }
}

/// The checksum of a TCP or UDP `segment` whose checksum field is zero (RFC 9293 §3.1, RFC 768, RFC 8200 §8.1).
pub fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let addresses = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
        (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
        mixed => panic!("a segment between two families: {mixed:?}"),
    };
    let length = u16::try_from(segment.len()).expect("fits in a packet").to_be_bytes();
    let sum = internet_checksum(&[&addresses[..], &[0, protocol], &length, segment].concat());
    if protocol == 17 && sum == 0 { 0xffff } else { sum }
}

/// RFC 1071 §1: the one's complement of the one's complement sum of the 16-bit words, an odd last byte padded with zero.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

#[test]
fn the_checksum_of_the_example_in_rfc_1071() {
    // RFC 1071 §3: the sum is ddf2.
    assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
}

#[test]
fn a_syn_is_the_bytes_that_were_worked_out_by_hand() {
    let frame = Frame::tcp(([192, 0, 2, 10], 1000).into(), ([203, 0, 113, 100], 80).into(), SYN);
    // IPv4: 4500+0028+1234+4000+4006+c000+020a+cb00+7164 = 2d5d0, folded d5d2.
    // TCP: c000+020a+cb00+7164+0006+0014 (pseudo header) +03e8+0050+0102+0304+0506+0708+5002+faf0 = 35dc6, folded 5dc9.
    let expected = [
        &[0x02, 0, 0, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0x0c, 0x08, 0][..],
        &[0x45, 0, 0, 40, 0x12, 0x34, 0x40, 0, 64, 6, 0x2a, 0x2d, 192, 0, 2, 10, 203, 0, 113, 100],
        &[0x03, 0xe8, 0, 80, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x02, 0xfa, 0xf0, 0xa2, 0x36, 0, 0],
    ];
    assert_eq!(frame.bytes(), expected.concat());
}
