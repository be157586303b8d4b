//! Debian's kernels: the newest of a series, fetched and unpacked below target/vm, never installed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use evenkeel_tests::lab;

use crate::shell::{self, Step};

/// A series of kernels that Evenkeel is tried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// The oldest that is supported: Debian 12's.
    #[value(name = "6.1")]
    V6_1,
    /// A long-term kernel between that and the newest: Debian 12's backport.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    fn number(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.number())
    }
}

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As `uname -r` prints it.
    version: String,
    folder: PathBuf,
}

impl Kernel {
    /// What QEMU boots.
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinuz-{}", self.version))
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Linux {}", self.version)
    }
}

/// The newest kernel of a series: what was fetched before, or else what Debian has now.
pub(super) fn find_or_fetch(series: Series, runner: Option<&str>) -> Result<Kernel> {
    let folder = super::folder().join("kernels");
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let entries = fs::read_dir(&folder).with_context(|| format!("can't read {}", folder.display()))?;
    let there: Vec<String> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    if let Some(version) = newest(there.iter().map(String::as_str), series) {
        let folder = folder.join(&version);
        return Ok(Kernel { version, folder });
    }
    fetch(series, &folder, runner)
}

fn fetch(series: Series, folder: &Path, runner: Option<&str>) -> Result<Kernel> {
    for program in ["apt-get", "apt-cache", "dpkg-deb"] {
        if shell::find(program).is_none() {
            bail!("kernels come from Debian's packages, and there is no {program} here");
        }
    }
    let version = match known(series) {
        Some(version) => version,
        None => {
            update(runner)?;
            known(series).ok_or_else(|| anyhow!("apt knows no linux-image-{series}.*-amd64, which is in Debian 12"))?
        }
    };
    let partial = folder.join("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("can't remove {}", partial.display()))?;
    }
    fs::create_dir(&partial).with_context(|| format!("can't make {}", partial.display()))?;
    let package = format!("linux-image-{version}");
    let mut download = Step::new("apt-get").args(["download", &package]).inside(&partial);
    if download.run().is_err() {
        // Lists that are older than the archive name files that are gone.
        update(runner)?;
        return match known(series) {
            Some(newer) if newer != version => fetch(series, folder, runner),
            _ => download.run().and_then(|()| unpack(&partial, folder, version)),
        };
    }
    unpack(&partial, folder, version)
}

fn unpack(partial: &Path, folder: &Path, version: String) -> Result<Kernel> {
    let files = fs::read_dir(partial).with_context(|| format!("can't read {}", partial.display()))?;
    let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let package = files.flatten().map(|entry| entry.path()).find(is_package).context("apt-get left no package")?;
    let unpacked = partial.join("unpacked");
    Step::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked).run()?;
    Step::new("depmod").arg("-b").arg(&unpacked).arg(&version).run()?;
    let kernel = Kernel { folder: folder.join(&version), version };
    fs::rename(&unpacked, &kernel.folder).with_context(|| format!("can't make {}", kernel.folder.display()))?;
    fs::remove_dir_all(partial).with_context(|| format!("can't remove {}", partial.display()))?;
    Ok(kernel)
}

/// The newest kernel of the series in apt's lists.
fn known(series: Series) -> Option<String> {
    let names = Step::new("apt-cache").args(["pkgnames", &format!("linux-image-{series}.")]).ask()?;
    newest(names.lines().filter_map(|name| name.strip_prefix("linux-image-")), series)
}

fn update(runner: Option<&str>) -> Result<()> {
    if !lab::is_privileged() && runner.is_none() {
        bail!("apt's lists are missing or old; type\n    sudo apt-get update");
    }
    Step::through(runner.filter(|_| !lab::is_privileged()), "apt-get").arg("update").run()
}

/// The newest of those that are of this series, signed, and neither of the cloud flavour, which can't share files, nor real-time.
fn newest<'a>(versions: impl Iterator<Item = &'a str>, series: Series) -> Option<String> {
    let prefix = format!("{series}.");
    let numbers = |version: &str| {
        let digits = version.split(|letter: char| !letter.is_ascii_digit());
        digits.filter_map(|digits| digits.parse().ok()).collect::<Vec<u32>>()
    };
    let flavours = ["cloud", "rt", "unsigned", "dbg"];
    let fits = |version: &&str| {
        let plain = !version.split('-').any(|part| flavours.contains(&part));
        version.starts_with(&prefix) && version.ends_with("-amd64") && plain
    };
    versions.filter(fits).max_by_key(|version| numbers(version)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_plain_kernel_of_the_series_is_taken() {
        let versions = [
            "6.1.0-9-amd64",
            "6.1.0-56-amd64",
            "6.1.0-57-cloud-amd64",
            "6.1.0-57-rt-amd64",
            "6.1.0-57-amd64-dbg",
            "6.1.0-57-amd64-unsigned",
            "6.12.100+deb12-amd64",
            "6.12.99+deb12-amd64",
            "6.12.101+deb12-cloud-amd64",
            "partial",
        ];
        assert_eq!(newest(versions.into_iter(), Series::V6_1).as_deref(), Some("6.1.0-56-amd64"));
        assert_eq!(newest(versions.into_iter(), Series::V6_12).as_deref(), Some("6.12.100+deb12-amd64"));
        assert_eq!(newest(["6.6.1-amd64"].into_iter(), Series::V6_1), None);
    }
}
