//! The oracle's opinion on ICMP errors: whose packet one quotes, and what `nat` makes of it. Offsets are the RFCs'.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::drop_reason::DropReason;

use super::oracle::{Change, Part, Reading, correct, word};
use super::scene::{Family, OUR_MAC};

/// An ICMP error to who sent the TCP or UDP packet that it quotes.
#[derive(Clone, Copy, Debug)]
pub struct Quotation {
    /// The quoted packet the other way round, with the error's own lengths; its transport is ICMP.
    pub answer: Reading,
    /// What stands against sending it on.
    pub fault: Option<DropReason>,
    /// Offset of the quoted IP header.
    header: usize,
    /// Offset of the quoted ports.
    ports: usize,
}

/// Reads a frame; `None` for what is no such error to our Ethernet address.
pub fn read(frame: &[u8]) -> Option<Quotation> {
    if frame.get(..6)? != OUR_MAC {
        return None;
    }
    match frame.get(12..14)? {
        [0x08, 0x00] => ipv4(frame),
        [0x86, 0xdd] => ipv6(frame),
        _ => None,
    }
}

fn ipv4(frame: &[u8]) -> Option<Quotation> {
    let outer = frame.get(14..34)?;
    // Version 4, at least five words of header, whole, ICMP.
    if outer[0] >> 4 != 4 || outer[0] & 15 < 5 || word(outer, 6) & 0x3fff != 0 || outer[9] != 1 {
        return None;
    }
    let icmp = 14 + usize::from(outer[0] & 15) * 4;
    let header = icmp + 8;
    if ![3, 11, 12].contains(frame.get(icmp)?) {
        return None;
    }
    let quoted = frame.get(header..header + 20)?;
    let ports = header + usize::from(quoted[0] & 15) * 4;
    let is_readable = quoted[0] >> 4 == 4 && quoted[0] & 15 >= 5 && word(quoted, 6) & 0x1fff == 0;
    if !is_readable || quoted[12..16] != outer[16..20] {
        return None;
    }
    let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&quoted[at..at + 4]).expect("four bytes"));
    let end = 14 + usize::from(word(outer, 2));
    Quotation::new(frame, Family::V4, [quoted[9], outer[8]], [address(12), address(16)], [icmp, header, ports, end])
}

fn ipv6(frame: &[u8]) -> Option<Quotation> {
    let (outer, quoted) = (frame.get(14..54)?, frame.get(62..102)?);
    let address =
        |header: &[u8], at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16]).expect("sixteen bytes"));
    let all = [address(outer, 8), address(outer, 24), address(quoted, 24)];
    let is_error = outer[0] >> 4 == 6 && outer[6] == 58 && (1..=4).contains(&frame[54]);
    if !is_error || all.iter().any(|address| address.to_ipv4_mapped().is_some()) {
        return None;
    }
    if quoted[0] >> 4 != 6 || quoted[8..24] != outer[24..40] {
        return None;
    }
    let ends = [all[1].into(), all[2].into()];
    let end = 54 + usize::from(word(outer, 4));
    Quotation::new(frame, Family::V6, [quoted[6], outer[7]], ends, [54, 62, 102, end])
}

impl Quotation {
    fn new(
        frame: &[u8],
        family: Family,
        [protocol, ttl]: [u8; 2],
        [sender, receiver]: [IpAddr; 2],
        [icmp, header, ports, end]: [usize; 4],
    ) -> Option<Self> {
        if ![6, 17, 132].contains(&protocol) {
            return None;
        }
        let quoted = frame.get(ports..ports + 4)?;
        let sender = SocketAddr::new(sender, word(quoted, 0));
        let receiver = SocketAddr::new(receiver, word(quoted, 2));
        let answer = Reading {
            family,
            protocol,
            source: receiver,
            destination: sender,
            part: Part::All,
            is_authenticated: false,
            is_extended: false,
            transport: icmp,
            end,
        };
        let is_malformed = ports + 8 > end || end > frame.len();
        let fault = match (is_malformed, ttl) {
            (true, _) => Some(DropReason::Malformed),
            (false, 0 | 1) => Some(DropReason::TtlExpired),
            (false, _) => None,
        };
        Some(Self { answer, fault, header, ports })
    }

    /// The frame with one less to live, and with `change` made to it and to the other end of what it quotes. As
    /// [`Reading::forwarded`] for checksums; the quoted one of TCP or UDP stays.
    pub fn forwarded(&self, frame: &[u8], change: Change, actual: &[u8]) -> Vec<u8> {
        let Reading { family, transport: icmp, end, .. } = self.answer;
        let mut out = frame.to_vec();
        let (first, length) = match family {
            Family::V4 => (12, 4),
            Family::V6 => (8, 16),
        };
        // Which end of the outer header, of the quoted one, and the address.
        let ends = match change {
            Change::Source(address) => Some((0, 1, address)),
            Change::Destination(address) => Some((1, 0, address)),
            Change::Nothing => None,
        };
        if let Some((outer, quoted, address)) = ends {
            let ip = match address.ip() {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            for at in [14 + first + outer * length, self.header + first + quoted * length] {
                out[at..at + length].copy_from_slice(&ip);
            }
            let at = self.ports + quoted * 2;
            out[at..at + 2].copy_from_slice(&address.port().to_be_bytes());
        }
        match family {
            Family::V4 => {
                out[14 + 8] -= 1;
                correct(&mut out, 14 + 10, actual, frame, |bytes| bytes[14..icmp].to_vec());
                if ends.is_some() {
                    correct(&mut out, self.header + 10, actual, frame, |bytes| bytes[self.header..self.ports].to_vec());
                    correct(&mut out, icmp + 2, actual, frame, |bytes| bytes[icmp..end].to_vec());
                }
            }
            Family::V6 => {
                out[14 + 7] -= 1;
                let length = u16::try_from(end - icmp).expect("fits in a packet").to_be_bytes();
                let covered = |bytes: &[u8]| [&bytes[22..54], &[0, 58], &length, &bytes[icmp..end]].concat();
                if ends.is_some() {
                    correct(&mut out, icmp + 2, actual, frame, covered);
                }
            }
        }
        out
    }
}

#[test]
fn the_oracle_and_the_builder_agree_on_what_nat_makes_of_an_error() {
    use super::frame::{ACK, Frame};
    use super::icmp::{error, quote, requoted};
    use super::scene::FAMILIES;
    for family in FAMILIES {
        let (vip, real) = (SocketAddr::new(family.vip(0), 80), SocketAddr::new(family.real(1), 8080));
        let answer = Frame::tcp(vip, family.client(5), ACK).payload(b"odd");
        let kind = (if family == Family::V4 { 3 } else { 1 }, 1, 0);
        let came = error(family.director(), vip.ip(), kind, &quote(&answer, 19)).bytes();
        let quotation = read(&came).expect("an error");
        assert_eq!((quotation.answer.source, quotation.answer.destination), (family.client(5), vip));
        let changed = Frame { source: real, ..answer.clone() };
        let leaves = error(family.director(), real.ip(), kind, &requoted(&changed, &answer, 19));
        let expected = Frame { ttl: 63, ..leaves }.bytes();
        assert_eq!(quotation.forwarded(&came, Change::Destination(real), &[]), expected);
        assert!(read(&came[..came.len() - 1]).is_some_and(|cut| cut.fault == Some(DropReason::Malformed)));
    }
}
