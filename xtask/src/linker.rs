//! bpf-linker, in a folder of the project: what the user has on PATH may be of another LLVM, and is left alone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::shell::{self, Step};

/// The version that is known to work; raise it deliberately.
const VERSION: &str = "0.13.0";
/// The LLVM that Debian's packages have, and the newest that this version of bpf-linker knows.
const DEBIAN_LLVM: u32 = 22;
const NEWEST_LLVM: u32 = 23;
/// Where Debian's packages put it.
const DEBIAN_LLVM_FOLDER: &str = "/usr/lib/llvm-22";

/// Debian's packages for building bpf-linker; g++ brings the libstdc++ that LLVM is linked with.
pub(crate) const DEBIAN_PACKAGES: [&str; 4] = ["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "g++"];

/// The linker, installed in the project.
#[derive(Debug)]
pub(crate) struct Linker {
    path: PathBuf,
    llvm: u32,
}

impl Linker {
    /// The one in the project, if it runs, is of our version, and has an LLVM that is new enough for the compiler's.
    pub(crate) fn find(compiler_llvm: u32) -> Option<Self> {
        let path = tools().join("bin/bpf-linker");
        let llvm = fs::read_to_string(stamp()).ok()?.trim().parse().ok()?;
        // Running it shows that its shared libraries are there too.
        let printed = path.is_file().then(|| Step::new(&path).arg("--version").ask())??;
        (printed.trim() == format!("bpf-linker {VERSION}") && llvm >= compiler_llvm).then_some(Self { path, llvm })
    }

    /// Whether Debian's LLVM is what [`Linker::install`] will build with, so that its packages are needed.
    pub(crate) fn wants_debian_llvm(compiler_llvm: u32) -> bool {
        compiler_llvm <= DEBIAN_LLVM && shell::find("cargo-binstall").is_none()
    }

    /// Installs it into the project; takes half a minute.
    pub(crate) fn install(compiler_llvm: u32) -> Result<Self> {
        if compiler_llvm > NEWEST_LLVM {
            bail!(
                "the eBPF compiler has LLVM {compiler_llvm}, bpf-linker {VERSION} knows 21..={NEWEST_LLVM}; \
                 take an older nightly, or raise the version in xtask/src/linker.rs"
            );
        }
        let (mut step, llvm) = Self::installation(compiler_llvm);
        step.run().map_err(|error| {
            anyhow!(
                "{error:#}; bpf-linker {VERSION} is still missing; when the command works, run `cargo xtask setup` again \
                 (with cargo-binstall on PATH it takes a ready-made one)"
            )
        })?;
        fs::write(stamp(), format!("{llvm}\n")).with_context(|| format!("can't write {}", stamp().display()))?;
        Self::find(compiler_llvm).with_context(|| format!("{} was installed but does not run", tools().display()))
    }

    /// The command that installs it, and the LLVM it will have.
    pub(crate) fn installation(compiler_llvm: u32) -> (Step, u32) {
        let pinned = ["--version", VERSION, "--locked", "--root"];
        if shell::find("cargo-binstall").is_some() {
            // The published binaries have the newest LLVM built in.
            let step = Step::cargo().args(["binstall", "--no-confirm", "bpf-linker"]).args(pinned).arg(tools());
            return (step, NEWEST_LLVM);
        }
        let step = Step::cargo().args(["install", "--force", "bpf-linker"]).args(pinned).arg(tools());
        // cargo advises to put the folder on PATH unless it is there.
        let step = step.with_path(tools().join("bin"));
        if compiler_llvm <= DEBIAN_LLVM && Path::new(DEBIAN_LLVM_FOLDER).is_dir() {
            // Both variables are needed: bpf-linker's own build script reads the first, llvm-sys the second.
            let step = step.env("LLVM_PREFIX", DEBIAN_LLVM_FOLDER).env("LLVM_SYS_221_PREFIX", DEBIAN_LLVM_FOLDER);
            return (step.args(["--no-default-features", "--features", "llvm-22"]), DEBIAN_LLVM);
        }
        (step, NEWEST_LLVM)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn describe(&self) -> String {
        format!("bpf-linker {VERSION} (LLVM {})", self.llvm)
    }
}

/// Whether one was installed, of whatever version.
pub(crate) fn is_there() -> bool {
    tools().join("bin/bpf-linker").is_file()
}

fn tools() -> PathBuf {
    shell::target().join("tools")
}

/// The LLVM it was installed with: bpf-linker doesn't say.
fn stamp() -> PathBuf {
    tools().join("bpf-linker.llvm")
}
