//! Which virtual server a packet is for, and which real server behind `nat` it comes from.

use lb_common::hash;
use lb_common::net::{Address, Port, Protocol};
use lb_common::service::{INDEX_SLOTS, IndexBucket, Lookups, VirtualServerEntry};

use crate::parse::Packet;
use crate::{maps, word};

/// A virtual server, or a real server behind `nat`, that an index names.
#[derive(Clone, Copy)]
pub struct Hit {
    /// Index into `services` or `real_servers`.
    pub index: u32,
    /// The virtual server's flags.
    pub flags: u32,
}

/// Which copies of the indexes are valid.
#[inline(always)]
pub fn lookups() -> Option<&'static Lookups> {
    maps::LOOKUPS.get(0)
}

/// The generation of the routes.
#[inline(always)]
pub fn routes(lookups: &Lookups) -> u32 {
    // SAFETY: a word of a live map element.
    unsafe { word::read(&raw const lookups.routes) }
}

/// The virtual server that the packet addresses.
#[inline(always)]
pub fn find(packet: &Packet, lookups: &Lookups) -> Option<Hit> {
    let (vip, protocol) = (&packet.destination, packet.protocol);
    if let Some(hit) = serving(vip, packet.destination_port, protocol, lookups) {
        return Some(hit);
    }
    // SAFETY: a word of a live map element.
    if unsafe { word::read(&raw const lookups.all_ports) } == 0 {
        return None;
    }
    serving(vip, Port::new(0), protocol, lookups)
}

#[inline(always)]
fn serving(vip: &Address, port: Port, protocol: Protocol, lookups: &Lookups) -> Option<Hit> {
    led_to(hash::index_key(vip, port, protocol), vip, lookups)
}

/// The virtual server that a key of `vip` leads to.
#[inline(always)]
fn led_to(key: u64, vip: &Address, lookups: &Lookups) -> Option<Hit> {
    // SAFETY: a word of a live map element.
    let valid = unsafe { word::read(&raw const lookups.services) };
    let mask = maps::SERVICE_INDEX_MASK.load();
    let bucket = maps::SERVICE_INDEX.get_ptr_mut(place(key, valid, mask))?;
    let hit = search(bucket, key)?;
    // The key of an IPv4 service is exact; that of an IPv6 service is a hash.
    (vip.is_ipv4() || by_index(hit.index)?.key.vip.halves() == vip.halves()).then_some(hit)
}

/// Whether any virtual server has this address.
#[inline(always)]
pub fn is_vip(address: &Address, lookups: &Lookups) -> bool {
    led_to(hash::vip_key(address), address, lookups).is_some()
}

/// The virtual server at `index`.
#[inline(always)]
pub fn by_index(index: u32) -> Option<&'static VirtualServerEntry> {
    maps::SERVICES.get(index)
}

/// The first real server behind `nat` that answers from this address and port.
#[inline(always)]
pub fn find_real(address: &Address, port: Port, protocol: Protocol, lookups: &Lookups) -> Option<Hit> {
    match replying(address, port, protocol, lookups) {
        Some(hit) => Some(hit),
        // SAFETY: a word of a live map element.
        None if unsafe { word::read(&raw const lookups.all_ports) } != 0 => {
            replying(address, Port::new(0), protocol, lookups)
        }
        None => None,
    }
}

/// Whether any real server behind `nat` has this address.
#[inline(always)]
pub fn may_reply(address: &Address, lookups: &Lookups) -> bool {
    replied_by(hash::vip_key(address), address, lookups).is_some()
}

/// Not zero for one of this host's own addresses, of which these are the halves.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn is_own(a: u64, b: u64) -> u32 {
    let address = Address::from_words([a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]);
    u32::from(maps::OWN_ADDRESSES.get_ptr(address).is_some())
}

/// The first real server behind `nat` with this address, port and protocol.
#[inline(always)]
pub fn replying(address: &Address, port: Port, protocol: Protocol, lookups: &Lookups) -> Option<Hit> {
    replied_by(hash::index_key(address, port, protocol), address, lookups)
}

/// The real server that a key of `address` leads to.
#[inline(always)]
fn replied_by(key: u64, address: &Address, lookups: &Lookups) -> Option<Hit> {
    // SAFETY: a word of a live map element.
    let valid = unsafe { word::read(&raw const lookups.replies) };
    let mask = maps::REPLY_INDEX_MASK.load();
    let bucket = maps::REPLY_INDEX.get_ptr_mut(place(key, valid, mask))?;
    let hit = search(bucket, key)?;
    let is_exact = address.is_ipv4();
    (is_exact || maps::REAL_SERVERS.get(hit.index)?.address.halves() == address.halves()).then_some(hit)
}

/// The bucket of `key` in the valid copy of an index.
#[inline(always)]
fn place(key: u64, valid: u64, mask: u32) -> u32 {
    let copy = (valid >> 32) as u32 & 1;
    hash::index_bucket(key, valid as u32, mask) + copy * (mask + 1)
}

#[inline(always)]
fn search(bucket: *mut IndexBucket, key: u64) -> Option<Hit> {
    let words = bucket.cast::<u64>();
    let mut entry = 0;
    while entry < INDEX_SLOTS {
        // SAFETY: a word of a live map element.
        if unsafe { word::read(words.add(entry * 2)) } == key {
            // SAFETY: as above.
            let value = unsafe { word::read(words.add(entry * 2 + 1)) };
            return Some(Hit { index: value as u32, flags: (value >> 32) as u32 });
        }
        entry += 1;
    }
    None
}
