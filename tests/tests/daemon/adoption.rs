//! A daemon goes on with what another has left: connections, counters, and the program's place on the interfaces.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{Arms, Cmd, Crowd, Forwarding, Lab, address};
use serde_json::Value;

use crate::another_build;
use crate::director::{PATIENCE, decapsulators, evenkeel, lab, lab_of, wait_until};
use crate::operated::{ECHO, ECHO4, Operated, Server, UdpFlow, each, echoes, newcomers, while_talking};

#[test]
fn with_nat_two_thousand_connections_outlast_a_killed_daemon_restarts_and_another_program() -> Result<()> {
    outlasts(Forwarding::Nat, address::VIP4.into())
}

#[test]
fn with_direct_routing_two_thousand_connections_outlast_a_killed_daemon_restarts_and_another_program() -> Result<()> {
    outlasts(Forwarding::Direct, address::VIP4.into())
}

#[test]
fn with_ipv6_and_tunnels_two_thousand_connections_outlast_a_killed_daemon_restarts_and_another_program() -> Result<()> {
    outlasts(Forwarding::Tunnel, address::VIP6.into())
}

const CROWD: usize = 2000;

fn outlasts(forwarding: Forwarding, vip: IpAddr) -> Result<()> {
    let Some(lab) = lab_of(4, forwarding, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let _decapsulators = decapsulators(&lab)?;
    let target = SocketAddr::new(vip, ECHO);
    let servers = [
        Server::tcp(target).reals([1, 2, 3, 4]),
        Server::udp((vip, address::UDP_PORT)).key("persistence_timeout = \"5m\"").reals([1, 2, 3, 4]),
    ];
    let path = lab.directory().join("evenkeel");
    std::fs::copy(evenkeel(), &path)?;
    let mut operated = Operated::start_by(&lab, "", &servers, Command::new(&path))?;
    let mut crowd = Crowd::connect(lab.client(), target, CROWD)?;
    let flow = UdpFlow::open(&lab, (vip, address::UDP_PORT).into())?;
    let (server, first) = (flow.ask()?, program(&lab)?);
    let quarters = each(&[1, 2, 3, 4].map(|number| (number, CROWD / 4)));
    while_talking(&mut crowd, |rounds| {
        // An upgrade, and back again.
        another_build::exchange(&path)?;
        let told = operated.restart()?;
        ensure!(told.contains("connections and counters go on"), "{told}");
        rounds.pass()?;
        let upgraded = program(&lab)?;
        ensure!(upgraded.tag != first.tag && upgraded.length == first.length, "{first:?} became {upgraded:?}");
        is_exact(&operated, CROWD)?;
        operated.kill_and_start()?;
        rounds.pass()?;
        assert_eq!(program(&lab)?.tag, first.tag);
        is_exact(&operated, CROWD)?;
        assert_eq!(flow.ask()?, server);
        let told = operated.restart()?;
        ensure!(told.contains("connections and counters go on"), "{told}");
        rounds.pass()?;
        is_exact(&operated, CROWD)?;
        // With the code that logs, which the verifier removes elsewhere.
        operated.more = "packet_log = true";
        operated.write(&servers)?;
        operated.restart()?;
        rounds.pass()?;
        let second = program(&lab)?;
        ensure!(second.length > first.length && second.id != first.id, "{first:?} was replaced by {second:?}");
        is_exact(&operated, CROWD)?;
        operated.more = "";
        operated.write(&servers)?;
        operated.kill_and_start()?;
        rounds.pass()?;
        is_exact(&operated, CROWD)
    })?;
    assert_eq!(crowd.ended(), [].into());
    assert_eq!(crowd.servers(), quarters);
    assert_eq!(newcomers(&lab, target, 8)?, each(&[1, 2, 3, 4].map(|number| (number, 2))));
    // A persistent client, and statistics, since the first of all these daemons.
    assert_eq!(flow.ask()?, server);
    let status = operated.daemon.status()?;
    ensure!(status["adopted"] == true, "{status:#}");
    let of_tcp = status["virtual_servers"].as_array().into_iter().flatten().find(|server| server["protocol"] == "tcp");
    let made = &of_tcp.context("no tcp")?["counters"]["connections"];
    assert_eq!(made, CROWD + 8);
    operated.stop()
}

/// The program on the director's interface.
#[derive(Debug)]
struct Program {
    id: u64,
    /// The kernel's digest of its instructions, as they were loaded.
    tag: String,
    /// Bytes of instructions that the verifier has left of it.
    length: u64,
}

fn program(lab: &Lab) -> Result<Program> {
    let link = lab.director().ip("-d link show dev eth0")?;
    let id =
        link.split("prog/xdp id ").nth(1).and_then(|rest| rest.split(' ').next()).context(link.clone())?.to_owned();
    let shown: Value = serde_json::from_str(&Cmd::new("bpftool").args(["-j", "prog", "show", "id", &id]).run()?)?;
    let tag = shown["tag"].as_str().context("no tag")?.to_owned();
    Ok(Program { id: id.parse()?, tag, length: shown["bytes_xlated"].as_u64().context("no size")? })
}

/// The table holds `count` established TCP connections, and the counters say so.
pub fn is_exact(operated: &Operated<'_>, count: usize) -> Result<()> {
    let counted: Value =
        serde_json::from_str(&operated.does(&["connections", "--count", "--json", "--protocol", "tcp"])?)?;
    assert_eq!(counted["active"], count, "{counted:#}");
    let by_real_server = |source: &Value| -> Vec<(String, u64)> {
        let servers = source["virtual_servers"].as_array().into_iter().flatten();
        let reals =
            servers.filter(|server| server["protocol"] == "tcp").flat_map(|server| server["real_servers"].as_array());
        let one = |real: &Value| (real["address"].to_string(), real["active"].as_u64().unwrap_or(0));
        reals.flatten().map(one).filter(|(_, active)| *active != 0).collect()
    };
    let status = operated.daemon.status()?;
    let told = by_real_server(&status);
    assert_eq!(told.iter().map(|(_, active)| active).sum::<u64>(), count as u64, "{status:#}");
    assert_eq!(by_real_server(&counted), told);
    assert_eq!(status["connection_table"]["repaired"], 0, "{status:#}");
    Ok(())
}

#[test]
fn another_connections_max_begins_anew_and_says_how_many_are_lost() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let servers = [Server::tcp(ECHO4).reals([1, 2])];
    let mut operated = Operated::start(&lab, &servers)?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 60)?;
    crowd.talk()?;
    operated.connections_max = 100_000;
    operated.write(&servers)?;
    operated.kill_and_start()?;
    let log = operated.daemon.process.log();
    for words in ["xdp.connections_max was 65536, is 100000", "these connections are lost connections=60"] {
        ensure!(log.contains(words), "{words:?} is not in {log}");
    }
    ensure!(operated.daemon.status()?["adopted"] == false);
    // No other warning: nothing else is wrong.
    crowd.talk()?;
    assert_eq!(crowd.ended().values().sum::<usize>(), 60);
    assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(1, 2), (2, 2)]));
    operated.stop()
}

/// What is configured anew while no daemon runs is as after a reload.
#[test]
fn what_has_changed_meanwhile_is_as_after_a_reload() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let _echoes = (echoes(&lab, ECHO)?, echoes(&lab, 8)?);
    let tcp = Server::tcp(ECHO4);
    let other = Server::tcp((address::VIP4, 8)).reals([2]);
    let mut operated = Operated::start(&lab, &[tcp.clone().reals([1, 2]), other])?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 20)?;
    while_talking(&mut crowd, |rounds| {
        // A real server goes and keeps its connections, another comes; a virtual server goes, another comes.
        let more = Server::tcp((address::VIP4, 9)).reals([1, 2, 3]);
        operated.write(&[tcp.clone().reals([1, 3]), more])?;
        operated.kill_and_start()?;
        rounds.pass()
    })?;
    assert_eq!(crowd.ended(), [].into());
    assert_eq!(crowd.servers(), each(&[(1, 10), (2, 10)]));
    let removed = operated.real(&tcp, 2)?;
    assert_eq!((&removed["role"], &removed["active"]), (&"removed".into(), &10.into()), "{removed:#}");
    assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(1, 2), (3, 2)]));
    assert_eq!(operated.daemon.status()?["virtual_servers"].as_array().map(Vec::len), Some(2));
    // It is still removed for the next one, and gives up its place with its last connection.
    operated.kill_and_start()?;
    assert_eq!(operated.real(&tcp, 2)?["role"], "removed");
    crowd.talk()?;
    assert_eq!(crowd.ended(), [].into());
    operated.stop()
}

/// A daemon is killed again and again while it changes everything; nobody notices.
#[test]
fn connections_outlast_daemons_that_are_killed_in_the_middle_of_a_reload() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let held = Server::tcp(ECHO4);
    let many = |count: u16| (0..count).map(|n| Server::tcp((address::VIP4, 1000 + n)).reals([1, 2, 3]));
    let with = |server: Server, count| -> Vec<Server> { std::iter::once(server).chain(many(count)).collect() };
    let small = with(held.clone().reals([1, 2]), 2);
    let large = with(held.clone().reals([1, 2, 3]).key("scheduler = \"wlc\""), 60);
    // The first one makes the tables large enough for all.
    let mut operated = Operated::start(&lab, &large)?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 60)?;
    while_talking(&mut crowd, |rounds| {
        for turn in 0..12_u64 {
            let servers = if turn % 2 == 0 { &small } else { &large };
            operated.write(servers)?;
            operated.daemon.process.signal(nix::sys::signal::Signal::SIGHUP)?;
            // Somewhere in it: a reload takes some ten milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(turn * 4));
            operated.kill_and_start()?;
            rounds.pass()?;
        }
        Ok(())
    })?;
    assert_eq!(crowd.ended(), [].into());
    assert_eq!(crowd.servers(), each(&[(1, 20), (2, 20), (3, 20)]));
    wait_until("exact counters", || Ok(operated.connections(&held, 3)? == [(20, 0); 3]))?;
    operated.stop()
}

#[test]
fn maps_of_another_version_or_of_nobody_are_named_and_made_anew() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let servers = [Server::tcp(ECHO4).reals([1, 2])];
    let mut operated = Operated::start(&lab, &servers)?;
    let pins = operated.daemon.setup.pin_folder();
    type Spoil<'a> = &'a dyn Fn(&Path) -> Result<()>;
    let spoil: [(&str, Spoil<'_>); 4] = [
        ("the maps have layout version 255, this one needs", &|pins| {
            update(&pins.join("abi_version"), &["255", "0", "0", "0"])
        }),
        ("map reject_budget is another one than the daemon had made", &|pins| {
            exchange(&pins.join("reject_budget"), "percpu_array", 8, 2)
        }),
        ("map lookups has 8 bytes a value, needed are 64", &|pins| exchange(&pins.join("lookups"), "array", 8, 1)),
        ("map real_servers holds forwarding method 33686018", &|pins| {
            let twos = vec!["2"; 128];
            update(&pins.join("real_servers"), &twos)
        }),
    ];
    for (words, spoil) in spoil {
        operated.daemon.process.kill9()?;
        spoil(&pins)?;
        operated.kill_and_start()?;
        let log = operated.daemon.process.log();
        ensure!(log.contains(words), "{words:?} is not in {log}");
        ensure!(operated.daemon.status()?["adopted"] == false, "{words}");
        assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(1, 2), (2, 2)]), "{words}");
    }
    // And what it has made is adopted again.
    operated.kill_and_start()?;
    ensure!(operated.daemon.status()?["adopted"] == true);
    operated.stop()
}

/// Another value for the first element of a pinned array.
fn update(map: &Path, value: &[&str]) -> Result<()> {
    let map = map.to_string_lossy();
    Cmd::new("bpftool")
        .args(["map", "update", "pinned", &map, "key", "0", "0", "0", "0", "value"])
        .args(value)
        .run()?;
    Ok(())
}

/// Another map under the same name.
fn exchange(map: &Path, kind: &str, value: u32, entries: u32) -> Result<()> {
    std::fs::remove_file(map)?;
    let (map, value, entries) = (map.to_string_lossy(), value.to_string(), entries.to_string());
    let sizes = ["key", "4", "value", &value, "entries", &entries, "name", "foreign"];
    Cmd::new("bpftool").args(["map", "create", &map, "type", kind]).args(sizes).limit(PATIENCE).run()?;
    Ok(())
}
