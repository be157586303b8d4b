//! Every task of the project. Each prints the commands it runs, and a failure names the one that failed.

mod bench;
mod build;
mod ci;
mod demo;
mod demo_config;
mod demo_view;
mod duration;
mod linker;
mod packages;
mod run;
mod setup;
mod shell;
mod test;
mod tidy;
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::Parser as _;

/// Builds, runs, tests and checks Evenkeel.
#[derive(Debug, clap::Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, clap::Subcommand)]
enum Task {
    /// Finds the eBPF toolchain and the tools of the lab, and installs what is missing (as root on Debian).
    Setup(setup::Options),
    /// Builds the XDP program and the daemon; prints the path of the binary.
    Build(build::Options),
    /// Runs the demo in network namespaces of its own, or with --config the daemon on this host.
    Run(run::Options),
    /// Builds and runs all tests; those in namespaces need root.
    Test(test::Task),
    /// Runs a command in a virtual machine with one of Debian's kernels, in the root of the tree, as root.
    Vm(vm::Options),
    /// Measures the XDP program; needs root.
    Bench(bench::Options),
    /// Checks format, lints, documentation and the rules of the tree, then runs all tests.
    Ci(test::Options),
    /// Checks the rules of the tree: length of files, purity, unsafe code.
    Tidy,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup(options) => setup::all(&options),
        Task::Build(options) => build::run(&options),
        Task::Run(options) => run::run(options),
        Task::Test(options) => test::task(&options),
        Task::Vm(options) => vm::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Ci(options) => ci::run(&options),
        Task::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(vm::Ended(code)) = error.downcast_ref() {
                return ExitCode::from(*code);
            }
            if error.is::<run::Misuse>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
