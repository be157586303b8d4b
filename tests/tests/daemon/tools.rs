//! What operators look at: status, bpftool, the packet log, check.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{Arms, Cmd, Forwarding};
use serde_json::Value;

use crate::director::{Daemon, PATIENCE, Setup, evenkeel, lab, run, wait_until};

/// `bpftool map dump pinned`, as data.
fn dump(setup: &Setup, map: &str) -> Result<Value> {
    let path = setup.pin_folder().join(map);
    let arguments = ["-j", "map", "dump", "pinned"];
    let text = Cmd::new("bpftool").args(arguments).arg(path).limit(PATIENCE).run()?;
    serde_json::from_str(&text).context("bpftool printed no JSON")
}

#[test]
fn bpftool_prints_names_and_addresses_that_people_can_read() -> Result<()> {
    let Some(lab) = lab(Forwarding::Tunnel, Arms::One)? else { return Ok(()) };
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
    // As an operator types it, over this map alone. Twelve real servers, and the places that there are at least.
    let plain = Cmd::new("bpftool").args(["map", "dump", "pinned"]).arg(daemon.setup.pin_folder().join("real_servers"));
    let plain = plain.limit(PATIENCE).run()?;
    assert_eq!(plain.matches("\"forwarding\": \"Tun\"").count(), 12);
    assert_eq!(plain.matches("\"key\":").count(), 256);
    daemon.stop()
}

#[test]
fn status_shows_the_same_as_a_table_and_its_socket_is_for_owner_and_group() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
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
fn a_program_that_somebody_detaches_shows_in_the_status() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    let links = lab.director().ip("-j -d link show dev eth0")?;
    let links: Value = serde_json::from_str(&links)?;
    let program = links[0]["xdp"]["prog"]["id"].as_u64().context("eth0 has no program")?;
    let all = Cmd::new("bpftool").args(["-j", "link", "show"]).limit(PATIENCE).run()?;
    let all: Value = serde_json::from_str(&all)?;
    let ours = all.as_array().into_iter().flatten().find(|link| link["prog_id"] == program).context("no link")?;
    Cmd::new("bpftool").args(["link", "detach", "id", &ours["id"].to_string()]).limit(PATIENCE).run()?;
    // Detaching tells nobody; the next round of looking does.
    lab.director().ip("address add 10.77.200.1/32 dev lo")?;
    wait_until("the status", || Ok(daemon.status()?["interfaces"][0]["mode"] == "detached"))?;
    daemon.process.wait_for_log("the XDP program is not attached", PATIENCE)?;
    daemon.stop()
}

#[test]
fn the_packet_log_tells_of_each_request() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let mut daemon = Daemon::start(&lab, Setup { xdp: "packet_log = true".to_owned(), ..Setup::of(&lab) })?;
    lab.client().fetch("http://10.77.0.100/", 1)?;
    daemon.process.wait_for_log("-> 10.77.0.100:80 to real server 0", PATIENCE)?;
    lab.client().fetch("http://[fd77::100]/", 1)?;
    daemon.process.wait_for_log("-> [fd77::100]:80 to real server", PATIENCE)?;
    ensure!(daemon.process.log().contains("tcp 10.77.0.10:"), "{}", daemon.process.log());
    daemon.stop()
}

#[test]
fn check_needs_no_root_and_tells_by_its_exit_code() -> Result<()> {
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
    // Where another user may not look, copies are needed.
    let here = |name: &str| directory.path().join(name);
    std::fs::copy(evenkeel(), here("evenkeel"))?;
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/full.toml"), here("full.toml"))?;
    std::fs::write(here("bad.toml"), "[xdp]\ninterfaces = []\n")?;
    for (file, code) in [("full.toml", 0), ("missing.toml", 1), ("bad.toml", 2)] {
        let check = Cmd::new("setpriv").args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        let end = check.arg(here("evenkeel")).arg("check").arg(here(file)).limit(PATIENCE).finish()?;
        assert_eq!(end.status.code(), Some(code), "{file}: {}", end.stderr);
    }
    Ok(())
}
