//! The interface that a frame counts as coming in by.

use aya_ebpf::bindings::xdp_md;
use lb_common::INTERFACES_LENGTH;

use crate::maps;

/// That of the context; of a bond's slave, by which native XDP sees the bond's frames, the bond: the routing table knows that
/// only, and the slave may be one that is not sent by.
///
/// Costs a look-up, so it is asked for new connections and for routes, not for each packet.
#[inline(always)]
pub fn ifindex(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the context is valid for as long as the program runs.
    let ifindex = unsafe { (*ctx).ingress_ifindex };
    match maps::INTERFACES.get(ifindex % INTERFACES_LENGTH) {
        Some(interface) if interface.ifindex == ifindex && interface.part_of != 0 => interface.part_of,
        _ => ifindex,
    }
}
