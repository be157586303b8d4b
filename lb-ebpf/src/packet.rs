//! All access to packet bytes, each behind a bounds check.
//!
//! Header fields of more than one byte are left in network order; their types and users say so.

use aya_ebpf::helpers::generated::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use lb_common::net::MacAddress;

/// Bytes of an Ethernet header without VLAN tag.
pub const ETHERNET_LENGTH: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4_LENGTH: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub const IPV6_LENGTH: usize = 40;
/// EtherType of IPv4, as it lies in memory.
pub const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
/// EtherType of IPv6, as it lies in memory.
pub const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();

/// An Ethernet header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ethernet {
    pub destination: MacAddress,
    pub source: MacAddress,
    /// Network order.
    pub ethertype: u16,
}

/// An IPv4 header without options (RFC 791 §3.1); words as they lie in memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_length: u16,
    pub identification: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub source: u32,
    pub destination: u32,
}

/// An IPv6 header (RFC 8200 §3); words as they lie in memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv6 {
    /// Version, traffic class and flow label.
    pub version_class_label: u32,
    pub payload_length: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: [u32; 4],
    pub destination: [u32; 4],
}

/// Source and destination port, first in both TCP and UDP; network order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ports {
    pub source: u16,
    pub destination: u16,
}

/// A TCP header without options (RFC 9293 §3.1); network order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledgment: u32,
    /// Data offset in the first octet, flags in the second.
    pub offset_flags: u16,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
}

/// The first eight bytes of an ICMP or ICMPv6 error (RFC 792, RFC 4443).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub checksum: u16,
    /// Unused in most errors.
    pub rest: u32,
}

impl Ethernet {
    /// The header of an answer to this frame.
    #[inline(always)]
    pub fn turned(&self) -> Self {
        Self { destination: self.source, source: self.destination, ethertype: self.ethertype }
    }
}

impl Ipv4 {
    /// The checksum of this header, whose own field is zero.
    #[inline(always)]
    pub fn sum_of_header(&self) -> u16 {
        let [low, high] = self.total_length.to_ne_bytes();
        checksum::ipv4_header([
            u32::from_ne_bytes([self.version_ihl, self.tos, low, high]),
            u32::from(self.identification) | u32::from(self.fragment) << 16,
            u32::from_ne_bytes([self.ttl, self.protocol, 0, 0]),
            self.source,
            self.destination,
        ])
    }
}

impl Tcp {
    /// The sum of this header's words.
    #[inline(always)]
    pub fn sum(&self) -> u64 {
        u64::from(self.source)
            + u64::from(self.destination)
            + u64::from(self.sequence)
            + u64::from(self.acknowledgment)
            + u64::from(self.offset_flags)
            + u64::from(self.window)
            + u64::from(self.checksum)
            + u64::from(self.urgent)
    }
}

impl Icmp {
    /// The sum of these bytes' words.
    #[inline(always)]
    pub fn sum(&self) -> u64 {
        u64::from(u16::from_ne_bytes([self.kind, self.code])) + u64::from(self.checksum) + u64::from(self.rest)
    }
}

const _: () = assert!(size_of::<Tcp>() == 20);
const _: () = assert!(size_of::<Icmp>() == 8);
const _: () = assert!(size_of::<Ethernet>() == ETHERNET_LENGTH);
const _: () = assert!(size_of::<Ipv4>() == IPV4_LENGTH);
const _: () = assert!(size_of::<Ipv6>() == IPV6_LENGTH);

/// A pointer to a `T` at `offset` bytes into the packet; `None` where the packet ends before the `T` does.
///
/// Headers lie at even offsets only. The wider loads that a `T` of 32-bit words then makes are fine on every machine whose
/// kernel has efficient unaligned access; the verifier refuses the program on others.
#[inline(always)]
pub fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some(start as *mut T)
}

/// A copy of the `T` at `offset`; `None` where the packet ends before it does.
#[inline(always)]
pub fn read<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let pointer = at::<T>(ctx, offset)?;
    // SAFETY: `at` compared the end of the T with data_end, and every bit pattern of the types used is valid.
    Some(unsafe { *pointer })
}

/// Writes `value` at `offset`; `None`, and nothing written, where the packet ends before it.
#[inline(always)]
pub fn write<T: Copy>(ctx: &XdpContext, offset: usize, value: T) -> Option<()> {
    let pointer = at::<T>(ctx, offset)?;
    // SAFETY: `at` compared the end of the T with data_end.
    unsafe { *pointer = value };
    Some(())
}

/// Where an IP packet of `length` bytes ends in the frame.
#[inline(always)]
pub const fn end_of(length: u32) -> u64 {
    ETHERNET_LENGTH as u64 + length as u64
}

/// Bytes of the frame in all its buffers, Ethernet header included (Linux 5.18).
#[inline(always)]
pub fn frame_length(ctx: &XdpContext) -> u64 {
    // SAFETY: the context is the program's own.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) }
}

/// Bytes of the frame's first buffer, in which headers lie and which alone can be read and written.
#[inline(always)]
pub fn linear_length(ctx: &XdpContext) -> u64 {
    let mut length = (ctx.data_end() - ctx.data()) as u64;
    // LLVM would otherwise put this and what it is compared with into one sum of 32 bits, of pointers.
    // SAFETY: one instruction on one register.
    unsafe { core::arch::asm!("{0} += 0", inout(reg) length, options(pure, nomem, nostack, preserves_flags)) };
    length
}
