//! `cargo xtask bench`: builds what is measured and what measures it, then runs that. Measures nothing itself.

use std::path::PathBuf;

use anyhow::{Result, bail};
use evenkeel_tests::lab;

use crate::build::{self, Object};
use crate::setup;
use crate::shell::{Step, target};

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, clap::Subcommand)]
enum Subject {
    /// Nanoseconds a packet of the XDP program above an empty one, by BPF_PROG_TEST_RUN, beside the same program over an
    /// LRU_HASH: a table, CSV, SVG and PNG. Takes some twenty minutes and up to 3 GB.
    Program(Program),
}

#[derive(Debug, clap::Args)]
struct Program {
    /// Fewer sizes, runs and packets: two minutes, for a first impression.
    #[arg(long)]
    quick: bool,
    /// Only measurements whose name contains this, for example "v4 dr" or "wlc/256".
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Where CSV and pictures go; target/bench by default.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Runs a figure, of which the median counts; 9 by default, 3 with --quick.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: Option<u32>,
    /// What to put before programs that need root, for example "sudo -E".
    #[arg(long, value_name = "COMMAND")]
    runner: Option<String>,
}

/// `cargo xtask bench`.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.subject {
        Subject::Program(options) => program(options),
    }
}

fn program(options: &Program) -> Result<()> {
    let Program { quick, filter, out, runs, runner } = options;
    let runner = runner.as_deref();
    if !lab::is_privileged() && runner.is_none() {
        bail!("loading XDP programs needs root; type\n    cargo xtask bench program --runner \"sudo -E\"");
    }
    let setup = setup::ebpf(runner)?;
    let product = build::ebpf(&setup, Object::Product)?;
    let lru = build::ebpf(&setup, Object::Lru)?;
    let generator = build::ebpf(&setup, Object::Generator)?;
    let mut cargo = Step::cargo().args(["build", "--release", "-p", "evenkeel-tests", "--example", "bench"]);
    cargo = cargo.env("EVENKEEL_EBPF_OBJECT", &product).env("LB_REQUIRE_EBPF", "1");
    cargo.run()?;
    let out = match out {
        Some(out) => std::path::absolute(out)?,
        None => target().join("bench"),
    };
    let runner = runner.filter(|_| !lab::is_privileged());
    let mut bench = Step::through(runner, target().join("release/examples/bench")).arg("--generator").arg(generator);
    bench = bench.arg("--lru").arg(lru).arg("--out").arg(out);
    if *quick {
        bench = bench.arg("--quick");
    }
    if let Some(filter) = filter {
        bench = bench.arg("--filter").arg(filter);
    }
    if let Some(runs) = runs {
        bench = bench.arg("--runs").arg(runs.to_string());
    }
    bench.run()
}
