//! The parser as a whole: what it accepts, that `configs/` tells the truth, that nothing makes it panic.
//!
//! What it refuses, and in which words, is in `tests/config_errors.rs`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Refusal, Scheduler};
use proptest::prelude::*;

use super::schema::{Kind, Presence, TABLES};
use super::*;
use crate::model::{Persistence, Policy, Removal, Thresholds};

const MINIMAL: &str = r#"
[xdp]
interfaces = ["eth0"]

[[virtual_server]]
address = "10.0.0.100:80"
protocol = "tcp"
forwarding = "nat"

[[virtual_server.real_server]]
address = "10.0.1.11"
"#;

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn full() -> String {
    std::fs::read_to_string(configs().join("full.toml")).unwrap()
}

fn accepted(text: &str) -> Config {
    parse("test.toml", text).unwrap_or_else(|diagnostics| panic!("{diagnostics}"))
}

#[test]
fn every_file_in_configs_is_accepted() {
    let files: Vec<_> = std::fs::read_dir(configs()).unwrap().map(|entry| entry.unwrap().path()).collect();
    for file in &files {
        load(file).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(files.len() >= 3, "{files:?}");
}

#[test]
fn the_demo_is_four_services_on_three_real_servers() {
    let config = load(&configs().join("demo.toml")).unwrap();
    let services: Vec<_> = config.virtual_servers.iter().map(|server| server.service.to_string()).collect();
    assert_eq!(services, ["tcp 10.77.0.100:80", "tcp [fd77::100]:80", "udp 10.77.0.100:5353", "udp [fd77::100]:5353"]);
    assert!(config.virtual_servers.iter().all(|server| server.real_servers.len() == 3));
    assert_eq!((config.global.instance.as_str(), config.xdp.interfaces.as_slice()), ("demo", &["eth0".to_owned()][..]));
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = accepted(MINIMAL);
    assert_eq!(config.global.instance, "evenkeel");
    assert_eq!(config.global.backend, Backend::Xdp);
    assert_eq!(config.global.runtime_directory, Path::new("/run/evenkeel"));
    assert_eq!(config.global.log_level, LogLevel::Info);
    assert_eq!(config.xdp.mode, XdpMode::Auto);
    assert_eq!(config.xdp.connections_max, 1_000_000);
    assert_eq!(config.xdp.pin_directory, Path::new("/sys/fs/bpf/evenkeel"));
    assert!(!config.xdp.packet_log);
    assert_eq!(config.xdp.reject_rate, 1000);
    let Timeouts { tcp, tcp_fin, udp } = config.timeouts;
    assert_eq!([tcp, tcp_fin, udp].map(|timeout| timeout.as_secs()), [900, 120, 300]);
    let server = &config.virtual_servers[0];
    assert_eq!((server.policy, server.sorry_server), (Policy::new(Scheduler::Rr), None));
    assert_eq!((server.real_servers[0].weight.get(), server.real_servers[0].thresholds), (1, Thresholds::default()));
}

#[test]
fn written_values_are_taken() {
    let config = accepted(
        r#"
virtual_server = [{ address = "[2001:db8::1]:53", protocol = "udp", name = "dns", real_server = [
    { address = "2001:db8:1::1", weight = 65535, forwarding = "tun" },
    { address = "[2001:db8:1::2]:5353", weight = 0x0, forwarding = "nat" },
    { address = "[2001:db8:1::3]", forwarding = "dr" },
] }]
[global]
instance = "lb_2-a"
runtime_directory = "/tmp/lb"
log_level = "trace"
[xdp]
interfaces = ["eth0", "bond0.100"]
mode = "generic"
connections_max = 1_024
pin_directory = "/sys/fs/bpf/lb"
packet_log = true
"#,
    );
    assert_eq!(config.global.instance, "lb_2-a");
    assert_eq!((config.xdp.mode, config.xdp.connections_max, config.xdp.packet_log), (XdpMode::Generic, 1024, true));
    let [server] = config.virtual_servers.as_slice() else { panic!("{config:?}") };
    assert_eq!((server.name.as_deref(), server.service.protocol), (Some("dns"), Protocol::Udp));
    let real_servers: Vec<_> =
        server.real_servers.iter().map(|real| (real.address.to_string(), real.weight.get(), real.forwarding)).collect();
    assert_eq!(
        real_servers,
        [
            ("[2001:db8:1::1]:53".to_owned(), 65535, ForwardingMethod::Tun),
            ("[2001:db8:1::2]:5353".to_owned(), 0, ForwardingMethod::Nat),
            ("[2001:db8:1::3]:53".to_owned(), 1, ForwardingMethod::Dr),
        ]
    );
}

#[test]
fn written_policies_are_taken() {
    let config = accepted(
        r#"
[timeouts]
tcp = "4h"
tcp_fin = "1s"
udp = "1m 30s"
[xdp]
interfaces = ["eth0"]
reject_rate = 0
[[virtual_server]]
address = "10.0.0.100:0"
protocol = "tcp"
scheduler = "mh"
hash_port = true
hash_fallback = true
forwarding = "dr"
persistence_timeout = "5m"
persistence_granularity = "255.255.255.0"
stateless_replies = true
slow_start = "30s"
no_real_server = "drop"
removed_real_server = "expire"
sorry_server = { address = "10.0.1.99", forwarding = "tun" }
real_server = [
    { address = "10.0.1.11", upper_threshold = 4294967295, lower_threshold = 4294967295 },
    { address = "10.0.1.12:0", forwarding = "nat", upper_threshold = 10 },
]
"#,
    );
    let Timeouts { tcp, tcp_fin, udp } = config.timeouts;
    assert_eq!([tcp, tcp_fin, udp].map(|timeout| timeout.as_secs()), [14_400, 1, 90]);
    assert_eq!(config.xdp.reject_rate, 0);
    let [server] = config.virtual_servers.as_slice() else { panic!("{config:?}") };
    let policy = Policy {
        hash_port: true,
        hash_fallback: true,
        persistence: Some(Persistence { timeout: Duration::from_secs(300), prefix_length: 24 }),
        one_packet: false,
        sloppy_tcp: false,
        stateless_replies: true,
        slow_start: Duration::from_secs(30),
        no_real_server: Refusal::Drop,
        unknown_connection: Refusal::Reject,
        removed_real_server: Removal::Expire,
        ..Policy::new(Scheduler::Mh)
    };
    assert_eq!(server.policy, policy);
    let thresholds: Vec<_> = server.real_servers.iter().map(|real| real.thresholds).collect();
    assert_eq!(thresholds, [Thresholds { upper: u32::MAX, lower: u32::MAX }, Thresholds { upper: 10, lower: 0 }]);
    let addresses =
        server.real_servers.iter().chain(&server.sorry_server).map(|real| (real.address.to_string(), real.forwarding));
    assert_eq!(
        addresses.collect::<Vec<_>>(),
        [
            ("10.0.1.11:0".to_owned(), ForwardingMethod::Dr),
            ("10.0.1.12:0".to_owned(), ForwardingMethod::Nat),
            ("10.0.1.99:0".to_owned(), ForwardingMethod::Tun),
        ]
    );
}

#[test]
fn what_becomes_of_segments_of_unknown_connections_is_said_where_they_are_not_scheduled_anyway() {
    let keys = "sloppy_tcp = true\nunknown_connection = \"drop\"\nprotocol";
    let policy = accepted(&MINIMAL.replace("protocol", keys)).virtual_servers[0].policy;
    assert_eq!((policy.sloppy_tcp, policy.unknown_connection), (true, Refusal::Drop));
}

#[test]
fn every_scheduler_of_the_packet_path_can_be_asked_for() {
    for scheduler in Scheduler::ALL {
        let text = MINIMAL.replace("forwarding", &format!("scheduler = \"{}\"\nforwarding", scheduler.name()));
        assert_eq!(accepted(&text).virtual_servers[0].policy.scheduler, scheduler);
    }
}

#[test]
fn a_persistent_client_is_one_address_unless_the_file_says_otherwise() {
    let prefix_length = |address: &str, real: &str, granularity: &str| {
        let head = format!("persistence_timeout = \"5m\"\n{granularity}\nforwarding");
        let text = MINIMAL.replace("10.0.0.100", address).replace("10.0.1.11", real).replace("forwarding", &head);
        accepted(&text).virtual_servers[0].policy.persistence.map(|persistence| persistence.prefix_length)
    };
    assert_eq!(prefix_length("10.0.0.100", "10.0.1.11", ""), Some(32));
    assert_eq!(prefix_length("[fd77::100]", "fd77:1::11", ""), Some(128));
    assert_eq!(prefix_length("10.0.0.100", "10.0.1.11", "persistence_granularity = 0x10"), Some(16));
    assert_eq!(prefix_length("[fd77::100]", "fd77:1::11", "persistence_granularity = \"64\""), Some(64));
}

/// It may be written out everywhere, as full.toml does; only another value contradicts.
#[test]
fn a_default_contradicts_nothing() {
    let defaults = r#"hash_port = false
hash_fallback = false
one_packet = false
sloppy_tcp = false
stateless_replies = false
unknown_connection = "reject"
protocol = "#;
    for protocol in ["tcp", "udp"] {
        let text = MINIMAL.replace("\"tcp\"", &format!("\"{protocol}\""));
        assert_eq!(accepted(&text.replace("protocol = ", defaults)), accepted(&text));
    }
}

#[test]
fn datagrams_that_leave_no_memory_may_go_by_dr_and_tun() {
    let text = MINIMAL.replace("\"tcp\"", "\"udp\"\none_packet = true");
    for forwarding in ["dr", "tun"] {
        let config = accepted(&text.replace("\"nat\"", &format!("\"{forwarding}\"")));
        assert!(config.virtual_servers[0].policy.one_packet);
    }
}

#[test]
fn one_address_may_serve_sixty_four_virtual_servers_by_nat_and_more_otherwise() {
    let servers = |count: u16, protocol: &str, forwarding: &str| -> String {
        let server = |last: u16| {
            format!(
                "[[virtual_server]]\naddress = \"10.0.0.{last}:80\"\nprotocol = \"{protocol}\"\nforwarding = \"{forwarding}\"\n\
                 [[virtual_server.real_server]]\naddress = \"10.1.0.1\"\n"
            )
        };
        (1..=count).map(server).collect()
    };
    let xdp = "[xdp]\ninterfaces = [\"eth0\"]\n";
    let both = format!("{xdp}{}{}", servers(64, "tcp", "nat"), servers(64, "udp", "nat"));
    assert_eq!(accepted(&both).virtual_servers.len(), 128);
    assert_eq!(accepted(&format!("{xdp}{}", servers(65, "tcp", "dr"))).virtual_servers.len(), 65);
    let over = parse("x", &format!("{xdp}{}", servers(66, "tcp", "nat"))).unwrap_err();
    let messages: Vec<_> = over.iter().map(|error| (error.line, error.message.as_str())).collect();
    // The 65th virtual server has six lines, below 2 + 64 * 6 others.
    assert_eq!(
        messages,
        [(
            392,
            "virtual_server.real_server.address is 10.1.0.1:80, which serves 64 virtual servers of protocol tcp by nat already, must be at most 64"
        )]
    );
}

#[test]
fn one_real_server_may_serve_several_virtual_servers_and_ports() {
    let more = r#"
[[virtual_server.real_server]]
address = "10.0.1.11:8081"
[[virtual_server]]
address = "10.0.0.100:80"
protocol = "udp"
forwarding = "nat"
[[virtual_server.real_server]]
address = "10.0.1.11"
"#;
    assert_eq!(accepted(&format!("{MINIMAL}{more}")).virtual_servers.len(), 2);
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_are_no_errors() {
    let windows = format!("\u{feff}{}", MINIMAL.replace('\n', "\r\n"));
    assert_eq!(accepted(&windows), accepted(MINIMAL));
    let diagnostics = parse("x", &windows.replace("\"tcp\"", "\"tpc\"")).unwrap_err();
    let place: Vec<_> = diagnostics.iter().map(|error| (error.line, error.column)).collect();
    assert_eq!(place, [(7, 12)]);
    assert!(diagnostics.to_string().contains("7 | protocol = \"tpc\"\n"), "{diagnostics}");
}

#[test]
fn bytes_that_are_no_text_are_reported_where_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lb.toml");
    std::fs::write(&file, b"[global]\ninstance = \"\xff\"\n").unwrap();
    let Err(LoadError::Invalid(diagnostics)) = load(&file) else { panic!("accepted") };
    let place: Vec<_> = diagnostics.iter().map(|error| (error.line, error.column)).collect();
    assert_eq!(place, [(2, 13)]);
}

/// The section of `full.toml` under `header`, up to the next header.
fn section<'f>(full: &'f str, header: &str) -> Vec<&'f str> {
    let below = full.lines().skip_while(|line| *line != header).skip(1);
    below.take_while(|line| !line.starts_with('[')).collect()
}

#[test]
fn full_toml_has_every_key_of_the_parser_and_states_its_default() {
    let full = full();
    for table in TABLES.iter().filter(|table| !table.header.is_empty()) {
        let lines = section(&full, table.header);
        assert!(!lines.is_empty(), "{} is not in full.toml", table.header);
        for key in table.keys.iter().filter(|key| key.kind != Kind::Table) {
            let start = format!("{} = ", key.name);
            // What would name another file is a comment there.
            let is_it = |line: &&str| line.strip_prefix("# ").unwrap_or(line).starts_with(&start);
            let Some(at) = lines.iter().position(is_it) else {
                panic!("{} has no {} in full.toml", table.header, key.name);
            };
            let stated = lines[at - 1];
            let expected = match key.presence {
                Presence::Required => {
                    if stated.starts_with("# Required") {
                        stated
                    } else {
                        "# Required."
                    }
                }
                Presence::Optional => "# Optional.",
                Presence::Default(default) => &format!("# Default: {default}"),
            };
            assert_eq!(stated, expected, "above {} in {}", key.name, table.header);
        }
    }
}

#[test]
fn the_defaults_of_the_schema_are_those_of_the_parser() {
    for table in TABLES {
        for key in table.keys {
            let Presence::Default(default) = key.presence else { continue };
            let line = format!("{}\n{} = {default}\n", table.header, key.name);
            let written = match table.header {
                "[global]" | "[timeouts]" => format!("{line}{MINIMAL}"),
                header => MINIMAL.replace(&format!("{header}\n"), &line),
            };
            assert_ne!(written, MINIMAL);
            assert_eq!(accepted(&written), accepted(MINIMAL), "{} {}", table.header, key.name);
        }
    }
}

#[test]
fn keys_of_one_name_are_written_alike() {
    let keys = || TABLES.iter().flat_map(|table| table.keys);
    for key in keys() {
        assert!(keys().filter(|other| other.name == key.name).all(|other| other.kind == key.kind), "{}", key.name);
    }
}

#[test]
fn every_key_of_the_schema_is_read() {
    for table in TABLES {
        for key in table.keys {
            let above = if table.path.contains('.') { "[[virtual_server]]\n" } else { "" };
            let text = format!("{above}{}\n{} = 1979-05-27\n", table.header, key.name);
            let diagnostics = parse("x", &text).unwrap_err();
            let path = if table.path.is_empty() { key.name.to_owned() } else { format!("{}.{}", table.path, key.name) };
            let expected = format!("{path} is 1979-05-27, must be ");
            assert!(diagnostics.iter().any(|error| error.message.starts_with(&expected)), "{expected}\n{diagnostics}");
        }
    }
}

#[test]
fn a_full_table_is_accepted_and_one_more_is_not() {
    let servers = |count: u16, real_servers: u16| -> String {
        let server = |port: u16| {
            let head = format!(
                "[[virtual_server]]\naddress = \"10.0.0.1:{port}\"\nprotocol = \"tcp\"\nforwarding = \"nat\"\n"
            );
            let host = port / 64;
            let real = |at: u16| format!("[[virtual_server.real_server]]\naddress = \"10.1.{host}.1:{}\"\n", at + 1);
            head + &(0..real_servers).map(real).collect::<String>()
        };
        let all: String = (1..=count).map(server).collect();
        format!("[xdp]\ninterfaces = [\"eth0\"]\n{all}")
    };
    assert_eq!(accepted(&servers(1024, 4)).virtual_servers.len(), 1024);
    let over = parse("x", &servers(1025, 1)).unwrap_err();
    let messages: Vec<_> = over.iter().map(|error| (error.line, error.message.as_str())).collect();
    assert_eq!(messages, [(2 + 1024 * 6 + 1, "1025 virtual servers, must be at most 1024")]);
    let over = parse("x", &servers(1, 4097)).unwrap_err();
    let messages: Vec<_> = over.iter().map(|error| (error.line, error.message.as_str())).collect();
    assert_eq!(messages, [(2 + 4 + 4096 * 2 + 1, "more than 4096 real servers in all, must be at most 4096")]);
}

#[test]
fn failover_is_refused_for_more_real_servers_than_are_compared() {
    let file = |scheduler: &str, count: u16| {
        let head =
            "[xdp]\ninterfaces = [\"eth0\"]\n[[virtual_server]]\naddress = \"10.0.0.1:80\"\nprotocol = \"tcp\"\n";
        let real = |n: u16| format!("[[virtual_server.real_server]]\naddress = \"10.1.{}.{}\"\n", n / 250, n % 250 + 1);
        let servers: String = (0..count).map(real).collect();
        format!("{head}forwarding = \"dr\"\nscheduler = \"{scheduler}\"\n{servers}")
    };
    for scheduler in ["fo", "ovf"] {
        assert_eq!(accepted(&file(scheduler, 256)).virtual_servers.len(), 1);
        let over = parse("x", &file(scheduler, 257)).unwrap_err();
        let messages: Vec<_> = over.iter().map(|error| (error.line, error.message.as_str())).collect();
        let expected = format!(
            "virtual_server has 257 real servers and scheduler \"{scheduler}\", which compares all of them: must be at most 256"
        );
        assert_eq!(messages, [(3, expected.as_str())]);
    }
    assert_eq!(accepted(&file("wlc", 257)).virtual_servers.len(), 1);
}

/// Every diagnostic must be printable and lie in the file.
fn survives(text: &str) {
    if let Err(diagnostics) = parse("x", text) {
        let lines = text.split('\n').count();
        assert!(diagnostics.iter().count() > 0);
        assert!(diagnostics.iter().all(|error| (1..=lines).contains(&error.line) && error.column >= 1));
        assert!(diagnostics.to_string().contains("error"));
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        survives(&text);
    }

    #[test]
    fn no_text_of_toml_characters_makes_it_panic(text in r#"([a-z_.=\[\]{}"'#,:0-9 \\]|\n|xdp|virtual_server|"""){0,60}"#) {
        survives(&text);
    }

    #[test]
    fn no_mutation_of_a_good_file_makes_it_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..6_usize, r#"[\[\]{}="'\n #.,:/0-9a-zé]{0,4}"#), 1..5),
    ) {
        let mut characters: Vec<char> = full().lines().filter(|line| !line.starts_with('#')).flat_map(|line| line.chars().chain(['\n'])).collect();
        for (at, removed, inserted) in edits {
            let at = at.index(characters.len());
            let end = (at + removed).min(characters.len());
            characters.splice(at..end, inserted.chars());
        }
        survives(&characters.into_iter().collect::<String>());
    }
}
