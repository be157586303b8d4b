//! What the configuration refuses, in the words and with the places that an operator sees.
//!
//! Each case changes a good file and keeps the whole output as a snapshot, `tests/snapshots/config_errors__*.snap`.

use lb_userspace::config::parse;

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
    connections_beyond_any_integer: r#"mode = "auto""# => "connections_max = 99999999999999999999999999999999999999999";
}

// [[virtual_server]].
refused! {
    missing_protocol: "protocol = \"tcp\"\n" => "";
    missing_address: "address = \"10.0.0.100:80\"\n" => "";
    missing_forwarding: "forwarding = \"nat\"\n" => "";
    protocol_in_capitals: r#""tcp""# => r#""TCP""#;
    misspelt_scheduler: r#""rr""# => r#""rrr""#;
    scheduler_that_is_not_available_yet: r#""rr""# => r#""wlc""#;
    forwarding_as_keepalived_writes_it: r#""nat""# => r#""NAT""#;
    empty_vip: r#""10.0.0.100:80""# => r#""""#;
    vip_with_host_bits: "10.0.0.100:80" => "10.0.0.100/24:80";
    vip_that_is_a_network: "10.0.0.100:80" => "10.0.0.0/24";
    vip_that_is_a_name: "10.0.0.100:80" => "www.example.com:80";
    vip_without_a_port: "10.0.0.100:80" => "10.0.0.100";
    vip_with_port_zero: "10.0.0.100:80" => "10.0.0.100:0";
    vip_with_a_port_out_of_range: "10.0.0.100:80" => "10.0.0.100:65536";
    vip_of_ipv6_without_brackets: "10.0.0.100:80" => "fd77::100:80";
    unspecified_vip: "10.0.0.100:80" => "0.0.0.0:80";
    link_local_vip: "10.0.0.100:80" => "[fe80::1]:80";
    ipv4_mapped_vip: "10.0.0.100:80" => "[::ffff:10.0.0.100]:80";
    name_with_a_line_break: r#""web""# => r#""we\nb""#;
    empty_name: r#""web""# => r#""""#;
}

// [[virtual_server.real_server]].
refused! {
    real_server_without_an_address: "address = \"10.0.1.11:8080\"\n" => "";
    negative_weight: "weight = 1" => "weight = -1";
    weight_above_the_range: "weight = 1" => "weight = 65536";
    dr_to_another_port: r#""nat""# => r#""dr""#;
    tun_to_another_port: "weight = 1" => r#"forwarding = "tun""#;
    real_server_of_another_family: "10.0.1.11:8080" => "[fd77::11]:8080";
    real_server_of_ipv6_that_may_end_in_a_port: "10.0.0.100:80" => "[fd77::100]:80", "10.0.1.11:8080" => "fd77:1::11:80", "10.0.1.12:8080" => "fd77:1::12";
    real_server_with_a_loopback_address: "10.0.1.11:8080" => "127.0.0.1:8080";
    real_server_with_the_vip: "10.0.1.11:8080" => "10.0.0.100:8080";
    real_server_with_a_prefix_length: "10.0.1.11:8080" => "10.0.1.11:8080/24";
    real_server_twice: "10.0.1.12" => "10.0.1.11";
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
scheduler = "wrr"

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
