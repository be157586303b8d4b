//! QEMU from Debian and virtme-ng, which boots it on the host's files, from PyPI.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::packages;
use crate::shell::{self, Step};

const QEMU: &str = "qemu-system-x86_64";
/// The one of Debian: another on PATH may lack modules that virtme-ng needs.
const PYTHON: &str = "/usr/bin/python3";

/// The release of virtme-ng that this was written with; its options differ from one to the next.
const VIRTME: &str = "virtme-ng==1.42";

/// What boots a machine.
#[derive(Debug)]
pub(super) struct Emulator {
    qemu: String,
    virtme: String,
    /// The folder with `vng`.
    programs: PathBuf,
}

impl Emulator {
    /// `vng`, with its other programs on PATH.
    pub(super) fn vng(&self) -> Step {
        Step::new(self.programs.join("vng")).with_path(self.programs.clone())
    }
}

impl fmt::Display for Emulator {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "QEMU {} without KVM, virtme-ng {}", self.qemu, self.virtme)
    }
}

/// Installs what is missing. An error says what, and why it could not be had.
pub(super) fn find_or_install(runner: Option<&str>) -> Result<Emulator> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("virtual machines are emulated on x86_64 only, and this is {}", std::env::consts::ARCH);
    }
    let missing = missing_packages();
    if !missing.is_empty() {
        let elsewhere = format!("install what Debian calls {}", missing.join(", "));
        packages::install("what virtual machines need", &missing, runner, &elsewhere)?;
        let missing = missing_packages();
        if !missing.is_empty() {
            bail!("the packages are installed, but what virtual machines need of {} was not found", missing.join(", "));
        }
    }
    let environment = super::folder().join("virtme-ng");
    let programs = environment.join("bin");
    if !programs.join("vng").is_file() {
        install_virtme(&environment)?;
    }
    let emulator = Emulator { qemu: version(Path::new(QEMU)), virtme: version(&programs.join("vng")), programs };
    Ok(emulator)
}

fn install_virtme(environment: &Path) -> Result<()> {
    Step::new(PYTHON).args(["-m", "venv", "--clear"]).arg(environment).run()?;
    let pip = Step::new(environment.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check"]);
    pip.args(["--retries", "1", "--timeout", "15", VIRTME]).run()
}

/// Debian packages with what is not there.
fn missing_packages() -> Vec<&'static str> {
    let mut missing = Vec::new();
    let programs = [(QEMU, "qemu-system-x86"), ("busybox", "busybox-static"), ("depmod", "kmod"), ("modprobe", "kmod")];
    missing.extend(programs.into_iter().filter(|(program, _)| shell::find(program).is_none()).map(|(_, name)| name));
    // Without ensurepip, which is Debian's python3-venv, an environment has no pip.
    if Step::new(PYTHON).args(["-c", "import venv, ensurepip"]).ask().is_none() {
        missing.push("python3-venv");
    }
    missing.dedup();
    missing
}

/// The first word with a dot and a digit in what `PROGRAM --version` prints.
fn version(program: &Path) -> String {
    let printed = Step::new(program).arg("--version").ask().unwrap_or_default();
    let is_version = |word: &&str| word.contains('.') && word.starts_with(|first: char| first.is_ascii_digit());
    printed.split_whitespace().find(is_version).unwrap_or("of an unknown version").to_owned()
}
