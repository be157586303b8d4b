//! Which real server a new connection gets.
//!
//! The rings, chunks and costs that make one scheduler differ from another are user space's work.

use lb_common::hash;
use lb_common::real::load;
use lb_common::service::{NONE, RING_CHUNK, Run, Scheduler, VirtualServerEntry, service_flag};

use crate::{load as loads, maps, service, word};

/// The real server of virtual server `service` for a new connection from a client (two halves of its address) and port;
/// [`NONE`] where no real server takes one.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn choose_server(service: u32, client_a: u64, client_b: u64, port: u32) -> u32 {
    let Some(service) = service::by_index(service) else { return NONE };
    match service.scheduler {
        Scheduler::Rr | Scheduler::Wrr => in_turn(service),
        Scheduler::Lc | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq | Scheduler::Fo | Scheduler::Ovf => {
            least_loaded(service.index)
        }
        Scheduler::Twos => better_of_two(service),
        Scheduler::Sh | Scheduler::Mh => {
            let port = if service.flags & service_flag::HASH_PORT != 0 { port as u16 } else { 0 };
            by_hash(service, hash::scheduling([client_a, client_b], port))
        }
        Scheduler::Dh => by_hash(service, hash::scheduling(service.key.vip.halves(), 0)),
    }
}

/// How many elements of the ring are tried.
const TURNS: u32 = 64;
/// How many alternatives a hash has.
const ALTERNATIVES: u32 = 16;
/// Most chunks that a virtual server has: all of them.
const CHUNKS_MAX: u32 = lb_common::REAL_SERVERS_MAX / 8;

/// The next of the ring, in strict order over all CPUs.
#[inline(always)]
fn in_turn(service: &VirtualServerEntry) -> u32 {
    let ring = run(&service.ring);
    for _ in 0..TURNS {
        let turn = next_turn(service.index);
        let real = element(ring, turn);
        if real == NONE || loads::is_available(real) {
            return real;
        }
    }
    NONE
}

/// The better of two drawn by weight.
#[inline(always)]
fn better_of_two(service: &VirtualServerEntry) -> u32 {
    let ring = run(&service.ring);
    let [_, secret] = maps::SECRET.load().words;
    let draw = hash::mix(next_turn(service.index) ^ secret);
    let one = element(ring, (draw & 0xffff_ffff) * u64::from(ring.length) >> 32);
    let two = element(ring, (draw >> 32) * u64::from(ring.length) >> 32);
    let (load_one, load_two) = (loads::word_of(one), loads::word_of(two));
    let (best, load) = if load_two < load_one { (two, load_two) } else { (one, load_one) };
    if load < load::UNAVAILABLE { best } else { in_turn(service) }
}

/// The ring's element for `hash`, or for one of its alternatives where the virtual server has them.
#[inline(always)]
fn by_hash(service: &VirtualServerEntry, hash: u64) -> u32 {
    let ring = run(&service.ring);
    let real = element(ring, hash);
    if real == NONE || loads::is_available(real) {
        return real;
    }
    if service.flags & service_flag::HASH_FALLBACK == 0 {
        return NONE;
    }
    for turn in 1..=ALTERNATIVES {
        let real = element(ring, hash::again(hash, turn));
        if real == NONE || loads::is_available(real) {
            return real;
        }
    }
    NONE
}

/// The real server for a connection that has no slot in the connection table: the same for each of its packets.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stateless_server(service: u32, key: u64) -> u32 {
    let Some(service) = service::by_index(service) else { return NONE };
    let ring = run(&service.ring);
    let [_, secret] = maps::SECRET.load().words;
    let hash = hash::mix(key ^ secret);
    for offset in 0..u64::from(ALTERNATIVES) {
        let real = element(ring, hash.wrapping_add(offset));
        if real == NONE || loads::has_weight(real) {
            return real;
        }
    }
    NONE
}

/// The real server with the smallest load, of all or of a window; the turn decides between equals.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn least_loaded(service: u32) -> u32 {
    let Some(service) = service::by_index(service) else { return NONE };
    let (chunks, lanes) = (run(&service.chunks), service.lanes);
    let turn = if lanes == 0 { 0 } else { next_turn(service.index) as u32 % lanes };
    let (first, window) = (turn / 8, service.window);
    let (mut best, mut best_chunk, mut best_round) = (u64::MAX, 0, 0);
    for round in 0..CHUNKS_MAX {
        if round >= chunks.length {
            break;
        }
        let wrapped = if first + round >= chunks.length { first + round - chunks.length } else { first + round };
        let chunk = element_at(chunks, wrapped);
        let least = least_of(chunk);
        if least < best {
            (best, best_chunk, best_round) = (least, chunk, round);
        }
        if window != 0 && round + 1 >= window && best < load::UNAVAILABLE {
            break;
        }
    }
    if best >= load::UNAVAILABLE {
        return NONE;
    }
    let first_lane = if best_round == 0 { turn % 8 } else { 0 };
    best_chunk * 8 + lane_of_least(best_chunk, first_lane)
}

/// The smallest load of a chunk.
#[inline(always)]
fn least_of(chunk: u32) -> u64 {
    let Some(chunk) = maps::SERVER_LOADS.get_ptr_mut(chunk) else { return u64::MAX };
    let lanes = chunk as *const u64;
    let mut least = u64::MAX;
    let mut lane = 0;
    while lane < 8 {
        // SAFETY: a lane of a live map element.
        let load = unsafe { word::read(lanes.add(lane)) };
        if load < least {
            least = load;
        }
        lane += 1;
    }
    least
}

/// Its lane, of equals the first from `first` on.
#[inline(always)]
fn lane_of_least(chunk: u32, first: u32) -> u32 {
    let Some(chunk) = maps::SERVER_LOADS.get_ptr_mut(chunk) else { return 0 };
    let lanes = chunk as *const u64;
    let (mut least, mut best) = (u64::MAX, 0);
    let mut step = 0;
    while step < 8 {
        let lane = word::lane(u64::from(first) + step);
        // SAFETY: a lane of a live map element.
        let load = unsafe { word::read(lanes.add(lane)) };
        if load < least {
            (least, best) = (load, lane as u32);
        }
        step += 1;
    }
    best
}

/// A virtual server's next turn; each CPU gets turns of its own.
#[inline(always)]
fn next_turn(service: u32) -> u64 {
    match maps::RR_CURSORS.get_ptr_mut(service) {
        // SAFETY: a live map element, which CPUs change by atomic addition only.
        Some(cursor) => unsafe { word::add(cursor, 1) },
        None => 0,
    }
}

/// A run as it stands now, start and length of one time.
#[inline(always)]
fn run(run: &Run) -> Run {
    // SAFETY: an aligned word of a live map element.
    let word = unsafe { word::read((&raw const *run).cast::<u64>()) };
    Run { start: word as u32, length: (word >> 32) as u32 }
}

/// The ring's element for `number`, modulo its length; [`NONE`] from an empty one.
#[inline(always)]
fn element(ring: Run, number: u64) -> u32 {
    if ring.length == 0 {
        return NONE;
    }
    element_at(ring, (number % u64::from(ring.length)) as u32)
}

/// The run's element at `offset`, which lies in it.
#[inline(always)]
fn element_at(run: Run, offset: u32) -> u32 {
    let place = run.start + offset;
    match maps::SCHEDULER_RINGS.get_ptr_mut(place / RING_CHUNK as u32) {
        // SAFETY: an element of a live map's chunk.
        Some(chunk) => unsafe { word::read((chunk as *const u16).add(word::five_bits(place.into()))) }.into(),
        None => NONE,
    }
}
