//! `evenkeel connections`, and what the scan of the connection table does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{Arms, Cmd, Forwarding, Lab, SshLike, address};
use serde_json::Value;

use crate::director::{Daemon, PATIENCE, Setup, evenkeel, lab, run, wait_until};

/// Where no virtual server but that of all ports is.
const OTHER_PORT: u16 = 2222;

/// As [`Setup::of`], and all further TCP ports of both VIPs.
fn all_ports(lab: &Lab) -> Setup {
    let setup = Setup::of(lab);
    let mut more = String::new();
    for vip in ["10.77.0.100:0", "[fd77::100]:0"] {
        more += &format!("\n[[virtual_server]]\naddress = \"{vip}\"\nprotocol = \"tcp\"\nscheduler = \"wlc\"\n");
        more += &format!("name = \"all of {vip}\"\nforwarding = \"{}\"\n", setup.forwarding);
        for real in setup.real_servers.iter().filter(|real| real.is_ipv4() != vip.starts_with('[')) {
            more += &format!("[[virtual_server.real_server]]\naddress = \"{real}\"\n");
        }
    }
    Setup { more, ..setup }
}

/// Connections that a client holds.
struct Held {
    _tcp: Vec<TcpStream>,
    udp: Vec<UdpSocket>,
    /// (protocol, client, virtual server, state) of each.
    expected: BTreeSet<[String; 4]>,
}

/// One TCP connection to port 80, established by one packet, another by more; one to another port; a UDP flow of one
/// datagram and one of two: of each VIP.
fn hold(lab: &Lab) -> Result<Held> {
    lab.client().run(|| {
        let mut held = Held { _tcp: Vec::new(), udp: Vec::new(), expected: BTreeSet::new() };
        for vip in address::vips() {
            let mut expect = |protocol: &str, client: SocketAddr, port: u16, state: &str| {
                let virtual_server = SocketAddr::new(vip, port);
                let words = [protocol.to_owned(), client.to_string(), virtual_server.to_string(), state.to_owned()];
                held.expected.insert(words);
            };
            let silent = TcpStream::connect((vip, 80))?;
            expect("tcp", silent.local_addr()?, 80, "established-new");
            let mut talking = TcpStream::connect((vip, 80))?;
            talking.write_all(b"GET / HT")?;
            expect("tcp", talking.local_addr()?, 80, "established");
            // The server speaks first, and the client acknowledges it.
            let mut other = TcpStream::connect((vip, OTHER_PORT))?;
            other.read_exact(&mut [0])?;
            other.write_all(b"one\n")?;
            expect("tcp", other.local_addr()?, OTHER_PORT, "established");
            let any: IpAddr = if vip.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            for (datagrams, state) in [(1, "udp-new"), (2, "udp")] {
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect((vip, address::UDP_PORT))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                for _ in 0..datagrams {
                    socket.send(b"hello")?;
                    socket.recv(&mut [0; 64])?;
                }
                expect("udp", socket.local_addr()?, address::UDP_PORT, state);
                held.udp.push(socket);
            }
            held._tcp.extend([silent, talking, other]);
        }
        Ok(held)
    })?
}

fn other_port_servers(lab: &Lab) -> Result<Vec<SshLike>> {
    let mut servers = Vec::new();
    for real in lab.real_servers() {
        for ip in [IpAddr::from(real.address4()), real.address6().into()] {
            servers.push(SshLike::start(real.namespace(), (ip, OTHER_PORT).into())?);
        }
    }
    Ok(servers)
}

/// `evenkeel connections` with these arguments: what it printed.
fn connections(setup: &Setup, lab: &Lab, arguments: &[&str]) -> Result<String> {
    let file = setup.write(lab)?;
    let command = Cmd::new(evenkeel()).arg("connections").arg("--config").arg(file);
    command.args(arguments).limit(PATIENCE).run()
}

/// The same with `--json`, line by line.
fn listed(setup: &Setup, lab: &Lab, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut all = vec!["--json"];
    all.extend(arguments);
    let text = connections(setup, lab, &all)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// (protocol, client, virtual server, state) of each.
fn shown(lines: &[Value]) -> BTreeSet<[String; 4]> {
    let word = |line: &Value, field: &str| line[field].as_str().unwrap_or_default().to_owned();
    let words = |line: &Value| ["protocol", "client", "virtual_server", "state"].map(|field| word(line, field));
    lines.iter().map(words).collect()
}

#[test]
fn every_connection_is_listed_in_full_and_counted() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let _servers = other_port_servers(&lab)?;
    let setup = all_ports(&lab);
    let mut daemon = Daemon::start(&lab, setup.clone())?;
    daemon.wait_for_next_hops("resolved")?;
    let held = hold(&lab)?;
    let lines = listed(&setup, &lab, &[])?;
    assert_eq!(shown(&lines), held.expected);
    for line in &lines {
        ensure!(line["idle_seconds"].as_u64().is_some_and(|idle| idle < 5), "{line:#}");
        ensure!(line["expires_seconds"].as_u64().is_some_and(|left| (50..=900).contains(&left)), "{line:#}");
    }
    filters_hold(&setup, &lab, &held)?;
    counts_agree(&daemon, &lab, &lines)?;
    let table = connections(&setup, &lab, &[])?;
    assert_eq!(table.lines().count(), 1 + held.expected.len(), "{table}");
    ensure!(table.starts_with("proto  client "), "{table}");
    let first = connections(&setup, &lab, &["--limit", "1"])?;
    assert_eq!(first.lines().count(), 2, "{first}");
    ends_with_its_daemon(&mut daemon, &lab, &held)
}

fn filters_hold(setup: &Setup, lab: &Lab, held: &Held) -> Result<()> {
    type Is = fn(&[String; 4]) -> bool;
    let filters: [(&[&str], Is); 6] = [
        (&["--protocol", "udp"], |[protocol, ..]| protocol == "udp"),
        (&["--virtual-server", "fd77::100"], |[_, _, vip, _]| vip.starts_with('[')),
        (&["--virtual-server", "10.77.0.100:2222"], |[_, _, vip, _]| vip == "10.77.0.100:2222"),
        (&["--virtual-server", "all of [fd77::100]:0"], |[protocol, _, vip, _]| {
            protocol == "tcp" && vip.starts_with('[')
        }),
        (&["--client", "10.77.0.0/24"], |[_, client, ..]| client.starts_with("10.77.0.10:")),
        (&["--state", "established", "--client", "fd77::10"], |[_, client, _, state]| {
            state.starts_with("established") && client.starts_with('[')
        }),
    ];
    for (arguments, is_meant) in filters {
        let expected: BTreeSet<_> = held.expected.iter().filter(|words| is_meant(words)).cloned().collect();
        ensure!(!expected.is_empty(), "{arguments:?}");
        assert_eq!(shown(&listed(setup, lab, arguments)?), expected, "{arguments:?}");
    }
    Ok(())
}

/// The list, `--count` and the status have the same numbers for each real server.
fn counts_agree(daemon: &Daemon, lab: &Lab, lines: &[Value]) -> Result<()> {
    let mut of_list: BTreeMap<String, u64> = BTreeMap::new();
    for line in lines {
        // A real server of all ports is listed with the client's.
        let (ip, port) = line["real_server"].as_str().and_then(|text| text.rsplit_once(':')).context("no address")?;
        let port = if port == OTHER_PORT.to_string() { "0" } else { port };
        *of_list.entry(format!("{} {ip}:{port}", line["protocol"])).or_default() += 1;
    }
    let sum = |counts: &Value| counts["active"].as_u64().unwrap_or(0) + counts["inactive"].as_u64().unwrap_or(0);
    let status = daemon.status()?;
    let counted = connections(&daemon.setup, lab, &["--count", "--json"])?;
    let counted: Value = serde_json::from_str(&counted)?;
    let by_real_server = |source: &Value, number: &dyn Fn(&Value) -> u64| -> BTreeMap<String, u64> {
        let mut numbers = BTreeMap::new();
        for server in source["virtual_servers"].as_array().into_iter().flatten() {
            for real in server["real_servers"].as_array().into_iter().flatten() {
                let name = format!("{} {}", server["protocol"], real["address"].as_str().unwrap_or_default());
                numbers.insert(name, number(real));
            }
        }
        numbers.retain(|_, number| *number != 0);
        numbers
    };
    assert_eq!(by_real_server(&status, &sum), of_list);
    assert_eq!(by_real_server(&counted, &|real| real["connections"].as_u64().unwrap_or(0)), of_list);
    let total = lines.len() as u64;
    assert_eq!((&counted["connections"], &status["connection_table"]["connections"]), (&total.into(), &total.into()));
    // Both VIPs: two to port 80 and one to the other.
    assert_eq!(counted["active"], 6);
    assert_eq!(status["connection_table"]["connections_max"], 65536);
    wait_until("the scan", || Ok(daemon.status()?["connection_table"]["established"] == 8))
}

/// What a daemon that was killed has left is listed; what one has cleaned up is not.
fn ends_with_its_daemon(daemon: &mut Daemon, lab: &Lab, held: &Held) -> Result<()> {
    daemon.process.kill9()?;
    assert_eq!(shown(&listed(&daemon.setup, lab, &[])?), held.expected);
    let file = daemon.setup.write(lab)?;
    let file = file.to_string_lossy();
    ensure!(run(lab, &["cleanup", "--config", &file])?.status.success());
    let gone = run(lab, &["connections", "--config", &file])?;
    ensure!(
        gone.status.code() == Some(1) && gone.stderr.contains("there is no connection table in"),
        "{}",
        gone.stderr
    );
    Ok(())
}

/// A real server's last segment passes the director only with NAT.
fn closed_by_the_client() -> Result<()> {
    let mut stream = TcpStream::connect((address::VIP4, 80))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    ensure!(stream.read(&mut [0; 1024])? != 0);
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

#[test]
fn idle_connections_end_and_are_counted_no_more() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let timeouts = "\n[timeouts]\ntcp = \"1h\"\ntcp_fin = \"1s\"\nudp = \"1s\"\n".to_owned();
    let mut daemon = Daemon::start(&lab, Setup { more: timeouts, ..Setup::of(&lab) })?;
    lab.client().run(|| (0..12).try_for_each(|_| closed_by_the_client()))??;
    lab.client().udp_echo((address::VIP6, address::UDP_PORT).into(), "hello", Duration::from_secs(1))?;
    let count =
        || -> Result<u64> { Ok(daemon.status()?["connection_table"]["connections"].as_u64().unwrap_or(u64::MAX)) };
    ensure!(count()? == 13, "{} connections", count()?);
    // A second and its tick, and up to a round of the scan.
    wait_until("the end of all connections", || Ok(count()? == 0))?;
    let status = daemon.status()?;
    for server in status["virtual_servers"].as_array().into_iter().flatten() {
        for real in server["real_servers"].as_array().into_iter().flatten() {
            assert_eq!((&real["active"], &real["inactive"]), (&0.into(), &0.into()), "{real:#}");
        }
    }
    wait_until("the scan", || Ok(daemon.status()?["connection_table"]["expired"] == 13))?;
    ensure!(listed(&daemon.setup, &lab, &[])?.is_empty());
    daemon.stop()
}

#[test]
fn a_load_that_somebody_has_changed_is_put_right() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    let _held = lab.client().run(|| TcpStream::connect((address::VIP4, 80)))??;
    let map = daemon.setup.pin_folder().join("server_loads");
    let dump = || -> Result<String> {
        Cmd::new("bpftool").args(["-j", "map", "lookup", "pinned"]).arg(&map).args(["key", "0", "0", "0", "0"]).run()
    };
    let right = dump()?;
    let mut wrong = vec!["update", "pinned"];
    let map_text = map.to_string_lossy();
    wrong.extend([&*map_text, "key", "0", "0", "0", "0", "value"]);
    wrong.extend(["7"; 64]);
    Cmd::new("bpftool").arg("map").args(&wrong).run()?;
    assert_ne!(dump()?, right);
    daemon.process.wait_for_log("load of a real server was wrong", PATIENCE)?;
    wait_until("three loads", || Ok(daemon.status()?["connection_table"]["repaired"].as_u64() >= Some(3)))?;
    daemon.stop()
}
