//! `[xdp]`: where and how the XDP program runs.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use super::global::path;
use super::model::{Backend, Xdp, XdpMode};
use super::reader::{Reader, Words};
use super::report::Report;
use super::schema;
use super::tunnel;

/// IFNAMSIZ less the closing zero.
const INTERFACE_LENGTH_MAX: usize = 15;
const CONNECTIONS: u32 = 1_000_000;
const CONNECTIONS_RANGE: RangeInclusive<u32> = 1024..=100_000_000;
const CONNECTIONS_HELP: &str = "it counts live connections; each takes 27 bytes of kernel memory, and 60 when any virtual \
                                server has an IPv6 address or serves all ports";
const REJECTS: u32 = 1000;
const REJECTS_RANGE: RangeInclusive<u32> = 0..=1_000_000;
const REJECTS_HELP: &str = "it counts RSTs and ICMP errors a second and CPU; 0 sends none";
/// Where maps and links are pinned unless the configuration says otherwise.
pub const PIN_DIRECTORY: &str = "/sys/fs/bpf/evenkeel";
const INTERFACES_EXAMPLE: &str = r#"name what the clients' packets arrive on: interfaces = ["eth0"]"#;

/// The words of `mode`.
pub static MODES: Words<XdpMode> = Words {
    now: &[("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)],
    later: &[],
    never: &[],
};

/// Reads `[xdp]`, which must be there when it is the `backend`; each value that is missing has its default.
pub fn read(root: &Reader<'_>, backend: Option<Backend>, report: &mut Report<'_>) -> Option<Xdp> {
    if backend == Some(Backend::Xdp) && root.lacks("xdp", report) {
        let message = r#"[xdp] is missing, must be there for backend "xdp""#.to_owned();
        report.error_in_file(message, Some(r#"write [xdp], and under it interfaces = ["eth0"]"#.to_owned()));
    }
    let table = root.table("xdp", &schema::XDP, report)?;
    table.require("interfaces", "a list of network interfaces", INTERFACES_EXAMPLE, report);
    let interfaces = interfaces(&table, report);
    let mode = table.word("mode", &MODES, report).unwrap_or(XdpMode::Auto);
    let connections_max = table.integer("connections_max", CONNECTIONS_RANGE, CONNECTIONS_HELP, report);
    let reject_rate = table.integer("reject_rate", REJECTS_RANGE, REJECTS_HELP, report);
    let tunnel_sources = tunnel::read(&table, report);
    let pin_directory = path(&table, "pin_directory", report).unwrap_or_else(|| PIN_DIRECTORY.into());
    let packet_log = table.boolean("packet_log", report).unwrap_or(false);
    Some(Xdp {
        interfaces: interfaces?,
        mode,
        connections_max: connections_max.unwrap_or(CONNECTIONS),
        reject_rate: reject_rate.unwrap_or(REJECTS),
        tunnel_sources,
        pin_directory,
        packet_log,
    })
}

fn interfaces(table: &Reader<'_>, report: &mut Report<'_>) -> Option<Vec<String>> {
    let path = table.path("interfaces");
    let written = table.strings("interfaces", report)?;
    if written.get_ref().is_empty() {
        let message = format!("{path} is empty, must name at least one network interface");
        report.error(&written.span(), message, Some(INTERFACES_EXAMPLE.to_owned()));
    }
    let mut seen = HashSet::new();
    let mut names = vec![];
    for interface in written.get_ref() {
        let name = *interface.get_ref();
        if let Some(what) = refusal(name) {
            report.error(&interface.span(), format!("{path} holds \"{}\", {what}", name.escape_debug()), None);
        } else if !seen.insert(name) {
            let help = "remove one of the two".to_owned();
            report.error(&interface.span(), format!("{path} holds \"{name}\" twice, must hold it once"), Some(help));
        }
        names.push(name.to_owned());
    }
    Some(names)
}

/// Why the kernel knows no interface of that name (`dev_valid_name` in net/core/dev.c).
fn refusal(name: &str) -> Option<String> {
    if name.is_empty() || name.len() > INTERFACE_LENGTH_MAX {
        return Some(format!("must be 1..={INTERFACE_LENGTH_MAX} bytes long, is {}", name.len()));
    }
    let bad = name.chars().find(|c| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':'));
    match (name, bad) {
        ("." | "..", _) => Some("which is a folder, must be the name of a network interface".into()),
        (_, Some(bad)) => Some(format!("must be without '{}'", bad.escape_debug())),
        (_, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_would_refuse_the_same_names() {
        for good in ["eth0", "enp3s0f1np1", "bond0.100", "exactly15bytes_"] {
            assert_eq!(refusal(good), None, "{good}");
        }
        for bad in ["", "sixteen_bytes_xx", "a/b", "eth0:1", "a b", "a\0b", ".", ".."] {
            assert!(refusal(bad).is_some(), "{bad:?}");
        }
    }
}
