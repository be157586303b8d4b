//! Random sequences of packets, waits and changes: program and model must do the same throughout.

use std::cell::RefCell;

use lb_common::connection::Timeouts;
use lb_common::drop_reason::DropReason;
use lb_userspace::datapath::xdp::object::LoadOptions;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::super::bench::{Bench, OPTIONS, in_namespace, is_long};
use super::super::frame::{ACK, SYN};
use super::super::model::Model;
use super::super::scene::{ELSEWHERE, FAMILIES, Family, INGRESS, UNLISTED};
use super::Twin;
use super::scenario::{Event, Look, RealSpec, Spec, Which, events, own_addresses, sharing_specs, specs};

/// Sequences for each size of the table; in a long test, twenty times as many.
const CASES: u32 = 40;

/// Short ones, so that much comes to its end; and few answers to refused packets, so that some get none.
const fn options(connections_max: u32) -> LoadOptions {
    LoadOptions { connections_max, reject_rate: 3, timeouts: Timeouts::new(20, 80, 40, 10, 60), ..OPTIONS }
}

/// Program and model with a table for `connections` connections, and ways to all real servers but some.
fn twin(connections: u32) -> Twin {
    let mut bench = Bench::load(&options(connections));
    for family in FAMILIES {
        for n in 1..=60 {
            match n {
                14 | 24 => bench.local(family, n),
                33 => bench.no_way(family, n),
                _ if n % 10 == 2 => bench.way(family, n, ELSEWHERE, 1200),
                43 => bench.way(family, n, UNLISTED, 1500),
                _ => bench.way(family, n, INGRESS, 1500),
            }
            let source = match (n % 10, family) {
                (1, _) => None,
                (3, Family::V4) => Some("10.9.8.7/32"),
                (_, Family::V4) if n % 2 == 1 => Some("10.9.16.0/20"),
                (_, Family::V6) if n % 2 == 1 => Some("2001:db8:9::/64"),
                _ => None,
            };
            if let Some(source) = source {
                bench.tunnel_source(family, n, source);
            }
        }
    }
    bench.datapath.set_own_addresses(&own_addresses()).expect("the map takes them");
    let mut twin = Twin::new(bench);
    twin.model.own = own_addresses();
    twin
}

/// Plays a scenario, and gives the twin back.
fn play(twin: Twin, specs: Vec<Spec>, events: Vec<Event>) -> Twin {
    let mut story = Story { twin, specs };
    story.twin.clear();
    story.install();
    for event in events {
        story.happens(&event);
        story.twin.compare_tables(&event);
    }
    story.twin.compare_counters();
    story.twin
}

struct Story {
    twin: Twin,
    specs: Vec<Spec>,
}

impl Story {
    fn install(&mut self) {
        self.install_without(None);
    }

    fn install_without(&mut self, missing: Option<u8>) {
        let present = (0..).zip(&self.specs).filter(|(n, _)| Some(*n) != missing);
        let servers: Vec<_> = present.map(|(n, spec)| spec.virtual_server(n)).collect();
        self.twin.install(&servers);
    }

    fn number(&self, which: u8) -> u8 {
        which % u8::try_from(self.specs.len()).expect("few")
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Packet(which, look) => {
                let n = self.number(which.server);
                self.twin.send(&self.specs[usize::from(n)].packet(n, *which, *look));
            }
            Event::Conversation(which) => {
                let n = self.number(which.server);
                for flags in [SYN, ACK, ACK] {
                    self.twin.send(&self.specs[usize::from(n)].packet(n, *which, Look::plain(flags)));
                }
            }
            Event::Answer(which, real, look) => {
                let n = self.number(which.server);
                let real = self.real_of(n, *which, *real);
                self.twin.send(&self.specs[usize::from(n)].answer(n, real, *which, *look));
            }
            Event::Direct(which, real, look) => {
                let n = self.number(which.server);
                let real = self.real_of(n, *which, *real);
                self.twin.send(&self.specs[usize::from(n)].direct(n, real, *which, *look));
            }
            Event::Error(which, real, look, length) => {
                let n = self.number(which.server);
                let spec = &self.specs[usize::from(n)];
                let answering = match real % 4 {
                    0 => Some(real % 6),
                    1 => None,
                    _ => {
                        let found =
                            self.twin.model.server_of(&spec.service(n), spec.client(*which), spec.vip_port(*which));
                        found.and_then(|address| spec.which_real(n, address))
                    }
                };
                self.twin.send(&spec.error(n, answering, *which, (*look, *length)));
            }
            Event::Fragments(which, real, look, cut) => {
                let n = self.number(which.server);
                let spec = &self.specs[usize::from(n)];
                let frame = match real {
                    None => spec.packet(n, *which, *look),
                    Some(real) => spec.answer(n, self.real_of(n, *which, *real), *which, *look),
                };
                for piece in cut.pieces(&frame) {
                    self.twin.send_bytes(&piece, event);
                }
            }
            Event::Wait(ticks) => self.twin.age(*ticks),
            Event::Weight(server, real, weight) => self.change_real(*server, *real, |real| real.weight = *weight),
            Event::Limit(server, real, limits) => self.change_real(*server, *real, |real| real.limits = *limits),
            Event::Toggle(server, real) => self.change_real(*server, *real, |real| real.is_present = !real.is_present),
            Event::Scheduler(server, scheduler) => self.change(*server, |spec| spec.scheduler = *scheduler),
            Event::Access(server, access) => self.change(*server, |spec| spec.access.clone_from(access)),
            Event::Withdraw(server) => {
                self.install_without(Some(self.number(*server)));
                self.install();
            }
        }
    }

    /// Mostly the real server that has the client's connection, if there is one.
    fn real_of(&self, n: u8, which: Which, real: u8) -> u8 {
        let spec = &self.specs[usize::from(n)];
        let having = match real % 4 {
            0 => None,
            _ => self.twin.model.server_of(&spec.service(n), spec.client(which), spec.vip_port(which)),
        };
        having.and_then(|address| spec.which_real(n, address)).unwrap_or(real % 6)
    }

    fn change(&mut self, server: u8, change: impl Fn(&mut Spec)) {
        let n = usize::from(self.number(server));
        change(&mut self.specs[n]);
        self.install();
    }

    fn change_real(&mut self, server: u8, real: u8, change: impl Fn(&mut RealSpec)) {
        self.change(server, |spec| {
            if let Some(real) = spec.reals.get_mut(usize::from(real)) {
                change(real);
            }
        });
    }
}

/// Draws scenarios; a failure is shown as small as it can be made. At last, `check` sees what the model has counted in all.
fn alike(connections: u32, specs: impl Strategy<Value = Vec<Spec>> + Send, ports: u8, check: fn(&Model)) {
    in_namespace(move || {
        // The program is loaded again only after a failure, which leaves anything behind.
        let kept = RefCell::new(None);
        let cases = if is_long() { 20 * CASES } else { CASES };
        let config = ProptestConfig { cases, failure_persistence: None, ..Default::default() };
        let result = TestRunner::new(config).run(&(specs, events(ports, 100..300)), |(specs, events)| {
            let present = kept.take().unwrap_or_else(|| twin(connections));
            kept.replace(Some(play(present, specs, events)));
            Ok(())
        });
        result.unwrap_or_else(|failure| panic!("{failure}"));
        let twin = kept.take().expect("the last one played");
        let Model { table, drops, .. } = &twin.model;
        println!("{:?}, {drops:?}", table.counters);
        check(&twin.model);
    });
}

#[test]
fn with_room_for_all_the_program_does_as_the_model() {
    alike(300, specs(), 12, |model| {
        assert!(model.table.counters.inserted > 100 && model.drops.contains_key(&DropReason::Denied));
    });
}

#[test]
fn in_a_table_that_is_much_too_small_the_program_does_as_the_model() {
    alike(9, specs(), 12, |model| {
        let counters = &model.table.counters;
        assert!(counters.reclaimed > 0 && counters.evicted_half_open > 0 && counters.refused > 0, "{counters:?}");
    });
}

#[test]
fn behind_real_servers_that_virtual_servers_share_the_program_does_as_the_model() {
    alike(300, sharing_specs(), 2, |model| assert!(model.drops.contains_key(&DropReason::TupleInUse)));
}
