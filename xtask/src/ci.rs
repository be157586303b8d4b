//! Everything that must hold before a change is taken.

use anyhow::Result;

use crate::shell::Step;
use crate::{test, tidy};

/// The packages for the host: lb-ebpf compiles for the kernel only.
const HOST: [&str; 3] = ["--workspace", "--exclude", "lb-ebpf"];

/// `cargo xtask ci`.
pub(crate) fn run(options: &test::Options) -> Result<()> {
    Step::cargo().args(["fmt", "--all", "--check"]).run()?;
    Step::cargo().arg("clippy").args(HOST).args(["--all-targets", "--", "-D", "warnings"]).run()?;
    Step::cargo().arg("doc").args(HOST).arg("--no-deps").env("RUSTDOCFLAGS", "-D warnings").run()?;
    tidy::run()?;
    test::run(options)
}
