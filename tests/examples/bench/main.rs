//! What `cargo xtask bench program` runs: nanoseconds a packet of the XDP program, by BPF_PROG_TEST_RUN.
//!
//! The packet is made anew before each run (lb-ebpf/src/bench.rs), and what that takes is measured in the same way, with a
//! program that does nothing, and taken off. Table, CSV and pictures are the result; docs/performance.md keeps them.

mod cost;
mod director;
mod floor;
mod generator;
mod matrix;
mod measure;
mod memory;
mod packet;
mod plot;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;

use generator::Generator;
use matrix::Experiment;
use measure::{Bench, Effort};
use report::Finding;

/// Measures the XDP program; `cargo xtask bench program` builds what this needs.
#[derive(Debug, clap::Parser)]
struct Arguments {
    /// The object that makes packets.
    #[arg(long, value_name = "FILE")]
    generator: PathBuf,
    /// The program with its connections in an LRU_HASH.
    #[arg(long, value_name = "FILE")]
    lru: PathBuf,
    /// Where CSV and pictures go.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Fewer sizes, runs and packets.
    #[arg(long)]
    quick: bool,
    /// Only measurements whose name contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Runs a figure, of which the median counts.
    #[arg(long, value_name = "N")]
    runs: Option<u32>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { generator, lru, out, quick, filter, runs } = arguments;
    let filter = filter.as_deref().unwrap_or_default();
    let mut experiments = matrix::experiments(*quick);
    experiments.retain(|experiment| experiment.to_string().contains(filter));
    if experiments.is_empty() {
        let names: Vec<String> = matrix::experiments(*quick).iter().map(ToString::to_string).collect();
        bail!("no measurement's name contains \"{filter}\"; there are\n  {}", names.join("\n  "));
    }
    settle()?;
    let (default_runs, packets) = if *quick { (3, 200_000) } else { (9, 1_000_000) };
    let effort = Effort { runs: runs.unwrap_or(default_runs), packets };
    let mut bench = Bench::new(Generator::load(&read(generator)?)?, read(lru)?, effort);
    let findings = measure_all(&mut bench, &experiments);
    println!("{}\n\n{}", head(effort, &findings), report::text(&findings));
    write(out, &findings)?;
    let failures = experiments.len() - findings.len();
    if failures > 0 {
        bail!("{failures} of {} measurements failed or were left out, see above", experiments.len());
    }
    Ok(())
}

/// So many failures in a row have one cause, which the rest would meet with too.
const FAILURES_MAX: u32 = 3;

/// The figures that could be found; says on standard error how it goes.
fn measure_all(bench: &mut Bench, experiments: &[Experiment]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut failures = 0;
    for (experiment, number) in experiments.iter().zip(1..) {
        eprint!("{number} of {}: {experiment}: ", experiments.len());
        match bench.measure(*experiment) {
            Ok(finding) => {
                eprintln!("{} ns", finding.table.median);
                findings.push(finding);
                failures = 0;
            }
            Err(error) => {
                eprintln!("failed: {error:#}");
                failures += 1;
            }
        }
        if failures == FAILURES_MAX {
            eprintln!("{failures} failures in a row; the rest is left out");
            break;
        }
    }
    findings
}

/// A network namespace of our own, whose loopback device packets come in by, and one CPU for all runs.
fn settle() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("can't make a network namespace; this needs root")?;
    let itself = Pid::from_raw(0);
    let allowed = sched_getaffinity(itself)?;
    // The last: interrupts and other work tend to the first.
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("no CPU is allowed")?)?;
    sched_setaffinity(itself, &one).context("can't keep to one CPU")
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("can't read {}", file.display()))
}

/// On what, and how.
fn head(effort: Effort, findings: &[Finding]) -> String {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("unknown");
        line.trim_start_matches([' ', '\t', ':']).trim().to_owned()
    };
    let kernel = field("/proc/sys/kernel/osrelease", "");
    let processor = field("/proc/cpuinfo", "model name");
    let Effort { runs, packets } = effort;
    let empty = cost::Spread::of(findings.iter().map(|finding| finding.empty).collect());
    let empty = empty.map_or_else(String::new, |empty| {
        let cost::Spread { median, lowest, highest } = empty;
        format!(
            "; an empty program, with the making of its packets, takes {median} [{lowest}..{highest}] ns, taken off"
        )
    });
    format!("Linux {kernel}, {processor}; {runs} runs of {packets} packets a figure{empty}")
}

/// Writes CSV and pictures to `folder`, and says where they are.
fn write(folder: &Path, findings: &[Finding]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    let file = |kind: &str| folder.join("program").with_extension(kind);
    let (csv, svg, png) = (file("csv"), file("svg"), file("png"));
    fs::write(&csv, report::csv(findings)).with_context(|| format!("can't write {}", csv.display()))?;
    eprintln!("{}", csv.display());
    if plot::write(findings, &svg, &png)? {
        eprintln!("{}\n{}", svg.display(), png.display());
    }
    Ok(())
}
