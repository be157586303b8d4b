//! Runs the tests: first those that need nothing, then those in namespaces, which need root, then a few on the oldest kernel.

use anyhow::{Result, bail};
use evenkeel_tests::lab;

use crate::build::{self, Built, Profile};
use crate::setup;
use crate::shell::{Step, quoted};
use crate::vm::{self, Kernels, Programs, Series, Suite};

/// Options of `cargo xtask test` and `cargo xtask ci`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What to put before programs that need root, for example "sudo -E".
    #[arg(long, value_name = "COMMAND")]
    runner: Option<String>,
    /// Only the tests that need no root and no namespaces.
    #[arg(long)]
    no_lab: bool,
    /// How many random and mutated packets the XDP program is shown.
    #[arg(long, value_name = "COUNT", default_value_t = 100_000)]
    packets: u32,
    /// For the test programs: a filter for names, --nocapture and so on.
    #[arg(last = true, value_name = "ARGUMENTS")]
    arguments: Vec<String>,
}

/// Options of `cargo xtask test` alone.
#[derive(Debug, clap::Args)]
pub(crate) struct Task {
    #[command(flatten)]
    options: Options,
    /// Only the tests for other kernels, each in a virtual machine with one of Debian's; without KERNEL on all of them.
    #[arg(long, value_name = "KERNEL", num_args = 0..=1, default_missing_value = "all", conflicts_with = "no_lab")]
    vm: Option<Kernels>,
}

/// `cargo xtask test`.
pub(crate) fn task(task: &Task) -> Result<()> {
    match task.vm {
        Some(kernels) => on_kernels(kernels, &task.options),
        None => run(&task.options),
    }
}

/// All tests.
pub(crate) fn run(options: &Options) -> Result<()> {
    let runner = options.runner.as_deref();
    if !options.no_lab && !lab::is_privileged() && runner.is_none() {
        bail!(
            "the tests in namespaces need root; type\n    {}\nor leave them out:\n    cargo xtask test --no-lab",
            options.with_runner()
        );
    }
    if !options.no_lab {
        setup::lab(runner)?;
    }
    let built = build::all(Profile::Debug, runner)?;
    let mut units = cargo_test(&built).args(["--workspace", "--exclude", "lb-ebpf", "--exclude", "evenkeel-tests"]);
    units = units.arg("--").args(&options.arguments);
    units.run()?;
    if options.no_lab {
        cargo_test(&built)
            .args(["-p", "evenkeel-tests", "--lib", "--examples", "--"])
            .args(&options.arguments)
            .run()?;
        println!("\nskipped: the tests in namespaces (--no-lab); all others passed");
        return Ok(());
    }
    // One test at a time: each has a dozen threads and programs of its own.
    let in_lab = cargo_test(&built).env("EVENKEEL_REQUIRE_LAB", "1");
    let mut in_lab = in_lab.env("EVENKEEL_PACKETS", options.packets.to_string()).args(["-p", "evenkeel-tests"]);
    if let Some(runner) = runner.filter(|_| !lab::is_privileged()) {
        in_lab = in_lab.env(&runner_variable()?, runner);
    }
    in_lab.args(["--", "--test-threads=1"]).args(&options.arguments).run()?;
    let skipped = match options.arguments.is_empty() {
        true => on_the_oldest_kernel(options, &built)?,
        false => None,
    };
    match skipped {
        None => println!("\nall tests passed"),
        Some(why) => println!("\nskipped: {why}\nall other tests passed"),
    }
    Ok(())
}

/// The tests that judge a kernel, on each that was asked for.
fn on_kernels(kernels: Kernels, options: &Options) -> Result<()> {
    let built = build::all(Profile::Debug, options.runner.as_deref())?;
    let programs = Programs::build(cargo_test(&built))?;
    for series in kernels.series() {
        let guest = vm::prepare(*series, options.runner.as_deref())?;
        Suite::FULL.run(&guest, &built, &programs, &options.arguments)?;
        println!("\nthe tests for other kernels passed on {}", guest.kernel());
    }
    Ok(())
}

/// Set, a virtual machine that can't be had is an error.
const REQUIRE_VM: &str = "EVENKEEL_REQUIRE_VM";

/// A few tests on the oldest kernel; where a machine with it can't be had, why they are skipped.
fn on_the_oldest_kernel(options: &Options, built: &Built) -> Result<Option<String>> {
    match vm::prepare(Series::V6_1, options.runner.as_deref()) {
        Ok(guest) => Suite::SHORT.run(&guest, built, &Programs::build(cargo_test(built))?, &[]).map(|()| None),
        Err(error) if std::env::var_os(REQUIRE_VM).is_some() => Err(error),
        Err(error) => {
            let tests = format!("the tests on Linux {}", Series::V6_1);
            Ok(Some(format!(
                "{tests}, since no virtual machine is to be had ({REQUIRE_VM}=1 makes that an error): {error:#}"
            )))
        }
    }
}

impl Options {
    /// The command line that was typed, with a runner.
    fn with_runner(&self) -> String {
        let typed: Vec<String> = std::env::args_os().skip(1).map(|word| quoted(&word)).collect();
        let task = typed.first().map_or("test", String::as_str);
        let rest = if self.arguments.is_empty() { String::new() } else { format!(" -- {}", self.arguments.join(" ")) };
        format!("cargo xtask {task} --runner \"sudo -E\"{rest}")
    }
}

fn cargo_test(built: &Built) -> Step {
    Step::cargo()
        .arg("test")
        .env("EVENKEEL_EBPF_OBJECT", &built.object)
        .env("LB_REQUIRE_EBPF", "1")
        .env("EVENKEEL_BIN", &built.evenkeel)
}

/// The variable by which cargo runs programs of the host through another.
fn runner_variable() -> Result<String> {
    let printed = Step::new("rustc").arg("-vV").ask().unwrap_or_default();
    let Some(host) = printed.lines().find_map(|line| line.strip_prefix("host: ")) else {
        bail!("`rustc -vV` doesn't name a host");
    };
    Ok(format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace(['-', '.'], "_")))
}
