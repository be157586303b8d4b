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
    scheduler_of_a_later_version_without_quotes: r#""rr""# => "wrr";
    weight_as_a_word: "weight = 1" => "weight = high";
    boolean_as_a_word: r#"mode = "auto""# => "packet_log = yes";
    keepalived_words_with_its_values: r#"forwarding = "nat""# => r#"lb_kind = "DR""#;
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
    keys_of_a_later_version: "scheduler =" => "persistence_timeout = 300\nsorry_server = \"10.0.1.99:80\"\nscheduler =", "weight = 1" => "uthreshold = 100\nTCP_CHECK = { connect_timeout = 3 }";
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
