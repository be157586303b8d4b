//! A second opinion on any bytes: whether they are a good packet, and what forwarding makes of them.
//!
//! Reads bytes by the RFCs' offsets, and shares neither code nor types of headers with the program.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::drop_reason::DropReason;
use lb_common::hash;
use lb_common::net::Address;

use super::frame::{ACK, FIN, Ipv4Header, Ipv6Header, RST, SYN, internet_checksum, transport_checksum};
use super::scene::{Family, OUR_MAC};
use super::sctp_frame;

/// Where things are in a TCP, UDP or SCTP packet, or a fragment of one, to our Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub family: Family,
    pub protocol: u8,
    /// With port 0 where [`Part::Later`] has none.
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub part: Part,
    /// Whether an authentication header covers addresses and ports.
    pub is_authenticated: bool,
    /// Whether the transport header is not right behind the IP header: then it is IPv6, and refused without an answer.
    pub is_extended: bool,
    /// Offset of the transport header, or of what a later fragment has instead.
    pub transport: usize,
    /// Offset of the first byte behind the IP packet.
    pub end: usize,
}

/// How much of its packet a frame has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    All,
    First(Whole),
    Later(Whole),
}

/// What the fragments of a packet have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Whole {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub identification: u32,
    /// IPv4 only.
    pub protocol: u8,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Examined {
    /// Not to us, or without ports.
    Foreign,
    /// It has ports; and, where something stands against forwarding it, a fault.
    Packet { reading: Reading, fault: Option<DropReason> },
    /// A fragment that isn't the first, or not one that is forwarded.
    Later { reading: Reading, whole: Whole, fault: Option<DropReason> },
    /// A first fragment without the transport header that it must have.
    Tiny { whole: Whole },
}

/// What changes in the packet itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Source(SocketAddr),
    Destination(SocketAddr),
    Nothing,
}

/// What the sender of a packet is told that goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// That its time to live has run out.
    Expired,
    /// The largest packet that goes this way, in bytes.
    TooBig(u16),
}

impl Told {
    /// What is counted.
    pub fn reason(self) -> DropReason {
        match self {
            Self::Expired => DropReason::TtlExpired,
            Self::TooBig(_) => DropReason::PacketTooBig,
        }
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
/// IPv6's fragment header.
const FRAGMENT: u8 = 44;

/// Reads a frame; `None` for what must not be forwarded, and for fragments that are not the first.
pub fn read(frame: &[u8]) -> Option<Reading> {
    match examine(frame) {
        Examined::Packet { reading, fault: None } => Some(reading),
        Examined::Packet { .. } | Examined::Later { .. } | Examined::Tiny { .. } | Examined::Foreign => None,
    }
}

/// Reads a frame.
pub fn examine(frame: &[u8]) -> Examined {
    let found = match (frame.get(..6), frame.get(12..14)) {
        (Some(to), Some([0x08, 0x00])) if *to == OUR_MAC => examine_ipv4(frame),
        (Some(to), Some([0x86, 0xdd])) if *to == OUR_MAC => examine_ipv6(frame),
        _ => None,
    };
    found.unwrap_or(Examined::Foreign)
}

fn examine_ipv4(frame: &[u8]) -> Option<Examined> {
    let header = frame.get(14..34)?;
    let (version, words) = (header[0] >> 4, usize::from(header[0] & 15));
    let (more_fragments, offset) = (header[6] & 0x20 != 0, word(header, 6) & 0x1fff);
    if version != 4 || words < 5 || ![TCP, UDP, SCTP].contains(&header[9]) {
        return None;
    }
    let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&header[at..at + 4]).expect("four bytes"));
    let whole = Whole {
        source: address(12),
        destination: address(16),
        identification: word(header, 4).into(),
        protocol: header[9],
    };
    let part = match (offset, more_fragments) {
        (0, false) => Part::All,
        (0, true) => Part::First(whole),
        _ => Part::Later(whole),
    };
    let behind = Behind { protocol: header[9], transport: 14 + words * 4, ..Behind::of(part, usize::from(offset) * 8) };
    let obstacle = if words > 5 { fault_of_options(frame, 14 + words * 4) } else { None };
    let end = 14 + usize::from(word(header, 2));
    behind.examine(frame, Family::V4, [address(12), address(16)], (end, header[8], obstacle))
}

/// What is wrong with options that end before the offset `end` (RFC 791 §3.1): a prescribed route, or lengths.
fn fault_of_options(frame: &[u8], end: usize) -> Option<DropReason> {
    let mut at = 34;
    while at < end {
        let Some(kind) = frame.get(at) else { return Some(DropReason::Malformed) };
        at += match kind {
            0 => return None,
            1 => 1,
            // Loose and strict source and record route.
            131 | 137 => return Some(DropReason::SourceRoute),
            _ => match frame.get(at + 1) {
                Some(length @ 2..) => usize::from(*length),
                _ => return Some(DropReason::Malformed),
            },
        };
    }
    (at > end).then_some(DropReason::Malformed)
}

fn examine_ipv6(frame: &[u8]) -> Option<Examined> {
    let header = frame.get(14..54)?;
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16]).expect("sixteen bytes"));
    let (source, destination) = (address(8), address(24));
    if header[0] >> 4 != 6 || source.to_ipv4_mapped().is_some() || destination.to_ipv4_mapped().is_some() {
        return None;
    }
    let ips = [source.into(), destination.into()];
    let (behind, obstacle) = match behind_extensions(frame, ips, header[6]) {
        Walk::Ends => return None,
        Walk::Hides(whole) => return Some(Examined::Tiny { whole }),
        Walk::Leads { behind, obstacle } => (behind, obstacle),
    };
    let end = 54 + usize::from(word(header, 4));
    behind.examine(frame, Family::V6, ips, (end, header[7], obstacle))
}

/// What stands behind the IP header and its extensions.
#[derive(Clone, Copy)]
struct Behind {
    part: Part,
    /// Bytes of the packet's payload before this fragment's.
    before: usize,
    protocol: u8,
    transport: usize,
    is_authenticated: bool,
    is_extended: bool,
}

/// Where following the extension headers comes to.
enum Walk {
    /// Nothing of ours.
    Ends,
    /// A fragment ends before the transport header.
    Hides(Whole),
    Leads {
        behind: Behind,
        obstacle: Option<DropReason>,
    },
}

/// Follows the extension headers (RFC 8200 §4) from the one whose number is `first`.
fn behind_extensions(frame: &[u8], [source, destination]: [IpAddr; 2], first: u8) -> Walk {
    let (mut at, mut number) = (54, first);
    let mut behind = Behind::of(Part::All, 0);
    let mut obstacle = None;
    while ![TCP, UDP, SCTP].contains(&number) {
        // A fragment header says at least which packet this is a part of.
        let cut_off = match behind.part {
            Part::First(whole) => Walk::Hides(whole),
            Part::All | Part::Later(_) => Walk::Ends,
        };
        let Some([next, length, high, low]) = frame.get(at..at + 4) else { return cut_off };
        let units = usize::from(*length);
        at += match number {
            // Hop-by-hop options, destination options: units of eight bytes without the first.
            0 | 60 => (units + 1) * 8,
            // Routing: as many nodes are still to be visited.
            43 => {
                obstacle = obstacle.or((*low != 0).then_some(DropReason::SourceRoute));
                (units + 1) * 8
            }
            // Authentication: units of four bytes without the first two.
            51 => {
                behind.is_authenticated = true;
                (units + 2) * 4
            }
            // Fragment: an offset, and whether there are more.
            44 => {
                let Some(identification) = frame.get(at + 4..at + 8) else { return cut_off };
                let identification = u32::from_be_bytes(identification.try_into().expect("four bytes"));
                let whole = Whole { source, destination, identification, protocol: 0 };
                let field = u16::from_be_bytes([*high, *low]);
                match (behind.part, usize::from(field & 0xfff8)) {
                    (Part::First(_), _) => return cut_off,
                    (_, 0) if field & 1 == 0 => {}
                    (_, 0) => behind.part = Part::First(whole),
                    (_, before) => {
                        let may_hide_ports = [0, TCP, UDP, SCTP, 43, 44, 51, 60].contains(next);
                        behind = Behind { part: Part::Later(whole), before, protocol: *next, ..behind };
                        behind = Behind { transport: at + 8, is_extended: true, ..behind };
                        return if may_hide_ports { Walk::Leads { behind, obstacle } } else { Walk::Ends };
                    }
                }
                8
            }
            _ => return Walk::Ends,
        };
        behind.is_extended = true;
        number = *next;
    }
    Walk::Leads { behind: Behind { protocol: number, transport: at, ..behind }, obstacle }
}

impl Behind {
    fn of(part: Part, before: usize) -> Self {
        Self { part, before, protocol: 0, transport: 0, is_authenticated: false, is_extended: false }
    }

    /// `end` is the offset at which the packet ends as its header says; `obstacle` what else stands against it.
    fn examine(
        self,
        frame: &[u8],
        family: Family,
        [source, destination]: [IpAddr; 2],
        (end, ttl, obstacle): (usize, u8, Option<DropReason>),
    ) -> Option<Examined> {
        let Self { part, before, protocol, transport, is_authenticated, is_extended } = self;
        let header = match protocol {
            TCP => 20,
            // With the head of a chunk.
            SCTP => 16,
            _ => 8,
        };
        let ports = match (part, frame.get(transport..transport + 4)) {
            (Part::Later(_), _) => [0; 2],
            (Part::First(whole), ports) if ports.is_none() || transport + header > end => {
                return Some(Examined::Tiny { whole });
            }
            (_, ports) => ports.map(|ports| [word(ports, 0), word(ports, 2)])?,
        };
        let (source, destination) = (SocketAddr::new(source, ports[0]), SocketAddr::new(destination, ports[1]));
        let reading =
            Reading { family, protocol, source, destination, part, is_authenticated, is_extended, transport, end };
        let least = if matches!(part, Part::Later(_)) { transport } else { transport + header };
        let lengths = (least > end || end > frame.len()).then_some(DropReason::Malformed);
        let fault = obstacle.or(lengths).or((ttl < 2).then_some(DropReason::TtlExpired));
        // The transport header must not be written over, RFC 1858 §3 and RFC 3128.
        let overlaps = [TCP, UDP, SCTP].contains(&protocol) && before < header;
        Some(match part {
            Part::Later(whole) if overlaps => {
                let route = obstacle.filter(|reason| *reason == DropReason::SourceRoute);
                Examined::Later { reading, whole, fault: route.or(Some(DropReason::TinyFragment)) }
            }
            Part::Later(whole) => Examined::Later { reading, whole, fault },
            Part::All | Part::First(_) => Examined::Packet { reading, fault },
        })
    }
}

impl Reading {
    /// Whether this is a TCP segment or an SCTP packet that asks for a connection.
    pub fn is_syn(&self, frame: &[u8]) -> bool {
        // SYN, and none of FIN, RST, ACK.
        self.flags(frame) & 0x17 == 0x02
    }

    /// Whether a refusal of it would be answered; a RST is not, nor what RFC 9260 §8.4 (2), (6) and (7) name.
    pub fn is_answerable(&self, frame: &[u8]) -> bool {
        let chunk = frame.get(self.transport + 12).copied();
        let is_end = self.flags(frame) & RST != 0;
        match (self.protocol, chunk) {
            _ if self.is_extended => false,
            (SCTP, Some(9 | 11)) => false,
            // The tag for the answer stands in it.
            (SCTP, Some(1)) => self.transport + 20 <= self.end,
            _ => !is_end,
        }
    }

    /// Whether its sender would be told that it goes no further: RFC 1122 §3.2.2 says no of later fragments; of IPv6 those are
    /// told whose transport header comes right behind the IP header or a fragment header.
    pub fn can_be_told(&self, frame: &[u8]) -> bool {
        !matches!(self.part, Part::Later(_)) && (!self.is_extended || frame[20] == FRAGMENT)
    }

    /// What SCTP's chunks (RFC 9260 §3.2) say in TCP's words, of the first eight.
    fn chunk_flags(&self, frame: &[u8]) -> u8 {
        let mut rest = frame.get(self.transport + 12..self.end).unwrap_or_default();
        let mut flags = 0;
        for number in 0..8 {
            let Some([kind, _, high, low]) = rest.first_chunk() else { break };
            flags |= match kind {
                1 if number == 0 => return SYN,
                6 | 14 => RST,
                7 | 8 => FIN | ACK,
                _ => ACK,
            };
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if length < 4 {
                break;
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        flags
    }

    /// Whether the source can be one host's: not unspecified, loopback (IPv4), multicast or broadcast.
    pub fn is_from_a_host(&self) -> bool {
        match self.source.ip() {
            IpAddr::V4(v4) => !matches!(v4.octets(), [0 | 127 | 224.., ..]),
            IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast(),
        }
    }

    /// The flags of a TCP segment, and what they would be for SCTP; 0 for UDP, and where they are cut off.
    pub fn flags(&self, frame: &[u8]) -> u8 {
        match self.protocol {
            TCP => frame.get(self.transport + 13).copied().unwrap_or(0),
            SCTP => self.chunk_flags(frame),
            _ => 0,
        }
    }

    /// Bytes of the IP packet.
    pub fn length(&self) -> usize {
        self.end - 14
    }

    /// The frame with `change` made, one less to live, and its checksums as right or as wrong as they were.
    ///
    /// Where they were right they are computed anew, from scratch. Where not, as in the first of several fragments, they are
    /// wrong by the same amount; and in `actual`, if there is one, they must be that too.
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
        if matches!(self.part, Part::Later(_)) {
            return out;
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

    /// A forwarded frame in an outer packet, of either family.
    pub fn wrapped(&self, forwarded: &[u8], source: IpAddr, destination: IpAddr) -> Vec<u8> {
        let (header, packet) = (&forwarded[14..], &forwarded[14..self.end]);
        let number = if self.family == Family::V4 { 4 } else { 41 };
        let class = if self.family == Family::V4 { header[1] } else { header[0] << 4 | header[1] >> 4 };
        let (outer, ethertype) = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (identification, flags) = match self.family {
                    Family::V4 => (word(header, 4), word(header, 6) & 0x4000),
                    Family::V6 => (0, 0x4000),
                };
                let addresses = [source.octets(), destination.octets()];
                let outer =
                    Ipv4Header { class, identification, flags, ttl: 64, protocol: number, addresses, options: &[] };
                (outer.before(packet), [0x08, 0x00])
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let flow_label = match self.family {
                    Family::V4 => self.flow() & 0xf_ffff,
                    Family::V6 => u32::from(header[1] & 15) << 16 | u32::from(word(header, 2)),
                };
                let addresses = [source.octets(), destination.octets()];
                let outer = Ipv6Header { class, flow_label, hop_limit: 64, next_header: number, addresses };
                (outer.before(packet), [0x86, 0xdd])
            }
            mixed => panic!("an outer header of two families: {mixed:?}"),
        };
        [&forwarded[..12], &ethertype, &outer, &forwarded[self.end..]].concat()
    }

    /// The hash by which flows are spread.
    pub fn flow(&self) -> u32 {
        let ports = u32::from(self.source.port()) | u32::from(self.destination.port()) << 16;
        hash::flow(Address::from(self.source.ip()).halves(), ports)
    }

    /// The answer to a refused packet: a RST for TCP, an ABORT for SCTP, port unreachable for UDP.
    pub fn rejection(&self, frame: &[u8]) -> Vec<u8> {
        let packet = match self.protocol {
            TCP => self.reset(frame),
            SCTP => self.abort(frame),
            _ => self.unreachable(frame),
        };
        // Back to the station that it came from.
        [&frame[6..12], &frame[..6], &frame[12..14], &packet].concat()
    }

    /// RFC 9293 §3.10.7.1: the reset that the segment expects, as its receiver would send it.
    fn reset(&self, frame: &[u8]) -> Vec<u8> {
        let segment = &frame[self.transport..self.end];
        let number = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().expect("four bytes"));
        let flags = segment[13];
        // Where the header claims to be longer than the segment, the sum goes backwards, as sequence numbers do.
        let header = u32::from(segment[12] >> 4) * 4;
        let payload = u32::try_from(segment.len()).expect("fits in a packet").wrapping_sub(header);
        let length = payload.wrapping_add(u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0));
        let (sequence, acknowledged, flags) = match flags & ACK {
            0 => (0, number(4).wrapping_add(length), RST | ACK),
            _ => (number(8), 0, RST),
        };
        let mut reset = [self.destination.port().to_be_bytes(), self.source.port().to_be_bytes()].concat();
        reset.extend([sequence.to_be_bytes(), acknowledged.to_be_bytes()].concat());
        reset.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        let sum = transport_checksum(self.destination.ip(), self.source.ip(), TCP, &reset);
        reset[16..18].copy_from_slice(&sum.to_be_bytes());
        self.back(self.destination.ip(), (TCP, 0, 0x4000), &reset)
    }

    /// RFC 9260 §8.4 (3), (5), (8): with the sender's tag and the T bit, or the tag that its INIT asks for.
    fn abort(&self, frame: &[u8]) -> Vec<u8> {
        let packet = &frame[self.transport..self.end];
        let (tag, chunk) = match packet[12] {
            1 => (&packet[16..20], [6, 0, 0, 4]),
            8 => (&packet[4..8], [14, 1, 0, 4]),
            _ => (&packet[4..8], [6, 1, 0, 4]),
        };
        let mut abort = [&packet[2..4], &packet[..2], tag, &[0; 4], &chunk].concat();
        let sum = sctp_frame::checksum(&abort);
        abort[8..12].copy_from_slice(&sum);
        self.back(self.destination.ip(), (SCTP, 0, 0x4000), &abort)
    }

    /// RFC 792 and RFC 4443 §3.1: from the address that was not served.
    fn unreachable(&self, frame: &[u8]) -> Vec<u8> {
        let kind_and_code = if self.family == Family::V4 { [3, 3] } else { [1, 4] };
        self.error(frame, self.destination.ip(), kind_and_code, 0)
    }

    /// What the sender of a packet that goes no further is told by `router`, which is a VIP here.
    pub fn told(&self, frame: &[u8], router: IpAddr, what: Told) -> Vec<u8> {
        let packet = match (what, self.family) {
            // RFC 792, RFC 4443 §3.3.
            (Told::Expired, Family::V4) => self.error(frame, router, [11, 0], 0),
            (Told::Expired, Family::V6) => self.error(frame, router, [3, 0], 0),
            // RFC 1191 §4, RFC 4443 §3.2; no MTU of IPv6 is below 1280 (RFC 8200 §5).
            (Told::TooBig(mtu), Family::V4) => self.error(frame, router, [3, 4], u32::from(mtu)),
            (Told::TooBig(mtu), Family::V6) => self.error(frame, router, [2, 0], u32::from(mtu.max(1280))),
        };
        [&frame[6..12], &frame[..6], &frame[12..14], &packet].concat()
    }

    /// An ICMP error with the start of the packet: eight bytes behind the IP header, and behind the fragment header.
    fn error(&self, frame: &[u8], from: IpAddr, [kind, code]: [u8; 2], rest: u32) -> Vec<u8> {
        let quoted = match self.family {
            Family::V4 => &frame[14..self.transport + 8],
            Family::V6 if frame[20] == FRAGMENT => &frame[14..54 + 16],
            Family::V6 => &frame[14..54 + 8],
        };
        let protocol = if self.family == Family::V4 { 1 } else { 58 };
        let mut message = [&[kind, code, 0, 0], &rest.to_be_bytes(), quoted].concat();
        let sum = match self.family {
            Family::V4 => internet_checksum(&message),
            Family::V6 => transport_checksum(from, self.source.ip(), protocol, &message),
        };
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.back(from, (protocol, 0xc0, 0), &message)
    }

    /// `content` to where the packet came from; protocol, class and flags, the last two those of IPv4.
    fn back(&self, from: IpAddr, (protocol, class, flags): (u8, u8, u16), content: &[u8]) -> Vec<u8> {
        match (from, self.source.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let addresses = [from.octets(), to.octets()];
                Ipv4Header { class, identification: 0, flags, ttl: 64, protocol, addresses, options: &[] }
                    .before(content)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let addresses = [from.octets(), to.octets()];
                Ipv6Header { class: 0, flow_label: 0, hop_limit: 64, next_header: protocol, addresses }.before(content)
            }
            mixed => panic!("a packet of two families: {mixed:?}"),
        }
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
        if !matches!(self.part, Part::Later(_)) {
            let at = self.transport + end * 2;
            frame[at..at + 2].copy_from_slice(&address.port().to_be_bytes());
        }
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
pub fn correct(out: &mut [u8], at: usize, actual: &[u8], before: &[u8], covered: impl Fn(&[u8]) -> Vec<u8>) {
    // The complement of a sum that includes a right checksum is zero; 0xffff is the other zero of one's complement.
    let error = |frame: &[u8]| internet_checksum(&covered(frame)) % 0xffff;
    out[at..at + 2].fill(0);
    if error(before) == 0 {
        let right = internet_checksum(&covered(out));
        out[at..at + 2].copy_from_slice(&right.to_be_bytes());
    } else if let Some(claimed) = actual.get(at..at + 2) {
        out[at..at + 2].copy_from_slice(claimed);
        assert_eq!(error(out), error(before), "a wrong checksum at {at} became wrong by another amount");
    } else {
        // The error without it less the error that there shall be: 0x0000 and not 0xffff, as RFC 1624 §3 has it.
        let missing = (u32::from(error(out)) + 0xffff - u32::from(error(before))) % 0xffff;
        out[at..at + 2].copy_from_slice(&u16::try_from(missing).expect("below 0xffff").to_be_bytes());
    }
}

pub fn word(bytes: &[u8], at: usize) -> u16 {
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

/// RFC 9293 §3.10.7.1, sums by hand.
#[test]
fn the_reset_of_a_syn_is_the_bytes_that_were_worked_out_by_hand() {
    use super::frame::Frame;
    let frame = Frame::tcp(([192, 0, 2, 10], 1000).into(), ([203, 0, 113, 100], 80).into(), SYN).bytes();
    // IPv4: 4500+0028+0000+4000+4006+cb00+7164+c000+020a = 2c39c, folded c39e.
    // TCP: cb00+7164+c000+020a+0006+0014 (pseudo header) +0050+03e8+0000+0000+0102+0305+5014+0000 = 256db, folded 56dd.
    let expected = [
        &[0x02, 0, 0, 0, 0, 0x0c, 0x02, 0, 0, 0, 0, 0x01, 0x08, 0][..],
        &[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0x3c, 0x61, 203, 0, 113, 100, 192, 0, 2, 10],
        &[0, 80, 0x03, 0xe8, 0, 0, 0, 0, 1, 2, 3, 5, 0x50, 0x14, 0, 0, 0xa9, 0x22, 0, 0],
    ];
    assert_eq!(read(&frame).expect("is good").rejection(&frame), expected.concat());
}

#[test]
fn the_reset_of_a_segment_with_ack_takes_its_number() {
    use super::frame::Frame;
    for family in super::scene::FAMILIES {
        let (client, vip) = (family.client(1000), SocketAddr::new(family.vip(0), 80));
        let segment = Frame::tcp(client, vip, ACK | FIN).payload(b"data").bytes();
        let reset = read(&segment).expect("is good").rejection(&segment);
        let ip = if family == Family::V4 { 20 } else { 40 };
        assert_eq!(reset.len(), 14 + ip + 20);
        // The acknowledgement number of the builder, no acknowledgement, RST alone.
        assert_eq!(reset[14 + ip + 4..14 + ip + 14], [5, 6, 7, 8, 0, 0, 0, 0, 0x50, 0x04]);
        let without = Frame::tcp(client, vip, FIN).payload(b"data").bytes();
        let reset = read(&without).expect("is good").rejection(&without);
        // 0x01020304 and five: four bytes and the FIN.
        assert_eq!(reset[14 + ip + 4..14 + ip + 14], [0, 0, 0, 0, 1, 2, 3, 9, 0x50, 0x14]);
    }
}

#[test]
fn port_unreachable_quotes_the_header_and_eight_bytes() {
    use super::frame::Frame;
    for family in super::scene::FAMILIES {
        let (client, vip) = (family.client(1000), SocketAddr::new(family.vip(0), 80));
        let datagram = Frame::udp(client, vip).payload(b"question").bytes();
        let answer = read(&datagram).expect("is good").rejection(&datagram);
        let ip = if family == Family::V4 { 20 } else { 40 };
        let message = &answer[14 + ip..];
        assert_eq!(message[..2], if family == Family::V4 { [3, 3] } else { [1, 4] });
        assert_eq!(message[8..], datagram[14..14 + ip + 8]);
        assert_eq!(answer.len(), if family == Family::V4 { 70 } else { 110 });
        if family == Family::V4 {
            assert_eq!(internet_checksum(message), 0);
            assert_eq!(answer[14..24], [0x45, 0xc0, 0, 56, 0, 0, 0, 0, 64, 1]);
        }
    }
}
