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
    ebpf_clippy(&[]).run()?;
    ebpf_clippy(&["--features", "lru"]).run()?;
    ebpf_clippy(&["--bin", "bench", "--features", "bench"]).run()?;
    Step::cargo().arg("doc").args(HOST).arg("--no-deps").env("RUSTDOCFLAGS", "-D warnings").run()?;
    tidy::run()?;
    test::run(options)
}

/// clippy knows no BPF target; for the host the crate can at least be checked, with the features that it needs of nightly.
fn ebpf_clippy(object: &[&str]) -> Step {
    let step = Step::cargo().args(["clippy", "-p", "lb-ebpf", "--target-dir", "target/clippy-ebpf"]).args(object);
    let step = step.args(["--", "-D", "warnings"]);
    step.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-C panic=abort")
}
