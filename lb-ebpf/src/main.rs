//! Evenkeel's XDP programs: entry points, licence and panic handler.
//!
//! The work is in the modules; [`pipeline`] is the place to start reading.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "core::sync::atomic has no fetch_add on bpfel")]

mod access;
mod arrival;
mod clock;
#[cfg_attr(feature = "lru", path = "conntrack_lru.rs")]
mod conntrack;
mod decap;
mod encap;
mod exceptional;
mod extension;
mod forward;
mod fragment;
mod icmp;
mod load;
mod maps;
mod packet;
mod parse;
mod pipeline;
mod place;
mod reject;
mod replies;
mod rewrite;
mod route;
mod schedule;
mod sctp;
mod service;
mod tcp;
mod template;
mod verdict;
mod word;

use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

/// The load balancer, attached to a director's interfaces.
// Inlined into the entry that the macro makes: as a call it would cost 32 of the 512 bytes of stack on Linux 6.1.
#[xdp(frags)]
#[inline(always)]
pub fn balance(ctx: XdpContext) -> u32 {
    verdict::action(&ctx, pipeline::run(&ctx))
}

/// What `balance` does not read: fragments, packets with options or extension headers, frames in several buffers, other
/// protocols than TCP and UDP.
///
/// A program of its own, which `balance` jumps to: these packets then cost the others nothing, neither time nor stack nor
/// the verifier's patience.
#[xdp(frags)]
#[inline(always)]
pub fn exceptional(ctx: XdpContext) -> u32 {
    let action = verdict::action(&ctx, exceptional::run(&ctx));
    if action == verdict::PASS {
        fragment::let_others_pass();
    }
    action
}

/// As `exceptional`, which is for IPv4, for IPv6: both in one would be too much for stack and verifier.
#[xdp(frags)]
#[inline(always)]
pub fn exceptional_ipv6(ctx: XdpContext) -> u32 {
    let action = verdict::action(&ctx, exceptional::run_ipv6(&ctx));
    if action == verdict::PASS {
        fragment::let_others_pass();
    }
    action
}

/// Fragments that tell no ports, which `exceptional` leaves: they go where their packet's first went.
#[xdp(frags)]
#[inline(always)]
pub fn fragment(ctx: XdpContext) -> u32 {
    verdict::action(&ctx, exceptional::run_fragment(&ctx))
}

/// ICMP errors, which `exceptional` leaves to it together with what is nobody's.
#[xdp(frags)]
#[inline(always)]
pub fn icmp(ctx: XdpContext) -> u32 {
    verdict::action(&ctx, icmp::run(&ctx))
}

/// Strips the outer header, of either family, on a real server without a tunnel device.
#[xdp(frags)]
pub fn decapsulate(ctx: XdpContext) -> u32 {
    if decap::run(&ctx) { verdict::PASS } else { verdict::DROP }
}

/// Answers with the coarse time: user space runs it by test_run, and has no other way to know. Attached nowhere.
#[xdp]
pub fn tick(_ctx: XdpContext) -> u32 {
    clock::tick().into()
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no panic path survives optimisation; were one to, the verifier would refuse the program where it starts.
    unsafe { core::hint::unreachable_unchecked() }
}
