//! The way out: interface, Ethernet addresses and MTU of the next hop.
//!
//! User space keeps the way to each real server in `real_servers`, and `client_hops` remembers ways back to clients; the
//! kernel's routing table is asked only where neither knows.

use aya_ebpf::programs::XdpContext;
use lb_common::drop_reason::DropReason;
use lb_common::net::MacAddress;
use lb_common::real::{NextHop, NextHopState, RealServerEntry};
use lb_common::service::ForwardingMethod;

use crate::encap;
use crate::packet::{self, Ethernet};
use crate::parse::Packet;
use crate::route::{self, answer};
use crate::verdict::{Stop, Verdict};

/// Where and how a frame leaves.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Egress {
    pub ifindex: u32,
    /// Largest IP packet that goes this way.
    pub mtu: u32,
    pub destination: MacAddress,
    pub source: MacAddress,
}

/// Where a packet goes next.
#[derive(Clone, Copy)]
pub enum Way {
    /// Out of an interface.
    Out(Egress),
    /// Up to this host, which is the real server itself.
    Up,
}

/// The way to `real` for a packet that is forwarded by its method; none out of here for one whose time is over.
#[inline(always)]
pub fn to_real_server(ctx: &XdpContext, packet: &Packet, index: u32, real: &RealServerEntry) -> Result<Way, Stop> {
    if packet.ttl <= 1 && real.next_hop.state != NextHopState::Local {
        return Err(Stop::expired(real.virtual_server));
    }
    let overhead = match real.forwarding {
        ForwardingMethod::Nat | ForwardingMethod::Dr => 0,
        // Without a route, user space knows no address of ours that the outer header could carry.
        ForwardingMethod::Tun if real.tunnel_source.halves() == [0; 2] => return Err(DropReason::NoRoute.into()),
        ForwardingMethod::Tun => encap::overhead(real),
    };
    let length = packet.length + overhead;
    let too_big = |mtu: u32| Stop::too_big(real.virtual_server, mtu.saturating_sub(overhead));
    let hop = &real.next_hop;
    match hop.state {
        NextHopState::Resolved if length > hop.mtu => Err(too_big(hop.mtu)),
        NextHopState::Resolved => Ok(Way::Out(known(hop))),
        NextHopState::Unresolved => match route::to_real_server(ctx.ctx, index, length) {
            answer::SUCCESS => Ok(Way::Out(route::found().ok_or(DropReason::NoRoute)?)),
            answer::NOT_PERMITTED => Err(DropReason::UnlistedInterface.into()),
            answer::FRAGMENTATION_NEEDED => Err(too_big(route::mtu())),
            answer::NO_NEIGHBOUR => Err(DropReason::NoNeighbour.into()),
            answer::FORWARDING_DISABLED => Err(DropReason::ForwardingDisabled.into()),
            _ => Err(DropReason::NoRoute.into()),
        },
        NextHopState::Unusable => Err(DropReason::NoRoute.into()),
        NextHopState::Unlisted => Err(DropReason::UnlistedInterface.into()),
        NextHopState::Local => Ok(Way::Up),
    }
}

#[inline(always)]
fn known(hop: &NextHop) -> Egress {
    Egress { ifindex: hop.ifindex, mtu: hop.mtu, destination: hop.destination, source: hop.source }
}

/// Writes the Ethernet header for `egress` and sends the frame there.
#[inline(always)]
pub fn send(ctx: &XdpContext, egress: &Egress, ethertype: u16) -> Result<Verdict, DropReason> {
    let header = Ethernet { destination: egress.destination, source: egress.source, ethertype };
    packet::write(ctx, 0, header).ok_or(DropReason::Malformed)?;
    if egress.ifindex == ctx.ingress_ifindex() as u32 {
        return Ok(Verdict::TRANSMIT);
    }
    Ok(Verdict::redirect(egress.ifindex))
}
