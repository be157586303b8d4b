//! The programs of `cargo xtask bench program`: one that makes packets, and controls that do next to nothing.
//!
//! BPF_PROG_TEST_RUN runs a program again and again on one packet, which a balancer changes. So [`bench_packet`] is what it
//! runs: that writes every header anew, for another flow each time, and jumps to the program whose cost is sought. What it
//! costs itself is found by letting it jump to a control. An object of its own: the one that is measured is the product's.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use core::arch::asm;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_TX};
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use lb_common::bench::{self, BenchConfig, FRAME_LENGTH, Order, PACKET_OFFSET, PACKET_WORDS};

/// `BPF_F_MMAPABLE`, so that the configuration lies on cache lines of its own.
const MMAPABLE: usize = 1 << 10;

/// What [`bench_packet`] does.
#[btf_map(name = "bench_config")]
static CONFIG: Array<BenchConfig, 1, MMAPABLE> = Array::new();

/// What it jumps to.
#[btf_map(name = "bench_programs")]
static PROGRAMS: ProgramArray<8> = ProgramArray::new();

/// Makes the next packet and jumps to the program that [`BenchConfig::program`] names; aborts where there is none.
#[xdp(frags)]
pub fn bench_packet(ctx: XdpContext) -> u32 {
    let Some(config) = CONFIG.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: the map's only element, and nothing else writes to it while a run lasts.
    let config = unsafe { &mut *config };
    let flow = next_flow(config);
    if restore_length(&ctx).and_then(|()| write(&ctx, config, flow)).is_none() {
        return XDP_ABORTED;
    }
    // SAFETY: context and map are valid; where the jump fails, we abort.
    unsafe { PROGRAMS.tail_call(&ctx, config.program) };
    XDP_ABORTED
}

/// The control: sends the packet back as it is.
#[xdp(frags)]
pub fn bench_empty(_ctx: XdpContext) -> u32 {
    XDP_TX
}

/// The control for tunnels over IPv4: makes room for the outer header and no more.
#[xdp(frags)]
pub fn bench_room_v4(ctx: XdpContext) -> u32 {
    send_with_room(&ctx, 20)
}

/// The control for tunnels over IPv6.
#[xdp(frags)]
pub fn bench_room_v6(ctx: XdpContext) -> u32 {
    send_with_room(&ctx, 40)
}

#[inline(always)]
fn send_with_room(ctx: &XdpContext, bytes: i32) -> u32 {
    match adjust_head(ctx, -bytes) {
        Some(()) => XDP_TX,
        None => XDP_ABORTED,
    }
}

#[inline(always)]
fn next_flow(config: &mut BenchConfig) -> u32 {
    match config.order {
        Order::Sequential => {
            let index = config.next as u32;
            let following = index + 1;
            config.next = if following >= config.flows { 0 } else { u64::from(following) };
            index
        }
        Order::Random => {
            config.next = bench::next_random(config.next);
            bench::below(config.next, config.flows)
        }
    }
}

/// Takes off what the last program put in front.
#[inline(always)]
fn restore_length(ctx: &XdpContext) -> Option<()> {
    let (start, end) = ends(ctx);
    let surplus = (end - start) as i32 - FRAME_LENGTH as i32;
    if surplus == 0 { Some(()) } else { adjust_head(ctx, surplus) }
}

#[inline(always)]
fn adjust_head(ctx: &XdpContext, delta: i32) -> Option<()> {
    // SAFETY: the context is valid; packet pointers are read from it again.
    (unsafe { bpf_xdp_adjust_head(ctx.ctx, delta) } == 0).then_some(())
}

/// Writes the frame of `flow`.
///
/// Each field is written by one store that is at least as wide as any load of it: where a load needs the bytes of two
/// stores that are still on their way, the processor waits for both, and that would be counted as the program's time.
#[inline(always)]
fn write(ctx: &XdpContext, config: &BenchConfig, flow: u32) -> Option<()> {
    let frame = at::<[u16; FRAME_LENGTH / 2]>(ctx, 0)?.cast::<u8>();
    for (index, word) in (0..).zip(&config.ethernet) {
        // SAFETY: `at` compared the end of the frame with the packet's.
        unsafe { store(frame.add(index * 4).cast(), *word) };
    }
    // SAFETY: as above.
    unsafe { store(frame.add(12).cast(), config.ethertype) };
    for (index, word) in (0..).zip(&config.packet) {
        // SAFETY: as above.
        unsafe { store(frame.add(PACKET_OFFSET + index * 4).cast(), *word) };
    }
    let (address, port) = bench::client(config.first_address, config.address_shift, flow);
    let shift = config.port_shift & 16;
    let ports = config.ports & !(0xffff << shift) | u32::from(port.to_be()) << shift;
    // SAFETY: `at` compared the words' ends with the packet's.
    unsafe {
        store(word_at(ctx, config.address_word)?, address.to_be());
        store(word_at(ctx, config.ports_word)?, ports);
    }
    Some(())
}

/// Word `index` of the packet.
#[inline(always)]
fn word_at(ctx: &XdpContext, index: u32) -> Option<*mut u32> {
    at(ctx, PACKET_OFFSET + index as usize % PACKET_WORDS * 4)
}

#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let (start, end) = ends(ctx);
    let place = start + offset;
    if place + size_of::<T>() > end {
        return None;
    }
    Some(place as *mut T)
}

/// Where the packet begins and ends.
///
/// By hand, because the context's words are of 32 bits and become pointers: LLVM may widen them by an instruction after
/// which the verifier knows no pointer.
#[inline(always)]
fn ends(ctx: &XdpContext) -> (usize, usize) {
    let (start, end): (usize, usize);
    // SAFETY: two loads from the context, which is valid; not pure, since moving the head changes what they read.
    unsafe {
        asm!(
            "{0} = *(u32 *)({2} + 0)",
            "{1} = *(u32 *)({2} + 4)",
            out(reg) start,
            lateout(reg) end,
            in(reg) ctx.ctx,
            options(readonly, nostack, preserves_flags)
        );
    }
    (start, end)
}

/// A store that is neither joined with others nor split.
///
/// # Safety
///
/// `place` is that of a `T` in the packet.
#[inline(always)]
unsafe fn store<T>(place: *mut T, value: T) {
    // SAFETY: the caller's promise.
    unsafe { core::ptr::write_volatile(place, value) }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no panic path survives optimisation; were one to, the verifier would refuse the program where it starts.
    unsafe { core::hint::unreachable_unchecked() }
}
