//! Builds the XDP program for the kernel, then the daemon that has it built in.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::setup::{self, Ebpf};
use crate::shell::{Step, target};

/// Options of `cargo xtask build`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Build the daemon optimised; the XDP program always is.
    #[arg(long)]
    release: bool,
}

/// How the daemon is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

/// What was built, absolute paths.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) object: PathBuf,
    pub(crate) evenkeel: PathBuf,
}

/// `cargo xtask build`.
pub(crate) fn run(options: &Options) -> Result<()> {
    let built = all(if options.release { Profile::Release } else { Profile::Debug }, None)?;
    println!("{}", built.evenkeel.display());
    Ok(())
}

/// Builds both, with a setup before it if something is missing.
pub(crate) fn all(profile: Profile, runner: Option<&str>) -> Result<Built> {
    let object = ebpf(&setup::ebpf(runner)?)?;
    let cargo = Step::cargo().args(["build", "-p", "lb-userspace"]);
    let cargo = cargo.env("EVENKEEL_EBPF_OBJECT", &object).env("LB_REQUIRE_EBPF", "1");
    let mut cargo = match profile {
        Profile::Debug => cargo,
        Profile::Release => cargo.arg("--release"),
    };
    cargo.run()?;
    Ok(Built { object, evenkeel: binary(profile) })
}

/// Where [`all`] puts the daemon.
pub(crate) fn binary(profile: Profile) -> PathBuf {
    target().join(match profile {
        Profile::Debug => "debug/evenkeel",
        Profile::Release => "release/evenkeel",
    })
}

const EBPF_FLAGS: &str = "-C link-arg=--btf -C link-arg=--llvm-args=--disable-bpf-peephole -C debuginfo=2 -C target-cpu=v3";

/// Builds the XDP program; returns the path of the object.
fn ebpf(setup: &Ebpf) -> Result<PathBuf> {
    let folder = target().join("ebpf");
    // target-cpu=v3: without it LLVM shifts packet pointers, which the verifier refuses. --btf and debuginfo make
    // maps readable in bpftool, hence also no stripping, which the workspace's release profile asks for. LLVM 22's
    // peephole for BPF removes zero extensions that are still used (bpf-mi-zext-elim), and crashes afterwards.
    let mut step = setup
        .toolchain
        .cargo_build()
        .args(["--release", "-p", "lb-ebpf", "--target", "bpfel-unknown-none", "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", EBPF_FLAGS)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", setup.linker.path())
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .env("CARGO_PROFILE_RELEASE_LTO", "off");
    step.run()?;
    let object = folder.join("bpfel-unknown-none/release/lb-ebpf");
    if !object.is_file() {
        bail!("`{step}` made no {}", object.display());
    }
    Ok(object)
}
