//! Which tests run in virtual machines. Each packet test loads the programs, for which the verifier takes some seconds under
//! emulation, so neither list has all.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::kernel::Series;
use super::{Ended, Guest};
use crate::build::Built;
use crate::shell::Step;

/// The kernels that `--vm` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kernels {
    /// Linux 6.1.
    #[value(name = "6.1")]
    V6_1,
    /// Linux 6.12.
    #[value(name = "6.12")]
    V6_12,
    /// Each of them.
    All,
}

impl Kernels {
    pub(crate) fn series(self) -> &'static [Series] {
        match self {
            Self::V6_1 => &[Series::V6_1],
            Self::V6_12 => &[Series::V6_12],
            Self::All => &[Series::V6_1, Series::V6_12],
        }
    }
}

/// Tests by parts of their names, and how long they may take together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suite {
    packets: &'static [&'static str],
    daemon: &'static [&'static str],
    limit: Duration,
}

impl Suite {
    /// What every run of all tests has: that the programs load and do their work on the oldest kernel, and one whole service.
    pub(crate) const SHORT: Self = Self {
        packets: &["variants::", "forwarding::nat_sends_to"],
        daemon: &["devices::the_kernels_tunnel_devices_unwrap_requests"],
        limit: Duration::from_secs(600),
    };

    /// What a kernel is judged by.
    pub(crate) const FULL: Self = Self {
        packets: &[
            "variants::",
            "pruning::",
            "forwarding::",
            "replies::",
            "headroom::",
            "headers::",
            "redirects::",
            "decapsulation::",
            "untouched::",
            "scheduling::",
            "connections::",
        ],
        daemon: &["serving::", "lifecycle::", "devices::"],
        limit: Duration::from_secs(3600),
    };

    /// Runs these, or the tests that `arguments` choose, on one kernel.
    pub(crate) fn run(self, guest: &Guest, built: &Built, programs: &Programs, arguments: &[String]) -> Result<()> {
        let command = |program: &PathBuf, threads: &str, tests: &[&str]| {
            let mut words: Vec<OsString> = vec![program.into(), format!("--test-threads={threads}").into()];
            match arguments {
                [] => words.extend(tests.iter().map(OsString::from)),
                chosen => words.extend(chosen.iter().map(OsString::from)),
            }
            words
        };
        // Packet tests attach nothing, and each has a namespace of its own.
        let commands = [command(&programs.packets, "2", self.packets), command(&programs.daemon, "1", self.daemon)];
        let environment = [
            ("EVENKEEL_REQUIRE_LAB", OsStr::new("1")),
            ("EVENKEEL_EMULATED", OsStr::new("1")),
            ("LB_REQUIRE_EBPF", OsStr::new("1")),
            ("EVENKEEL_EBPF_OBJECT", built.object.as_os_str()),
            ("EVENKEEL_BIN", built.evenkeel.as_os_str()),
        ];
        match guest.run(&commands, &environment, self.limit) {
            Err(error) if error.is::<Ended>() => bail!("tests failed on {}: {error:#}", guest.kernel()),
            other => other,
        }
    }
}

/// The test programs of the lab.
#[derive(Debug)]
pub(crate) struct Programs {
    packets: PathBuf,
    daemon: PathBuf,
}

impl Programs {
    /// Builds them by `cargo_test`, a `cargo test` without package.
    pub(crate) fn build(cargo_test: Step) -> Result<Self> {
        let mut build = cargo_test.args(["-p", "evenkeel-tests", "--test", "packets", "--test", "daemon"]);
        build = build.args(["--no-run", "--message-format", "json-render-diagnostics"]);
        let printed = build.output()?;
        let find = |name: &str| {
            let found = printed.lines().find_map(|line| executable(line, name));
            found.with_context(|| format!("`{build}` named no test program {name}"))
        };
        Ok(Self { packets: find("packets")?, daemon: find("daemon")? })
    }
}

/// The path of the test program `name`, if this line of cargo's messages tells it.
fn executable(message: &str, name: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    (message.get("target")?.get("name")? == name).then_some(())?;
    message.get("executable")?.as_str().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_read_from_cargos_messages() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"packets"},"executable":"/t/packets-1"}"#;
        assert_eq!(executable(line, "packets"), Some(PathBuf::from("/t/packets-1")));
        assert_eq!(executable(line, "daemon"), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#, "packets"), None);
    }
}
