//! `cargo xtask run`: the demo, or with `--config` the daemon on this host.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use evenkeel_tests::lab::{self, REAL_SERVERS_MAX};

use crate::build::{self, Profile};
use crate::demo_config::Method;
use crate::shell::{Step, quoted};
use crate::{demo, duration, linker, setup};

/// Options of `cargo xtask run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Run the daemon on this host with this file, instead of the demo.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["duration", "forwarding", "scheduler", "real_servers"])]
    config: Option<PathBuf>,
    /// End the demo after this time: 20s, 1m, 500ms. Otherwise Ctrl-C ends it.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    duration: Option<Duration>,
    /// How the demo's real servers are reached.
    #[arg(long, value_name = "METHOD", default_value = "nat")]
    forwarding: Method,
    /// How a new connection gets its real server.
    #[arg(long, value_name = "NAME", default_value = "rr")]
    scheduler: String,
    /// How many real servers the demo has, 1..=16.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(REAL_SERVERS_MAX)))]
    real_servers: u8,
    /// What to put before programs that need root, for example "sudo -E".
    #[arg(long, value_name = "COMMAND")]
    runner: Option<String>,
    /// Everything is built: set by the task itself when it goes on as root.
    #[arg(long, hide = true)]
    built: bool,
}

/// What the demo shall show.
#[derive(Debug)]
pub(crate) struct Demo {
    pub(crate) duration: Option<Duration>,
    pub(crate) forwarding: Method,
    pub(crate) scheduler: String,
    pub(crate) real_servers: u8,
}

/// A flag's value that can't be, found only after clap has read it; the exit code is 2 as for those that clap finds.
#[derive(Debug)]
pub(crate) struct Misuse(pub(crate) String);

impl fmt::Display for Misuse {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

pub(crate) fn run(options: Options) -> Result<()> {
    let Options { config, duration, forwarding, scheduler, real_servers, runner, built } = options;
    let runner = runner.as_deref();
    let privileged = lab::is_privileged();
    if !privileged && runner.is_none() {
        bail!("namespaces and XDP need root; type\n    cargo xtask run --runner \"sudo -E\"{}", typed());
    }
    let ready = built || (build::binary(Profile::Release).is_file() && linker::is_there());
    if !ready {
        eprintln!("The first run sets up and builds everything, which takes some minutes.");
    }
    if config.is_none() {
        setup::lab(runner)?;
    }
    if !built {
        build::all(Profile::Release, runner)?;
    }
    let evenkeel = build::binary(Profile::Release);
    let runner = runner.filter(|_| !privileged);
    match (config, runner) {
        (Some(config), _) => on_this_host(&evenkeel, &config, runner),
        (None, Some(_)) => again_as_root(runner),
        (None, None) => demo::run(&evenkeel, &Demo { duration, forwarding, scheduler, real_servers }),
    }
}

/// Becomes the daemon.
fn on_this_host(evenkeel: &Path, config: &Path, runner: Option<&str>) -> Result<()> {
    Step::through(runner, evenkeel).args(["run", "--config"]).arg(std::path::absolute(config)?).exec()
}

/// Becomes this task once more, by the runner, with nothing left to build.
fn again_as_root(runner: Option<&str>) -> Result<()> {
    Step::through(runner, std::env::current_exe()?).args(["run", "--built"]).args(arguments()).exec()
}

/// The arguments of this task without a runner.
fn arguments() -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut words = std::env::args_os().skip(2);
    while let Some(word) = words.next() {
        if word == "--runner" {
            words.next();
        } else if word != "--built" && !word.to_string_lossy().starts_with("--runner=") {
            kept.push(word);
        }
    }
    kept
}

fn typed() -> String {
    arguments().iter().map(|word| format!(" {}", quoted(word))).collect()
}
