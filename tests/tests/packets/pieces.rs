//! Packets in fragments, and whole again: RFC 791 §3.2 and RFC 8200 §4.5 on the bytes of frames.

use super::frame::internet_checksum;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
const IPV6: usize = ETHERNET + 40;

/// The frame's packet in fragments that carry so many bytes of its payload each, and one with the rest. All lengths but the
/// last must be multiples of eight; nothing of what the IP header was is kept but what fragments have in common.
pub fn cut(frame: &[u8], identification: u32, lengths: &[usize]) -> Vec<Vec<u8>> {
    let header = if is_ipv4(frame) { ETHERNET + usize::from(frame[ETHERNET] & 15) * 4 } else { IPV6 };
    cut_behind(frame, header, identification, lengths)
}

/// As [`cut`], but of IPv6, and all up to the offset `fixed` of the frame is in every fragment: extension headers that
/// routers look at.
pub fn cut_behind(frame: &[u8], fixed: usize, identification: u32, lengths: &[usize]) -> Vec<Vec<u8>> {
    let end = end_of(frame);
    let mut ends: Vec<usize> = lengths
        .iter()
        .scan(fixed, |at, length| {
            *at += length;
            Some(*at)
        })
        .take_while(|at| *at < end)
        .collect();
    ends.push(end);
    let starts = [fixed].into_iter().chain(ends.iter().copied());
    let pieces = starts.zip(&ends).map(|(start, last)| {
        let field = u16::try_from(start - fixed).expect("fits in a packet");
        let (offset, more) = (field, *last != end);
        if is_ipv4(frame) {
            ipv4(frame, fixed, identification, (offset, more), &frame[start..*last])
        } else {
            ipv6(frame, fixed, identification, (offset, more), &frame[start..*last])
        }
    });
    pieces.collect()
}

/// The frame with the whole packet of these fragments, in any order; the Ethernet header is the first one's.
///
/// # Panics
/// Where a part is missing or one does not belong to the others.
pub fn join(pieces: &[Vec<u8>]) -> Vec<u8> {
    let mut parts: Vec<Part> = pieces.iter().map(|piece| part(piece)).collect();
    parts.sort_by_key(|part| part.offset);
    let mut data = Vec::new();
    for part in &parts {
        assert_eq!(part.offset, data.len(), "a gap");
        assert_eq!((&part.header, part.identification), (&parts[0].header, parts[0].identification));
        data.extend(&part.data);
    }
    let flags: Vec<bool> = parts.iter().map(|part| part.more).collect();
    let (last, others) = flags.split_last().expect("at least one");
    assert!(!last && others.iter().all(|more| *more), "{flags:?}");
    let mut whole = [&parts[0].header[..], &data].concat();
    set_length(&mut whole);
    if is_ipv4(&whole) {
        let [_, _, high, low] = parts[0].identification.to_be_bytes();
        whole[18..20].copy_from_slice(&[high, low]);
        set_checksum(&mut whole);
    }
    whole
}

/// What a fragment says.
struct Part {
    /// Everything before the data that all have in common, as in a whole packet: lengths, checksum and marks are zero.
    header: Vec<u8>,
    identification: u32,
    offset: usize,
    more: bool,
    data: Vec<u8>,
}

fn part(piece: &[u8]) -> Part {
    let end = end_of(piece);
    if is_ipv4(piece) {
        let behind = ETHERNET + usize::from(piece[ETHERNET] & 15) * 4;
        let mut header = piece[..behind].to_vec();
        assert_eq!(internet_checksum(&header[ETHERNET..]), 0, "a wrong IPv4 checksum");
        let field = word(piece, 20);
        for range in [16..22, 24..26] {
            header[range].fill(0);
        }
        let offset = usize::from(field & 0x1fff) * 8;
        let (identification, more) = (word(piece, 18).into(), field & 0x2000 != 0);
        return Part { header, identification, offset, more, data: piece[behind..end].to_vec() };
    }
    let (link, at) = fragment_header(piece);
    let mut header = piece[..at].to_vec();
    header[link] = piece[at];
    header[18..20].fill(0);
    let field = word(piece, at + 2);
    let identification = u32::from_be_bytes(piece[at + 4..at + 8].try_into().expect("four bytes"));
    let (offset, more) = (usize::from(field & 0xfff8), field & 1 != 0);
    Part { header, identification, offset, more, data: piece[at + 8..end].to_vec() }
}

fn ipv4(frame: &[u8], behind: usize, identification: u32, (offset, more): (u16, bool), data: &[u8]) -> Vec<u8> {
    let mut piece = [&frame[..behind], data].concat();
    let [_, _, high, low] = identification.to_be_bytes();
    piece[18..20].copy_from_slice(&[high, low]);
    let field = (u16::from(more) << 13) | (offset / 8);
    piece[20..22].copy_from_slice(&field.to_be_bytes());
    set_length(&mut piece);
    set_checksum(&mut piece);
    piece
}

fn ipv6(frame: &[u8], fixed: usize, identification: u32, (offset, more): (u16, bool), data: &[u8]) -> Vec<u8> {
    let link = last_link(frame, fixed);
    let field = (offset | u16::from(more)).to_be_bytes();
    let header = [&[frame[link], 0], &field[..], &identification.to_be_bytes()].concat();
    let mut piece = [&frame[..fixed], &header, data].concat();
    piece[link] = 44;
    set_length(&mut piece);
    piece
}

/// Where the number of the header at `offset` stands: in the header before it.
fn last_link(frame: &[u8], offset: usize) -> usize {
    let (mut link, mut at) = (20, IPV6);
    while at < offset {
        link = at;
        at += (usize::from(frame[at + 1]) + 1) * 8;
    }
    assert_eq!(at, offset, "not between two headers");
    link
}

/// Where the number of the fragment header stands, and where the header itself.
fn fragment_header(frame: &[u8]) -> (usize, usize) {
    let (mut link, mut at) = (20, IPV6);
    while frame[link] != 44 {
        link = at;
        at += (usize::from(frame[at + 1]) + 1) * 8;
    }
    (link, at)
}

fn set_length(frame: &mut [u8]) {
    let (at, header) = if is_ipv4(frame) { (16, ETHERNET) } else { (18, IPV6) };
    let length = u16::try_from(frame.len() - header).expect("fits in a packet");
    frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
}

fn set_checksum(frame: &mut [u8]) {
    let behind = ETHERNET + usize::from(frame[ETHERNET] & 15) * 4;
    frame[24..26].fill(0);
    let sum = internet_checksum(&frame[ETHERNET..behind]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Offset of the first byte behind the IP packet.
fn end_of(frame: &[u8]) -> usize {
    if is_ipv4(frame) { ETHERNET + usize::from(word(frame, 16)) } else { IPV6 + usize::from(word(frame, 18)) }
}

fn is_ipv4(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0]
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[test]
fn what_was_cut_is_whole_again() {
    use super::frame::Frame;
    use super::scene::FAMILIES;
    for family in FAMILIES {
        let frame = Frame::udp(family.client(1), family.client(2)).payload(&[7; 100]);
        let frame = Frame { dont_fragment: false, identification: 0xabcd, ..frame }.bytes();
        let mut pieces = cut(&frame, 0xabcd, &[8, 64, 16]);
        assert_eq!(pieces.len(), 4);
        pieces.reverse();
        assert_eq!(join(&pieces), frame);
    }
}

/// Worked out by hand: 12 bytes of payload, 8 in the first.
#[test]
fn a_fragment_is_the_bytes_that_were_worked_out_by_hand() {
    use super::frame::{Frame, Transport};
    let transport = Transport::Other { protocol: 17 };
    let frame = Frame::new(([192, 0, 2, 10], 0).into(), ([203, 0, 113, 100], 0).into(), transport);
    let pieces = cut(&frame.payload(b"twelve bytes").bytes(), 7, &[8]);
    // 4500+0018+0007+0001+4011+c000+020a+cb00+7164 = 2839f, folded 83a1.
    let expected = [0x45, 0, 0, 24, 0, 7, 0, 1, 64, 17, 0x7c, 0x5e, 192, 0, 2, 10, 203, 0, 113, 100];
    assert_eq!(pieces[1][14..], [&expected[..], b"ytes"].concat());
    assert_eq!(pieces[0][20..22], [0x20, 0]);
}
