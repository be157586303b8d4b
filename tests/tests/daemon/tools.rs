//! What operators look at: status, bpftool, the packet log, check.

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{self, Arms, Cmd, Forwarding};
use serde_json::Value;

use crate::director::{Daemon, PATIENCE, Setup, evenkeel, lab, run};

/// `bpftool map dump pinned`, as data; `None` where bpftool is not installed.
fn dump(setup: &Setup, map: &str) -> Result<Value> {
    let path = setup.pin_folder().join(map);
    let arguments = ["-j", "map", "dump", "pinned"];
    let text = Cmd::new("bpftool").args(arguments).arg(path).limit(PATIENCE).run()?;
    serde_json::from_str(&text).context("bpftool printed no JSON")
}

#[test]
fn bpftool_prints_names_and_addresses_that_people_can_read() -> Result<()> {
    if !lab::available() {
        return Ok(());
    }
    let lab = lab(Forwarding::Tunnel, Arms::One)?;
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    daemon.wait_for_next_hops("resolved")?;
    let servers = dump(&daemon.setup, "virtual_servers")?;
    let keys: Vec<&Value> = servers.as_array().into_iter().flatten().map(|entry| &entry["formatted"]["key"]).collect();
    assert_eq!(keys.len(), 4);
    let mapped = serde_json::json!([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 77, 0, 100]);
    ensure!(
        keys.iter()
            .any(|key| { key["vip"]["octets"] == mapped && key["port"]["number"] == 80 && key["protocol"] == "Tcp" }),
        "{servers:#}"
    );
    let first = &dump(&daemon.setup, "real_servers")?[0]["formatted"]["value"];
    assert_eq!(first["address"]["octets"][15], 11, "{first:#}");
    assert_eq!(first["forwarding"], "Tun");
    assert_eq!(first["next_hop"]["state"], "Resolved");
    assert_eq!(first["next_hop"]["mtu"], 1500);
    assert_eq!(first["tunnel_source"]["octets"][15], 1);
    let by_name = Cmd::new("bpftool").args(["map", "dump", "name", "real_servers"]).limit(PATIENCE).run()?;
    ensure!(by_name.contains("\"forwarding\": \"Tun\""), "{}", by_name.get(..2000).unwrap_or(&by_name));
    daemon.stop()
}

#[test]
fn status_shows_the_same_as_a_table_and_its_socket_is_for_owner_and_group() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if !lab::available() {
        return Ok(());
    }
    let lab = lab(Forwarding::Nat, Arms::One)?;
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    lab.client().fetch("http://10.77.0.100/", 3)?;
    let file = daemon.setup.write(&lab)?;
    let table = run(&lab, &["status", "--config", &file.to_string_lossy()])?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    for words in ["instance test", "eth0 (native)", "tcp 10.77.0.100:80", "-> 10.77.1.11:80", "dropped packets: none"] {
        ensure!(table.contains(words), "{words} is not in:\n{table}");
    }
    let mode = std::fs::metadata(daemon.setup.socket())?.permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);
    daemon.stop()?;
    let gone = run(&lab, &["status", "--config", &file.to_string_lossy()])?;
    ensure!(gone.status.code() == Some(1) && gone.stderr.contains("no evenkeel daemon answers"), "{}", gone.stderr);
    Ok(())
}

#[test]
fn the_packet_log_tells_of_each_request_and_is_silent_unless_asked_for() -> Result<()> {
    if !lab::available() {
        return Ok(());
    }
    let lab = lab(Forwarding::Nat, Arms::One)?;
    for (on, setting) in [(true, "packet_log = true"), (false, "")] {
        let mut daemon = Daemon::start(&lab, Setup { xdp: setting.to_owned(), ..Setup::of(&lab) })?;
        lab.client().fetch("http://10.77.0.100/", 1)?;
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(daemon.process.log().contains("to real server"), on, "{}", daemon.process.log());
        daemon.stop()?;
    }
    Ok(())
}

#[test]
fn check_needs_no_root_and_tells_by_its_exit_code() -> Result<()> {
    if !lab::available() {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let bad = directory.path().join("bad.toml");
    std::fs::write(&bad, "[xdp]\ninterfaces = []\n")?;
    let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for (file, code) in [
        (format!("{repository}/configs/full.toml"), 0),
        ("/nonexistent.toml".to_owned(), 1),
        (bad.display().to_string(), 2),
    ] {
        let end = Cmd::new(evenkeel()).args(["check", &file]).limit(PATIENCE).finish()?;
        assert_eq!(end.status.code(), Some(code), "{file}: {}", end.stderr);
    }
    Ok(())
}
