//! What an operator writes who comes from keepalived or ipvsadm, or who forgets TOML's quotes, and how it is written here.

use super::address::{self, Role};
use super::duration;
use super::lines::Lines;
use super::reader::Spelling;
use super::schema::{self, Kind};
use super::suggest::one_of;
use super::{global, policy, virtual_server, xdp};

/// What starts a block in keepalived.conf.
const BLOCKS: [&str; 10] = [
    "virtual_server",
    "virtual_server_group",
    "real_server",
    "vrrp_instance",
    "vrrp_sync_group",
    "global_defs",
    "TCP_CHECK",
    "HTTP_GET",
    "SSL_GET",
    "MISC_CHECK",
];

const XDP_EXAMPLE: &str = "[xdp]\ninterfaces = [\"eth0\"]\n\n";
const EXAMPLE: &str = r#"[[virtual_server]]
address = "10.0.0.100:80"
protocol = "tcp"
scheduler = "rr"
forwarding = "nat"

[[virtual_server.real_server]]
address = "10.0.1.11:80""#;

/// The first of `count` lines that starts a block of keepalived.conf.
pub fn first_block(lines: &Lines<'_>, count: usize) -> Option<usize> {
    (1..=count).find(|number| {
        let line = code(lines.text(*number));
        let (head, opened) = line.split_once('{').map_or((line, false), |(head, _)| (head, true));
        let word = head.split_whitespace().next().unwrap_or_default();
        let below = || (number + 1..=count).map(|below| code(lines.text(below))).find(|below| !below.is_empty());
        let is_block = BLOCKS.contains(&word) && !head.contains('=');
        is_block && (opened || below().is_some_and(|below| below.starts_with('{')))
    })
}

/// The way out for the block that starts in `line`; `text` is the whole file.
pub fn block_way_out(line: &str, text: &str) -> String {
    let words: Vec<&str> = line.split([' ', '\t', '{']).filter(|word| !word.is_empty()).collect();
    let word = words.first().copied().unwrap_or_default();
    let has = |header: &str| text.lines().any(|line| line.trim_start().starts_with(header));
    if word == "real_server" && has(schema::VIRTUAL_SERVER.header) {
        return block_example(word, &written_address(words.get(1..3).unwrap_or_default()));
    }
    if schema::is_later(word) && has(schema::VIRTUAL_SERVER.header) {
        return format!("{word} is not available yet in this version; remove the whole block");
    }
    let not_yet = if schema::is_later(word) {
        format!("{word} is not available yet in this version, remove the whole block; ")
    } else {
        String::new()
    };
    let xdp = if has(schema::XDP.header) { "" } else { XDP_EXAMPLE };
    format!("{not_yet}a virtual server with one real server is written like this:\n\n{xdp}{EXAMPLE}\n")
}

/// `line` without a comment of either syntax.
pub fn code(line: &str) -> &str {
    line.split(['#', '!']).next().unwrap_or_default().trim()
}

/// The line that was meant by `key` and `value` without quotes, or what to do instead.
pub fn way_out(key: &str, value: &str) -> String {
    if schema::is_later(key) {
        return format!("{key} is not available yet in this version; remove the line");
    }
    if let Some(way_out) = schema::moved(key) {
        return way_out.to_owned();
    }
    let (kind, key) = (schema::kind(key), schema::translated(key).unwrap_or(key));
    match kind {
        Some(Kind::List) => format!("did you mean {key} = {}?", string_array(value)),
        Some(Kind::Table) => table_way_out(key, value),
        Some(Kind::Number) if value.parse::<u32>().is_ok() => format!("did you mean {key} = {value}?"),
        Some(Kind::Number) => format!("write a number, as in {key} = {}", schema::default_of(key).unwrap_or("1")),
        Some(Kind::Boolean) => boolean_way_out(key, value),
        Some(Kind::Duration(bounds)) => match duration::meant(value, &bounds) {
            Some(meant) => format!("did you mean {key} = \"{meant}\"?"),
            None => format!("write a number and its unit in quotes, {bounds}, as in {key} = \"60s\""),
        },
        Some(Kind::Text) | None => text_way_out(key, value),
    }
}

fn table_way_out(key: &str, value: &str) -> String {
    match schema::TABLES.iter().find(|table| table.path == key) {
        Some(table) if !table.knows("address") => format!("start it with {}, and write its keys below", table.header),
        Some(_) | None => block_example(key, &written_address(&value.split_whitespace().collect::<Vec<_>>())),
    }
}

/// keepalived has flags without a value: they are set by being there.
fn boolean_way_out(key: &str, value: &str) -> String {
    match value.to_lowercase().as_str() {
        "" | "true" | "yes" | "on" | "1" => format!("did you mean {key} = true?"),
        "false" | "no" | "off" | "0" => format!("did you mean {key} = false?"),
        _ => format!("write {key} = true or {key} = false"),
    }
}

fn text_way_out(key: &str, value: &str) -> String {
    let Some(allowed) = words(key) else {
        let quote = if schema::kind(key).is_none() && value.parse::<i64>().is_ok() { "" } else { "\"" };
        return format!("did you mean {key} = {quote}{value}{quote}?");
    };
    match (allowed.meant(key, value), allowed.never(value)) {
        (Some(word), _) => format!("did you mean {key} = \"{word}\"?"),
        (None, Some(why)) => why,
        (None, None) if allowed.later(value) => {
            format!("{value} is not available yet in this version; write {key} = {}", one_of(&allowed.now))
        }
        (None, None) => format!("write {key} = {}", one_of(&allowed.now)),
    }
}

/// The words that `key` may have, `None` for one with any text.
fn words(key: &str) -> Option<Spelling> {
    Some(match key {
        "protocol" => virtual_server::PROTOCOLS.spelling(),
        "scheduler" => policy::SCHEDULERS.spelling(),
        "forwarding" => virtual_server::FORWARDING_METHODS.spelling(),
        "no_real_server" | "unknown_connection" => policy::REFUSALS.spelling(),
        "removed_real_server" => policy::REMOVALS.spelling(),
        "mode" => xdp::MODES.spelling(),
        "backend" => global::BACKENDS.spelling(),
        "log_level" => global::LOG_LEVELS.spelling(),
        _ => return None,
    })
}

/// keepalived's address and port with a space between them, as they are written here.
pub fn written_address(words: &[&str]) -> String {
    match words {
        [ip, port] if ip.contains(':') => format!("[{ip}]:{port}"),
        _ => words.join(":"),
    }
}

/// How a virtual server, real server or sorry server at `address` starts.
pub fn block_example(key: &str, address: &str) -> String {
    let (header, example, role) = match key {
        "real_server" => (schema::REAL_SERVER.header, "10.0.1.11:80", Role::RealServer),
        "sorry_server" => (schema::SORRY_SERVER.header, "10.0.1.99:80", Role::RealServer),
        _ => (schema::VIRTUAL_SERVER.header, "10.0.0.100:80", Role::VirtualServer),
    };
    let is_address = address::parse(address, role).is_ok();
    let address = if is_address { address } else { example };
    format!("write it like this:\n\n{header}\naddress = \"{address}\"\n")
}

/// `eth0, eth1` as an array of strings.
fn string_array(value: &str) -> String {
    let strings: Vec<String> = names(value).map(|name| format!("\"{name}\"")).collect();
    format!("[{}]", strings.join(", "))
}

fn names(value: &str) -> impl Iterator<Item = &str> {
    value.split([',', ' ', '\t', '[', ']']).filter(|name| !name.is_empty())
}

/// Whether `value` is a list of names, each without quotes, in brackets or not.
pub fn is_bare_list(value: &str) -> bool {
    let word = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-@".contains(c));
    let closed = value.starts_with('[') == value.ends_with(']');
    closed && names(value).next().is_some() && names(value).all(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_may_open_on_the_next_line_and_toml_opens_none() {
        let first = |text: &str| first_block(&Lines::new(text), text.split('\n').count());
        assert_eq!(first("! a comment\n\n  real_server 10.0.1.11 80{\n"), Some(3));
        assert_eq!(first("vrrp_instance VI_1 # a comment\n\n{\n"), Some(1));
        for toml in
            ["virtual_server = [{\n", "# virtual_server 10.0.0.1 80 {\n", "[[virtual_server]]\n{\n", "real_server\n"]
        {
            assert_eq!(first(toml), None, "{toml}");
        }
    }

    #[test]
    fn every_word_of_others_for_a_value_is_understood() {
        for (written, meant) in [
            ("lb_kind NAT", r#"forwarding = "nat""#),
            ("forwarding masquerading", r#"forwarding = "nat""#),
            ("forwarding gatewaying", r#"forwarding = "dr""#),
            ("forwarding drouting", r#"forwarding = "dr""#),
            ("lvs_method DR", r#"forwarding = "dr""#),
            ("lb_kind TUN", r#"forwarding = "tun""#),
            ("lb_algo rr", r#"scheduler = "rr""#),
            ("lvs_sched WLC", r#"scheduler = "wlc""#),
            ("scheduler round-robin", r#"scheduler = "rr""#),
            ("scheduler weighted_round_robin", r#"scheduler = "wrr""#),
            ("scheduler least_conn", r#"scheduler = "lc""#),
            ("scheduler weighted_least_connection", r#"scheduler = "wlc""#),
            ("scheduler source_hash", r#"scheduler = "sh""#),
            ("scheduler destination-hashing", r#"scheduler = "dh""#),
            ("scheduler Maglev", r#"scheduler = "mh""#),
            ("scheduler shortest_expected_delay", r#"scheduler = "sed""#),
            ("scheduler never_queue", r#"scheduler = "nq""#),
            ("scheduler failover", r#"scheduler = "fo""#),
            ("scheduler overflow", r#"scheduler = "ovf""#),
            ("scheduler power_of_two", r#"scheduler = "twos""#),
            ("mh-port ", "hash_port = true"),
            ("sh-fallback ", "hash_fallback = true"),
            ("ops ", "one_packet = true"),
            ("sloppy_tcp off", "sloppy_tcp = false"),
            ("uthreshold 100", "upper_threshold = 100"),
            ("lthreshold 75", "lower_threshold = 75"),
            ("persistence_timeout 300", r#"persistence_timeout = "300s""#),
            ("persistence_granularity 255.255.255.0", r#"persistence_granularity = "255.255.255.0""#),
            ("persistence_granularity 64", r#"persistence_granularity = "64""#),
            ("no_real_server Drop", r#"no_real_server = "drop""#),
            ("mode skb", r#"mode = "generic""#),
            ("mode driver", r#"mode = "native""#),
            ("protocol UDP", r#"protocol = "udp""#),
            ("weight 5", "weight = 5"),
        ] {
            let (key, value) = written.split_once(' ').unwrap();
            assert_eq!(way_out(key, value), format!("did you mean {meant}?"));
        }
        assert_eq!(way_out("quorum", "2"), "quorum is not available yet in this version; remove the line");
        assert!(way_out("lb_algo", "lblc").starts_with("lblc keeps a real server for each destination"));
        assert_eq!(
            way_out("persistence_timeout", "2678400"),
            r#"write a number and its unit in quotes, 1s..=4h, as in persistence_timeout = "60s""#
        );
        assert_eq!(way_out("lvs_timeouts", "tcp 900"), "write tcp, tcp_fin and udp under [timeouts]");
        assert_eq!(way_out("timeouts", "900 120 300"), "start it with [timeouts], and write its keys below");
    }
}
