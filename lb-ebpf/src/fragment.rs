//! Fragments: the first one of a packet is served like a packet, and what became of it is remembered for the others.
//!
//! In a hash map with LRU of the kernel's: these packets are rare, and what it loses costs one packet. What is known of the
//! one that this CPU is at lies in a map, because it would fill a quarter of the stack.

use aya_ebpf::programs::XdpContext;
use lb_common::drop_reason::DropReason;
use lb_common::fragment::{CurrentFragment, FragmentEntry, FragmentWay, IPV6_FRAGMENT};
use lb_common::real::RealServerEntry;
use lb_common::service::{ForwardingMethod, VirtualServerEntry};

use crate::forward::{self, Egress, Way};
use crate::parse::{self, Marks, Packet};
use crate::route::{self, answer};
use crate::verdict::{Stop, Verdict};
use crate::{clock, encap, maps, pipeline, replies, rewrite, service};

/// To be called for every packet, before anything else here.
#[inline(always)]
pub fn begin() {
    if let Some(current) = current() {
        current.may_pass = 0;
    }
}

/// Notes the identification of the fragment that is being read.
#[inline(always)]
pub fn note_identification(identification: u32) {
    if let Some(current) = current() {
        current.key.identification = identification;
    }
}

/// Notes which packet a fragment is one of, whose identification was noted when it was read; the functions below are about that
/// one, also those that run in the program for fragments.
///
/// Where it is the first, what became of an earlier packet with its identification is forgotten: whatever happens to it, the
/// others must not follow that.
#[expect(clippy::needless_borrows_for_generic_args, reason = "a copy would lie on the stack")]
#[inline(always)]
pub fn identify(packet: &Packet) {
    if let Some(current) = current() {
        let Packet { source, destination, .. } = *packet;
        (current.key.source, current.key.destination) = (source, destination);
        current.key.protocol = if packet.is_ipv4 { packet.protocol as u32 } else { IPV6_FRAGMENT };
        // Now, so that the addresses need not be kept for when it is known which of them changes.
        (current.entry.source, current.entry.destination) = (source, destination);
        if !packet.marks.has(Marks::LATER) && is_of_interest(packet) {
            current.may_pass = 1;
            // That there was no such packet is the usual case.
            maps::FRAGMENTS.remove(&current.key).unwrap_or_default();
        }
    }
}

/// Remembers that the others go up to the host, as the first has.
#[inline(always)]
pub fn let_others_pass() {
    if let Some(current) = current()
        && current.may_pass != 0
    {
        current.entry.way = FragmentWay::Pass;
        enter_fragment();
    }
}

/// Remembers that the others go where the first goes: to real server `index`.
#[inline(always)]
pub fn lead_to_server(index: u32, real: &RealServerEntry) {
    if let Some(current) = current() {
        current.entry.way = FragmentWay::ToServer;
        // Used with `nat` only.
        current.entry.destination = real.address;
        (current.entry.real_server, current.entry.generation) = (index, real.generation);
        enter_fragment();
    }
}

/// Remembers that the others go where the first goes: by `egress` to a client of real server `index`, from the address of
/// `service`.
#[inline(always)]
pub fn lead_to_client(index: u32, real: &RealServerEntry, service: &VirtualServerEntry, egress: &Egress) {
    if let Some(current) = current() {
        current.entry.way = FragmentWay::ToClient;
        current.entry.source = service.key.vip;
        (current.entry.real_server, current.entry.generation) = (index, real.generation);
        (current.entry.ifindex, current.entry.mtu) = (egress.ifindex, egress.mtu);
        (current.entry.next_hop, current.entry.interface) = (egress.destination, egress.source);
        enter_fragment();
    }
}

/// Enters the current fragment's packet in place of an earlier one with its identification. Where the kernel has no place for
/// it, the other fragments will be dropped as unknown ones.
#[expect(clippy::needless_borrows_for_generic_args, reason = "a copy would lie on the stack")]
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn enter_fragment() -> u32 {
    let Some(current) = current() else { return 0 };
    current.entry.since = clock::long_tick();
    u32::from(maps::FRAGMENTS.insert(&current.key, &current.entry, 0).is_ok())
}

/// A first fragment without a transport header: nobody but an attacker makes one (RFC 1858 §3).
#[inline(always)]
pub fn refuse_tiny(packet: &Packet) -> Result<Verdict, Stop> {
    if is_of_interest(packet) { Err(DropReason::TinyFragment.into()) } else { Ok(Verdict::PASS) }
}

/// What becomes of a fragment without ports: what became of its packet's first.
#[inline(always)]
pub fn follow(ctx: &XdpContext, packet: &Packet) -> Result<Verdict, Stop> {
    let Some(entry) = known() else {
        let is_ours = is_of_interest(packet);
        return if is_ours { Err(DropReason::UnknownFragment.into()) } else { Ok(Verdict::PASS) };
    };
    if entry.way == FragmentWay::Pass {
        return Ok(Verdict::PASS);
    }
    parse::validate(packet)?;
    let index = entry.real_server;
    let real = maps::REAL_SERVERS.get(index).filter(|real| real.generation == entry.generation);
    let real = real.ok_or(DropReason::UnknownFragment)?;
    if entry.way == FragmentWay::ToServer {
        to_server(ctx, packet, entry, real)
    } else {
        to_client(ctx, packet, entry, real)
    }
}

#[inline(always)]
fn to_server(
    ctx: &XdpContext,
    packet: &Packet,
    entry: &FragmentEntry,
    real: &RealServerEntry,
) -> Result<Verdict, Stop> {
    let egress = match forward::to_real_server(ctx, packet, entry.real_server, real) {
        Ok(Way::Out(egress)) => egress,
        Ok(Way::Up) => return Ok(Verdict::PASS),
        // No error is sent about any fragment but the first (RFC 1122 §3.2.2).
        Err(stop) => return Err(stop.in_silence()),
    };
    let mut ethertype = pipeline::ethertype(packet);
    match real.forwarding {
        ForwardingMethod::Nat => rewrite::readdress(ctx, packet, &entry.source, &entry.destination)?,
        ForwardingMethod::Dr => rewrite::decrement_ttl(ctx, packet)?,
        ForwardingMethod::Tun => {
            rewrite::decrement_ttl(ctx, packet)?;
            encap::wrap(ctx, packet, real)?;
            ethertype = encap::ethertype(real);
        }
    }
    let verdict = forward::send(ctx, &egress, ethertype)?;
    let length = u64::from(packet.length);
    pipeline::count(real.virtual_server, entry.real_server, |counters| {
        counters.packets_in += 1;
        counters.bytes_in += length;
    });
    Ok(verdict)
}

#[inline(always)]
fn to_client(
    ctx: &XdpContext,
    packet: &Packet,
    entry: &FragmentEntry,
    real: &RealServerEntry,
) -> Result<Verdict, Stop> {
    if packet.ttl <= 1 {
        return Err(DropReason::TtlExpired.into());
    }
    let egress = match route::to_client(ctx.ctx, real.virtual_server, packet.length) {
        answer::SUCCESS => route::found().ok_or(DropReason::NoRoute)?,
        answer::FRAGMENTATION_NEEDED => return Err(DropReason::PacketTooBig.into()),
        answer::BLACKHOLE | answer::UNREACHABLE | answer::PROHIBIT => return Err(DropReason::NoRoute.into()),
        // Local, no route, no neighbour, forwarding off: as the first went.
        _ => Egress { ifindex: entry.ifindex, mtu: entry.mtu, destination: entry.next_hop, source: entry.interface },
    };
    if packet.length > egress.mtu {
        return Err(DropReason::PacketTooBig.into());
    }
    rewrite::readdress(ctx, packet, &entry.source, &entry.destination)?;
    let verdict = forward::send(ctx, &egress, pipeline::ethertype(packet))?;
    let length = u64::from(packet.length);
    pipeline::count(real.virtual_server, entry.real_server, |counters| {
        counters.packets_out += 1;
        counters.bytes_out += length;
    });
    Ok(verdict)
}

/// Whether by its addresses a packet may be of a virtual server: to a VIP, or from a real server behind `nat` to others than
/// this host.
#[inline(always)]
fn is_of_interest(packet: &Packet) -> bool {
    let Some(lookups) = service::lookups() else { return false };
    service::is_vip(&packet.destination, lookups)
        || (maps::NAT_REPLIES.load() != 0 && service::may_reply(&packet.source, lookups) && !replies::is_for_us(packet))
}

/// What became of the first fragment of the current one's packet, unless that was long ago.
///
/// The kernel may give the entry to another packet while it is read. What comes of that is a fragment to a wrong real server,
/// for which it is one without a first.
#[expect(clippy::needless_borrows_for_generic_args, reason = "a copy would lie on the stack")]
#[inline(always)]
fn known() -> Option<&'static FragmentEntry> {
    let current = current()?;
    // SAFETY: see above; all its fields are numbers, and none is used as a place without a check.
    let entry = unsafe { maps::FRAGMENTS.get(&current.key) }?;
    (clock::long_tick().wrapping_sub(entry.since) <= maps::FRAGMENT_TICKS.load()).then_some(entry)
}

#[inline(always)]
fn current() -> Option<&'static mut CurrentFragment> {
    let current = maps::CURRENT_FRAGMENT.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element; nothing else uses it while the program runs.
    Some(unsafe { &mut *current })
}
