//! From a [`Verdict`] or [`DropReason`] to an XDP action; the only place that knows them, and that counts drops.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use lb_common::drop_reason::DropReason;

use crate::maps;

/// The action of programs that only let packets through.
pub const PASS: u32 = xdp_action::XDP_PASS;

/// The action of programs that drop a packet and have counted it themselves.
pub const DROP: u32 = xdp_action::XDP_DROP;

/// What becomes of a packet that is not dropped.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// Up to the host, unchanged.
    Pass,
    /// Out of the interface that it came in by.
    Transmit,
    /// Out of another interface, by index.
    Redirect(u32),
}

/// The XDP action for `decision`.
#[inline(always)]
pub fn action(ctx: &XdpContext, decision: Result<Verdict, DropReason>) -> u32 {
    match decision {
        Ok(Verdict::Pass) => PASS,
        Ok(Verdict::Transmit) => xdp_action::XDP_TX,
        // SAFETY: the helper takes numbers only; an index that is no interface makes the kernel drop the frame.
        Ok(Verdict::Redirect(ifindex)) => (unsafe { bpf_redirect(ifindex, 0) }) as u32,
        Err(reason) => {
            info!(ctx, "dropped, reason {}", reason as u32);
            if let Some(counter) = maps::DROPS.get_ptr_mut(reason as u32) {
                // SAFETY: this CPU's own element; nothing else writes it while the program runs.
                unsafe { *counter += 1 };
            }
            DROP
        }
    }
}
