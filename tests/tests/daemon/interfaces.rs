//! Interfaces that come, go and change their mode, while the daemon runs or another takes its place.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{Arms, Crowd, Forwarding, Lab};
use serde_json::Value;

use crate::director::{Daemon, PATIENCE, lab, wait_until};
use crate::operated::{ECHO, ECHO4, Operated, Server, each, echoes, newcomers, while_talking};

/// Another interface of the director, that leads nowhere.
fn add_interface(lab: &Lab, name: &str) -> Result<()> {
    lab.director().ip_batch(&[
        format!("link add name {name} type veth peer name {name}-peer"),
        format!("link set {name} up"),
        format!("link set {name}-peer up"),
    ])
}

/// The mode of each interface, by the status.
fn modes(daemon: &Daemon) -> Result<BTreeMap<String, String>> {
    let status = daemon.status()?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    let interfaces = status["interfaces"].as_array().into_iter().flatten();
    interfaces.map(|interface| Ok((text(&interface["name"])?, text(&interface["mode"])?))).collect()
}

fn all(mode: &str, names: &[&str]) -> BTreeMap<String, String> {
    names.iter().map(|name| ((*name).to_owned(), mode.to_owned())).collect()
}

/// How many links are pinned.
fn links(operated: &Operated<'_>) -> Result<usize> {
    let entries = fs::read_dir(operated.daemon.setup.pin_folder())?.collect::<std::io::Result<Vec<_>>>()?;
    Ok(entries.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with("link_")).count())
}

#[test]
fn interfaces_that_come_and_go_with_a_restart_cost_no_connection() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::Two)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let servers = [Server::tcp(ECHO4).reals([1, 2])];
    add_interface(&lab, "more")?;
    add_interface(&lab, "other")?;
    let mut operated = Operated::start(&lab, &servers)?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 40)?;
    while_talking(&mut crowd, |rounds| {
        let steps: [(&[&str], bool); 4] = [
            (&["eth0", "eth1", "more"], false),
            (&["eth0", "other", "eth1"], true),
            (&["eth0", "eth1", "other", "more"], true),
            (&["eth1", "eth0"], false),
        ];
        for (interfaces, is_killed) in steps {
            operated.daemon.setup.interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
            operated.write(&servers)?;
            if is_killed {
                operated.kill_and_start()?;
            } else {
                let told = operated.restart()?;
                ensure!(told.contains("connections and counters go on"), "{told}");
            }
            assert_eq!(modes(&operated.daemon)?, all("native", interfaces));
            assert_eq!(links(&operated)?, interfaces.len());
            rounds.pass()?;
        }
        Ok(())
    })?;
    assert_eq!(crowd.ended(), BTreeMap::new());
    for left in ["more", "other"] {
        ensure!(!lab.director().ip(&format!("link show dev {left}"))?.contains("xdp"), "{left} has a program");
    }
    operated.stop()
}

#[test]
fn another_mode_is_a_gap_that_is_told() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let servers = [Server::tcp(ECHO4).reals([1, 2])];
    let mut operated = Operated::start(&lab, &servers)?;
    for mode in ["generic", "native"] {
        operated.daemon.setup.mode = mode;
        operated.write(&servers)?;
        let end = operated.finish(&["restart"])?;
        let told = String::from_utf8_lossy(&end.stdout).into_owned();
        ensure!(end.status.success() && told.contains("with the tables as they were"), "{told}{}", end.stderr);
        ensure!(end.stderr.contains("XDP has changed its mode on eth0"), "{}", end.stderr);
        operated.succeed(&told)?;
        assert_eq!(modes(&operated.daemon)?, all(mode, &["eth0"]));
        assert_eq!(links(&operated)?, 1);
    }
    assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(1, 2), (2, 2)]));
    operated.stop()
}

#[test]
fn an_interface_that_is_made_again_is_served_again() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::Two)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let servers = [Server::tcp(ECHO4).reals([1, 2])];
    let mut operated = Operated::start(&lab, &servers)?;
    let shown: Value = serde_json::from_str(&lab.director().ip("-j link show dev eth1")?)?;
    let mac = shown[0]["address"].as_str().context("eth1 has no address")?.to_owned();
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 10)?;
    let mut ports = Vec::new();
    for _ in 0..2 {
        lab.director().ip("link delete dev eth1")?;
        let state = || Ok(modes(&operated.daemon)?["eth1"] == "detached" && links(&operated)? == 1);
        wait_until("the interface's end", state)?;
        ports.push(lab.make_server_interface_again(&mac)?);
        wait_until("the program", || Ok(modes(&operated.daemon)? == all("native", &["eth0", "eth1"])))?;
        assert_eq!(links(&operated)?, 2);
        wait_until("the next hops", || Ok(!operated.daemon.status()?.to_string().contains("\"unresolved\"")))?;
        assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(1, 2), (2, 2)]));
    }
    for words in ["the interface is gone", "XDP program attached again"] {
        operated.daemon.process.wait_for_log(words, PATIENCE)?;
    }
    crowd.talk()?;
    assert_eq!(crowd.ended(), BTreeMap::new());
    operated.restart()?;
    crowd.talk()?;
    assert_eq!(crowd.ended(), BTreeMap::new());
    operated.stop()
}
