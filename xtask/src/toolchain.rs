//! The compiler for eBPF: either of two, since a stable one from rustup can't do it.
//!
//! 1. rustup's nightly with the component rust-src: core is built along (`-Z build-std=core`).
//! 2. Debian's rustc-web, which comes with core for bpfel-unknown-none as a package.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::shell::Step;

/// Where Debian's packages put the compiler; a rustup on PATH doesn't hide it.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

/// Debian's packages for the compiler.
pub(crate) const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "rust-web-llvm"];

/// A compiler that was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    kind: Kind,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nightly,
    Debian,
}

/// What `rustc -vV` says.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    release: String,
    llvm: u32,
}

impl Toolchain {
    /// The first of the two that is complete.
    pub(crate) fn find() -> Option<Self> {
        Self::nightly().or_else(Self::debian)
    }

    fn nightly() -> Option<Self> {
        let rustc = |argument: &[&str]| {
            let step = Step::new("rustup").args(["run", "nightly", "rustc"]).args(argument);
            step.without_our_toolchain().env("RUSTUP_AUTO_INSTALL", "0").ask()
        };
        let sysroot = rustc(&["--print", "sysroot"])?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
        if !source.is_file() {
            return None;
        }
        Some(Self { kind: Kind::Nightly, version: version(&rustc(&["-vV"])?)? })
    }

    fn debian() -> Option<Self> {
        let is_core = |name: &str| name.starts_with("libcore-") && name.ends_with(".rlib");
        let mut core = fs::read_dir(DEBIAN_CORE).ok()?.flatten();
        core.find(|entry| is_core(&entry.file_name().to_string_lossy()))?;
        if !Path::new(DEBIAN_CARGO).is_file() {
            return None;
        }
        let printed = Step::new(DEBIAN_RUSTC).arg("-vV").without_our_toolchain().ask()?;
        Some(Self { kind: Kind::Debian, version: version(&printed)? })
    }

    /// The major version of the compiler's LLVM; a linker for its output needs the same or a newer one.
    pub(crate) fn llvm(&self) -> u32 {
        self.version.llvm
    }

    /// `cargo build` by this compiler, without package and target.
    pub(crate) fn cargo_build(&self) -> Step {
        match self.kind {
            Kind::Nightly => Step::new("rustup")
                .args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"])
                .without_our_toolchain(),
            // RUSTC_BOOTSTRAP, since eBPF needs unstable features and this is a stable compiler.
            Kind::Debian => Step::new(DEBIAN_CARGO)
                .arg("build")
                .without_our_toolchain()
                .env("RUSTC", DEBIAN_RUSTC)
                .env("RUSTC_BOOTSTRAP", "1"),
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version { release, llvm } = &self.version;
        match self.kind {
            Kind::Nightly => write!(out, "rustup's nightly with rust-src, rustc {release} (LLVM {llvm})"),
            Kind::Debian => write!(out, "Debian's rustc-web with a prebuilt core, rustc {release} (LLVM {llvm})"),
        }
    }
}

fn version(printed: &str) -> Option<Version> {
    let field = |name: &str| printed.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some(Version { release: field("release:")?.to_owned(), llvm })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_rustc() {
        let printed = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(version(printed), Some(Version { release: "1.96.0".into(), llvm: 22 }));
        assert_eq!(version("rustc 1.96.0"), None);
    }

    #[test]
    fn each_toolchain_builds_core_its_own_way() {
        let build =
            |kind| Toolchain { kind, version: Version { release: String::new(), llvm: 22 } }.cargo_build().to_string();
        assert_eq!(build(Kind::Nightly), "rustup run nightly cargo build -Z build-std=core");
        assert_eq!(build(Kind::Debian), "RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 /usr/bin/cargo build");
    }
}
