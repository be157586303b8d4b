//! What lies where in the maps, compared with what is written down beside [`crate::ABI_VERSION`]: a daemon that adopts maps trusts
//! that their meaning has not changed without the version. Only tests.

use crate::connection::{AGE_MAX, Bucket, State, TICK_SHIFT, TableCounters, Timeouts, Tuple, TupleBucket};
use crate::counters::Counters;
use crate::fragment::{FragmentEntry, FragmentKey, FragmentWay};
use crate::hash::Secret;
use crate::interface::InterfaceEntry;
use crate::net::{Address, MacAddress, Protocol};
use crate::origin::TableOrigin;
use crate::prefix::{CHILDREN, DEPTH_MAX, PrefixLine, value};
use crate::real::{
    ClientHop, CountChunk, LANES, LoadChunk, NextHop, NextHopState, RealServerEntry, hop_state, load, real_flag,
};
use crate::service::{
    ForwardingMethod, IndexBucket, IndexEntry, Lookups, RING_CHUNK, Refusal, RingChunk, Run, Scheduler, ServiceKey,
    VirtualServerEntry, service_flag,
};

/// Size and offsets of a struct, in octets; does not compile where a field is left out.
macro_rules! lies {
    ($text:ident, $($name:ident { $($field:ident),* })*) => {$(
        let _ = |all: $name| { let $name { $($field: _),* } = all; };
        *$text += &format!("{} {}:", stringify!($name), size_of::<$name>());
        $(*$text += &format!(" {} {}", stringify!($field), core::mem::offset_of!($name, $field));)*
        $text.push('\n');
    )*};
}

/// Numbers that have a meaning.
macro_rules! means {
    ($text:ident, $($path:path),*) => {$(
        *$text += &format!("{} {}\n", stringify!($path).replace(' ', ""), $path);
    )*};
}

/// Size and offsets of what lies in the maps.
fn lay_out(text: &mut String) {
    lies! { text,
        Address { octets }
        MacAddress { octets }
        Secret { words }
        ServiceKey { vip, port, reserved, protocol }
        Run { start, length }
        VirtualServerEntry {
            key, index, scheduler, flags, sorry_server, ring, chunks, persistence_timeout, window, persistence_mask,
            no_real_server, unknown_connection, lanes, padding, prefixes, prefixes_digest, reserved
        }
        IndexEntry { key, index, flags }
        IndexBucket { entries }
        Lookups { services, replies, all_ports, routes, reserved }
        RingChunk { elements }
        NextHop { state, ifindex, mtu, destination, source }
        RealServerEntry {
            generation, forwarding, virtual_server, port, flags, next_hop, address, address_delta, transport_delta,
            tunnel_source, weight, upper_threshold, lower_threshold, next_same, active_cost, inactive_cost,
            active_limit, tunnel_spread, busy_cost
        }
        LoadChunk { lanes }
        CountChunk { lanes }
        ClientHop { routes, state, ifindex, mtu, destination, source, reserved }
        Bucket { slots }
        Tuple { client, client_port, vip_port }
        TupleBucket { tuples }
        Timeouts { ticks }
        TableCounters {
            inserted, reclaimed, evicted_half_open, evicted_closing, evicted_established, refused, lost_races
        }
        Counters { connections, packets_in, packets_out, bytes_in, bytes_out, denied }
        FragmentKey { source, destination, identification, protocol }
        FragmentEntry {
            way, real_server, generation, since, source, destination, ifindex, mtu, next_hop, interface
        }
        InterfaceEntry { ifindex, mac, reserved, part_of }
        PrefixLine { words }
        TableOrigin { secret, made_at, connections_max, reserved, maps }
    }
}

/// States, flags and sizes.
fn tell_constants(text: &mut String) {
    means!(
        text,
        State::FREE,
        State::OPENING,
        State::UDP_NEW,
        State::TEMPLATE_NEW,
        State::SCTP_OPENING,
        State::CLIENT_FIN,
        State::SERVER_FIN,
        State::BOTH_FIN,
        State::CLOSED,
        State::SETTLING,
        State::ESTABLISHED,
        State::UDP,
        State::TEMPLATE,
        State::UDP_DIRECT,
        State::LOCKED,
        TICK_SHIFT,
        AGE_MAX,
        real_flag::REMOVED,
        real_flag::IPV6,
        real_flag::SORRY,
        load::COST_BITS,
        load::BUSY,
        load::UNAVAILABLE,
        load::OVERFLOWING,
        load::OVERLOADED,
        load::NO_WEIGHT,
        hop_state::FREE,
        hop_state::WRITING,
        hop_state::READABLE,
        hop_state::RETIRING,
        service_flag::WIDE,
        service_flag::ALL_PORTS,
        service_flag::PERSISTENT,
        service_flag::ONE_PACKET,
        service_flag::SLOPPY_TCP,
        service_flag::HASH_PORT,
        service_flag::HASH_FALLBACK,
        service_flag::KEEP_REMOVED,
        service_flag::STATELESS_REPLIES,
        service_flag::FILTERED,
        value::PERMITTED,
        value::DENIED,
        value::SECOND_HALF,
        CHILDREN,
        DEPTH_MAX,
        LANES,
        RING_CHUNK
    );
}

/// The numbers of enums.
fn tell_numbers(text: &mut String) {
    let numbers = |name: &str, known: &dyn Fn(u32) -> Option<String>| {
        let all: Vec<String> = (0..256).filter_map(|number| Some(format!("{} {number}", known(number)?))).collect();
        format!("{name}: {}\n", all.join(", "))
    };
    *text += &numbers("Protocol", &|number| Some(format!("{:?}", Protocol::from_number(number.try_into().ok()?)?)));
    *text += &numbers("ForwardingMethod", &|number| Some(format!("{:?}", ForwardingMethod::from_number(number)?)));
    *text += &numbers("NextHopState", &|number| Some(format!("{:?}", NextHopState::from_number(number)?)));
    *text += &numbers("Refusal", &|number| Some(format!("{:?}", Refusal::from_number(number)?)));
    *text += &numbers("FragmentWay", &|number| {
        let all = [FragmentWay::Pass, FragmentWay::ToServer, FragmentWay::ToClient];
        Some(format!("{:?}", all.into_iter().find(|known| *known as u32 == number)?))
    });
    *text += &numbers("Scheduler", &|number| {
        Some(format!("{:?}", Scheduler::ALL.into_iter().find(|known| *known as u32 == number)?))
    });
}

#[test]
fn what_lies_in_the_maps_is_what_their_version_says() {
    let mut is = format!("version {}\n", crate::ABI_VERSION);
    for tell in [lay_out, tell_constants, tell_numbers] {
        tell(&mut is);
    }
    let was = include_str!("layout.txt");
    assert!(
        is == was,
        "the maps are laid out otherwise than src/layout.txt says. If that is meant, raise ABI_VERSION unless it has risen since the \
         last release, and write there:\n{is}"
    );
}
