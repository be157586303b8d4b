//! Which real server a new connection gets.
//!
//! The rings, chunks and costs that make one scheduler differ from another are user space's work.

use lb_common::hash;
use lb_common::real::load;
use lb_common::service::{CHUNKS_COMPARED_MAX, NONE, RING_CHUNK, Run, Scheduler, VirtualServerEntry, service_flag};

use crate::{load as loads, maps, service, word};

/// The real server of virtual server `service` for a new connection from a client (two halves of its address) and port;
/// [`NONE`] where no real server takes one.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn choose_server(service: u32, client_a: u64, client_b: u64, port: u32) -> u32 {
    let Some(service) = service::by_index(service) else { return NONE };
    let chosen = match service.scheduler {
        Scheduler::Rr | Scheduler::Wrr => UNDECIDED,
        // There are no connections to compare.
        Scheduler::Lc | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq
            if service.flags & service_flag::ONE_PACKET != 0 =>
        {
            UNDECIDED
        }
        Scheduler::Lc | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq | Scheduler::Fo | Scheduler::Ovf => {
            least_loaded(service)
        }
        Scheduler::Twos => better_of_two(service),
        Scheduler::Sh | Scheduler::Mh => {
            let port = if service.flags & service_flag::HASH_PORT != 0 { port as u16 } else { 0 };
            by_hash(service, hash::scheduling([client_a, client_b], port))
        }
        Scheduler::Dh => by_hash(service, hash::scheduling(service.key.vip.halves(), 0)),
    };
    if chosen == UNDECIDED { in_turn(service, NONE) } else { chosen }
}

/// No choice: the next in turn takes it.
const UNDECIDED: u32 = NONE - 1;

/// The next real server of virtual server `service` in turn, whatever its scheduler, but not `unfit`; [`NONE`] where no other
/// takes a connection.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn next_server(service: u32, unfit: u32) -> u32 {
    match service::by_index(service) {
        Some(service) => in_turn(service, unfit),
        None => NONE,
    }
}

/// How many elements of the ring are tried before any real server is as good.
const TURNS: u32 = 64;
/// How many alternatives a hash has before any real server is as good. IPVS goes on for as many as its table has elements.
const ALTERNATIVES: u32 = 16;

/// The next of the ring, in strict order over all CPUs.
#[inline(always)]
fn in_turn(service: &VirtualServerEntry, unfit: u32) -> u32 {
    let ring = run(&service.ring);
    for _ in 0..TURNS {
        let turn = next_turn(service.index);
        let real = element(ring, turn);
        if real == NONE || (real != unfit && loads::is_available(real)) {
            return real;
        }
    }
    any_server(service.index, unfit, lane_in_turn(service))
}

/// A real server of virtual server `service` that takes a connection, whatever its weight, but not `unfit`; [`NONE`] where
/// there is none among the first 256 from the lane `turn` on.
///
/// For rings in which those that take none have nearly all elements.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn any_server(service: u32, unfit: u32, turn: u32) -> u32 {
    let Some(service) = service::by_index(service) else { return NONE };
    let chunks = run(&service.chunks);
    let first = turn / 8 % chunks.length.max(1);
    for round in 0..CHUNKS_COMPARED_MAX {
        if round >= chunks.length {
            break;
        }
        let Some(chunk) = element_at(chunks, wrapped(first + round, chunks.length)) else { break };
        let Some(loads) = maps::SERVER_LOADS.get_ptr_mut(chunk) else { break };
        let first_lane = if round == 0 { u64::from(turn) } else { 0 };
        for step in 0..8 {
            let lane = word::lane(first_lane + step);
            // SAFETY: a lane of a live map element.
            let load = unsafe { word::read((loads as *const u64).add(lane)) };
            let real = chunk * 8 + lane as u32;
            if load < load::UNAVAILABLE && real != unfit {
                return real;
            }
        }
    }
    NONE
}

/// The lane at which the virtual server's next turn begins to compare.
#[inline(always)]
fn lane_in_turn(service: &VirtualServerEntry) -> u32 {
    if service.lanes == 0 { 0 } else { next_turn(service.index) as u32 % service.lanes }
}

/// The better of two drawn by weight; [`UNDECIDED`] where both take no new connection.
#[inline(always)]
fn better_of_two(service: &VirtualServerEntry) -> u32 {
    let ring = run(&service.ring);
    let [_, secret] = maps::SECRET.load().words;
    let draw = hash::mix(next_turn(service.index) ^ secret);
    let one = element(ring, ((draw & 0xffff_ffff) * u64::from(ring.length)) >> 32);
    let two = element(ring, ((draw >> 32) * u64::from(ring.length)) >> 32);
    let (load_one, load_two) = (loads::word_of(one), loads::word_of(two));
    let (best, load) = if load_two < load_one { (two, load_two) } else { (one, load_one) };
    if load < load::UNAVAILABLE { best } else { UNDECIDED }
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
    // By the hash too: the packets of a connection without a slot must agree.
    let turn = if service.lanes == 0 { 0 } else { hash as u32 % service.lanes };
    any_server(service.index, NONE, turn)
}

/// The real server for a connection that has no slot in the connection table, the same for each of its packets; the sorry
/// server where none has a weight, and [`NONE`] without that.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn stateless_server(service: u32, key: u64) -> u32 {
    let Some(service) = service::by_index(service) else { return NONE };
    let ring = run(&service.ring);
    let [_, secret] = maps::SECRET.load().words;
    let hash = hash::mix(key ^ secret);
    for offset in 0..u64::from(ALTERNATIVES) {
        let real = element(ring, hash.wrapping_add(offset));
        if real == NONE {
            break;
        }
        if loads::has_weight(real) {
            return real;
        }
    }
    // SAFETY: a word of a live map element.
    unsafe { word::read(&raw const service.sorry_server) }
}

/// The real server with the smallest load, of all or of a window; the turn decides between equals. [`UNDECIDED`] where a
/// window has none that takes a new connection.
#[inline(always)]
fn least_loaded(service: &VirtualServerEntry) -> u32 {
    let (chunks, turn) = (run(&service.chunks), lane_in_turn(service));
    // Modulo: chunks and lanes of a virtual server that is being changed may be of two times.
    let first = turn / 8 % chunks.length.max(1);
    let rounds = if service.window == 0 { chunks.length } else { chunks.length.min(service.window) };
    // Runs begin with a value of their map, so the list of up to 256 real servers lies in one.
    let Some(list) = ring_chunk(chunks.start) else { return NONE };
    let is_short = chunks.length <= RING_CHUNK as u32;
    let chunk_at = |offset: u32| if is_short { Some(element_of(list, offset)) } else { element_at(chunks, offset) };
    let Some(begin) = chunk_at(first) else { return NONE };
    let (mut best, mut best_chunk) = (u64::MAX, begin);
    for round in 0..CHUNKS_COMPARED_MAX {
        if round >= rounds {
            break;
        }
        let Some(chunk) = chunk_at(wrapped(first + round, chunks.length)) else { return NONE };
        let Some(least) = least_of(chunk, best) else { return NONE };
        if least < best {
            (best, best_chunk) = (least, chunk);
        }
    }
    if best >= load::UNAVAILABLE {
        return if service.window == 0 { NONE } else { UNDECIDED };
    }
    // Not by the round in which it was found: that is a number which the verifier knows, and would tell all apart by.
    let first_lane = if best_chunk == begin { turn % 8 } else { 0 };
    best_chunk * 8 + lane_of_least(best_chunk, first_lane)
}

/// `place` less `length` if it has reached that.
///
/// Without a branch, or the verifier tells apart all rounds in which the first might have been wrapped.
#[inline(always)]
fn wrapped(place: u32, length: u32) -> u32 {
    let (place, length) = (u64::from(place), u64::from(length));
    (place - (length & !word::negative_mask(place.wrapping_sub(length)))) as u32
}

/// The smallest of a chunk's loads and `best`.
///
/// From the best so far on, so that the branch is hardly ever taken: the processor foresees it then.
#[inline(always)]
fn least_of(chunk: u32, best: u64) -> Option<u64> {
    let lanes = maps::SERVER_LOADS.get_ptr_mut(chunk)? as *const u64;
    let mut least = best;
    let mut lane = 0;
    while lane < 8 {
        // SAFETY: a lane of a live map element.
        let load = unsafe { word::read(lanes.add(lane)) };
        if load < least {
            least = load;
        }
        lane += 1;
    }
    Some(least)
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
    element_at(ring, (number % u64::from(ring.length)) as u32).unwrap_or(NONE)
}

/// The run's element at `offset`, which lies in it.
#[inline(always)]
fn element_at(run: Run, offset: u32) -> Option<u32> {
    Some(element_of(ring_chunk(run.start + offset)?, run.start + offset))
}

/// The value of `scheduler_rings` with this element.
#[inline(always)]
fn ring_chunk(place: u32) -> Option<*const u16> {
    maps::SCHEDULER_RINGS.get_ptr_mut(place / RING_CHUNK as u32).map(|chunk| chunk as *const u16)
}

/// The element at `place`, of those in its value.
#[inline(always)]
fn element_of(chunk: *const u16, place: u32) -> u32 {
    // SAFETY: an element of a live map's value.
    unsafe { word::read(chunk.add(word::five_bits(place.into()))) }.into()
}
