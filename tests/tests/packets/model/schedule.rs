//! Which real server a new connection gets: IPVS's schedulers on exact counts.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::hash::{self, Secret};
use lb_common::net::Address;
use lb_common::service::Scheduler;

use super::world::{RealServer, VirtualServer};

/// Elements of a ring that are tried before a round robin gives up.
const TRIES: usize = 64;
/// Alternatives to a hash whose real server takes no connection.
const ALTERNATIVES: u32 = 16;
/// Places after a key's own in the ring that are looked at where the table has no room.
const NEIGHBOURS: u64 = 16;

/// Most groups of eight that are compared.
const GROUPS_MAX: usize = 32;

type Reals = BTreeMap<u16, RealServer>;

/// The scheduler's choice for a connection from `client` to `vip`, and the next cursor.
pub fn choose(
    server: &mut VirtualServer,
    reals: &Reals,
    ends: (SocketAddr, SocketAddr),
    secret: &Secret,
) -> Option<u16> {
    let (client, vip) = ends;
    match server.scheduler {
        Scheduler::Rr | Scheduler::Wrr => in_turn(server, reals, None),
        Scheduler::Lc | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq if server.one_packet => {
            in_turn(server, reals, None)
        }
        Scheduler::Lc | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq => {
            let turn = lane_in_turn(server);
            least(server, reals, turn)
        }
        Scheduler::Fo | Scheduler::Ovf => least(server, reals, 0),
        Scheduler::Twos => better_of_two(server, reals, secret),
        Scheduler::Sh | Scheduler::Mh => {
            let port = if server.hash_port { client.port() } else { 0 };
            by_hash(server, reals, hash::scheduling(Address::from(client.ip()).halves(), port))
        }
        Scheduler::Dh => by_hash(server, reals, hash::scheduling(Address::from(vip.ip()).halves(), 0)),
    }
}

/// The real server of a connection for which the table has no room: the same for each of its packets.
pub fn without_slot(server: &VirtualServer, reals: &Reals, key: u64, secret: &Secret) -> Option<u16> {
    if server.ring.is_empty() {
        return None;
    }
    let start = hash::mix(key ^ secret.words[1]);
    let mut places = (0..NEIGHBOURS).map(|step| element(server, start.wrapping_add(step)));
    places.find(|real| reals.get(real).is_some_and(RealServer::takes_any))
}

fn element(server: &VirtualServer, place: u64) -> u16 {
    let length = u64::try_from(server.ring.len()).expect("fits");
    server.ring[usize::try_from(place % length).expect("fits")]
}

fn next(server: &mut VirtualServer) -> u64 {
    server.cursor += 1;
    server.cursor - 1
}

fn is_available(server: &VirtualServer, reals: &Reals, real: u16) -> bool {
    reals.get(&real).is_some_and(|real| real.is_available(server.scheduler))
}

/// The next in turn, whatever the scheduler.
pub fn in_turn(server: &mut VirtualServer, reals: &Reals, unfit: Option<u16>) -> Option<u16> {
    if server.ring.is_empty() {
        next(server);
        return None;
    }
    for _ in 0..TRIES {
        let place = next(server);
        let real = element(server, place);
        if Some(real) != unfit && is_available(server, reals, real) {
            return Some(real);
        }
    }
    let turn = lane_in_turn(server);
    any(server, reals, unfit, turn)
}

/// The first that takes a connection, from the turn on and round; of very many only so many groups are looked at.
fn any(server: &VirtualServer, reals: &Reals, unfit: Option<u16>, turn: usize) -> Option<u16> {
    let count = server.groups.len();
    let from_turn = (0..count.min(GROUPS_MAX)).flat_map(|round| {
        let group = server.groups[(turn / 8 + round) % count];
        let first = if round == 0 { turn % 8 } else { 0 };
        (first..8).chain(0..first).map(move |lane| group * 8 + u16::try_from(lane).expect("below 8"))
    });
    let mut ours = from_turn.filter(|real| reals.get(real).is_some_and(|r| r.virtual_server == server.index));
    ours.find(|real| Some(*real) != unfit && is_available(server, reals, *real))
}

fn lane_in_turn(server: &mut VirtualServer) -> usize {
    let turn = if server.lanes == 0 { 0 } else { next(server) % u64::from(server.lanes) };
    usize::try_from(turn).expect("small")
}

fn by_hash(server: &VirtualServer, reals: &Reals, hash: u64) -> Option<u16> {
    if server.ring.is_empty() {
        return None;
    }
    let turns = if server.hash_fallback { ALTERNATIVES } else { 0 };
    let alternatives = (1..=turns).map(|turn| hash::again(hash, turn));
    let mut candidates = [hash].into_iter().chain(alternatives).map(|hash| element(server, hash));
    let found = candidates.find(|real| is_available(server, reals, *real));
    if found.is_some() || !server.hash_fallback {
        return found;
    }
    let turn = if server.lanes == 0 { 0 } else { (hash & 0xffff_ffff) % u64::from(server.lanes) };
    any(server, reals, None, usize::try_from(turn).expect("small"))
}

fn better_of_two(server: &mut VirtualServer, reals: &Reals, secret: &Secret) -> Option<u16> {
    let drawn = hash::mix(next(server) ^ secret.words[1]);
    if server.ring.is_empty() {
        return in_turn(server, reals, None);
    }
    let length = u64::try_from(server.ring.len()).expect("fits");
    let draw = |half: u64| server.ring[usize::try_from((half * length) >> 32).expect("below the length")];
    let (a, b) = (draw(drawn & 0xffff_ffff), draw(drawn >> 32));
    match [a, b].map(|real| is_available(server, reals, real)) {
        [true, true] if compare(server.scheduler, &reals[&b], &reals[&a]).is_lt() => Some(b),
        [true, _] => Some(a),
        [false, true] => Some(b),
        [false, false] => in_turn(server, reals, None),
    }
}

/// The least loaded; of equals the first, from the `turn`-th real server on and round. With a window, of so many groups only,
/// and the next in turn where none of them is available.
fn least(server: &mut VirtualServer, reals: &Reals, turn: usize) -> Option<u16> {
    let count = server.groups.len();
    let window = usize::try_from(server.window).expect("fits");
    let compared = if window == 0 { count } else { count.min(window) };
    let mut best: Option<u16> = None;
    for round in 0..compared.min(GROUPS_MAX) {
        let group = server.groups[(turn / 8 + round) % count];
        // In the group that the turn is in, those from there on come before those ahead of it.
        let first = if round == 0 { turn % 8 } else { 0 };
        for lane in (first..8).chain(0..first) {
            let real = group * 8 + u16::try_from(lane).expect("below 8");
            let is_ours = reals.get(&real).is_some_and(|r| r.virtual_server == server.index);
            if !is_ours || !is_available(server, reals, real) {
                continue;
            }
            if best.is_none_or(|best| compare(server.scheduler, &reals[&real], &reals[&best]).is_lt()) {
                best = Some(real);
            }
        }
    }
    if best.is_none() && window != 0 { in_turn(server, reals, None) } else { best }
}

/// Which of two real servers is less loaded, by cross multiplication.
pub fn compare(scheduler: Scheduler, a: &RealServer, b: &RealServer) -> Ordering {
    let connections = |real: &RealServer| 256 * u64::from(real.active) + u64::from(real.inactive);
    let delay = |real: &RealServer| u64::from(real.active) + 1;
    let by_weight =
        |load: &dyn Fn(&RealServer) -> u64| (load(a) * u64::from(b.weight)).cmp(&(load(b) * u64::from(a.weight)));
    match scheduler {
        Scheduler::Lc => connections(a).cmp(&connections(b)),
        Scheduler::Wlc | Scheduler::Twos => by_weight(&connections),
        Scheduler::Sed => by_weight(&delay),
        Scheduler::Nq => (a.active > 0).cmp(&(b.active > 0)).then(by_weight(&delay)),
        // Of equals the first by address.
        Scheduler::Fo | Scheduler::Ovf => b.weight.cmp(&a.weight).then(a.address.cmp(&b.address)),
        Scheduler::Rr | Scheduler::Wrr | Scheduler::Sh | Scheduler::Dh | Scheduler::Mh => Ordering::Equal,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{reals, virtual_server};
    use super::*;

    const SECRET: Secret = Secret { words: [3, 4] };

    fn ends() -> (SocketAddr, SocketAddr) {
        (([192, 0, 2, 1], 1000).into(), ([203, 0, 113, 100], 80).into())
    }

    /// The choices of `count` connections, each of which becomes active.
    fn choices(scheduler: Scheduler, weights: &[u16], count: usize) -> Vec<u16> {
        let (mut server, mut reals) = (virtual_server(scheduler), reals(weights));
        server.ring = (0..u16::try_from(weights.len()).expect("few")).collect();
        server.lanes = u32::try_from(weights.len()).expect("few");
        let choose = |_| {
            let real = choose(&mut server, &reals, ends(), &SECRET).expect("one is available");
            reals.get_mut(&real).expect("is there").active += 1;
            real
        };
        (0..count).map(choose).collect()
    }

    #[test]
    fn wlc_fills_by_weight() {
        // Loads after each: the first two are idle, turns 0 and 1; then 1/1 against 1/2, 1/1 against 2/2 at turn 3 mod 2.
        assert_eq!(choices(Scheduler::Wlc, &[1, 2], 6), [0, 1, 1, 1, 0, 1]);
    }

    #[test]
    fn least_connections_take_turns_among_equals() {
        assert_eq!(choices(Scheduler::Lc, &[1, 9, 1], 6), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn nq_fills_idle_ones_first_and_sed_the_fastest() {
        // sed: (1/1, 1/3), (1/1, 2/3), (1/1, 3/3) a tie at turn 2 mod 2, (2/1, 3/3).
        assert_eq!(choices(Scheduler::Sed, &[1, 3], 4), [1, 1, 0, 1]);
        // nq: idle ones by 1/weight, then as sed: (2/1, 2/3), (2/1, 3/3).
        assert_eq!(choices(Scheduler::Nq, &[1, 3], 4), [1, 0, 1, 1]);
    }

    #[test]
    fn overflow_goes_to_the_next_weight() {
        // Not above two active ones means that the third is still taken.
        assert_eq!(choices(Scheduler::Ovf, &[1, 2], 5), [1, 1, 1, 0, 0]);
        assert_eq!(choices(Scheduler::Fo, &[1, 2], 3), [1, 1, 1]);
    }

    #[test]
    fn round_robin_leaves_out_the_unavailable() {
        let (mut server, mut reals) = (virtual_server(Scheduler::Rr), reals(&[1, 1, 1]));
        server.ring = [0, 1, 2].into();
        reals.get_mut(&1).expect("is there").is_overloaded = true;
        let chosen: Vec<_> = (0..4).map(|_| choose(&mut server, &reals, ends(), &SECRET)).collect();
        assert_eq!(chosen, [Some(0), Some(2), Some(0), Some(2)]);
        assert_eq!(server.cursor, 6);
    }
}
