//! What the configuration refuses, in the words and with the places that an operator sees.
//!
//! Each case changes a good file and keeps the whole output as a snapshot, `tests/snapshots/config_errors__*.snap`.

use std::io;
use std::path::Path;

use lb_userspace::config::{parse, parse_with};

const GOOD: &str = r#"[global]
instance = "evenkeel"
backend = "xdp"

[xdp]
interfaces = ["eth0"]
mode = "auto"

[[virtual_server]]
name = "web"
address = "10.0.0.100:80"
protocol = "tcp"
scheduler = "rr"
forwarding = "nat"

[[virtual_server.real_server]]
address = "10.0.1.11:8080"
weight = 1

[[virtual_server.real_server]]
address = "10.0.1.12:8080"
"#;

const SECOND: &str = r#"
[[virtual_server]]
name = "web"
address = "10.0.0.100:80"
protocol = "tcp"
forwarding = "nat"

[[virtual_server.real_server]]
address = "10.0.1.11"
"#;

/// The virtual server on 10.0.0.`last`, by NAT to the one real server of all of them.
fn numbered(last: u8) -> String {
    SECOND.replace("name = \"web\"\n", "").replace("10.0.0.100", &format!("10.0.0.{last}"))
}

const KEEPALIVED_CONF: &str = "\
virtual_server 10.0.0.100 80 {
  lb_algo rr
  lb_kind NAT
  protocol TCP
  real_server 10.0.1.11 80 {
    weight 1
  }
}
";

/// The good file with each of `changes` made once.
fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(GOOD.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "nothing to change: {from}");
        text.replacen(from, to, 1)
    })
}

fn refusal(text: &str) -> String {
    match parse("lb.toml", text) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(diagnostics) => diagnostics.to_string(),
    }
}

/// `name: from => to, ...;` changes the good file; `name = text;` is a file of its own.
macro_rules! refused {
    ($($name:ident: $($from:literal => $to:literal),+;)+) => {
        $(#[test] fn $name() { insta::assert_snapshot!(refusal(&changed(&[$(($from, $to)),+]))); })+
    };
    ($($name:ident = $text:expr;)+) => {
        $(#[test] fn $name() { insta::assert_snapshot!(refusal(&$text)); })+
    };
}

#[test]
fn the_good_file_is_accepted() {
    parse("lb.toml", GOOD).unwrap_or_else(|diagnostics| panic!("{diagnostics}"));
}

// Keys and types.
refused! {
    misspelt_key: "protocol =" => "protcol =";
    misspelt_table: "[xdp]" => "[xpd]";
    key_of_another_table: r#"mode = "auto""# => r#"log_level = "info""#;
    keepalived_words_for_keys: "scheduler =" => "lb_algo =", "forwarding =" => "lb_kind =";
    table_of_a_later_version: "[xdp]" => "[vrrp_instance]\nstate = \"MASTER\"\n\n[xdp]";
    string_where_a_number_belongs: "weight = 1" => r#"weight = "1""#;
    number_where_a_string_belongs: r#""10.0.0.100:80""# => "80";
    string_where_an_array_belongs: r#"["eth0"]"# => r#""eth0""#;
    number_in_an_array_of_strings: r#"["eth0"]"# => r#"["eth0", 1]"#;
    string_where_a_boolean_belongs: r#"mode = "auto""# => r#"packet_log = "yes""#;
    value_where_a_table_belongs: "[xdp]\ninterfaces = [\"eth0\"]\nmode = \"auto\"" => "", "[global]" => "xdp = \"eth0\"\n[global]";
    table_where_an_array_of_tables_belongs: "[[virtual_server]]" => "[virtual_server]";
    real_server_before_any_virtual_server: "[xdp]" => "[[virtual_server.real_server]]\naddress = \"10.0.1.1\"\n[xdp]";
}

// [global] and [xdp].
refused! {
    instance_with_capitals: r#""evenkeel""# => r#""Evenkeel 1""#;
    backend_that_is_not_available_yet: r#""xdp""# => r#""ipvs""#, "[xdp]\ninterfaces = [\"eth0\"]\nmode = \"auto\"" => "";
    unknown_backend: r#""xdp""# => r#""dpdk""#;
    unknown_log_level: r#"backend = "xdp""# => r#"log_level = "warning""#;
    relative_path: r#"backend = "xdp""# => r#"runtime_directory = "run/evenkeel""#;
    missing_xdp: "[xdp]\ninterfaces = [\"eth0\"]\nmode = \"auto\"\n" => "";
    missing_interfaces: "interfaces = [\"eth0\"]\n" => "";
    no_interfaces: r#"["eth0"]"# => "[]";
    impossible_interfaces: r#"["eth0"]"# => r#"["eth0", "eth0", "a_name_of_16_byt", "eth 1", "eth0/1", ""]"#;
    misspelt_mode: r#""auto""# => r#""natve""#;
    connections_below_the_range: r#"mode = "auto""# => "connections_max = 1023";
    connections_above_the_range: r#"mode = "auto""# => "connections_max = 100_000_001";
    reject_rate_above_the_range: r#"mode = "auto""# => "reject_rate = 1_000_001";
    connections_beyond_any_integer: r#"mode = "auto""# => "connections_max = 99999999999999999999999999999999999999999";
}

// [[virtual_server]].
refused! {
    missing_protocol: "protocol = \"tcp\"\n" => "";
    missing_address: "address = \"10.0.0.100:80\"\n" => "";
    missing_forwarding: "forwarding = \"nat\"\n" => "";
    protocol_in_capitals: r#""tcp""# => r#""TCP""#;
    misspelt_scheduler: r#""rr""# => r#""rrr""#;
    scheduler_for_many_destinations: r#""rr""# => r#""lblc""#;
    scheduler_by_its_long_name: r#""rr""# => r#""Weighted-Least-Connection""#;
    scheduler_as_a_number: r#""rr""# => "1";
    forwarding_as_keepalived_writes_it: r#""nat""# => r#""NAT""#;
    empty_vip: r#""10.0.0.100:80""# => r#""""#;
    vip_with_host_bits: "10.0.0.100:80" => "10.0.0.100/24:80";
    vip_that_is_a_network: "10.0.0.100:80" => "10.0.0.0/24";
    vip_that_is_a_name: "10.0.0.100:80" => "www.example.com:80";
    vip_without_a_port: "10.0.0.100:80" => "10.0.0.100";
    vip_without_a_port_of_ipv6: "10.0.0.100:80" => "[fd77::100]", "10.0.1.11:8080" => "fd77:1::11", "10.0.1.12:8080" => "fd77:1::12";
    vip_with_a_port_out_of_range: "10.0.0.100:80" => "10.0.0.100:65536";
    vip_of_ipv6_without_brackets: "10.0.0.100:80" => "fd77::100:80";
    unspecified_vip: "10.0.0.100:80" => "0.0.0.0:80";
    link_local_vip: "10.0.0.100:80" => "[fe80::1]:80";
    ipv4_mapped_vip: "10.0.0.100:80" => "[::ffff:10.0.0.100]:80";
    name_with_a_line_break: r#""web""# => r#""we\nb""#;
    empty_name: r#""web""# => r#""""#;
}

// How a virtual server treats connections.
refused! {
    hash_port_with_another_scheduler: "forwarding =" => "hash_port = true\nforwarding =";
    hash_port_with_dh: r#""rr""# => "\"dh\"\nhash_port = true";
    hash_fallback_with_the_default_scheduler: "scheduler = \"rr\"\n" => "hash_fallback = true\n";
    hash_port_with_an_unreadable_scheduler: r#""rr""# => "\"mhh\"\nhash_port = true";
    persistence_in_keepalived_s_number: "forwarding =" => "persistence_timeout = 300\nforwarding =";
    persistence_above_the_range: "forwarding =" => "persistence_timeout = \"1 day\"\nforwarding =";
    persistence_of_no_time: "forwarding =" => "persistence_timeout = 0\nforwarding =";
    granularity_without_persistence: "forwarding =" => "persistence_granularity = 24\nforwarding =";
    granularity_with_gaps: "forwarding =" => "persistence_timeout = \"5m\"\npersistence_granularity = \"255.0.255.0\"\nforwarding =";
    granularity_of_host_bits: "forwarding =" => "persistence_timeout = \"5m\"\npersistence_granularity = \"0.0.0.255\"\nforwarding =";
    granularity_longer_than_an_address: "forwarding =" => "persistence_timeout = \"5m\"\npersistence_granularity = 33\nforwarding =";
    granularity_of_all_clients: "forwarding =" => "persistence_timeout = \"5m\"\npersistence_granularity = 0\nforwarding =";
    granularity_with_a_slash: "forwarding =" => "persistence_timeout = \"5m\"\npersistence_granularity = \"/24\"\nforwarding =";
    granularity_as_a_boolean: "forwarding =" => "persistence_timeout = \"5m\"\npersistence_granularity = true\nforwarding =";
    granularity_of_ipv6_as_a_netmask: "10.0.0.100:80" => "[fd77::100]:80", "10.0.1.11" => "[fd77:1::11]", "10.0.1.12" => "[fd77:1::12]", "forwarding =" => "persistence_timeout = \"5m\"\npersistence_granularity = \"255.255.255.0\"\nforwarding =";
    one_packet_with_tcp: r#""nat""# => "\"dr\"\none_packet = true", ":80\"" => ":8080\"";
    one_packet_with_nat: r#""tcp""# => "\"udp\"\none_packet = true";
    one_packet_with_one_of_them_by_nat: r#""tcp""# => "\"udp\"\none_packet = true", ":80\"" => ":8080\"", r#""nat""# => r#""dr""#, "10.0.1.12:8080\"" => "10.0.1.12:8080\"\nforwarding = \"nat\"";
    one_packet_with_persistence: r#""tcp""# => "\"udp\"\none_packet = true\npersistence_timeout = \"5m\"", ":80\"" => ":8080\"", r#""nat""# => r#""dr""#;
    sloppy_tcp_with_udp: r#""tcp""# => "\"udp\"\nsloppy_tcp = true";
    stateless_replies_without_nat: r#""nat""# => "\"dr\"\nstateless_replies = true", ":80\"" => ":8080\"";
    masquerade_which_is_not_available_yet: r#""nat""# => "\"nat\"\nmasquerade = true";
    unknown_connection_with_udp: r#""tcp""# => "\"udp\"\nunknown_connection = \"drop\"";
    sloppy_tcp_with_mh: r#""rr""# => "\"mh\"\nsloppy_tcp = true";
    unknown_connection_with_sh: r#""rr""# => "\"sh\"\nunknown_connection = \"drop\"";
    sloppy_tcp_and_unknown_connection_with_dh_after_them: "scheduler = \"rr\"" => "sloppy_tcp = true\nunknown_connection = \"drop\"\nscheduler = \"dh\"";
    sloppy_tcp_with_udp_and_mh: r#""tcp""# => "\"udp\"\nsloppy_tcp = true", r#""rr""# => r#""mh""#;
    one_packet_with_ovf: r#""tcp""# => "\"udp\"\none_packet = true", r#""rr""# => r#""ovf""#, ":80\"" => ":8080\"", r#""nat""# => r#""dr""#;
    one_packet_with_a_threshold: r#""tcp""# => "\"udp\"\none_packet = true", ":80\"" => ":8080\"", r#""nat""# => r#""dr""#, "weight = 1" => "upper_threshold = 10";
    removed_real_server_with_udp: r#""tcp""# => "\"udp\"\nremoved_real_server = \"expire\"";
    removed_real_server_with_udp_as_by_default: r#""tcp""# => "\"udp\"\nremoved_real_server = \"keep\"";
    slow_start_above_the_range: "forwarding =" => "slow_start = \"61m\"\nforwarding =";
    slow_start_without_a_unit: "forwarding =" => "slow_start = \"30\"\nforwarding =";
    refusal_of_an_unknown_kind: "forwarding =" => "no_real_server = \"icmp\"\nunknown_connection = \"Drop\"\nforwarding =";
    removal_of_an_unknown_kind: "forwarding =" => "removed_real_server = \"expired\"\nforwarding =";
}

// [timeouts] and what else is a duration.
refused! {
    timeouts_out_of_range: "[xdp]" => "[timeouts]\ntcp = \"5h\"\ntcp_fin = \"500ms\"\nudp = \"0s\"\n\n[xdp]";
    timeout_as_a_number: "[xdp]" => "[timeouts]\nudp = 300\n\n[xdp]";
    timeout_without_a_unit: "[xdp]" => "[timeouts]\nudp = \"300\"\n\n[xdp]";
    timeout_with_an_unknown_unit: "[xdp]" => "[timeouts]\nudp = \"300 ticks\"\n\n[xdp]";
    timeout_in_months: "[xdp]" => "[timeouts]\nudp = \"5M\"\n\n[xdp]";
    timeout_without_quotes: "[xdp]" => "[timeouts]\nudp = 300s\n\n[xdp]";
    timeout_by_ipvsadm_s_name: "[xdp]" => "[timeouts]\ntcpfin = \"120s\"\n\n[xdp]";
    timeouts_as_a_string: "[global]" => "timeouts = \"900 120 300\"\n[global]";
    timeouts_of_keepalived: "instance =" => "lvs_timeouts = \"tcp 900 tcpfin 120 udp 300\"\ninstance =";
}

// All ports.
refused! {
    real_servers_with_ports_behind_all_ports: "10.0.0.100:80" => "10.0.0.100:0";
    real_server_of_ipv6_with_a_port_behind_all_ports: "10.0.0.100:80" => "[fd77::100]:0", "10.0.1.11:8080" => "[fd77:1::11:80]:80", "10.0.1.12:8080" => "fd77:1::12";
    real_server_with_port_zero_behind_one_port: "10.0.1.11:8080" => "10.0.1.11:0";
}

// SCTP.
refused! {
    sctp_with_nat: "protocol = \"tcp\"" => "protocol = \"sctp\"";
    sctp_with_one_of_them_by_nat: "protocol = \"tcp\"" => "protocol = \"sctp\"", "forwarding = \"nat\"" => "forwarding = \"dr\"", "10.0.1.11:8080" => "10.0.1.11", "10.0.1.12:8080\"" => "10.0.1.12\"\nforwarding = \"nat\"";
    one_packet_with_sctp: "protocol = \"tcp\"" => "protocol = \"sctp\"\none_packet = true", "forwarding = \"nat\"" => "forwarding = \"dr\"", "10.0.1.11:8080" => "10.0.1.11", "10.0.1.12:8080" => "10.0.1.12";
    sloppy_tcp_with_sctp: "protocol = \"tcp\"" => "protocol = \"sctp\"\nsloppy_tcp = true", "forwarding = \"nat\"" => "forwarding = \"tun\"", "10.0.1.11:8080" => "10.0.1.11", "10.0.1.12:8080" => "10.0.1.12";
}

// Where tunnelled packets come from.
refused! {
    tunnel_source_of_another_family: "interfaces = [\"eth0\"]" => "interfaces = [\"eth0\"]\ntunnel_source_ipv4 = \"2001:db8::1\"\ntunnel_source_ipv6 = \"10.0.1.1\"";
    tunnel_source_that_is_no_address: "interfaces = [\"eth0\"]" => "interfaces = [\"eth0\"]\ntunnel_source_ipv4 = \"eth0\"";
    tunnel_source_with_host_bits: "interfaces = [\"eth0\"]" => "interfaces = [\"eth0\"]\ntunnel_source_ipv4 = \"10.9.0.1/16\"";
    tunnel_source_too_wide: "interfaces = [\"eth0\"]" => "interfaces = [\"eth0\"]\ntunnel_source_ipv6 = \"2000::/3\"";
    tunnel_source_on_loopback: "interfaces = [\"eth0\"]" => "interfaces = [\"eth0\"]\ntunnel_source_ipv4 = \"127.0.0.1\"";
    tunnel_source_as_a_number: "interfaces = [\"eth0\"]" => "interfaces = [\"eth0\"]\ntunnel_source_ipv4 = 10";
    tunnel_source_that_is_the_vip: "interfaces = [\"eth0\"]" => "interfaces = [\"eth0\"]\ntunnel_source_ipv4 = \"10.0.0.100\"";
    tunnel_source_that_holds_a_real_server: "interfaces = [\"eth0\"]" => "interfaces = [\"eth0\"]\ntunnel_source_ipv4 = \"10.0.1.0/24\"";
}

// [virtual_server.sorry_server].
refused! {
    sorry_server_as_a_string: "forwarding =" => "sorry_server = \"10.0.1.99:80\"\nforwarding =";
    sorry_server_as_keepalived_writes_it: "forwarding =" => "sorry_server 10.0.1.99 80\nforwarding =";
    sorry_server_as_keepalived_writes_it_in_quotes: "forwarding =" => "sorry_server = \"10.0.1.99 80\"\nforwarding =";
    sorry_server_method_of_keepalived: "forwarding =" => "sorry_server_lvs_method = \"DR\"\nforwarding =";
    sorry_server_that_is_a_real_server: "[[virtual_server.real_server]]" => "[virtual_server.sorry_server]\naddress = \"10.0.1.12:8080\"\n\n[[virtual_server.real_server]]";
    sorry_server_of_another_family: "[[virtual_server.real_server]]" => "[virtual_server.sorry_server]\naddress = \"[fd77::99]:80\"\n\n[[virtual_server.real_server]]";
    sorry_server_on_another_port_by_dr: "[[virtual_server.real_server]]" => "[virtual_server.sorry_server]\naddress = \"10.0.1.99:81\"\nforwarding = \"dr\"\n\n[[virtual_server.real_server]]";
    sorry_server_without_an_address: "[[virtual_server.real_server]]" => "[virtual_server.sorry_server]\nforwarding = \"dr\"\n\n[[virtual_server.real_server]]";
    sorry_server_with_a_weight: "[[virtual_server.real_server]]" => "[virtual_server.sorry_server]\naddress = \"10.0.1.99\"\nweight = 1\n\n[[virtual_server.real_server]]";
    sorry_server_without_forwarding: "forwarding = \"nat\"\n\n[[virtual_server.real_server]]" => "\n[virtual_server.sorry_server]\naddress = \"10.0.1.99\"\n\n[[virtual_server.real_server]]\nforwarding = \"nat\"", "weight = 1" => "", "10.0.1.12:8080\"" => "10.0.1.12:8080\"\nforwarding = \"nat\"";
    sorry_and_real_server_without_forwarding: "forwarding = \"nat\"\n\n[[virtual_server.real_server]]" => "\n[virtual_server.sorry_server]\naddress = \"10.0.1.99\"\n\n[[virtual_server.real_server]]";
    sorry_servers_as_an_array: "[[virtual_server.real_server]]" => "[[virtual_server.sorry_server]]\naddress = \"10.0.1.99\"\n\n[[virtual_server.real_server]]";
}

// [[virtual_server.real_server]].
refused! {
    real_server_without_an_address: "address = \"10.0.1.11:8080\"\n" => "";
    negative_weight: "weight = 1" => "weight = -1";
    weight_above_the_range: "weight = 1" => "weight = 65536";
    dr_to_another_port: r#""nat""# => r#""dr""#;
    tun_to_another_port: "weight = 1" => r#"forwarding = "tun""#;
    real_server_of_another_family: "10.0.1.11:8080" => "[fd77::11]:8080";
    real_server_of_another_family_by_dr: "10.0.1.11:8080" => "[fd77::11]:80", r#""nat""# => r#""dr""#, "10.0.1.12:8080" => "10.0.1.12:80";
    real_server_of_ipv6_that_may_end_in_a_port: "10.0.0.100:80" => "[fd77::100]:80", "10.0.1.11:8080" => "fd77:1::11:80", "10.0.1.12:8080" => "fd77:1::12";
    real_server_with_a_loopback_address: "10.0.1.11:8080" => "127.0.0.1:8080";
    real_server_with_the_vip: "10.0.1.11:8080" => "10.0.0.100:8080";
    real_server_with_a_prefix_length: "10.0.1.11:8080" => "10.0.1.11:8080/24";
    real_server_twice: "10.0.1.12" => "10.0.1.11";
    lower_threshold_without_an_upper_one: "weight = 1" => "lower_threshold = 10";
    lower_threshold_above_the_upper_one: "weight = 1" => "upper_threshold = 100\nlower_threshold = 101";
    lower_threshold_beside_no_limit: "weight = 1" => "upper_threshold = 0\nlower_threshold = 1";
    thresholds_out_of_range: "weight = 1" => "upper_threshold = 4294967296\nlower_threshold = -1";
}

// Syntax.
refused! {
    key_twice: "weight = 1" => "weight = 1\nweight = 2";
    table_twice: "[[virtual_server]]" => "[xdp]\nmode = \"native\"\n\n[[virtual_server]]";
    word_without_quotes: r#""rr""# => "rr";
    address_without_quotes: r#""10.0.0.100:80""# => "10.0.0.100:80";
    string_that_does_not_end: r#""10.0.0.100:80""# => r#""10.0.0.100:80"#;
    key_without_a_value: r#"scheduler = "rr""# => "scheduler =";
    line_without_an_equals_sign: r#"scheduler = "rr""# => "scheduler rr", r#""tcp""# => r#""tpc""#;
    header_that_does_not_end: "[[virtual_server]]" => "[[virtual_server]", r#""tcp""# => r#""tpc""#;
    header_of_a_sorry_server_that_does_not_end: "[[virtual_server.real_server]]" => "[virtual_server.sorry_server\naddress = \"10.0.1.12\"\n\n[[virtual_server.real_server]]";
    array_that_does_not_end: r#"["eth0"]"# => r#"["eth0""#, r#""tcp""# => r#""tpc""#;
    long_string_that_does_not_end: r#""web""# => r#""""web"#, r#""rr""# => r#""rrr""#;
    array_over_lines_that_is_broken: r#"["eth0"]"# => "[\n  \"eth0\"\n  \"eth1\",\n]", r#""tcp""# => r#""tpc""#;
    number_with_a_leading_zero: "weight = 1" => "weight = 010";
    control_character: r#""web""# => "\"w\u{1b}[31meb\"";
}

// Whole files.
refused! {
    empty_file = "";
    no_virtual_server = "[xdp]\ninterfaces = [\"eth0\"]\n";
    virtual_server_without_real_server = GOOD.split("[[virtual_server.real_server]]").next().unwrap_or_default();
    service_twice = format!("{GOOD}{}", SECOND.replace("name = \"web\"\n", ""));
    real_server_behind_nat_in_too_many = format!("[xdp]\ninterfaces = [\"eth0\"]\n{}", (1..=65).map(numbered).collect::<String>());
    real_server_behind_nat_on_all_ports_and_on_one = format!("{GOOD}{}", SECOND.replace("\"web\"", "\"all\"").replace("100:80", "101:0"));
    name_twice = format!("{GOOD}{}", SECOND.replace(":80", ":81"));
    keepalived_conf = KEEPALIVED_CONF;
    another_kind_of_file = "this is no configuration\n".repeat(200);
}

#[test]
fn many_errors_at_once() {
    insta::assert_snapshot!(refusal(
        r#"interface = "eth0"

[global]
instance = "Evenkeel"
runtime_dir = "/run/evenkeel"
log_level = "verbose"

[xdp]
interfaces = ["eth0", "eth0"]
mode = native
connections_max = 12

[[virtual_server]]
adress = "10.0.0.100:80"
protocol = "tcp"
scheduler = "lblcr"

[[virtual_server.real_server]]
address = "10.0.1.11:8080"
weight = 70000

[[virtual_server]]
address = "10.0.0.101/24:443"
forwarding = "dr"

[[virtual_server.real_server]]
address = "web1.example.com"

[[virtual_server]
address = "[fd77::100]:80"
protocol = "udp"
forwarding = "tun"
forwarding = "nat"

[[virtual_server.real_server]]
address = "[fd77:1::11]:8080"

[[virtual_server.real_server]]
address = "10.0.1.11"
"#
    ));
}

/// The help that shows how to write what keepalived.conf says is itself a file that is accepted.
#[test]
fn the_example_for_keepalived_is_accepted() {
    let refusal = refusal(KEEPALIVED_CONF);
    let example: Vec<&str> = refusal.lines().skip_while(|line| *line != "[xdp]").collect();
    let example = example.split_last().map(|(_, lines)| lines.join("\n")).unwrap_or_default();
    parse("lb.toml", &example).unwrap_or_else(|diagnostics| panic!("{example}\n{diagnostics}"));
}

// Slips whose way out must not lead to the next error.
refused! {
    interface_without_quotes: r#"["eth0"]"# => "eth0 # uplink";
    interfaces_without_quotes: r#"["eth0"]"# => "[eth0, eth1]";
    interfaces_without_an_equals_sign: r#"interfaces = ["eth0"]"# => "interfaces eth0 eth1";
    protocol_without_quotes: r#""tcp""# => "TCP";
    keepalived_words_without_quotes: r#"scheduler = "rr""# => "lb_algo = rr", r#"forwarding = "nat""# => "lb_kind NAT";
    scheduler_for_many_destinations_without_quotes: r#""rr""# => "lblcr";
    weight_as_a_word: "weight = 1" => "weight = high";
    reject_rate_as_a_word: r#"mode = "auto""# => "reject_rate = low";
    duration_as_a_word: "forwarding =" => "persistence_timeout = forever\nforwarding =";
    hash_flag_as_a_word: "forwarding =" => "hash_port = off\nforwarding =";
    netmask_without_quotes: "forwarding =" => "persistence_granularity = 255.255.255.0\nforwarding =";
    persistence_as_keepalived_writes_it: "forwarding =" => "persistence_timeout 300\npersistence_granularity 255.255.255.0\nforwarding =";
    persistence_without_a_number: "forwarding =" => "persistence_timeout\nforwarding =";
    flags_as_keepalived_writes_them: "forwarding =" => "ops\nmh-port\nforwarding =";
    flags_by_keepalived_s_names: "forwarding =" => "ops = true\nsh-port = true\nmh-fallback = false\nforwarding =";
    thresholds_by_keepalived_s_names: "weight = 1" => "uthreshold = 100\nlthreshold = 75";
    thresholds_as_keepalived_writes_them: "weight = 1" => "uthreshold 100\nlthreshold 75";
    later_option_of_the_sorry_server: "forwarding =" => "sorry_server_inhibit\nforwarding =";
    boolean_as_a_word: r#"mode = "auto""# => "packet_log = yes";
    keepalived_words_with_its_values: r#"forwarding = "nat""# => r#"lb_kind = "DR""#;
}

// Which clients are served.
refused! {
    prefix_with_host_bits: "forwarding =" => "allow = [\"192.0.2.1/24\", \"192.0.2.0/33\", \"example.com\"]\nforwarding =";
    prefix_of_another_family: "forwarding =" => "deny = [\"2001:db8::/32\"]\nforwarding =";
    prefix_allowed_and_denied: "forwarding =" => "allow = [\"192.0.2.0/24\"]\ndeny = [\"198.51.100.7\", \"192.0.2.0/24\"]\nforwarding =";
    nobody_allowed: "forwarding =" => "allow = []\nforwarding =";
    prefixes_as_a_string: "forwarding =" => "deny = \"192.0.2.0/24\"\nforwarding =";
    prefixes_of_a_file_that_is_not_there: "forwarding =" => "deny_file = \"/etc/evenkeel/denied\"\nforwarding =";
    prefixes_of_a_file_with_a_relative_path: "forwarding =" => "deny_file = \"denied\"\nforwarding =";
}

/// The files that a configuration here may name.
fn files(path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some("/lists/good") => {
            Ok("# from somewhere\n192.0.2.0/24 # its network\n\n198.51.100.7\n192.0.2.0/24\n".to_owned())
        }
        Some("/lists/bad") => Ok("192.0.2.0/24\n192.0.2.0 /24\n198.51.100.7/24\n".to_owned()),
        Some("/lists/terrible") => Ok("; not a comment\n".repeat(13)),
        Some("/lists/empty") => Ok("# nothing\n".to_owned()),
        Some("/lists/long") => Ok((0..100_001_u32).map(|n| format!("{}\n", std::net::Ipv4Addr::from(n))).collect()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn with_files(keys: &str) -> Result<lb_userspace::config::Config, String> {
    let text = GOOD.replacen("forwarding =", &format!("{keys}\nforwarding ="), 1);
    parse_with("lb.toml", &text, &files).map_err(|diagnostics| diagnostics.to_string())
}

#[test]
fn a_file_of_prefixes_has_comments_addresses_and_repetitions() {
    let config = with_files(r#"deny_file = "/lists/good""#).unwrap_or_else(|text| panic!("{text}"));
    let list = config.virtual_servers[0].access.clone().expect("a list");
    let prefixes: Vec<String> = list.prefixes().map(|(prefix, _)| prefix.to_string()).collect();
    assert_eq!(prefixes, ["192.0.2.0/24", "198.51.100.7/32"]);
    assert!(with_files(r#"deny_file = "/lists/empty""#).is_ok_and(|config| config.virtual_servers[0].access.is_none()));
}

#[test]
fn files_of_prefixes_are_refused_with_file_and_line() {
    let refusals = [
        r#"deny_file = "/lists/bad""#,
        r#"deny_file = "/lists/terrible""#,
        r#"allow_file = "/lists/empty""#,
        "allow_file = \"/lists/good\"\ndeny = [\"198.51.100.7\"]",
        r#"deny_file = "/lists/long""#,
    ];
    let texts: Vec<String> = refusals.iter().map(|keys| with_files(keys).expect_err("refused")).collect();
    insta::assert_snapshot!(texts.join("\n\n"));
}

// Values as others call them.
refused! {
    forwarding_masq: r#""nat""# => r#""masq""#;
    forwarding_masquerading: r#""nat""# => r#""masquerading""#;
    forwarding_gate: r#""nat""# => r#""gate""#;
    forwarding_droute: r#""nat""# => r#""droute""#;
    forwarding_dr_in_capitals: r#""nat""# => r#""DR""#;
    forwarding_ipip: r#""nat""# => r#""ipip""#;
    forwarding_tunnel: r#""nat""# => r#""tunnel""#;
    forwarding_tun_in_capitals: r#""nat""# => r#""TUN""#;
    mode_skb: r#""auto""# => r#""skb""#;
    mode_drv: r#""auto""# => r#""drv""#;
    mode_driver: r#""auto""# => r#""driver""#;
    protocol_udp_in_capitals: r#""tcp""# => r#""UDP""#;
}

// What keepalived and ipvsadm have, and the wrong places.
refused! {
    keys_of_a_later_version: "scheduler =" => "quorum = 2\nsorry_server_inhibit = true\nscheduler =", "weight = 1" => "inhibit_on_failure = true\nTCP_CHECK = { connect_timeout = 3 }";
    key_of_a_later_version_without_an_equals_sign: "scheduler =" => "delay_loop 6\nscheduler =";
    real_servers_at_the_top_level: "[[virtual_server.real_server]]" => "[[real_server]]", "[[virtual_server.real_server]]" => "[[real_server]]";
    port_as_a_key: "address = \"10.0.0.100:80\"" => "address = \"10.0.0.100\"\nport = 8080", "10.0.1.11:8080\"" => "10.0.1.11\"\nport = \"80\"";
    real_servers_as_strings: "forwarding = \"nat\"\n" => "forwarding = \"nat\"\nreal_server = [\"10.0.1.21:80\", \"10.0.1.22:80\"]\n", "[[virtual_server.real_server]]\naddress = \"10.0.1.11:8080\"\nweight = 1\n\n[[virtual_server.real_server]]\naddress = \"10.0.1.12:8080\"\n" => "";
    real_server_as_one_table: "weight = 1\n\n[[virtual_server.real_server]]\naddress = \"10.0.1.12:8080\"\n" => "", "[[virtual_server.real_server]]" => "[virtual_server.real_server]";
    real_server_on_one_line: "[[virtual_server.real_server]]\naddress = \"10.0.1.11:8080\"\nweight = 1\n" => "real_server 10.0.1.11 8080\n";
}

// keepalived.conf, whole or pasted.
refused! {
    keepalived_conf_with_comments = format!("! Configuration File for keepalived\n\nglobal_defs {{\n  router_id LVS\n}}\n\n{KEEPALIVED_CONF}");
    keepalived_conf_with_vrrp = "vrrp_instance VI_1\n{\n  state MASTER\n  interface eth0\n}\n";
    keepalived_real_server_of_ipv6 = GOOD.replace("weight = 1\n", "real_server fd77:1::12 80 {\n  weight 1\n}\n");
    keepalived_check_in_toml = format!("{GOOD}TCP_CHECK {{\n  connect_timeout 3\n}}\n");
    keepalived_block_in_toml = format!("[xdp]\ninterfaces = [\"eth0\"]\nmode = \"natve\"\n\n{KEEPALIVED_CONF}");
    keepalived_real_server_in_toml = GOOD.replace("[[virtual_server.real_server]]\naddress = \"10.0.1.12:8080\"\n", "real_server 10.0.1.12 80 {\n  weight 1\n}\n");
}
