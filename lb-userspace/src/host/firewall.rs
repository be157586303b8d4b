//! Firewall rules of this host that mention a VIP: its packets never come to them. Pure but for [`warnings`].
//!
//! A rule that means a VIP without naming it, by an interface or a port alone, is not found.

use std::collections::{BTreeMap, BTreeSet};
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
    let sets = objects.iter().filter_map(|object| object.get("set").or_else(|| object.get("map")));
    // A set holds no sets. Each is looked at once, however many rules name it.
    let in_set = |set| Some((place(set, "name"), held(set.get("elem")?, vips, &|_| BTreeSet::new())));
    let sets: BTreeMap<Place<'_>, BTreeSet<IpAddr>> = sets.filter_map(in_set).collect();
    let mut mentions = Vec::new();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let Place { family, table, name: chain } = place(rule, "chain");
        let handle = rule.get("handle").and_then(Value::as_u64).unwrap_or_default();
        let named = |name: &str| sets.get(&Place { family, table, name }).cloned().unwrap_or_default();
        for vip in rule.get("expr").map(|expressions| held(expressions, vips, &named)).unwrap_or_default() {
            let rule = format!("nftables table {family} {table}, chain {chain}, rule with handle {handle}");
            mentions.push(Mention { vip, rule });
        }
    }
    Some(mentions)
}

/// Where something is in a ruleset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place<'a> {
    family: &'a str,
    table: &'a str,
    name: &'a str,
}

/// Where `object` is, which has its name, or that of its chain, under `key`.
fn place<'a>(object: &'a Value, key: &str) -> Place<'a> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    Place { family: text("family"), table: text("table"), name: text(key) }
}

/// Those of `vips` that an address, prefix, range or named set in `value` is or holds. What holds every address names none.
fn held(value: &Value, vips: &BTreeSet<IpAddr>, named: &dyn Fn(&str) -> BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    match value {
        Value::String(text) => match text.strip_prefix('@') {
            Some(name) => named(name),
            None => text.parse().ok().and_then(|address| vips.get(&address).copied()).into_iter().collect(),
        },
        Value::Array(values) => values.iter().flat_map(|value| held(value, vips, named)).collect(),
        Value::Object(fields) => {
            let of_field = |(key, value): (&String, &Value)| match key.as_str() {
                "prefix" => prefix(value).map(|prefix| in_prefix(prefix, vips)).unwrap_or_default(),
                "range" => range(value).map(|(first, last)| between(first, last, vips)).unwrap_or_default(),
                // Text for people.
                "log" | "comment" => BTreeSet::new(),
                _ => held(value, vips, named),
            };
            fields.iter().flat_map(of_field).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => BTreeSet::new(),
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

fn in_prefix(prefix: IpNet, vips: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    if prefix.prefix_len() == 0 { BTreeSet::new() } else { between(prefix.network(), prefix.broadcast(), vips) }
}

/// None of another family; all of IPv4 come before all of IPv6.
fn between(first: IpAddr, last: IpAddr, vips: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    if first > last || first.is_ipv4() != last.is_ipv4() {
        return BTreeSet::new();
    }
    vips.range(first..=last).copied().collect()
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
            let named: BTreeSet<IpAddr> = words(line).flat_map(|word| named(word, vips)).collect();
            mentions
                .extend(named.into_iter().map(|vip| Mention { vip, rule: format!("{tool}, table {table}: {line}") }));
        }
    }
    mentions
}

/// What stands outside of quotes, word by word.
fn words(line: &str) -> impl Iterator<Item = &str> {
    // No quote within quotes is escaped but by a backslash, and what is behind one that is, is text too.
    line.split('"').step_by(2).flat_map(str::split_whitespace)
}

/// Those of `vips` that a word is, with or without a port, or that are in it as a prefix or range.
fn named(word: &str, vips: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    if let Ok(prefix) = word.parse::<IpNet>() {
        return in_prefix(prefix, vips);
    }
    if let Some((first, last)) = word.split_once('-')
        && let (Ok(first), Ok(last)) = (first.parse(), last.parse())
    {
        return between(first, last, vips);
    }
    let address = word.parse().or_else(|_| word.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().and_then(|address| vips.get(&address).copied()).into_iter().collect()
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
