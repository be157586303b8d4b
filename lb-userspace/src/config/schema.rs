//! Every table and key of the file, as data: for the reader, and for the test that compares `full.toml` with it.

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
    /// As written.
    pub name: &'static str,
    /// What happens without it.
    pub presence: Presence,
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

/// The top level: the tables themselves.
pub static ROOT: Table = Table {
    path: "",
    header: "",
    keys: &[
        Key { name: "global", presence: Presence::Optional },
        Key { name: "xdp", presence: Presence::Required },
        Key { name: "virtual_server", presence: Presence::Required },
    ],
};

/// `[global]`
pub static GLOBAL: Table = Table {
    path: "global",
    header: "[global]",
    keys: &[
        Key { name: "instance", presence: Presence::Default(r#""evenkeel""#) },
        Key { name: "backend", presence: Presence::Default(r#""xdp""#) },
        Key { name: "runtime_directory", presence: Presence::Default(r#""/run/evenkeel""#) },
        Key { name: "log_level", presence: Presence::Default(r#""info""#) },
    ],
};

/// `[xdp]`
pub static XDP: Table = Table {
    path: "xdp",
    header: "[xdp]",
    keys: &[
        Key { name: "interfaces", presence: Presence::Required },
        Key { name: "mode", presence: Presence::Default(r#""auto""#) },
        Key { name: "connections_max", presence: Presence::Default("1000000") },
        Key { name: "pin_directory", presence: Presence::Default(r#""/sys/fs/bpf/evenkeel""#) },
        Key { name: "packet_log", presence: Presence::Default("false") },
    ],
};

/// `[[virtual_server]]`
pub static VIRTUAL_SERVER: Table = Table {
    path: "virtual_server",
    header: "[[virtual_server]]",
    keys: &[
        Key { name: "name", presence: Presence::Optional },
        Key { name: "address", presence: Presence::Required },
        Key { name: "protocol", presence: Presence::Required },
        Key { name: "scheduler", presence: Presence::Default(r#""rr""#) },
        Key { name: "forwarding", presence: Presence::Required },
        Key { name: "real_server", presence: Presence::Required },
    ],
};

/// `[[virtual_server.real_server]]`
pub static REAL_SERVER: Table = Table {
    path: "virtual_server.real_server",
    header: "[[virtual_server.real_server]]",
    keys: &[
        Key { name: "address", presence: Presence::Required },
        Key { name: "weight", presence: Presence::Default("1") },
        Key { name: "forwarding", presence: Presence::Optional },
    ],
};

/// All of them, in the order of the file.
pub static TABLES: [&Table; 5] = [&ROOT, &GLOBAL, &XDP, &VIRTUAL_SERVER, &REAL_SERVER];

/// keepalived's words that are called otherwise here.
static KEEPALIVED_WORDS: [(&str, &str); 4] =
    [("lb_algo", "scheduler"), ("lvs_sched", "scheduler"), ("lb_kind", "forwarding"), ("lvs_method", "forwarding")];

/// Other words for values, by key, in lower case: those of keepalived, ipvsadm and ip-link.
static OTHER_WORDS: [(&str, &str, &[&str]); 6] = [
    ("forwarding", "nat", &["masq", "masquerade", "masquerading"]),
    ("forwarding", "dr", &["gate", "gatewaying", "route", "droute", "drouting"]),
    ("forwarding", "tun", &["ipip", "tunnel", "tunneling", "tunnelling"]),
    ("scheduler", "rr", &["round_robin", "round-robin", "roundrobin"]),
    ("mode", "generic", &["skb", "xdpgeneric"]),
    ("mode", "native", &["drv", "driver", "xdpdrv"]),
];

/// Keys of keepalived and ipvsadm for what is not available yet.
static LATER: [&str; 21] = [
    "persistence_timeout",
    "persistence_granularity",
    "sorry_server",
    "TCP_CHECK",
    "HTTP_GET",
    "SSL_GET",
    "MISC_CHECK",
    "inhibit_on_failure",
    "fwmark",
    "quorum",
    "upper_threshold",
    "lower_threshold",
    "uthreshold",
    "lthreshold",
    "alpha",
    "omega",
    "ops",
    "delay_loop",
    "vrrp_instance",
    "vrrp_sync_group",
    "virtual_server_group",
];

/// Whether `key` is known from keepalived or ipvsadm, and not available yet.
pub fn is_later(key: &str) -> bool {
    LATER.iter().any(|later| later.eq_ignore_ascii_case(key))
}

/// What keepalived's `key` is called here.
pub fn translated(key: &str) -> Option<&'static str> {
    KEEPALIVED_WORDS.iter().find(|(keepalived, _)| *keepalived == key).map(|(_, ours)| *ours)
}

/// The word for `value` of `key` that is used here.
pub fn our_word(key: &str, value: &str) -> Option<&'static str> {
    let value = value.to_lowercase();
    let mut words = OTHER_WORDS.iter().filter(|(of, ..)| *of == key);
    words.find(|(_, _, others)| others.contains(&value.as_str())).map(|(_, ours, _)| *ours)
}

impl Table {
    /// Whether `key` may stand in this table.
    pub fn knows(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known.name == key)
    }

    /// Whether the configuration is refused without `key`, or without another key in its place.
    pub fn requires(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known.name == key && known.presence == Presence::Required)
    }
}
