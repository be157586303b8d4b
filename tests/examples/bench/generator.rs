//! The object that makes packets, and runs of it: nanoseconds a packet by the kernel's own clock.

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp};
use lb_common::bench::{BenchConfig, FRAME_LENGTH, Order};

use crate::cost::Cost;

/// What can run on the packets; the number is the index into `bench_programs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// Sends them back.
    Empty = 0,
    /// Makes room for an outer IPv4 header and sends them back.
    RoomV4 = 1,
    /// The same for IPv6.
    RoomV6 = 2,
    /// The program.
    Table = 3,
    /// The program with its connections in an LRU_HASH.
    Lru = 4,
    /// The program where every client is served.
    Open = 5,
}

const CONTROLS: [(&str, Contestant); 3] =
    [("bench_empty", Contestant::Empty), ("bench_room_v4", Contestant::RoomV4), ("bench_room_v6", Contestant::RoomV6)];

/// `XDP_TX` and `XDP_DROP`: what the last packet of a measurement may meet with. That all meet with the same is seen by the
/// counters.
const VERDICTS: [u32; 2] = [3, 1];

/// The loaded object.
pub struct Generator {
    ebpf: Ebpf,
    /// Raised with every run in random order, so that none repeats another's.
    seed: u64,
}

impl Generator {
    /// Loads the object and its controls.
    pub fn load(object: &[u8]) -> Result<Self> {
        let mut ebpf = Ebpf::load(object).context("can't create the maps of the benchmark's program")?;
        for name in ["bench_packet"].into_iter().chain(CONTROLS.map(|(name, _)| name)) {
            program(&mut ebpf, name)?.load().with_context(|| format!("the kernel refused {name}"))?;
        }
        let mut generator = Self { ebpf, seed: 0 };
        for (name, contestant) in CONTROLS {
            let control = program(&mut generator.ebpf, name)?.fd()?.try_clone()?;
            generator.enter(contestant, &control)?;
        }
        Ok(generator)
    }

    /// Lets `program` run as `contestant` from now on.
    pub fn enter(&mut self, contestant: Contestant, program: &ProgramFd) -> Result<()> {
        let table = self.ebpf.map_mut("bench_programs").context("the benchmark has no map bench_programs")?;
        ProgramArray::try_from(table)?.set(contestant as u32, program, 0).context("can't enter a program")
    }

    /// Sends `packets` packets of as many flows as there are, each once and in their order.
    pub fn send_each(&mut self, contestant: Contestant, config: BenchConfig) -> Result<Cost> {
        self.send(contestant, BenchConfig { order: Order::Sequential, next: 0, ..config }, config.flows)
    }

    /// Sends `packets` packets, each of any flow.
    pub fn send_random(&mut self, contestant: Contestant, config: BenchConfig, packets: u32) -> Result<Cost> {
        self.seed += 1;
        self.send(contestant, BenchConfig { order: Order::Random, next: self.seed, ..config }, packets)
    }

    fn send(&mut self, contestant: Contestant, config: BenchConfig, packets: u32) -> Result<Cost> {
        let map = self.ebpf.map_mut("bench_config").context("the benchmark has no map bench_config")?;
        let config = BenchConfig { program: contestant as u32, ..config };
        Array::try_from(map)?.set(0, config, 0).context("can't configure the benchmark's program")?;
        let frame = [0; FRAME_LENGTH];
        let options = TestRunOptions { data_in: Some(&frame), repeat: packets, ..TestRunOptions::default() };
        let result = program(&mut self.ebpf, "bench_packet")?.test_run(options).context("can't run the program")?;
        let verdict = result.return_value;
        ensure!(VERDICTS.contains(&verdict), "the last packet for {contestant:?} met with verdict {verdict}");
        let nanoseconds = u64::try_from(result.duration.as_nanos())?;
        Cost::of(nanoseconds, 1).context("a duration beyond reason")
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}
