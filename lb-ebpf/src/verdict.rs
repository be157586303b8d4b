//! From a [`Verdict`] or [`Stop`] to an XDP action; the only place that knows them, and that counts drops.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use lb_common::drop_reason::DropReason;
use lb_common::service::Refusal;

use crate::{maps, reject};

/// The action of programs that only let packets through.
pub const PASS: u32 = xdp_action::XDP_PASS;

/// The action of programs that drop a packet and have counted it themselves.
pub const DROP: u32 = xdp_action::XDP_DROP;

/// What becomes of a packet that is not stopped.
///
/// One word and no enum: LLVM leaves the payload of a variant that has none as it finds it, and where that is half a pointer
/// the verifier refuses to see it stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Verdict(u64);

impl Verdict {
    /// Up to the host, unchanged.
    pub const PASS: Self = Self(1 << 32);
    /// Out of the interface that it came in by.
    pub const TRANSMIT: Self = Self(2 << 32);

    /// Out of another interface, by index.
    #[inline(always)]
    pub fn redirect(ifindex: u32) -> Self {
        Self(ifindex.into())
    }
}

/// Why a packet of a virtual server is not forwarded.
#[derive(Clone, Copy)]
pub enum Stop {
    /// It vanishes.
    Drop(DropReason),
    /// Its sender is told.
    Reject(DropReason),
}

impl Stop {
    /// What the virtual server's policy says.
    #[inline(always)]
    pub fn by(policy: Refusal, reason: DropReason) -> Self {
        match policy {
            Refusal::Reject => Self::Reject(reason),
            Refusal::Drop => Self::Drop(reason),
        }
    }
}

impl From<DropReason> for Stop {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// The XDP action for `decision`.
#[inline(always)]
pub fn action(ctx: &XdpContext, decision: Result<Verdict, Stop>) -> u32 {
    match decision {
        Ok(Verdict::PASS) => PASS,
        Ok(Verdict::TRANSMIT) => xdp_action::XDP_TX,
        // SAFETY: the helper takes numbers only; an index that is no interface makes the kernel drop the frame.
        Ok(Verdict(ifindex)) => (unsafe { bpf_redirect(ifindex as u32, 0) }) as u32,
        Err(Stop::Reject(reason)) => {
            count(ctx, reason);
            if reject::answer_sender(ctx.ctx) == reject::ANSWERED { xdp_action::XDP_TX } else { DROP }
        }
        Err(Stop::Drop(reason)) => {
            count(ctx, reason);
            DROP
        }
    }
}

#[inline(always)]
fn count(ctx: &XdpContext, reason: DropReason) {
    info!(ctx, "not forwarded, reason {}", reason as u32);
    if let Some(counter) = maps::DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own element; nothing else writes it while the program runs.
        unsafe { *counter += 1 };
    }
}
