//! A second opinion on any bytes: whether they are a good packet, and what forwarding makes of them.
//!
//! Reads bytes by the RFCs' offsets, and shares neither code nor types of headers with the program.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::frame::{Ipv4Header, Ipv6Header, internet_checksum};
use super::scene::{Family, OUR_MAC};

/// Where things are in a good packet: whole, to our Ethernet address, TCP or UDP, no fragment, no extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub family: Family,
    pub protocol: u8,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Offset of the TCP or UDP header in the frame.
    transport: usize,
    /// Offset of the first byte behind the IP packet.
    end: usize,
}

/// What changes in the packet itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Source(SocketAddr),
    Destination(SocketAddr),
    Nothing,
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Reads a frame; `None` for what must not be forwarded.
pub fn read(frame: &[u8]) -> Option<Reading> {
    if *frame.get(..6)? != OUR_MAC {
        return None;
    }
    match frame.get(12..14)? {
        [0x08, 0x00] => read_ipv4(frame),
        [0x86, 0xdd] => read_ipv6(frame),
        _ => None,
    }
}

fn read_ipv4(frame: &[u8]) -> Option<Reading> {
    let header = frame.get(14..34)?;
    let (version, words) = (header[0] >> 4, usize::from(header[0] & 15));
    // More fragments, or an offset.
    let is_fragment = header[6] & 0x3f != 0 || header[7] != 0;
    if version != 4 || words < 5 || is_fragment || header[8] < 2 {
        return None;
    }
    let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&header[at..at + 4]).expect("four bytes"));
    let end = 14 + usize::from(word(header, 2));
    complete(frame, Family::V4, [address(12), address(16)], [14 + words * 4, end], header[9])
}

fn read_ipv6(frame: &[u8]) -> Option<Reading> {
    let header = frame.get(14..54)?;
    if header[0] >> 4 != 6 || header[7] < 2 {
        return None;
    }
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&header[at..at + 16]).expect("sixteen bytes"));
    let end = 54 + usize::from(word(header, 4));
    complete(frame, Family::V6, [address(8), address(24)], [54, end], header[6])
}

fn complete(frame: &[u8], family: Family, ips: [IpAddr; 2], range: [usize; 2], protocol: u8) -> Option<Reading> {
    let ([source, destination], [transport, end]) = (ips, range);
    let header = match protocol {
        TCP => 20,
        UDP => 8,
        _ => return None,
    };
    if transport + header > end || end > frame.len() {
        return None;
    }
    let port = |at| word(frame, transport + at);
    let (source, destination) = (SocketAddr::new(source, port(0)), SocketAddr::new(destination, port(2)));
    Some(Reading { family, protocol, source, destination, transport, end })
}

impl Reading {
    /// Whether this is a TCP segment that asks for a connection.
    pub fn is_syn(&self, frame: &[u8]) -> bool {
        // SYN, and none of FIN, RST, ACK.
        self.protocol == TCP && frame[self.transport + 13] & 0x17 == 0x02
    }

    /// The frame with `change` made, one less to live, and its checksums as right or as wrong as they were.
    ///
    /// Where they were right they are computed anew, from scratch. Where not, `actual` is asked, as no checksum is the
    /// right one: it must be wrong by the same amount.
    pub fn forwarded(&self, frame: &[u8], change: Change, actual: &[u8]) -> Vec<u8> {
        let mut out = frame.to_vec();
        match change {
            Change::Source(address) => self.set(&mut out, 0, address),
            Change::Destination(address) => self.set(&mut out, 1, address),
            Change::Nothing => {}
        }
        match self.family {
            Family::V4 => {
                out[14 + 8] -= 1;
                let header = 14..self.transport;
                correct(&mut out, 14 + 10, actual, frame, |bytes| bytes[header.clone()].to_vec());
            }
            Family::V6 => out[14 + 7] -= 1,
        }
        let checksum = self.transport + if self.protocol == TCP { 16 } else { 6 };
        let is_absent = self.protocol == UDP && word(frame, checksum) == 0;
        if change != Change::Nothing && !is_absent {
            correct(&mut out, checksum, actual, frame, |bytes| self.covered(bytes));
            if self.protocol == UDP && word(&out, checksum) == 0 {
                out[checksum..checksum + 2].fill(0xff);
            }
        }
        out
    }

    /// A forwarded frame in an outer packet.
    pub fn wrapped(&self, forwarded: &[u8], source: IpAddr, destination: IpAddr) -> Vec<u8> {
        let (header, packet) = (&forwarded[14..], &forwarded[14..self.end]);
        let outer = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Ipv4Header {
                class: header[1],
                identification: word(header, 4),
                flags: word(header, 6) & 0x4000,
                ttl: 64,
                protocol: 4,
                addresses: [source.octets(), destination.octets()],
                options: &[],
            }
            .before(packet),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6Header {
                class: header[0] << 4 | header[1] >> 4,
                flow_label: u32::from(header[1] & 15) << 16 | u32::from(word(header, 2)),
                hop_limit: 64,
                next_header: 41,
                addresses: [source.octets(), destination.octets()],
            }
            .before(packet),
            mixed => panic!("an outer header of two families: {mixed:?}"),
        };
        [&forwarded[..14], &outer, &forwarded[self.end..]].concat()
    }

    /// Sets the source (0) or destination (1).
    fn set(&self, frame: &mut [u8], end: usize, address: SocketAddr) {
        let ip = match address.ip() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let first = 14 + if self.family == Family::V4 { 12 } else { 8 };
        let at = first + end * ip.len();
        frame[at..at + ip.len()].copy_from_slice(&ip);
        let at = self.transport + end * 2;
        frame[at..at + 2].copy_from_slice(&address.port().to_be_bytes());
    }

    /// What the transport checksum covers: pseudo header and segment.
    fn covered(&self, frame: &[u8]) -> Vec<u8> {
        let addresses = match self.family {
            Family::V4 => &frame[14 + 12..14 + 20],
            Family::V6 => &frame[14 + 8..14 + 40],
        };
        let length = u16::try_from(self.end - self.transport).expect("fits in a packet").to_be_bytes();
        [addresses, &[0, self.protocol], &length, &frame[self.transport..self.end]].concat()
    }
}

/// Puts into `out` the checksum at `at`, over what `covered` picks: see [`Reading::forwarded`].
fn correct(out: &mut [u8], at: usize, actual: &[u8], before: &[u8], covered: impl Fn(&[u8]) -> Vec<u8>) {
    // The complement of a sum that includes a right checksum is zero; 0xffff is the other zero of one's complement.
    let error = |frame: &[u8]| internet_checksum(&covered(frame)) % 0xffff;
    out[at..at + 2].fill(0);
    if error(before) == 0 {
        let right = internet_checksum(&covered(out));
        out[at..at + 2].copy_from_slice(&right.to_be_bytes());
    } else if let Some(claimed) = actual.get(at..at + 2) {
        out[at..at + 2].copy_from_slice(claimed);
        assert_eq!(error(out), error(before), "a wrong checksum at {at} became wrong by another amount");
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[test]
fn the_oracle_knows_a_good_packet() {
    use super::frame::{Frame, SYN};
    let client = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 5);
    let frame = Frame::tcp(client, client, SYN).payload(b"odd").bytes();
    let reading = read(&frame).expect("is good");
    assert_eq!((reading.source, reading.transport, reading.end), (client, 54, 54 + 23));
    assert!(reading.is_syn(&frame));
    assert_eq!(read(&frame[..frame.len() - 1]), None);
}

#[test]
fn the_oracle_and_the_builder_agree_on_what_nat_makes() {
    use super::frame::{ACK, Frame};
    use super::scene::FAMILIES;
    for family in FAMILIES {
        for packet in
            [Frame::tcp(family.client(5), family.client(6), ACK), Frame::udp(family.client(5), family.client(6))]
        {
            let packet = Frame { options: vec![1; if family == Family::V4 { 8 } else { 0 }], ..packet.payload(b"odd") };
            let new = SocketAddr::new(family.real(3), 7);
            let expected = Frame { destination: new, ttl: packet.ttl - 1, ..packet.clone() }.bytes();
            let bytes = packet.bytes();
            let reading = read(&bytes).expect("is good");
            assert_eq!(reading.forwarded(&bytes, Change::Destination(new), &[]), expected);
        }
    }
}
