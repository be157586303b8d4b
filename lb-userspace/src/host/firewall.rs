//! Firewall rules of this host that mention a VIP: its packets never come to them. Pure but for [`warnings`].
//!
//! A rule that means a VIP without naming it, by an interface or a port alone, is not found.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use ipnet::IpNet;
use serde_json::Value;

use crate::config::Config;

/// A rule that mentions a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mention {
    /// The VIP.
    pub vip: IpAddr,
    /// The rule, so that it can be found.
    pub rule: String,
}

impl fmt::Display for Mention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vip, rule } = self;
        write!(
            f,
            "{rule}, mentions {vip}, whose packets bypass it: they are served in XDP, before the firewall; allow and deny of a \
             virtual server take its place"
        )
    }
}

/// Mentions that are told one by one.
const TOLD: usize = 10;

/// A line for each rule of this host that mentions a VIP of `config`; nothing of rules that cannot be read.
pub fn warnings(config: &Config) -> Vec<String> {
    let vips: BTreeSet<IpAddr> = config.virtual_servers.iter().map(|server| server.service.address.ip()).collect();
    let nft = output("nft", &["-j", "list", "ruleset"]).and_then(|text| nft(&text, &vips));
    let is_known = nft.is_some();
    let mut mentions = nft.unwrap_or_default();
    for tool in ["iptables-save", "ip6tables-save"] {
        let text = output(tool, &[]).unwrap_or_default();
        // What is kept in nf_tables has been seen there.
        if !(is_known && text.contains("(nf_tables)")) {
            mentions.extend(iptables(tool, &text, &vips));
        }
    }
    let mut lines: Vec<String> = mentions.iter().take(TOLD).map(ToString::to_string).collect();
    if mentions.len() > TOLD {
        lines.push(format!("{} more firewall rules mention a VIP", mentions.len() - TOLD));
    }
    lines
}

/// What `tool` prints; `None` where it is not there, or may not.
fn output(tool: &str, arguments: &[&str]) -> Option<String> {
    // The folders of administration are not on everybody's path.
    let places = [tool.to_owned(), format!("/usr/sbin/{tool}"), format!("/sbin/{tool}")];
    let run = |place: &String| Command::new(place).args(arguments).stdin(Stdio::null()).output().ok();
    let output = places.iter().find_map(run)?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The rules in what `nft -j list ruleset` prints that mention one of `vips`; `None` for what is no ruleset.
pub fn nft(json: &str, vips: &BTreeSet<IpAddr>) -> Option<Vec<Mention>> {
    let ruleset: Value = serde_json::from_str(json).ok()?;
    let objects = ruleset.get("nftables")?.as_array()?;
    let mut mentions = Vec::new();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let text = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or_default();
        let (family, table, chain) = (text("family"), text("table"), text("chain"));
        let handle = rule.get("handle").and_then(Value::as_u64).unwrap_or_default();
        for vip in vips {
            let set = |name: &str| set_holds(objects, (family, table, name), *vip);
            if rule.get("expr").is_some_and(|expressions| holds(expressions, *vip, &set)) {
                let rule = format!("nftables table {family} {table}, chain {chain}, rule with handle {handle}");
                mentions.push(Mention { vip: *vip, rule });
            }
        }
    }
    Some(mentions)
}

/// Whether the named set or map of a table holds `vip`.
fn set_holds(objects: &[Value], (family, table, name): (&str, &str, &str), vip: IpAddr) -> bool {
    let sets = objects.iter().filter_map(|object| object.get("set").or_else(|| object.get("map")));
    let is_it = |set: &&Value| {
        [("family", family), ("table", table), ("name", name)]
            .iter()
            .all(|(key, wanted)| set.get(key).and_then(Value::as_str) == Some(*wanted))
    };
    let mut elements = sets.filter(is_it).filter_map(|set| set.get("elem"));
    // A set holds no sets.
    elements.any(|elements| holds(elements, vip, &|_| false))
}

/// Whether an address, prefix, range or named set in `value` is or holds `vip`. What holds every address names none.
fn holds(value: &Value, vip: IpAddr, set: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => match text.strip_prefix('@') {
            Some(name) => set(name),
            None => text.parse::<IpAddr>() == Ok(vip),
        },
        Value::Array(values) => values.iter().any(|value| holds(value, vip, set)),
        Value::Object(fields) => fields.iter().any(|(key, value)| match key.as_str() {
            "prefix" => prefix(value).is_some_and(|prefix| prefix.prefix_len() > 0 && prefix.contains(&vip)),
            "range" => range(value).is_some_and(|(first, last)| is_between(first, vip, last)),
            // Text for people.
            "log" | "comment" => false,
            _ => holds(value, vip, set),
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn prefix(value: &Value) -> Option<IpNet> {
    let address = value.get("addr")?.as_str()?.parse().ok()?;
    IpNet::new(address, u8::try_from(value.get("len")?.as_u64()?).ok()?).ok()
}

fn range(value: &Value) -> Option<(IpAddr, IpAddr)> {
    let [first, last] = value.as_array()?.as_slice() else { return None };
    Some((first.as_str()?.parse().ok()?, last.as_str()?.parse().ok()?))
}

/// Addresses of another family are not.
fn is_between(first: IpAddr, address: IpAddr, last: IpAddr) -> bool {
    first.is_ipv4() == address.is_ipv4() && last.is_ipv4() == address.is_ipv4() && (first..=last).contains(&address)
}

/// The rules in what `tool`, `iptables-save` or `ip6tables-save`, prints that mention one of `vips`. Sets of ipset(8) are not
/// looked into.
pub fn iptables(tool: &str, saved: &str, vips: &BTreeSet<IpAddr>) -> Vec<Mention> {
    let mut mentions = Vec::new();
    let mut table = "";
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if line.starts_with("-A ") {
            for vip in vips.iter().filter(|vip| words(line).any(|word| names(word, **vip))) {
                mentions.push(Mention { vip: *vip, rule: format!("{tool}, table {table}: {line}") });
            }
        }
    }
    mentions
}

/// What stands outside of quotes, word by word.
fn words(line: &str) -> impl Iterator<Item = &str> {
    // No quote within quotes is escaped but by a backslash, and what is behind one that is, is text too.
    line.split('"').step_by(2).flat_map(str::split_whitespace)
}

/// Whether a word is `vip`, with or without a port, or a prefix or range with it.
fn names(word: &str, vip: IpAddr) -> bool {
    let prefix = || word.parse::<IpNet>().is_ok_and(|prefix| prefix.prefix_len() > 0 && prefix.contains(&vip));
    let range = || {
        let (first, last) = word.split_once('-')?;
        Some(is_between(first.parse().ok()?, vip, last.parse().ok()?))
    };
    word.parse() == Ok(vip)
        || word.parse::<SocketAddr>().is_ok_and(|address| address.ip() == vip)
        || prefix()
        || range().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output of nft 1.0.6 for rules of every kind.
    const NFT: &str = include_str!("firewall/nft.json");
    /// Those of iptables-save and ip6tables-save 1.8.9.
    const IPTABLES: &str = include_str!("firewall/iptables.txt");
    const IP6TABLES: &str = include_str!("firewall/ip6tables.txt");

    fn vips(text: &[&str]) -> BTreeSet<IpAddr> {
        text.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// The handles of the rules that mention a VIP.
    fn handles(vip: &str) -> Vec<String> {
        let mentions = nft(NFT, &vips(&[vip])).unwrap();
        let rules = mentions.iter().filter(|mention| mention.rule.contains("inet filter, chain input"));
        rules.map(|mention| mention.rule.rsplit_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn nft_rules_mention_a_vip_by_address_prefix_range_set_and_map() {
        // Address, named set with a prefix, named map, prefix, anonymous set, range, negation, concatenation, anonymous map.
        assert_eq!(handles("10.77.0.100"), ["5", "6", "8", "10", "14", "15", "16", "19", "22"]);
        assert_eq!(handles("192.0.2.7"), ["6"]);
        assert_eq!(handles("fd77::100"), ["7", "20"]);
        assert_eq!(handles("198.51.100.1"), [""; 0], "0.0.0.0/0 names nobody");
    }

    #[test]
    fn a_mention_says_where_the_rule_is_and_what_to_do() {
        let mentions = nft(NFT, &vips(&["10.77.0.100"])).unwrap();
        insta::assert_snapshot!(mentions.last().unwrap());
    }

    #[test]
    fn iptables_rules_mention_a_vip_but_not_in_comments() {
        let of = |vip: &str| -> Vec<String> {
            let all = [("iptables-save", IPTABLES), ("ip6tables-save", IP6TABLES)];
            let mentions = all.into_iter().flat_map(|(tool, text)| iptables(tool, text, &vips(&[vip])));
            mentions.map(|mention| mention.rule).collect()
        };
        assert_eq!(
            of("10.77.0.100"),
            [
                "iptables-save, table filter: -A INPUT -d 10.77.0.100/32 -p tcp -m tcp --dport 80 -m comment --comment \"web \
                 10.77.0.200\" -j DROP",
                "iptables-save, table filter: -A INPUT -m iprange --dst-range 10.77.0.90-10.77.0.110 -j ACCEPT",
                "iptables-save, table filter: -A INPUT ! -d 10.77.0.100/32 -j LOG --log-prefix \"x y \"",
                "iptables-save, table filter: -A FORWARD -s 10.0.0.0/8 -j ACCEPT",
                "iptables-save, table nat: -A PREROUTING -d 10.77.0.100/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination \
                 10.77.0.100:80",
            ]
        );
        assert_eq!(of("fd77::100"), ["ip6tables-save, table filter: -A INPUT -d fd77::100/128 -j DROP"]);
        assert_eq!(of("10.77.0.200"), ["iptables-save, table filter: -A FORWARD -s 10.0.0.0/8 -j ACCEPT"]);
        assert_eq!(of("198.51.100.1"), [""; 0]);
    }

    #[test]
    fn what_is_no_ruleset_says_nothing() {
        for text in ["", "{}", "[]", "{\"nftables\": 1}", "Operation not permitted"] {
            assert_eq!(nft(text, &vips(&["10.77.0.100"])), None, "{text}");
        }
        assert_eq!(iptables("iptables-save", "-A INPUT", &vips(&["10.77.0.100"])), []);
    }
}
