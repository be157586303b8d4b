//! From a [`Verdict`] or [`Stop`] to an XDP action; the only place that knows them, and that counts drops.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use aya_log_ebpf::macro_support::{Level, level_enabled};
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

/// Why a packet of a virtual server is not forwarded, and what its sender is told.
///
/// One word, as [`Verdict`]: the reason in bits 0..8, [`Told`] in 8..16, the virtual server's index in 16..32, an MTU in 32..64.
#[derive(Clone, Copy)]
pub struct Stop(u64);

/// What the sender of a packet is told that is not forwarded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Nothing: the packet vanishes.
    Nothing,
    /// That nobody serves it: a RST, or ICMP's port unreachable for UDP.
    Refused,
    /// That its time to live ran out here.
    Expired,
    /// The MTU that it does not fit.
    TooBig,
}

impl Stop {
    #[inline(always)]
    const fn new(reason: DropReason, told: Told, service: u32, mtu: u32) -> Self {
        Self(reason as u64 | (told as u64) << 8 | (service as u64 & 0xffff) << 16 | (mtu as u64) << 32)
    }

    /// What the virtual server's policy says.
    #[inline(always)]
    pub fn by(policy: Refusal, reason: DropReason) -> Self {
        match policy {
            Refusal::Reject => Self::new(reason, Told::Refused, 0, 0),
            Refusal::Drop => reason.into(),
        }
    }

    /// The time to live of a packet of virtual server `service` ran out.
    #[inline(always)]
    pub const fn expired(service: u32) -> Self {
        Self::new(DropReason::TtlExpired, Told::Expired, service, 0)
    }

    /// A packet of virtual server `service` is larger than `mtu` bytes, the largest that goes this way.
    #[inline(always)]
    pub const fn too_big(service: u32, mtu: u32) -> Self {
        Self::new(DropReason::PacketTooBig, Told::TooBig, service, mtu)
    }

    /// The number of the [`DropReason`].
    #[inline(always)]
    fn reason(self) -> u32 {
        self.0 as u32 & 0xff
    }

    /// What the sender is told.
    #[inline(always)]
    pub const fn told(self) -> Told {
        match self.0 >> 8 & 0xff {
            1 => Told::Refused,
            2 => Told::Expired,
            3 => Told::TooBig,
            _ => Told::Nothing,
        }
    }

    /// The virtual server's index, for [`Told::Expired`] and [`Told::TooBig`].
    #[inline(always)]
    pub const fn service(self) -> u32 {
        (self.0 >> 16) as u32 & 0xffff
    }

    /// The MTU, for [`Told::TooBig`].
    #[inline(always)]
    pub const fn mtu(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// All of it as one number, for a function of its own.
    #[inline(always)]
    const fn word(self) -> u64 {
        self.0
    }

    /// What [`Stop::word`] gave.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The same, but the sender is told nothing.
    #[inline(always)]
    pub const fn in_silence(self) -> Self {
        Self(self.0 & 0xff)
    }
}

impl From<DropReason> for Stop {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self::new(reason, Told::Nothing, 0, 0)
    }
}

const _: () = assert!(lb_common::VIRTUAL_SERVERS_MAX <= 1 << 16);

/// The XDP action for `decision`.
#[inline(always)]
pub fn action(ctx: &XdpContext, decision: Result<Verdict, Stop>) -> u32 {
    match decision {
        Ok(Verdict::PASS) => PASS,
        Ok(Verdict::TRANSMIT) => xdp_action::XDP_TX,
        // SAFETY: the helper takes numbers only; an index that is no interface makes the kernel drop the frame.
        Ok(Verdict(ifindex)) => (unsafe { bpf_redirect(ifindex as u32, 0) }) as u32,
        Err(stop) => {
            count(stop.reason());
            if stop.told() != Told::Nothing && reject::answer_sender(ctx.ctx, stop.word()) == reject::ANSWERED {
                xdp_action::XDP_TX
            } else {
                DROP
            }
        }
    }
}

#[inline(always)]
fn count(reason: u32) {
    // The verifier removes the branch where the packet log is off.
    if level_enabled(Level::Info) {
        log_drop(reason);
    }
    if let Some(counter) = maps::DROPS.get_ptr_mut(reason) {
        // SAFETY: this CPU's own element; nothing else writes it while the program runs.
        unsafe { *counter += 1 };
    }
}

/// One line a packet that is not forwarded; verified once, as `log_packet`.
///
/// Without the packet, which the line says nothing of: LLVM would pass anything for an argument that is not used.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn log_drop(reason: u32) -> u32 {
    info!(&XdpContext::new(core::ptr::null_mut()), "not forwarded, reason {}", reason);
    0
}
