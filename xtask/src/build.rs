//! Builds the XDP programs for the kernel, then the daemon that has them built in.

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
    let object = ebpf(&setup::ebpf(runner)?, Object::Product)?;
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

/// What lb-ebpf can be built as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    /// The programs that the daemon has built in.
    Product,
    /// The same with the connections in an LRU_HASH, for comparison.
    Lru,
    /// What makes the benchmark's packets.
    Generator,
}

impl Object {
    /// Folder below the target folder, name of the binary, and cargo's further arguments.
    fn parts(self) -> (&'static str, &'static str, &'static [&'static str]) {
        match self {
            Self::Product => ("ebpf", "lb-ebpf", &[]),
            // A folder of its own: it has the name of the product.
            Self::Lru => ("ebpf-lru", "lb-ebpf", &["--features", "lru"]),
            Self::Generator => ("ebpf", "bench", &["--features", "bench"]),
        }
    }
}

/// target-cpu=v3: without it LLVM shifts packet pointers, which the verifier refuses. --btf and debuginfo make maps readable
/// in bpftool. LLVM 22's peephole for BPF removes zero extensions that are still used (bpf-mi-zext-elim), and crashes
/// afterwards.
const EBPF_FLAGS: &str =
    "-C link-arg=--btf -C link-arg=--llvm-args=--disable-bpf-peephole -C debuginfo=2 -C target-cpu=v3";

/// Builds an object for the kernel; returns its path.
pub(crate) fn ebpf(setup: &Ebpf, object: Object) -> Result<PathBuf> {
    let (folder, binary, arguments) = object.parts();
    let folder = target().join(folder);
    // No stripping, which the workspace's release profile asks for: it would take the maps' names away.
    let mut step = setup
        .toolchain
        .cargo_build()
        .args(["--release", "-p", "lb-ebpf", "--bin", binary])
        .args(arguments)
        .args(["--target", "bpfel-unknown-none", "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", EBPF_FLAGS)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", setup.linker.path())
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .env("CARGO_PROFILE_RELEASE_LTO", "off");
    step.run()?;
    let object = folder.join("bpfel-unknown-none/release").join(binary);
    if !object.is_file() {
        bail!("`{step}` made no {}", object.display());
    }
    Ok(object)
}
