//! The scan over tables in plain memory, alone and beside a packet path in other threads.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use lb_common::connection::{Meta, State, Timeouts};
use lb_common::hash;
use lb_common::net::Port;
use lb_common::real::load;
use lb_common::service::{Scheduler, service_flag};

use super::audit::{self, Audits, CountRepair};
use super::connection::STATES;
use super::loads::{self, LoadRepair, Looks};
use super::memory::{Memory, Real, SECRET, Virtual, address, key};
use super::packet_path::{Cpu, quiesce};
use super::scanner::{Constants, Scanner};
use super::sweep::{Census, Sweep, Swept, Time};
use super::words::Counts;
use crate::datapath::Policy;
use crate::model::{self, Persistence};

/// Ten ticks half-open, a hundred established, twenty closing, five closed, fifty UDP, no limit of its own for templates.
const TIMEOUTS: Timeouts = Timeouts::new(10, 100, 20, 5, 50);

fn memory() -> Memory {
    let memory = Memory::new(16, 8);
    memory.put_virtual(0, Virtual::PLAIN);
    memory.put_real(3, Real::PLAIN);
    memory
}

fn meta(state: u8, last_seen: u16) -> Meta {
    Meta::new(3, state, 1, last_seen, 0)
}

fn sweep(memory: &Memory, now: u16, round: u32) -> Swept {
    let mut swept = Swept::default();
    let time = Time { now, round, round_ticks: 4 };
    Sweep::new(memory.tables(), &TIMEOUTS, &SECRET, time).run(0, 16, &mut swept);
    swept
}

#[test]
fn counts_are_two_numbers_in_one_word_and_may_be_negative() {
    let words = [(2, 5, 0x2_0000_0005), (1, -1, 0xffff_ffff), (-1, 0, 0xffff_ffff_0000_0000), (0, -1, u64::MAX)];
    for (active, inactive, word) in words {
        let counts = Counts { active, inactive };
        assert_eq!((counts.to_word(), Counts::from_word(word)), (word, counts));
    }
}

#[test]
fn a_connection_ends_when_it_was_idle_for_longer_than_its_state_allows() {
    for (state, timeout) in [(State::OPENING, 10), (State::ESTABLISHED, 100), (State::CLOSED, 5), (State::UDP, 50)] {
        let memory = memory();
        // Across the wrap of the clock.
        memory.put(40, 7, meta(state, 65_530));
        let counted = memory.counted(3);
        let due = 65_530_u16.wrapping_add(timeout);
        assert_eq!(sweep(&memory, due, 0).expired, 0);
        assert_eq!(memory.counted(3), counted);
        assert_eq!(sweep(&memory, due.wrapping_add(1), 0).expired, 1);
        assert_eq!((memory.meta(40), memory.counted(3)), (Meta::FREE, (0, 0, 0)));
    }
}

#[test]
fn connections_of_a_real_server_that_is_gone_end_at_once() {
    let memory = memory();
    memory.put(0, 1, Meta::new(3, State::ESTABLISHED, 2, 0, 0));
    // A free place, and one past the table, which nothing can be counted for.
    memory.put(1, 2, Meta::new(4, State::OPENING, 1, 0, 0));
    memory.put(3, 3, meta(State::OPENING, 0));
    let stray = Meta::new(8, State::OPENING, 1, 0, 0);
    memory.tables().slots().nth(2).map(|slot| slot.replace(Meta::FREE, stray));
    let swept = sweep(&memory, 0, 0);
    assert_eq!((swept.expired, swept.census.half_open, swept.census.total()), (3, 1, 1));
    assert_eq!((memory.counted(3).0, memory.counted(3).1, memory.counted(4).1), (1, 0, 0));
}

#[test]
fn slots_that_are_being_rewritten_are_left() {
    let memory = memory();
    memory.tables().slots().nth(9).map(|slot| slot.replace(Meta::FREE, Meta::LOCKED));
    assert_eq!(sweep(&memory, 30_000, 0), Swept::default());
    assert_eq!(memory.meta(9), Meta::LOCKED);
}

#[test]
fn what_is_left_is_told_by_kind() {
    let memory = memory();
    for (slot, state) in STATES.into_iter().enumerate() {
        memory.put(slot, 1 + slot as u64, meta(state, 0));
    }
    // Templates of a virtual server without persistence end at once, but not within the tick.
    let census = Census { half_open: 3, closing: 4, established: 4, templates: 2 };
    let swept = sweep(&memory, 0, 0);
    assert_eq!((swept.census, swept.expired), (census, 0));
}

#[test]
fn the_last_active_connection_takes_the_mark_of_a_busy_server_with_it() {
    let memory = memory();
    memory.put_real(3, Real { active_cost: 7, inactive_cost: 0, busy_cost: load::BUSY, ..Real::PLAIN });
    memory.put(0, 1, meta(State::ESTABLISHED, 0));
    memory.put(1, 2, meta(State::SETTLING, 0));
    memory.load_word(3).fetch_add(load::BUSY, SeqCst);
    memory.tables().count_down(3, State::ESTABLISHED);
    assert_eq!(memory.counted(3), (1, 0, load::BUSY + 7));
    memory.tables().count_down(3, State::SETTLING);
    assert_eq!(memory.counted(3), (0, 0, 0));
}

#[test]
fn a_server_stops_overflowing_when_its_active_connections_are_at_the_limit() {
    let memory = memory();
    memory.put_real(3, Real { active_cost: 0, inactive_cost: 0, active_limit: 2, ..Real::PLAIN });
    (0..4).for_each(|slot| memory.put(slot, 1, meta(State::ESTABLISHED, 0)));
    memory.load_word(3).fetch_add(load::OVERFLOWING + 5, SeqCst);
    let words = [0; 4].map(|_| {
        memory.tables().count_down(3, State::ESTABLISHED);
        memory.counted(3).2
    });
    assert_eq!(words, [load::OVERFLOWING + 5, 5, 5, 5]);
}

#[test]
fn an_overloaded_server_takes_connections_again_below_its_lower_threshold() {
    // Three quarters of 8 are 6.
    for (thresholds, left) in [((8, 4), 3), ((8, 0), 5)] {
        let memory = memory();
        memory.put_real(3, Real { active_cost: 0, inactive_cost: 0, thresholds, ..Real::PLAIN });
        (0..8).for_each(|slot| memory.put(slot, 1, meta(State::OPENING, 0)));
        memory.load_word(3).fetch_or(load::OVERLOADED, SeqCst);
        while memory.counted(3).2 != 0 {
            memory.tables().count_down(3, State::OPENING);
        }
        assert_eq!(memory.counted(3).0, left);
    }
}

fn persistent(flags: u32) -> Virtual {
    Virtual {
        flags: service_flag::PERSISTENT | flags,
        persistence_timeout: 64,
        mask: "255.255.255.0",
        ..Virtual::PLAIN
    }
}

#[test]
fn a_template_ends_by_the_timeout_of_its_virtual_server_and_counts_nowhere() {
    let memory = memory();
    memory.put_virtual(0, persistent(0));
    memory.put(5, key("192.0.2.0", 0), meta(State::TEMPLATE, 100));
    assert_eq!(sweep(&memory, 164, 0).census.templates, 1);
    assert_eq!(sweep(&memory, 165, 0).expired, 1);
    assert_eq!(memory.counted(3), (0, 0, 0));
    // One that no connection has confirmed lives no longer than a half-open connection.
    memory.put(5, key("192.0.2.0", 0), meta(State::TEMPLATE_NEW, 100));
    assert_eq!((sweep(&memory, 110, 0).expired, sweep(&memory, 111, 0).expired), (0, 1));
}

#[test]
fn a_template_lives_as_long_as_a_connection_does() {
    let memory = memory();
    memory.put_virtual(0, persistent(0));
    let template = key("192.0.2.0", 0);
    let slot = memory.first_slot(template);
    memory.put(slot + 2, template, meta(State::TEMPLATE_NEW, 95));
    let other = memory.first_slot(template) + 1;
    memory.put(other, key("192.0.2.9", 4000), meta(State::ESTABLISHED, 90));
    // An eighth of 64 ticks are two rounds of four: one round is not the connection's, the next is.
    sweep(&memory, 100, 0);
    sweep(&memory, 100, 1);
    assert_eq!(memory.meta(slot + 2), meta(State::TEMPLATE, 100));
    assert_eq!(memory.meta(other).last_seen(), 90);
}

#[test]
fn a_template_of_a_second_lives_as_long_as_a_connection_does() {
    let memory = memory();
    let persistence = Persistence { timeout: Duration::from_secs(1), prefix_length: 24 };
    let policy = model::Policy { persistence: Some(persistence), ..model::Policy::new(Scheduler::Rr) };
    let ticks = Policy::new(&policy, 250).persistence.unwrap().ticks;
    memory.put_virtual(0, Virtual { persistence_timeout: ticks.into(), ..persistent(0) });
    let template = key("192.0.2.0", 0);
    let slot = memory.first_slot(template);
    memory.put(slot, template, meta(State::TEMPLATE, 100));
    memory.put(slot + 1, key("192.0.2.9", 4000), meta(State::ESTABLISHED, 100));
    // Rounds of 4 s, which are four ticks, and now and then one tick more.
    let mut now = 100;
    for round in 0..20 {
        now += 4 + u16::try_from(round % 3 / 2).unwrap();
        sweep(&memory, now, round);
        assert_eq!(memory.meta(slot).state(), State::TEMPLATE, "round {round}: its client's connection is still known");
    }
    let connection = memory.tables().slots().nth(slot + 1).unwrap();
    assert!(connection.replace(memory.meta(slot + 1), Meta::FREE));
    // It has been renewed just now, so it lives for all of its time: 7 ticks.
    sweep(&memory, now + 7, 20);
    assert_eq!(memory.meta(slot).state(), State::TEMPLATE);
    sweep(&memory, now + 8, 21);
    assert_eq!(memory.meta(slot), Meta::FREE);
}

#[test]
fn a_template_of_another_real_server_or_of_half_open_connections_is_not_renewed() {
    let memory = memory();
    memory.put_virtual(0, persistent(0));
    memory.put_real(4, Real::PLAIN);
    let template = key("192.0.2.0", 0);
    let slot = memory.first_slot(template);
    memory.put(slot, template, Meta::new(4, State::TEMPLATE, 1, 50, 0));
    memory.put(slot + 1, key("192.0.2.9", 4000), meta(State::ESTABLISHED, 60));
    memory.put(slot + 2, key("192.0.2.9", 4001), Meta::new(4, State::OPENING, 1, 60, 0));
    memory.put(slot + 3, key("192.0.3.9", 4001), Meta::new(4, State::ESTABLISHED, 1, 60, 0));
    for round in 0..4 {
        sweep(&memory, 61, round);
    }
    assert_eq!(memory.meta(slot).last_seen(), 50);
    // Closing ones hold it as in IPVS, but confirm nothing.
    memory.put(slot, template, Meta::new(4, State::TEMPLATE_NEW, 1, 60, 0));
    memory.put(slot + 4, key("192.0.2.9", 4002), Meta::new(4, State::CLIENT_FIN, 1, 60, 0));
    for round in 0..2 {
        sweep(&memory, 61, round);
    }
    assert_eq!(memory.meta(slot), Meta::new(4, State::TEMPLATE_NEW, 1, 61, 0));
}

#[test]
fn an_ipv6_clients_template_is_found_by_its_tuple() {
    let memory = memory();
    memory
        .put_virtual(0, Virtual { vip: "fd00::100", mask: "ffff:ffff:ffff:ffff::", ..persistent(service_flag::WIDE) });
    let network = address("2001:db8:1:2::").halves();
    let template = hash::fingerprint(network, Port::new(0), Port::new(0), 0, &SECRET);
    let slot = memory.first_slot(template);
    memory.put(slot, template, meta(State::TEMPLATE, 95));
    memory.put(100, 77, meta(State::UDP, 90));
    memory.put_tuple(100, "2001:db8:1:2::7", 4000, 80);
    for round in 0..2 {
        sweep(&memory, 100, round);
    }
    assert_eq!(memory.meta(slot).last_seen(), 100);
}

#[test]
fn a_load_is_put_right_after_sixteen_looks_that_agree() {
    let memory = memory();
    memory.put(0, 1, meta(State::ESTABLISHED, 0));
    memory.put(1, 1, meta(State::CLOSED, 0));
    let mut looks = Looks::default();
    assert_eq!((0..40).map(|_| looks.look(&memory.tables()).len()).sum::<usize>(), 0);
    memory.load_word(3).fetch_sub(300, SeqCst);
    for _ in 1..loads::AGREEMENTS {
        assert_eq!(looks.look(&memory.tables()), []);
    }
    let from = 257_u64.wrapping_sub(300);
    assert_eq!(looks.look(&memory.tables()), [LoadRepair { real_server: 3, from, to: 257 }]);
    assert_eq!(memory.counted(3), (1, 1, 257));
}

#[test]
fn a_load_that_is_wrong_by_another_number_each_time_is_left() {
    let memory = memory();
    memory.put(0, 1, meta(State::ESTABLISHED, 0));
    let mut looks = Looks::default();
    for turn in 0..100 {
        memory.load_word(3).store(256 + turn % 2, SeqCst);
        assert_eq!(looks.look(&memory.tables()), []);
    }
}

/// The loads of a real server with two active connections and one inactive, before and after the looks.
fn looked_at(scheduler: Scheduler, real: Real, word: u64) -> u64 {
    let memory = memory();
    memory.put_virtual(0, Virtual { scheduler, ..Virtual::PLAIN });
    memory.put_real(3, real);
    (0..2).for_each(|slot| memory.put(slot, 1, meta(State::ESTABLISHED, 0)));
    memory.put(2, 1, meta(State::CLOSED, 0));
    memory.load_word(3).store(word, SeqCst);
    let mut looks = Looks::default();
    (0..loads::AGREEMENTS).for_each(|_| drop(looks.look(&memory.tables())));
    memory.counted(3).2
}

#[test]
fn every_part_of_a_load_is_put_right() {
    let real = Real { active_cost: 30, inactive_cost: 0, ..Real::PLAIN };
    assert_eq!(looked_at(Scheduler::Wlc, Real { inactive_cost: 5, ..real }, 0), 65);
    assert_eq!(looked_at(Scheduler::Sed, real, 0), 90);
    assert_eq!(looked_at(Scheduler::Nq, Real { busy_cost: load::BUSY, ..real }, 90), load::BUSY + 90);
    assert_eq!(looked_at(Scheduler::Rr, Real { active_cost: 0, ..real }, load::BUSY), 0);
    let free = Real { active_cost: 0, ..real };
    // The rank is in the word alone.
    assert_eq!(looked_at(Scheduler::Fo, free, load::OVERFLOWING + 77), 77);
    assert_eq!(looked_at(Scheduler::Ovf, Real { active_limit: 1, ..free }, 77), load::OVERFLOWING + 77);
    assert_eq!(looked_at(Scheduler::Ovf, Real { active_limit: 2, ..free }, 77), 77);
    assert_eq!(looked_at(Scheduler::Rr, Real { weight: 0, ..free }, 0), load::NO_WEIGHT);
}

#[test]
fn the_mark_of_the_thresholds_is_right_either_way_between_them() {
    let with = |thresholds| Real { active_cost: 0, inactive_cost: 0, thresholds, ..Real::PLAIN };
    // Three connections.
    for (thresholds, from, to) in [
        ((3, 1), 0, load::OVERLOADED),
        ((4, 1), load::OVERLOADED, load::OVERLOADED),
        ((4, 1), 0, 0),
        ((5, 4), load::OVERLOADED, 0),
        ((0, 0), load::OVERLOADED, 0),
    ] {
        assert_eq!(looked_at(Scheduler::Rr, with(thresholds), from), to, "{thresholds:?}");
    }
}

#[test]
fn wrong_counts_are_put_right_by_the_third_audit() {
    let memory = memory();
    (0..5).for_each(|slot| memory.put(slot, 1, meta(State::ESTABLISHED, 0)));
    memory.put(7, 1, meta(State::UDP, 0));
    memory.put(8, 1, meta(State::TEMPLATE, 0));
    let mut audits = Audits::default();
    (0..4).for_each(|_| assert_eq!(audits.audit(&memory.tables(), || {}), []));
    assert!(!audits.is_suspicious());
    let excess = Counts { active: 2, inactive: -3 };
    memory.count_word(3).fetch_add(excess.to_word(), SeqCst);
    for _ in 1..audit::AGREEMENTS {
        assert_eq!(audits.audit(&memory.tables(), || {}), []);
        assert!(audits.is_suspicious());
    }
    assert_eq!(audits.audit(&memory.tables(), || {}), [CountRepair { real_server: 3, excess }]);
    assert!(!audits.is_suspicious());
    assert_eq!((memory.counted(3).0, memory.counted(3).1), (5, 1));
}

/// An audit with `churn` between the two looks, before or after the counters are read.
fn audited(memory: &Memory, audits: &mut Audits, after: bool, mut churn: impl FnMut()) -> Vec<CountRepair> {
    let mut is_after = false;
    audits.audit(&memory.tables(), || {
        if after == std::mem::replace(&mut is_after, true) {
            churn();
        }
    })
}

#[test]
fn what_comes_and_goes_meanwhile_is_no_error() {
    let memory = memory();
    let mut audits = Audits::default();
    for turn in 0..30 {
        memory.put(turn, 1, meta(State::SETTLING, 0));
        let repairs = audited(&memory, &mut audits, turn % 2 == 0, || {
            memory.put(turn + 30, 1, meta(State::ESTABLISHED, 0));
            let slot = memory.tables().slots().nth(turn).unwrap();
            assert!(slot.replace(slot.meta(), slot.meta().moved(State::CLIENT_FIN, 0)));
            memory.count_word(3).fetch_add(Counts { active: -1, inactive: 1 }.to_word(), SeqCst);
        });
        assert_eq!((repairs, audits.is_suspicious()), (vec![], false));
    }
}

#[test]
fn a_busy_servers_count_is_moved_to_the_nearest_number_that_could_be_right() {
    let memory = memory();
    let mut audits = Audits::default();
    memory.count_word(3).fetch_add(10, SeqCst);
    let mut turn = 0;
    let mut churn = || {
        // One, four, two connections come during the three audits: 9, 6 and 8 of the ten are certainly too much.
        (0..[1, 4, 2][turn]).for_each(|n| memory.put(turn * 8 + n, 1, meta(State::UDP_NEW, 0)));
        turn += 1;
    };
    assert_eq!(audited(&memory, &mut audits, true, &mut churn), []);
    assert_eq!(audited(&memory, &mut audits, true, &mut churn), []);
    let excess = Counts { active: 0, inactive: 9 };
    assert_eq!(audited(&memory, &mut audits, true, &mut churn), [CountRepair { real_server: 3, excess }]);
    assert_eq!(memory.counted(3).1, 8);
}

/// Two CPUs forward, and the scan ends connections, while `beside` runs; then everything must agree.
fn beside_traffic(scheduler: Scheduler, real: Real, beside: impl FnOnce(&Memory, &[AtomicU64])) {
    let memory = Memory::new(64, 8);
    memory.put_virtual(0, Virtual { scheduler, ..Virtual::PLAIN });
    (0..8).for_each(|index| memory.put_real(index, real));
    let (stop, turns) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
    std::thread::scope(|scope| {
        for (turns, seed) in turns.iter().zip([1, 2]) {
            let mut cpu = Cpu::new(memory.tables(), turns, seed);
            let stop = &stop;
            scope.spawn(move || cpu.forward(700, stop));
        }
        // Also where `beside` panics: the scope waits for its threads.
        let _stop = StopOnDrop(&stop);
        beside(&memory, &turns);
    });
    let truth = recount(&memory);
    for (index, (active, inactive)) in (0..8).zip(truth) {
        assert_eq!((memory.counted(index).0, memory.counted(index).1), (active, inactive), "real server {index}");
    }
    // A mark that was set and taken off by two CPUs at once may be left over.
    let mut looks = Looks::default();
    for _ in 0..loads::AGREEMENTS {
        for LoadRepair { real_server, from, to } in looks.look(&memory.tables()) {
            assert_eq!(from ^ to, load::OVERLOADED, "real server {real_server}: {from:#x} {to:#x}");
        }
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn recount(memory: &Memory) -> [(i64, i64); 8] {
    let mut truth = [(0, 0); 8];
    for slot in memory.tables().slots() {
        let meta = slot.meta();
        let (active, inactive) = &mut truth[usize::from(meta.real_server())];
        match meta.state() {
            State::FREE => {}
            state => *(if State::is_active(state) { active } else { inactive }) += 1,
        }
    }
    truth
}

const TRAFFIC: Duration = Duration::from_secs(1);

fn constants() -> Constants {
    // Short enough that the packet path's clock runs connections out.
    let timeouts = Timeouts::new(1, 3, 2, 1, 2);
    Constants { timeouts, secret: SECRET, jiffies_per_second: 250 }
}

#[test]
fn right_counters_stay_right_under_load() {
    let nq = Real { active_cost: 9, inactive_cost: 0, busy_cost: load::BUSY, ..Real::PLAIN };
    let ovf = Real { active_cost: 0, inactive_cost: 0, active_limit: 12, thresholds: (70, 60), ..Real::PLAIN };
    for (scheduler, real) in [(Scheduler::Lc, Real::PLAIN), (Scheduler::Nq, nq), (Scheduler::Ovf, ovf)] {
        beside_traffic(scheduler, real, |memory, turns| {
            // The base, which no connection adds.
            let base = if scheduler == Scheduler::Nq { real.active_cost } else { 0 };
            for index in 0..8 {
                memory.load_word(index).fetch_add(base, SeqCst);
            }
            let (mut scanner, mut looks) = (Scanner::new(constants()), Looks::default());
            let (begun, mut audits) = (Instant::now(), 0);
            while begun.elapsed() < TRAFFIC {
                let now = u16::try_from(begun.elapsed().as_millis() / 10).unwrap();
                let mut repairs = scanner.slice(&memory.tables(), now);
                for _ in 0..20 {
                    quiesce(turns);
                    repairs.extend(looks.look(&memory.tables()));
                }
                for LoadRepair { from, to, .. } in repairs {
                    assert_eq!(from ^ to, load::OVERLOADED, "{from:#x} {to:#x}");
                }
                assert_eq!(scanner.audit(&memory.tables(), || quiesce(turns)), []);
                audits += 1;
            }
            assert!(audits > 100 && scanner.report().expired > 100, "{audits} {:?}", scanner.report());
        });
    }
}

#[test]
fn wrong_counters_are_put_right_under_load() {
    beside_traffic(Scheduler::Lc, Real::PLAIN, |memory, turns| {
        let mut audits = Audits::default();
        let mut looks = Looks::default();
        let errors: [(i64, i64); 3] = [(5000, -7000), (-3000, 0), (0, 2500)];
        for (index, (active, inactive)) in (0..).zip(errors) {
            memory.count_word(index).fetch_add(Counts { active, inactive }.to_word(), SeqCst);
        }
        memory.load_word(5).fetch_add(12_345, SeqCst);
        let (mut left, mut is_load_right) = (errors, false);
        let begun = Instant::now();
        while left != [(0, 0); 3] || !is_load_right {
            assert!(begun.elapsed() < 30 * TRAFFIC, "{left:?}, load: {is_load_right}");
            for CountRepair { real_server, excess } in audits.audit(&memory.tables(), || quiesce(turns)) {
                let (active, inactive) = &mut left[usize::from(real_server)];
                // Never past the truth.
                assert!(excess.active.abs() <= active.abs() && excess.active * *active >= 0, "{excess:?} of {active}");
                assert!(excess.inactive.abs() <= inactive.abs() && excess.inactive * *inactive >= 0);
                *active -= excess.active;
                *inactive -= excess.inactive;
            }
            quiesce(turns);
            is_load_right |= looks.look(&memory.tables()).iter().any(|repair| repair.real_server == 5);
        }
    });
}
