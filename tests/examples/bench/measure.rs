//! How a figure is found: tables filled by the program itself, and contestants that take turns.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use lb_common::bench::BenchConfig;

use crate::cost::{Cost, Spread};
use crate::director::{Director, Program};
use crate::generator::{Contestant, Generator};
use crate::matrix::{Experiment, Family, Kind, Path};
use crate::packet::{self, ACK, SYN};
use crate::report::{Finding, Lru};
use crate::{floor, memory};

/// How much is spent on a figure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Runs of each contestant, of which the median counts.
    pub runs: u32,
    /// Packets of a run, at least.
    pub packets: u32,
}

/// What measures.
pub struct Bench {
    generator: Generator,
    lru: Vec<u8>,
    effort: Effort,
    floors: BTreeMap<u32, Option<Cost>>,
}

/// From so many flows on, a read of the table's memory is worth comparing with.
const FLOOR_FLOWS: u32 = 65_536;

/// Of so many packets of known flows one may fail to be forwarded: of ten million flows some find no slot.
const LOST_ONE_IN: u64 = 1000;

impl Bench {
    /// One that measures with this effort; `lru` is the object with the LRU_HASH.
    pub const fn new(generator: Generator, lru: Vec<u8>, effort: Effort) -> Self {
        Self { generator, lru, effort, floors: BTreeMap::new() }
    }

    /// Finds the figure of `experiment`.
    pub fn measure(&mut self, experiment: Experiment) -> Result<Finding> {
        match experiment.kind {
            Kind::Established => self.established(experiment),
            Kind::New | Kind::FirstAck => self.opening(experiment),
            Kind::EstablishedListed => self.established_listed(experiment),
            Kind::NewListed => self.new_listed(experiment),
            Kind::Denied => self.denied(experiment),
        }
    }

    /// Packets in random order over connections that are in the tables.
    fn established(&mut self, experiment: Experiment) -> Result<Finding> {
        let mut table = self.filled(Contestant::Table, Program::Product, &experiment)?;
        let active = table.active()?;
        let flows = u64::from(experiment.flows);
        ensure!(active + flows / LOST_ONE_IN >= flows, "only {active} of {flows} connections are established");
        let mut directors = vec![(Contestant::Table, &mut table)];
        let objection = memory::objection(experiment.flows)?;
        let mut lru = match &objection {
            Some(_) => None,
            None => {
                let object = self.lru.clone();
                Some(self.filled(Contestant::Lru, Program::Lru(&object), &experiment)?)
            }
        };
        directors.extend(lru.as_mut().map(|lru| (Contestant::Lru, lru)));
        let config = config(&experiment, experiment.path, ACK);
        let mut scores = Scores::default();
        for _ in 0..self.effort.runs {
            for control in controls(&experiment) {
                scores.add(control, self.random(control, config)?);
            }
            for (contestant, director) in &mut directors {
                let before = director.packets()?;
                let cost = self.random(*contestant, config)?;
                check(director, before, warm_up(config) + self.effort.packets)?;
                scores.add(*contestant, cost);
            }
        }
        let lru_spread = match objection {
            Some(reason) => Lru::Skipped(reason),
            None => Lru::Measured(scores.above(Contestant::Lru, &experiment)?),
        };
        drop(lru);
        Ok(Finding { lru: lru_spread, floor: self.floor(experiment.flows), ..finding(experiment, &scores)? })
    }

    /// Packets that open connections or establish them, each connection once, again and again from an empty table.
    fn opening(&mut self, experiment: Experiment) -> Result<Finding> {
        let object = self.lru.clone();
        let objection = memory::objection(experiment.flows)?;
        let mut directors = vec![(Contestant::Table, self.director(Contestant::Table, Program::Product, &experiment)?)];
        if objection.is_none() {
            let lru = self.director(Contestant::Lru, Program::Lru(&object), &experiment)?;
            directors.push((Contestant::Lru, lru));
        }
        let rounds = self.effort.packets.div_ceil(experiment.flows);
        let mut scores = Scores::default();
        for _ in 0..self.effort.runs {
            let mut run = Scores::default();
            for _ in 0..rounds {
                for (contestant, director) in &mut directors {
                    run.add(*contestant, self.open_all(*contestant, director, &experiment)?);
                }
                let flags = if experiment.kind == Kind::FirstAck { ACK } else { SYN };
                for control in controls(&experiment) {
                    let config = config(&experiment, experiment.path, flags);
                    run.add(control, self.generator.send_each(control, config)?);
                }
            }
            for (contestant, costs) in run.0 {
                scores.add(contestant, Cost::mean(&costs).context("no round")?);
            }
        }
        let lru = match objection {
            Some(reason) => Lru::Skipped(reason),
            None => Lru::Measured(scores.above(Contestant::Lru, &experiment)?),
        };
        Ok(Finding { lru, ..finding(experiment, &scores)? })
    }

    /// One packet of each flow that opens it in an empty table, or establishes it after that.
    fn open_all(&mut self, contestant: Contestant, director: &mut Director, experiment: &Experiment) -> Result<Cost> {
        let syn = config(experiment, experiment.path, SYN);
        let flows = experiment.flows;
        director.clear()?;
        let earlier = director.connections()?;
        let before = director.packets()?;
        let mut cost = self.generator.send_each(contestant, syn)?;
        check(director, before, flows)?;
        if experiment.kind == Kind::FirstAck {
            let before = director.packets()?;
            cost = self.generator.send_each(contestant, config(experiment, experiment.path, ACK))?;
            check(director, before, flows)?;
        }
        let (entered, flows) = (director.connections()? - earlier, u64::from(flows));
        ensure!(entered + flows / LOST_ONE_IN >= flows, "only {entered} of {flows} connections were entered");
        Ok(cost)
    }

    /// Packets in random order over connections of clients beside denied prefixes, and over the same where none is denied.
    fn established_listed(&mut self, experiment: Experiment) -> Result<Finding> {
        let open = Experiment { prefixes: 0, ..experiment };
        let listed = self.filled(Contestant::Table, Program::Product, &experiment)?;
        let open = self.filled(Contestant::Open, Program::Product, &open)?;
        let config = config(&experiment, experiment.path, ACK);
        let mut scores = Scores::default();
        for _ in 0..self.effort.runs {
            scores.add(Contestant::Empty, self.random(Contestant::Empty, config)?);
            for (contestant, director) in [(Contestant::Table, &listed), (Contestant::Open, &open)] {
                let before = director.packets()?;
                scores.add(contestant, self.random(contestant, config)?);
                check(director, before, warm_up(config) + self.effort.packets)?;
            }
        }
        above_open(experiment, &scores)
    }

    /// Packets that open connections, of clients beside denied prefixes, and the same where none is denied.
    fn new_listed(&mut self, experiment: Experiment) -> Result<Finding> {
        let open = Experiment { prefixes: 0, ..experiment };
        let listed = self.director(Contestant::Table, Program::Product, &experiment)?;
        let open = self.director(Contestant::Open, Program::Product, &open)?;
        let mut directors = [(Contestant::Table, listed), (Contestant::Open, open)];
        let syn = config(&experiment, experiment.path, SYN);
        let mut scores = Scores::default();
        for _ in 0..self.effort.runs {
            let mut run = Scores::default();
            for _ in 0..self.effort.packets.div_ceil(experiment.flows) {
                run.add(Contestant::Empty, self.generator.send_each(Contestant::Empty, syn)?);
                for (contestant, director) in &mut directors {
                    director.clear()?;
                    let before = director.packets()?;
                    run.add(*contestant, self.generator.send_each(*contestant, syn)?);
                    check(director, before, experiment.flows)?;
                }
            }
            for (contestant, costs) in run.0 {
                scores.add(contestant, Cost::mean(&costs).context("no round")?);
            }
        }
        above_open(experiment, &scores)
    }

    /// SYNs of denied clients, in random order.
    fn denied(&mut self, experiment: Experiment) -> Result<Finding> {
        let director = self.director(Contestant::Table, Program::Product, &experiment)?;
        let syn = config(&experiment, experiment.path, SYN);
        let mut scores = Scores::default();
        for _ in 0..self.effort.runs {
            scores.add(Contestant::Empty, self.random(Contestant::Empty, syn)?);
            let before = director.denied()?;
            scores.add(Contestant::Table, self.random(Contestant::Table, syn)?);
            let (denied, sent) = (director.denied()? - before, u64::from(warm_up(syn) + self.effort.packets));
            ensure!(denied == sent, "of {sent} packets {denied} were denied");
        }
        finding(experiment, &scores)
    }

    /// What a read in the memory of a table for `flows` connections costs; asked once for each number of flows.
    fn floor(&mut self, flows: u32) -> Option<Cost> {
        if flows < FLOOR_FLOWS {
            return None;
        }
        *self.floors.entry(flows).or_insert_with(|| floor::dependent_read(flows))
    }

    /// One run in random order, after one that is not counted and brings the caches to where they will be.
    fn random(&mut self, contestant: Contestant, config: BenchConfig) -> Result<Cost> {
        self.generator.send_random(contestant, config, warm_up(config))?;
        self.generator.send_random(contestant, config, self.effort.packets)
    }

    /// A director with the experiment's virtual server, which `contestant` runs through from now on.
    fn director(&mut self, contestant: Contestant, program: Program<'_>, experiment: &Experiment) -> Result<Director> {
        let mut director = Director::serving(program, experiment)?;
        self.generator.enter(contestant, director.program()?)?;
        Ok(director)
    }

    /// A director that knows all flows of the experiment, by as many packets of each as make it established for good.
    fn filled(&mut self, contestant: Contestant, program: Program<'_>, experiment: &Experiment) -> Result<Director> {
        let director = self.director(contestant, program, experiment)?;
        let request = match experiment.path {
            Path::NatReply => Path::NatRequest,
            path @ (Path::NatRequest | Path::Dr | Path::Tun) => path,
        };
        let mut phases = vec![(request, SYN), (request, ACK), (request, ACK)];
        if experiment.path == Path::NatReply {
            // The first reply of a connection looks for the way to its client.
            phases.push((Path::NatReply, ACK));
        }
        for (path, flags) in phases {
            let before = director.packets()?;
            self.generator.send_each(contestant, config(experiment, path, flags))?;
            check(&director, before, experiment.flows)?;
        }
        Ok(director)
    }
}

/// What `scores` say of the program, without its control.
fn finding(experiment: Experiment, scores: &Scores) -> Result<Finding> {
    let table = scores.above(Contestant::Table, &experiment)?;
    let empty = scores.spread(Contestant::Empty)?.median;
    Ok(Finding { experiment, table, lru: Lru::None, floor: None, empty })
}

/// What `scores` say of a list of denied prefixes: above what the same takes without it.
fn above_open(experiment: Experiment, scores: &Scores) -> Result<Finding> {
    let open = scores.spread(Contestant::Open)?.median;
    let table = scores.spread(Contestant::Table)?.above(open);
    Ok(Finding { table, ..finding(experiment, scores)? })
}

fn config(experiment: &Experiment, path: Path, flags: u8) -> BenchConfig {
    let config = BenchConfig { flows: experiment.flows, ..packet::config(experiment.family, path, flags) };
    match experiment.kind {
        Kind::Established | Kind::New | Kind::FirstAck => config,
        Kind::EstablishedListed | Kind::NewListed | Kind::Denied => packet::listed(experiment.family, config),
    }
}

/// Packets before a run that are not counted: so many that nearly every bucket of a table that fits into a cache is there.
fn warm_up(config: BenchConfig) -> u32 {
    config.flows.clamp(20_000, 1_000_000)
}

/// What must be run to know what the making of packets costs.
fn controls(experiment: &Experiment) -> Vec<Contestant> {
    let mut controls = vec![Contestant::Empty];
    controls.extend(room(experiment));
    controls
}

/// The control that makes room as the experiment's program does.
fn room(experiment: &Experiment) -> Option<Contestant> {
    match (experiment.path, experiment.family) {
        (Path::Tun, Family::V4) => Some(Contestant::RoomV4),
        (Path::Tun, Family::V6) => Some(Contestant::RoomV6),
        (Path::NatRequest | Path::NatReply | Path::Dr, _) => None,
    }
}

/// Checks that the director has forwarded `sent` packets since it had forwarded `before`.
fn check(director: &Director, before: u64, sent: u32) -> Result<()> {
    let (forwarded, sent) = (director.packets()?.saturating_sub(before), u64::from(sent));
    if forwarded + sent / LOST_ONE_IN >= sent && forwarded <= sent {
        return Ok(());
    }
    let drops = director.drops()?;
    anyhow::bail!("of {sent} packets {forwarded} were forwarded; dropped since it was loaded: {drops}")
}

/// What each contestant has taken, run by run.
#[derive(Debug, Default)]
struct Scores(Vec<(Contestant, Vec<Cost>)>);

impl Scores {
    fn add(&mut self, contestant: Contestant, cost: Cost) {
        match self.0.iter_mut().find(|(known, _)| *known == contestant) {
            Some((_, costs)) => costs.push(cost),
            None => self.0.push((contestant, vec![cost])),
        }
    }

    fn spread(&self, contestant: Contestant) -> Result<Spread> {
        let costs = self.0.iter().find(|(known, _)| *known == contestant).map(|(_, costs)| costs.clone());
        costs.and_then(Spread::of).with_context(|| format!("{contestant:?} was not measured"))
    }

    /// What `contestant` takes above the empty program.
    ///
    /// A tunnel's packets come back longer, and the generator must bring them to their length, which is its work and not
    /// the program's. The control that makes room has the same done to it. It makes room as the program does, so what that
    /// takes, half of the difference between the controls, belongs to the program: control less half of the difference.
    fn above(&self, contestant: Contestant, experiment: &Experiment) -> Result<Spread> {
        let empty = self.spread(Contestant::Empty)?.median;
        let control = match room(experiment) {
            Some(room) => (self.spread(room)?.median + empty).half(),
            None => empty,
        };
        Ok(self.spread(contestant)?.above(control))
    }
}

#[cfg(test)]
mod tests {
    use lb_common::service::Scheduler;

    use super::*;

    #[test]
    fn a_tunnels_own_room_counts_and_the_generators_does_not() {
        let mut scores = Scores::default();
        for (contestant, tenths) in [(Contestant::Empty, 400), (Contestant::RoomV4, 600), (Contestant::Table, 750)] {
            scores.add(contestant, Cost::from_tenths(tenths));
        }
        let tun = Experiment {
            kind: Kind::Established,
            family: Family::V4,
            path: Path::Tun,
            scheduler: Scheduler::Rr,
            servers: 64,
            flows: 1,
            prefixes: 0,
        };
        // 75 - 60 for what the control does too, + 10 for one of two moves of the head, which make the 20 between the controls
        assert_eq!(scores.above(Contestant::Table, &tun).unwrap().median.tenths(), 250);
        let dr = Experiment { path: Path::Dr, ..tun };
        assert_eq!(scores.above(Contestant::Table, &dr).unwrap().median.tenths(), 350);
        assert!(scores.above(Contestant::Lru, &dr).is_err());
    }
}
