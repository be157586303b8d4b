//! Every table and key of the file, as data: for the reader, and for the test that compares `full.toml` with it.

use super::duration::Bounds;

/// One kind of table.
pub struct Table {
    /// The path in messages, `virtual_server.real_server`; empty at the top level.
    pub path: &'static str,
    /// The header that starts it, as written.
    pub header: &'static str,
    /// What may stand in it.
    pub keys: &'static [Key],
}

/// One key of a table.
pub struct Key {
    /// As written; keys of one name have one kind.
    pub name: &'static str,
    /// How its value is written.
    pub kind: Kind,
    /// What happens without it.
    pub presence: Presence,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string in quotes.
    Text,
    /// An integer without quotes.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A string in quotes: a number with a unit of time.
    Duration(Bounds),
    /// An array of strings.
    List,
    /// A table, or an array of tables.
    Table,
}

/// What happens without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The configuration is refused, or would be without another key in its place.
    Required,
    /// Nothing.
    Optional,
    /// This value holds, as written in TOML.
    Default(&'static str),
}

/// What fits the 16 bits of ticks that the packet path counts: four hours are 56,250 ticks at 1000 jiffies a second.
const IDLE: Kind = Kind::Duration(Bounds::seconds(1, 4 * 60 * 60));

const SLOW_START: Kind = Kind::Duration(Bounds::seconds(0, 60 * 60));

/// The top level: the tables themselves.
pub static ROOT: Table = Table {
    path: "",
    header: "",
    keys: &[
        Key { name: "global", kind: Kind::Table, presence: Presence::Optional },
        Key { name: "xdp", kind: Kind::Table, presence: Presence::Required },
        Key { name: "timeouts", kind: Kind::Table, presence: Presence::Optional },
        Key { name: "virtual_server", kind: Kind::Table, presence: Presence::Required },
    ],
};

/// `[global]`
pub static GLOBAL: Table = Table {
    path: "global",
    header: "[global]",
    keys: &[
        Key { name: "instance", kind: Kind::Text, presence: Presence::Default(r#""evenkeel""#) },
        Key { name: "backend", kind: Kind::Text, presence: Presence::Default(r#""xdp""#) },
        Key { name: "runtime_directory", kind: Kind::Text, presence: Presence::Default(r#""/run/evenkeel""#) },
        Key { name: "log_level", kind: Kind::Text, presence: Presence::Default(r#""info""#) },
    ],
};

/// `[xdp]`
pub static XDP: Table = Table {
    path: "xdp",
    header: "[xdp]",
    keys: &[
        Key { name: "interfaces", kind: Kind::List, presence: Presence::Required },
        Key { name: "mode", kind: Kind::Text, presence: Presence::Default(r#""auto""#) },
        Key { name: "connections_max", kind: Kind::Number, presence: Presence::Default("1000000") },
        Key { name: "reject_rate", kind: Kind::Number, presence: Presence::Default("1000") },
        Key { name: "tunnel_source_ipv4", kind: Kind::Text, presence: Presence::Optional },
        Key { name: "tunnel_source_ipv6", kind: Kind::Text, presence: Presence::Optional },
        Key { name: "pin_directory", kind: Kind::Text, presence: Presence::Default(r#""/sys/fs/bpf/evenkeel""#) },
        Key { name: "packet_log", kind: Kind::Boolean, presence: Presence::Default("false") },
    ],
};

/// `[timeouts]`
pub static TIMEOUTS: Table = Table {
    path: "timeouts",
    header: "[timeouts]",
    keys: &[
        Key { name: "tcp", kind: IDLE, presence: Presence::Default(r#""900s""#) },
        Key { name: "tcp_fin", kind: IDLE, presence: Presence::Default(r#""120s""#) },
        Key { name: "udp", kind: IDLE, presence: Presence::Default(r#""300s""#) },
    ],
};

/// `[[virtual_server]]`
pub static VIRTUAL_SERVER: Table = Table {
    path: "virtual_server",
    header: "[[virtual_server]]",
    keys: &[
        Key { name: "name", kind: Kind::Text, presence: Presence::Optional },
        Key { name: "address", kind: Kind::Text, presence: Presence::Required },
        Key { name: "protocol", kind: Kind::Text, presence: Presence::Required },
        Key { name: "scheduler", kind: Kind::Text, presence: Presence::Default(r#""rr""#) },
        Key { name: "hash_port", kind: Kind::Boolean, presence: Presence::Default("false") },
        Key { name: "hash_fallback", kind: Kind::Boolean, presence: Presence::Default("false") },
        Key { name: "forwarding", kind: Kind::Text, presence: Presence::Required },
        Key { name: "persistence_timeout", kind: IDLE, presence: Presence::Optional },
        Key { name: "persistence_granularity", kind: Kind::Text, presence: Presence::Optional },
        Key { name: "one_packet", kind: Kind::Boolean, presence: Presence::Default("false") },
        Key { name: "sloppy_tcp", kind: Kind::Boolean, presence: Presence::Default("false") },
        Key { name: "stateless_replies", kind: Kind::Boolean, presence: Presence::Default("false") },
        Key { name: "slow_start", kind: SLOW_START, presence: Presence::Default(r#""0s""#) },
        Key { name: "no_real_server", kind: Kind::Text, presence: Presence::Default(r#""reject""#) },
        Key { name: "unknown_connection", kind: Kind::Text, presence: Presence::Default(r#""reject""#) },
        Key { name: "removed_real_server", kind: Kind::Text, presence: Presence::Default(r#""keep""#) },
        Key { name: "allow", kind: Kind::List, presence: Presence::Optional },
        Key { name: "allow_file", kind: Kind::Text, presence: Presence::Optional },
        Key { name: "deny", kind: Kind::List, presence: Presence::Optional },
        Key { name: "deny_file", kind: Kind::Text, presence: Presence::Optional },
        Key { name: "sorry_server", kind: Kind::Table, presence: Presence::Optional },
        Key { name: "real_server", kind: Kind::Table, presence: Presence::Required },
    ],
};

/// `[virtual_server.sorry_server]`
pub static SORRY_SERVER: Table = Table {
    path: "virtual_server.sorry_server",
    header: "[virtual_server.sorry_server]",
    keys: &[
        Key { name: "address", kind: Kind::Text, presence: Presence::Required },
        Key { name: "forwarding", kind: Kind::Text, presence: Presence::Optional },
    ],
};

/// `[[virtual_server.real_server]]`
pub static REAL_SERVER: Table = Table {
    path: "virtual_server.real_server",
    header: "[[virtual_server.real_server]]",
    keys: &[
        Key { name: "address", kind: Kind::Text, presence: Presence::Required },
        Key { name: "weight", kind: Kind::Number, presence: Presence::Default("1") },
        Key { name: "upper_threshold", kind: Kind::Number, presence: Presence::Default("0") },
        Key { name: "lower_threshold", kind: Kind::Number, presence: Presence::Default("0") },
        Key { name: "forwarding", kind: Kind::Text, presence: Presence::Optional },
    ],
};

/// All of them, in the order of the file.
pub static TABLES: [&Table; 7] = [&ROOT, &GLOBAL, &XDP, &TIMEOUTS, &VIRTUAL_SERVER, &SORRY_SERVER, &REAL_SERVER];

/// keepalived's words that are called otherwise here.
static KEEPALIVED_WORDS: [(&str, &str); 12] = [
    ("lb_algo", "scheduler"),
    ("lvs_sched", "scheduler"),
    ("lb_kind", "forwarding"),
    ("lvs_method", "forwarding"),
    ("sh-port", "hash_port"),
    ("mh-port", "hash_port"),
    ("sh-fallback", "hash_fallback"),
    ("mh-fallback", "hash_fallback"),
    ("ops", "one_packet"),
    ("uthreshold", "upper_threshold"),
    ("lthreshold", "lower_threshold"),
    ("tcpfin", "tcp_fin"),
];

/// keepalived's words for what stands in a table of its own here, and the way out.
static MOVED_WORDS: [(&str, &str); 2] = [
    ("lvs_timeouts", "write tcp, tcp_fin and udp under [timeouts]"),
    ("sorry_server_lvs_method", "write forwarding under [virtual_server.sorry_server]"),
];

/// Other words for values, by key, in lower case and with `_` between words: those of keepalived, ipvsadm, ip-link and
/// other balancers.
static OTHER_WORDS: [(&str, &str, &[&str]); 17] = [
    ("forwarding", "nat", &["masq", "masquerade", "masquerading"]),
    ("forwarding", "dr", &["gate", "gatewaying", "route", "droute", "drouting"]),
    ("forwarding", "tun", &["ipip", "tunnel", "tunneling", "tunnelling"]),
    ("scheduler", "rr", &["round_robin", "roundrobin"]),
    ("scheduler", "wrr", &["weighted_round_robin", "weighted_roundrobin"]),
    ("scheduler", "lc", &["least_connection", "least_connections", "least_conn", "leastconn"]),
    ("scheduler", "wlc", &["weighted_least_connection", "weighted_least_connections", "weighted_least_conn"]),
    ("scheduler", "sh", &["source_hash", "source_hashing", "source", "ip_hash"]),
    ("scheduler", "dh", &["destination_hash", "destination_hashing", "destination"]),
    ("scheduler", "mh", &["maglev", "maglev_hash", "maglev_hashing", "consistent_hash"]),
    ("scheduler", "sed", &["shortest_expected_delay"]),
    ("scheduler", "nq", &["never_queue"]),
    ("scheduler", "fo", &["failover", "weighted_failover"]),
    ("scheduler", "ovf", &["overflow", "weighted_overflow"]),
    ("scheduler", "twos", &["p2c", "power_of_two", "power_of_two_choices", "two_random_choices"]),
    ("mode", "generic", &["skb", "xdpgeneric"]),
    ("mode", "native", &["drv", "driver", "xdpdrv"]),
];

/// Keys, most of them of keepalived and ipvsadm, for what is not available yet.
static LATER: [&str; 15] = [
    "masquerade",
    "sorry_server_inhibit",
    "TCP_CHECK",
    "HTTP_GET",
    "SSL_GET",
    "MISC_CHECK",
    "inhibit_on_failure",
    "fwmark",
    "quorum",
    "alpha",
    "omega",
    "delay_loop",
    "vrrp_instance",
    "vrrp_sync_group",
    "virtual_server_group",
];

/// Whether `key` is known, from keepalived or ipvsadm mostly, and not available yet.
pub fn is_later(key: &str) -> bool {
    LATER.iter().any(|later| later.eq_ignore_ascii_case(key))
}

/// What keepalived's `key` is called here.
pub fn translated(key: &str) -> Option<&'static str> {
    KEEPALIVED_WORDS.iter().find(|(keepalived, _)| *keepalived == key).map(|(_, ours)| *ours)
}

/// The way out for keepalived's `key` that stands in a table of its own here.
pub fn moved(key: &str) -> Option<&'static str> {
    MOVED_WORDS.iter().find(|(keepalived, _)| *keepalived == key).map(|(_, way_out)| *way_out)
}

/// The value that holds without `key`, as written in TOML.
pub fn default_of(key: &str) -> Option<&'static str> {
    match TABLES.iter().find_map(|table| table.key(key))?.presence {
        Presence::Default(default) => Some(default),
        Presence::Required | Presence::Optional => None,
    }
}

/// How the value of `key` is written, which may be keepalived's word for it.
pub fn kind(key: &str) -> Option<Kind> {
    let key = translated(key).unwrap_or(key);
    TABLES.iter().find_map(|table| table.key(key)).map(|key| key.kind)
}

/// The word for `value` of `key` that is used here.
pub fn our_word(key: &str, value: &str) -> Option<&'static str> {
    let value = value.to_lowercase().replace(['-', ' '], "_");
    let mut words = OTHER_WORDS.iter().filter(|(of, ..)| *of == key);
    words.find(|(_, _, others)| others.contains(&value.as_str())).map(|(_, ours, _)| *ours)
}

impl Table {
    /// The key of this name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// Whether `key` may stand in this table.
    pub fn knows(&self, key: &str) -> bool {
        self.key(key).is_some()
    }

    /// Whether the configuration is refused without `key`, or without another key in its place.
    pub fn requires(&self, key: &str) -> bool {
        self.key(key).is_some_and(|key| key.presence == Presence::Required)
    }
}
