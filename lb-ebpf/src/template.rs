//! Persistence: a client's connections go to one real server, which its template remembers.
//!
//! A template lies in the connection table like a connection, but is counted nowhere.

use lb_common::connection::{Meta, State};
use lb_common::hash;
use lb_common::net::Port;
use lb_common::real::real_flag;
use lb_common::service::{NONE, VirtualServerEntry, service_flag};

use crate::conntrack::{self, Lookup, Place};
use crate::{clock, load, maps, service};

/// The real server of a client's template; [`NONE`] without a template that may be used.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn template_server(service: u32, client_a: u64, client_b: u64) -> u32 {
    let Some((place, meta)) = find(service, [client_a, client_b]) else { return NONE };
    let index = u32::from(meta.real_server());
    // Drained and removed real servers get no new connection, by their old clients neither.
    if !load::has_weight(index) || !place.touch(meta) {
        return NONE;
    }
    index
}

/// Makes real server `index` the one of a client's connections.
#[inline(always)]
pub fn enter(service: u32, client: [u64; 2], index: u32, generation: u32) {
    let [a, b] = client;
    let place = u64::from(index) | u64::from(generation) << 32;
    if redirect_template(service, a, b, place) != 0 {
        return;
    }
    // Not from within a function of its own: frames add up, and there are 512 bytes for all that call each other.
    let Some(entry) = service::by_index(service) else { return };
    let client = masked(entry, client);
    let [a, b] = client;
    let meta = Meta::new(index as u16, State::TEMPLATE_NEW, generation as u8, clock::tick(), 0);
    conntrack::enter_connection(key(entry, client), meta.0, a, b, 0);
}

/// Gives a client's template the real server in the low half of `place`, with the generation in the high half; zero where
/// there is no template.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn redirect_template(service: u32, client_a: u64, client_b: u64, place: u64) -> u32 {
    let Some(entry) = service::by_index(service) else { return 1 };
    let client = masked(entry, [client_a, client_b]);
    let Lookup::Found(template, meta) = conntrack::find(key(entry, client), true) else { return 0 };
    // Also where it is the same one as before: then its time had run out, and begins anew.
    template.redirect(meta, place as u16, (place >> 32) as u8);
    1
}

/// Notes that a connection by a client's template has been established, so that a flood does not displace it.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn confirm_template(service: u32, client_a: u64, client_b: u64) -> u32 {
    if let Some((place, meta)) = find(service, [client_a, client_b])
        && meta.state() == State::TEMPLATE_NEW
    {
        place.advance(meta, State::TEMPLATE);
    }
    0
}

/// A client's template, if its real server is still the one it was made for and its time has not run out.
#[inline(always)]
fn find(service: u32, client: [u64; 2]) -> Option<(Place, Meta)> {
    let entry = service::by_index(service)?;
    let Lookup::Found(place, meta) = conntrack::find(key(entry, masked(entry, client)), true) else { return None };
    let real = maps::REAL_SERVERS.get(meta.real_server().into())?;
    let is_current = real.generation as u8 == meta.generation()
        && real.generation != 0
        && real.virtual_server == service
        && real.flags & real_flag::REMOVED == 0;
    let age = lb_common::connection::age(meta.last_seen(), clock::tick());
    let is_fresh = u32::from(age) <= entry.persistence_timeout && age <= conntrack::timeout(meta.state());
    (is_current && is_fresh).then_some((place, meta))
}

/// What of a client's address makes its template.
#[inline(always)]
fn masked(entry: &VirtualServerEntry, client: [u64; 2]) -> [u64; 2] {
    let [a, b] = client;
    let [mask_a, mask_b] = entry.persistence_mask.halves();
    [a & mask_a, b & mask_b]
}

#[inline(always)]
fn key(entry: &VirtualServerEntry, client: [u64; 2]) -> u64 {
    let (none, service) = (Port::new(0), entry.index as u16);
    if entry.flags & service_flag::WIDE != 0 {
        hash::fingerprint(client, none, none, service, &maps::SECRET.load())
    } else {
        let [_, ipv4] = client;
        hash::exact_key((ipv4 >> 32) as u32, none, service)
    }
}
