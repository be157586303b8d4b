//! What an operator writes who comes from keepalived or ipvsadm, or who forgets TOML's quotes, and how it is written here.

use super::lines::Lines;
use super::suggest::one_of;
use super::{global, schema, virtual_server, xdp};

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
    let key = schema::translated(key).unwrap_or(key);
    let allowed = match key {
        "interfaces" => return format!("did you mean interfaces = {}?", string_array(value)),
        "virtual_server" | "real_server" => {
            return block_example(key, &written_address(&value.split_whitespace().collect::<Vec<_>>()));
        }
        "weight" if value.parse::<u32>().is_err() => return "write a number, as in weight = 1".to_owned(),
        "connections_max" if value.parse::<u32>().is_err() => {
            return "write a number, as in connections_max = 1000000".to_owned();
        }
        "packet_log" => match value.to_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => return "did you mean packet_log = true?".to_owned(),
            "false" | "no" | "off" | "0" => return "did you mean packet_log = false?".to_owned(),
            _ => return "write packet_log = true or packet_log = false".to_owned(),
        },
        "protocol" => virtual_server::PROTOCOLS.spelling(),
        "scheduler" => virtual_server::SCHEDULERS.spelling(),
        "forwarding" => virtual_server::FORWARDING_METHODS.spelling(),
        "mode" => xdp::MODES.spelling(),
        "backend" => global::BACKENDS.spelling(),
        "log_level" => global::LOG_LEVELS.spelling(),
        _ if value.parse::<i64>().is_ok() => return format!("did you mean {key} = {value}?"),
        _ => return format!("did you mean {key} = \"{value}\"?"),
    };
    match allowed.meant(key, value) {
        Some(word) => format!("did you mean {key} = \"{word}\"?"),
        None if allowed.later(value) => {
            format!("{value} is not available yet in this version; write {key} = {}", one_of(&allowed.now))
        }
        None => format!("write {key} = {}", one_of(&allowed.now)),
    }
}

/// keepalived's address and port with a space between them, as they are written here.
fn written_address(words: &[&str]) -> String {
    match words {
        [ip, port] if ip.contains(':') => format!("[{ip}]:{port}"),
        _ => words.join(":"),
    }
}

/// How a virtual server or real server at `address` starts.
pub fn block_example(key: &str, address: &str) -> String {
    let (header, example) = match key {
        "real_server" => (schema::REAL_SERVER.header, "10.0.1.11:80"),
        _ => (schema::VIRTUAL_SERVER.header, "10.0.0.100:80"),
    };
    let is_address = super::address::parse(address, key).is_ok();
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
            ("mode skb", r#"mode = "generic""#),
            ("mode driver", r#"mode = "native""#),
            ("protocol UDP", r#"protocol = "udp""#),
            ("weight 5", "weight = 5"),
        ] {
            let (key, value) = written.split_once(' ').unwrap();
            assert_eq!(way_out(key, value), format!("did you mean {meant}?"));
        }
        assert_eq!(way_out("quorum", "2"), "quorum is not available yet in this version; remove the line");
        assert_eq!(way_out("lb_algo", "wlc"), r#"wlc is not available yet in this version; write scheduler = "rr""#);
    }
}
