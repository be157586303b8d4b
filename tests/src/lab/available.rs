//! Whether a lab can be made here at all. It makes nothing itself.

use std::io::Write as _;
use std::path::PathBuf;

use super::patience::is_emulated;

/// CAP_NET_ADMIN and CAP_SYS_ADMIN, bit numbers in `CapEff` (capabilities(7)).
const NEEDED_CAPABILITIES: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// Programs the lab runs, each with the Debian package it comes from.
const TOOLS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("curl", "curl"),
    ("ping", "iputils-ping"),
    ("bpftool", "bpftool"),
];

/// Whether a test that needs the lab can go on; if not, says on stderr what is missing.
///
/// # Panics
/// Where the environment has `EVENKEEL_REQUIRE_LAB=1` and something is missing: a skipped test must not pass for a good one.
pub fn available() -> bool {
    let Some(missing) = what_is_missing() else { return true };
    let required = std::env::var_os("EVENKEEL_REQUIRE_LAB").is_some_and(|value| value == "1");
    assert!(!required, "EVENKEEL_REQUIRE_LAB=1, but the lab can't be made: {missing}");
    // Not by eprintln, which the test harness keeps to itself when a test passes.
    let line = format!(
        "skipped: the lab can't be made: {missing}; run `cargo xtask test` as root or with --runner \"sudo -E\"\n"
    );
    drop(std::io::stderr().write_all(line.as_bytes()));
    false
}

/// Whether the kernel has these modules, which it loads if it can; if not, says on stderr what is skipped for it.
///
/// # Panics
/// In a virtual machine of `cargo xtask vm`, whose kernel has them all.
pub fn has_modules(names: &[&str]) -> bool {
    let has = |name: &str| {
        let loaded = super::Cmd::new("modprobe").arg(name).run();
        loaded.is_ok() || std::path::Path::new("/sys/module").join(name).exists()
    };
    let Some(missing) = names.iter().find(|name| !has(name)) else { return true };
    assert!(!is_emulated(), "the virtual machine's kernel has no module {missing}");
    let line = format!("skipped: this kernel has no {missing}; `cargo xtask test --vm` runs it where there is one\n");
    drop(std::io::stderr().write_all(line.as_bytes()));
    false
}

/// The programs that the lab needs and that are not on PATH, each with its Debian package.
pub fn tools_missing() -> Vec<(&'static str, &'static str)> {
    TOOLS.into_iter().filter(|(tool, _)| !on_path(tool)).collect()
}

/// Whether this process may make namespaces: root, or the capabilities for it.
pub fn is_privileged() -> bool {
    missing_capability().is_none()
}

fn missing_capability() -> Option<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    NEEDED_CAPABILITIES.into_iter().find(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| name)
}

fn what_is_missing() -> Option<String> {
    if let Some(name) = missing_capability() {
        return Some(format!("network namespaces need root ({name} is missing)"));
    }
    let tools = tools_missing();
    if tools.is_empty() {
        return None;
    }
    let list: Vec<String> =
        tools.iter().map(|(tool, package)| format!("{tool} is not installed (Debian package {package})")).collect();
    Some(list.join(", "))
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administrator = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(administrator).any(|folder| folder.join(tool).is_file())
}
