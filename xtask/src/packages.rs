//! Debian packages: installed by us as root on Debian, otherwise told with the commands to type.

use std::fs;

use anyhow::{Error, Result, anyhow, bail};
use evenkeel_tests::lab;

use crate::shell::{self, Step};

/// Programs that the lab, the tests and the demo run, each with its Debian package.
const TOOLS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nsenter", "util-linux"),
    ("curl", "curl"),
    ("ping", "iputils-ping"),
    ("bpftool", "bpftool"),
    ("nft", "nftables"),
];

/// The programs of the lab that are not installed, with their Debian packages.
pub(crate) fn tools_missing() -> Vec<(&'static str, &'static str)> {
    TOOLS.into_iter().filter(|(tool, _)| shell::find(tool).is_none()).collect()
}

/// The names of all programs that the lab needs.
pub(crate) fn tools() -> String {
    TOOLS.map(|(tool, _)| tool).join(", ")
}

/// Installs packages, or stops and says what to type: on another system, or if neither root nor given a runner.
pub(crate) fn install(what: &str, packages: &[&str], runner: Option<&str>, elsewhere: &str) -> Result<()> {
    if !is_debian() {
        bail!("{what} is missing, and this is not Debian; {elsewhere}");
    }
    if !lab::is_privileged() && runner.is_none() {
        bail!(
            "{what} is missing; type\n    sudo apt-get update\n    sudo apt-get install -y --no-install-recommends {}\n\
             or let me do it: cargo xtask setup --runner \"sudo -E\"",
            packages.join(" ")
        );
    }
    let runner = runner.filter(|_| !lab::is_privileged());
    let remains = |error: Error| {
        let packages = packages.join(" ");
        anyhow!("{error:#}; still missing: {packages}; when the command works, run `cargo xtask setup` again")
    };
    let apt = || Step::through(runner, "apt-get").env("DEBIAN_FRONTEND", "noninteractive");
    apt().arg("update").run().map_err(remains)?;
    apt().args(["install", "-y", "--no-install-recommends"]).args(packages).run().map_err(remains)
}

/// Debian, or something made from it.
fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    names_debian(&release) && shell::find("apt-get").is_some()
}

fn names_debian(os_release: &str) -> bool {
    let values = os_release.lines().filter_map(|line| line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE=")));
    values.flat_map(|value| value.trim_matches('"').split(' ')).any(|name| name == "debian")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_children_are_known() {
        assert!(names_debian("NAME=\"Debian\"\nID=debian\n"));
        assert!(names_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(names_debian("ID=mint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!names_debian("ID=fedora\nID_LIKE=\"rhel\"\nVERSION=\"not debian\"\n"));
    }
}
