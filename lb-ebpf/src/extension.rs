//! What may stand between the IP header and the transport header: IPv6 extension headers and IPv4 options.
//!
//! Two functions of their own, verified once and alone, because what they find, and their loops, would multiply the states of
//! the pipeline.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::fragment::Walk;
use lb_common::net::Protocol;

use crate::packet::{self, ETHERNET_LENGTH, IPV4_LENGTH, IPV6_LENGTH};
use crate::parse::{self, Marks};
use crate::{fragment, maps, word};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

#[inline(always)]
const fn is_extension_header(number: u8) -> bool {
    matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// What [`walk_options`] or [`walk_extension_headers`] found, packed into the one word that a function of its own may return: transport
/// protocol in bits 0..8, offset of its header in 8..22, and from 56 on [`Marks`]. The identification of a fragment is noted.
///
/// Zero: nothing of ours. With [`Marks::LATER`] the protocol is that of the header that the first fragment begins with, and the
/// offset that of its own first byte. [`Marks::TINY`]: a fragment that ends before the transport header begins, which has no
/// protocol.
#[derive(Clone, Copy)]
pub struct Walked(u64);

impl Walked {
    const MARKS: u32 = 56;
    const FIRST: u64 = (Marks::FIRST as u64) << Self::MARKS;
    const LATER: u64 = (Marks::LATER as u64) << Self::MARKS;
    const TINY: u64 = (Marks::TINY as u64) << Self::MARKS;
    const SOURCE_ROUTE: u64 = (Marks::SOURCE_ROUTE as u64) << Self::MARKS;
    const AUTHENTICATED: u64 = (Marks::AUTHENTICATED as u64) << Self::MARKS;
    const OVERLAPPING: u64 = (Marks::OVERLAPPING as u64) << Self::MARKS;

    #[inline(always)]
    pub fn marks(self) -> u32 {
        (self.0 >> Self::MARKS) as u32
    }

    /// The transport protocol's number, or with [`Marks::LATER`] perhaps that of an extension header.
    #[inline(always)]
    pub fn protocol(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    pub fn offset(self) -> usize {
        word::fourteen_bits(self.0 >> 8)
    }
}

/// The walk through the packet in `ctx`, whose IPv6 header says that a header of number `first` follows.
#[inline(always)]
pub fn walk_ipv6(ctx: *mut xdp_md, first: u8) -> Walked {
    Walked(walk_extension_headers(ctx, first.into()))
}

/// Most extension headers that are followed: as many of the shortest as fit into 1500 bytes, so that none gets past us.
const EXTENSION_HEADERS_MAX: u32 = 184;
/// Offset from which on no header is looked for; larger than any frame that XDP sees in one buffer.
const OFFSET_END: usize = 1 << 14;

/// Follows the extension headers (RFC 8200 §4) to the transport header.
///
/// Where it is lies in a map between two headers: the verifier knows nothing of what is there, so that it need not tell apart
/// how a header was reached.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_extension_headers(ctx: *mut xdp_md, first: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let Some(place) = maps::CURRENT_FRAGMENT.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own element; nothing else uses it while the program runs.
    let place = unsafe { &raw mut (*place).walk };
    set(place, Walk { found: 0, offset: (ETHERNET_LENGTH + IPV6_LENGTH) as u32, next: first });
    for _ in 0..EXTENSION_HEADERS_MAX {
        // SAFETY: as above.
        let Walk { found, offset, next } = unsafe { word::read(place) };
        let (next, offset) = (next as u8, word::fourteen_bits(offset.into()));
        if Protocol::from_number(next).is_some() {
            return packed(found, next, offset);
        }
        // Whose packet a fragment is one of that tells no ports, its addresses say.
        let end = if found & Walked::FIRST != 0 { found | Walked::TINY } else { 0 };
        let Some([following, length, high, low]) = packet::read::<[u8; 4]>(&ctx, offset) else { return end };
        let mut flags = 0;
        let length = match next {
            FRAGMENT => {
                let Some(identification) = packet::read::<u32>(&ctx, offset + 4) else { return end };
                let field = u16::from_be_bytes([high, low]);
                if found & Walked::FIRST != 0 {
                    return end; // a fragment in a fragment
                }
                if field & 0xfff8 != 0 {
                    if Protocol::from_number(following).is_none() && !is_extension_header(following) {
                        return 0;
                    }
                    let overlaps = parse::overlaps(following, field & 0xfff8);
                    let overlapping = if overlaps { Walked::OVERLAPPING } else { 0 };
                    fragment::note_identification(identification);
                    return packed(found | Walked::LATER | overlapping, following, offset + 8);
                }
                if field & 1 != 0 {
                    fragment::note_identification(identification);
                    flags = Walked::FIRST;
                }
                8
            }
            AUTHENTICATION => {
                flags = Walked::AUTHENTICATED;
                (usize::from(length) + 2) * 4
            }
            ROUTING => {
                if low != 0 {
                    flags = Walked::SOURCE_ROUTE; // segments left
                }
                (usize::from(length) + 1) * 8
            }
            HOP_BY_HOP | DESTINATION_OPTIONS => (usize::from(length) + 1) * 8,
            _ => return 0,
        };
        let offset = offset + length;
        if offset >= OFFSET_END {
            return end;
        }
        set(place, Walk { found: found | flags, offset: offset as u32, next: following.into() });
    }
    0
}

#[inline(always)]
fn set(place: *mut Walk, walk: Walk) {
    // SAFETY: the place is that of a live map element.
    unsafe { word::write(place, walk) };
}

#[inline(always)]
fn packed(flags: u64, protocol: u8, offset: usize) -> u64 {
    flags | u64::from(protocol) | (offset as u64) << 8
}

/// Most options that an IPv4 header has: its longest has 40 bytes for them.
const IPV4_OPTIONS_MAX: u32 = 40;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

/// Fragment offset and mark of an IPv4 header (RFC 791 §3.1).
const OFFSET: u16 = 0x1fff;
const MORE_FRAGMENTS: u16 = 0x2000;

/// What the IPv4 header of the packet in `ctx` says.
#[inline(always)]
pub fn walk_ipv4(ctx: *mut xdp_md) -> Walked {
    Walked(walk_options(ctx))
}

/// Looks at the IPv4 header and its options: [`Walked`].
///
/// A function of its own also for packets without options, so that the verifier knows nothing of what it finds: otherwise it
/// would follow the pipeline once for each of that.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn walk_options(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    let Some((header, transport)) = parse::ipv4_header(&ctx) else { return 0 };
    let field = u16::from_be(header.fragment);
    let mut marks = if transport > ETHERNET_LENGTH + IPV4_LENGTH { look_at_options(&ctx, transport) } else { 0 };
    if field & OFFSET != 0 {
        let overlaps = parse::overlaps(header.protocol, (field & OFFSET) * 8);
        marks |= Marks::LATER | if overlaps { Marks::OVERLAPPING } else { 0 };
    } else if field & MORE_FRAGMENTS != 0 {
        marks |= Marks::FIRST;
    }
    fragment::note_identification(header.identification.into());
    packed(u64::from(marks) << Walked::MARKS, header.protocol, transport)
}

/// Looks at the options of the IPv4 header that ends before offset `end` (RFC 791 §3.1): [`Marks`].
///
/// Between two options it goes by the map, as [`walk_extension_headers`].
#[inline(always)]
fn look_at_options(ctx: &XdpContext, end: usize) -> u32 {
    let Some(place) = maps::CURRENT_FRAGMENT.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's own element; nothing else uses it while the program runs.
    let place = unsafe { &raw mut (*place).walk };
    set(place, Walk { found: 0, offset: (ETHERNET_LENGTH + IPV4_LENGTH) as u32, next: 0 });
    for _ in 0..IPV4_OPTIONS_MAX {
        // SAFETY: as above.
        let offset = word::fourteen_bits(unsafe { word::read(place) }.offset.into());
        if offset >= end {
            break;
        }
        // Both at once: behind the last option there are ports, and the verifier knows no end but that of two bytes.
        let Some([kind, length]) = packet::read::<[u8; 2]>(ctx, offset) else { return Marks::MALFORMED };
        let length = match kind {
            END_OF_OPTIONS => break,
            NO_OPERATION => 1,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Marks::SOURCE_ROUTE,
            _ if length >= 2 => usize::from(length),
            _ => return Marks::MALFORMED,
        };
        if offset + length > end {
            return Marks::MALFORMED;
        }
        set(place, Walk { found: 0, offset: (offset + length) as u32, next: 0 });
    }
    0
}
