//! What must be there before anything is built or run; installs what it may and can.

use anyhow::{Context as _, Result, bail};

use crate::linker::{self, Linker};
use crate::shell::Step;
use crate::toolchain::{self, Toolchain};
use crate::{packages, shell};

/// Options of `cargo xtask setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// What to put before commands that need root, for example "sudo -E".
    #[arg(long, value_name = "COMMAND")]
    runner: Option<String>,
}

/// The compiler and the linker for eBPF.
#[derive(Debug)]
pub(crate) struct Ebpf {
    pub(crate) toolchain: Toolchain,
    pub(crate) linker: Linker,
}

/// `cargo xtask setup`: everything.
pub(crate) fn all(options: &Options) -> Result<()> {
    let Ebpf { toolchain, linker } = ebpf(options.runner.as_deref())?;
    println!("eBPF compiler: {toolchain}");
    println!("eBPF linker:   {} in {}", linker.describe(), linker.path().display());
    lab(options.runner.as_deref())?;
    println!("lab tools:     {}", packages::tools());
    Ok(())
}

/// Finds the eBPF compiler and linker; installs what is missing.
pub(crate) fn ebpf(runner: Option<&str>) -> Result<Ebpf> {
    let toolchain = match Toolchain::find() {
        Some(found) => found,
        None => install_toolchain(runner)?,
    };
    let linker = match Linker::find(toolchain.llvm()) {
        Some(found) => found,
        None => install_linker(toolchain.llvm(), runner)?,
    };
    Ok(Ebpf { toolchain, linker })
}

/// Sees to the programs that the lab needs.
pub(crate) fn lab(runner: Option<&str>) -> Result<()> {
    let missing = packages::tools_missing();
    if missing.is_empty() {
        return Ok(());
    }
    let (tools, mut names): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    names.dedup();
    let elsewhere = format!("install them (Debian's packages are {})", names.join(", "));
    packages::install(&format!("what the lab needs ({})", tools.join(", ")), &names, runner, &elsewhere)?;
    let missing: Vec<_> = packages::tools_missing().into_iter().map(|(tool, _)| tool).collect();
    if !missing.is_empty() {
        bail!("the packages are installed, but not to be found on PATH: {}", missing.join(", "));
    }
    Ok(())
}

fn install_toolchain(runner: Option<&str>) -> Result<Toolchain> {
    let mut names = toolchain::DEBIAN_PACKAGES.to_vec();
    names.extend(linker::DEBIAN_PACKAGES);
    let elsewhere = "type\n    rustup toolchain install nightly --component rust-src\n    cargo xtask setup";
    packages::install("a compiler for eBPF", &names, runner, elsewhere)?;
    Toolchain::find().context("the packages are installed, but no compiler for eBPF was found")
}

fn install_linker(llvm: u32, runner: Option<&str>) -> Result<Linker> {
    if Linker::wants_debian_llvm(llvm) {
        let missing: Vec<&str> = linker::DEBIAN_PACKAGES.into_iter().filter(|package| !is_installed(package)).collect();
        if !missing.is_empty() && shell::find("dpkg-query").is_some() {
            packages::install("what bpf-linker is built with", &missing, runner, "")?;
        }
    }
    Linker::install(llvm)
}

fn is_installed(package: &str) -> bool {
    let printed = Step::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).ask();
    printed.is_some_and(|status| status == "installed")
}
