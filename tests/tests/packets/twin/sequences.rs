//! Random sequences of packets, waits and changes: program and model must do the same throughout.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::super::bench::{Bench, in_namespace};
use super::super::frame::{ACK, SYN};
use super::super::scene::{FAMILIES, INGRESS};
use super::Twin;
use super::scenario::{Event, Look, Spec, events, specs};

/// Sequences for each size of the table.
const CASES: u32 = 64;

/// Plays a scenario on a table for `connections` connections.
fn play(connections: u32, specs: Vec<Spec>, events: Vec<Event>) {
    let mut bench = Bench::with_room_for(connections);
    for family in FAMILIES {
        (1..=60).for_each(|n| bench.way(family, n, INGRESS, 1500));
    }
    let mut story = Story { twin: Twin::new(bench), specs };
    story.install();
    for event in events {
        story.happens(&event);
        story.twin.compare_tables();
    }
    story.twin.compare_counters();
}

struct Story {
    twin: Twin,
    specs: Vec<Spec>,
}

impl Story {
    fn install(&mut self) {
        let servers: Vec<_> = (0..).zip(&self.specs).map(|(n, spec)| spec.virtual_server(n)).collect();
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
                self.twin.send(&self.specs[usize::from(n)].answer(n, real % 6, *which, *look));
            }
            Event::Wait(ticks) => self.twin.age(*ticks),
            Event::Weight(server, real, weight) => {
                let n = usize::from(self.number(*server));
                if let Some(real) = self.specs[n].reals.get_mut(usize::from(*real)) {
                    real.weight = *weight;
                    self.install();
                }
            }
            Event::Toggle(server, real) => {
                let n = usize::from(self.number(*server));
                if let Some(real) = self.specs[n].reals.get_mut(usize::from(*real)) {
                    real.is_present = !real.is_present;
                    self.install();
                }
            }
        }
    }
}

/// Draws scenarios; a failure is shown as small as it can be made.
fn alike(connections: u32, ports: u8, length: std::ops::Range<usize>) {
    in_namespace(move || {
        let config = ProptestConfig { cases: CASES, failure_persistence: None, ..Default::default() };
        let result = TestRunner::new(config).run(&(specs(), events(ports, length)), |(specs, events)| {
            play(connections, specs, events);
            Ok(())
        });
        result.unwrap_or_else(|failure| panic!("{failure}"));
    });
}

#[test]
fn with_room_for_all_the_program_does_as_the_model() {
    alike(300, 12, 100..300);
}

#[test]
fn in_a_table_that_is_much_too_small_the_program_does_as_the_model() {
    alike(9, 12, 100..300);
}
