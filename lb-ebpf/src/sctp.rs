//! What SCTP's chunks say of an association (RFC 9260 §3.2), in the words of TCP: what holds of a connection there holds here.
//!
//! The client's chunks alone are seen, since only `dr` and `tun` carry SCTP. Tags and sequence numbers are not checked.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;

use crate::packet::{self, ETHERNET_LENGTH};
use crate::parse::Packet;
use crate::parse::tcp_flag::{ACK, FIN, RST, SYN};
use crate::word;

/// Chunk types (RFC 9260 §3.2).
pub mod chunk {
    pub const INIT: u8 = 1;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const ERROR: u8 = 9;
    pub const COOKIE_ACK: u8 = 11;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// Bytes of the common header (RFC 9260 §3.1).
pub const HEADER_LENGTH: usize = 12;
/// Bytes of a chunk without value.
pub const CHUNK_LENGTH: usize = 4;

/// Most chunks of a packet that are looked at: what ends an association comes behind few others.
const CHUNKS_MAX: u32 = 8;
/// Offset beyond which no chunk is looked for; larger than any frame that XDP sees in one buffer.
const OFFSET_MAX: usize = 9_216;

/// What TCP's flags would be: SYN for INIT, FIN for SHUTDOWN and SHUTDOWN ACK, RST for ABORT and SHUTDOWN COMPLETE, ACK for
/// everything else.
#[inline(always)]
pub fn flags(ctx: &XdpContext, packet: &Packet) -> u8 {
    flags_between(ctx, packet.transport, ETHERNET_LENGTH + packet.length as usize)
}

/// [`flags`] of the packet with its common header at `transport`, whose last byte is before `end`.
#[inline(always)]
pub fn flags_between(ctx: &XdpContext, transport: usize, end: usize) -> u8 {
    sctp_flags(ctx.ctx, transport as u32, end as u32) as u8
}

/// [`flags_between`] as a function of its own, verified once and alone.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn sctp_flags(ctx: *mut xdp_md, transport: u32, end: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let end = end as usize;
    let mut offset = word::fourteen_bits(transport.into()) + HEADER_LENGTH;
    let mut flags = 0;
    for number in 0..CHUNKS_MAX {
        if offset + CHUNK_LENGTH > end || offset > OFFSET_MAX {
            break;
        }
        let Some([kind, _, high, low]) = packet::read::<[u8; CHUNK_LENGTH]>(&ctx, offset) else { break };
        flags |= match kind {
            // It comes alone (RFC 9260 §6.10).
            chunk::INIT if number == 0 => return SYN.into(),
            chunk::ABORT | chunk::SHUTDOWN_COMPLETE => RST,
            chunk::SHUTDOWN | chunk::SHUTDOWN_ACK => FIN | ACK,
            _ => ACK,
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < CHUNK_LENGTH {
            break;
        }
        offset += (length + 3) & !3;
    }
    flags.into()
}
