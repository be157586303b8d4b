//! What the daemon refuses, in words, before it touches anything.

use anyhow::{Result, ensure};
use evenkeel_tests::lab::{Arms, Forwarding, Lab};

use crate::director::{Daemon, Setup, evenkeel, footprint, lab, run};

/// Runs the daemon, which must fail with all of `words`, and leave everything as it was.
pub fn refused(lab: &Lab, setup: &Setup, words: &[&str]) -> Result<()> {
    let before = footprint(lab, setup)?;
    let file = setup.write(lab)?;
    let end = run(lab, &["run", "--config", &file.to_string_lossy()])?;
    ensure!(end.status.code() == Some(1), "exit {:?}: {}", end.status.code(), end.stderr);
    for word in words {
        ensure!(end.stderr.contains(word), "{word:?} is not in:\n{}", end.stderr);
    }
    assert_eq!(footprint(lab, setup)?, before, "{}", end.stderr);
    Ok(())
}

#[test]
fn another_program_on_the_hook_is_named_and_stays() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::Two)? else { return Ok(()) };
    let mut other = std::process::Command::new(evenkeel());
    other.args(["decap", "--interface", "eth1", "--vip", "10.77.9.9"]);
    let mut other = lab.start(lab.director(), "other", other)?;
    other.wait_for_log("unwrapping for", crate::director::PATIENCE)?;
    // eth0 is free: nothing may stay on it because of eth1.
    refused(&lab, &Setup::of(&lab), &["interface eth1", "\"decapsulate\"", "bpftool link detach id"])?;
    let links = lab.director().ip("-o link show")?;
    ensure!(links.lines().any(|line| line.contains("eth1") && line.contains("xdp")), "{links}");
    ensure!(!links.lines().any(|line| line.contains("eth0") && line.contains("xdp")), "{links}");
    Ok(())
}

#[test]
fn a_device_without_native_xdp_is_refused_or_taken_in_generic_mode() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    lab.director().ip("link add link eth0 name mac9 type macvlan")?;
    lab.director().ip("link set mac9 up")?;
    let interfaces = vec!["eth0".to_owned(), "mac9".to_owned()];
    let setup = Setup { interfaces, ..Setup::of(&lab) };
    refused(
        &lab,
        &setup,
        &["interface mac9 takes no XDP program in native mode", "a macvlan gets", "xdp.mode = \"auto\""],
    )?;

    let mut daemon = Daemon::start(&lab, Setup { mode: "auto", ..setup })?;
    let status = daemon.status()?;
    // Frames cannot go from a native interface to a generic one, so one makes both generic.
    assert_eq!(status["interfaces"][0]["mode"], "generic");
    assert_eq!(status["interfaces"][1]["mode"], "generic");
    ensure!(daemon.process.log().contains("taking the slower generic mode"), "{}", daemon.process.log());
    assert_eq!(lab.client().fetch("http://10.77.0.100/", 3)?.len(), 3);
    daemon.stop()
}

#[test]
fn interfaces_that_are_not_there_or_not_ethernet_are_named_together() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let interfaces = vec!["eth7".to_owned(), "lo".to_owned()];
    let words = ["interface eth7 does not exist; there are lo, eth0", "interface lo does not carry Ethernet"];
    refused(&lab, &Setup { interfaces, ..Setup::of(&lab) }, &words)
}

#[test]
fn a_real_server_on_the_director_is_refused() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let mut setup = Setup::of(&lab);
    setup.real_servers.push([10, 77, 1, 1].into());
    refused(&lab, &setup, &["real server 10.77.1.1:80", "address of this host"])
}

#[test]
fn nat_replies_that_would_miss_the_program_are_refused() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::Two)? else { return Ok(()) };
    let setup = Setup { interfaces: vec!["eth0".to_owned()], ..Setup::of(&lab) };
    refused(&lab, &setup, &["10.77.1.11:80", "reached by interface eth1", "add \"eth1\" to xdp.interfaces"])
}

#[test]
fn direct_routing_through_a_router_is_refused() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    lab.director().ip("route add 10.99.0.0/24 via 10.77.1.12")?;
    let mut setup = Setup::of(&lab);
    setup.real_servers.retain(|real| real.is_ipv6());
    setup.real_servers.push([10, 99, 0, 1].into());
    refused(&lab, &setup, &["dr real server 10.99.0.1:80", "behind router 10.77.1.12", "use tun or nat"])?;

    // Beside one that can be reached it is warned of, and the next in turn takes what is scheduled to it.
    setup.real_servers.push(lab.real(1).address4().into());
    let mut daemon = Daemon::start(&lab, setup)?;
    ensure!(daemon.process.log().contains("behind router 10.77.1.12"), "{}", daemon.process.log());
    let answers = lab.client().try_fetch("http://10.77.0.100/", 2)?;
    assert_eq!(answers, [Ok("real1".to_owned()), Ok("real1".to_owned())]);
    let status = daemon.status()?;
    assert_eq!(status["drops"]["no_route"], 0, "{:#}", status["drops"]);
    ensure!(status.to_string().contains("behind a router, unfit for dr"), "{status:#}");
    daemon.stop()
}

#[test]
fn what_somebody_else_has_pinned_is_refused_and_stays() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let setup = Setup::of(&lab);
    let foreign = setup.pin_folder().join("theirs");
    std::fs::create_dir_all(&foreign)?;
    let words = ["theirs, which is not Evenkeel's and stays", "choose another xdp.pin_directory"];
    refused(&lab, &setup, &words)?;
    let file = setup.write(&lab)?;
    let cleaned = run(&lab, &["cleanup", "--config", &file.to_string_lossy()])?;
    ensure!(cleaned.status.code() == Some(1) && cleaned.stderr.contains(words[0]), "{}", cleaned.stderr);
    ensure!(foreign.exists(), "it is gone");
    Ok(())
}

#[test]
fn a_pin_directory_that_is_no_bpf_file_system_is_refused() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let setup = Setup { pins: lab.directory().join("plain"), ..Setup::of(&lab) };
    refused(&lab, &setup, &["is not on a BPF file system", "mount -t bpf bpf /sys/fs/bpf"])
}

#[test]
fn without_capabilities_the_missing_one_is_named() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let file = Setup::of(&lab).write(&lab)?;
    let drop = ["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--", "sh", "-c"];
    let script = format!("exec {} run --config {}", evenkeel().display(), file.display());
    let end = lab.director().command("setpriv")?.args(drop).arg(script).finish()?;
    ensure!(end.status.code() == Some(1), "{}", end.stderr);
    ensure!(end.stderr.contains("CAP_NET_ADMIN") && end.stderr.contains("run as root"), "{}", end.stderr);
    Ok(())
}

#[test]
fn a_vip_that_nobody_has_and_forwarding_switched_off_are_warned_of() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    lab.director().ip("address del 10.77.0.100/32 dev eth0")?;
    lab.director().sysctl("ipv4/ip_forward", "0")?;
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    let log = daemon.process.log();
    ensure!(log.contains("no interface here has VIP 10.77.0.100") && log.contains("ip address add"), "{log}");
    ensure!(log.contains("net.ipv4.conf.eth0.forwarding is 0"), "{log}");
    // Without forwarding, replies go back to where the request came from.
    lab.client().ip("route add 10.77.0.100/32 via 10.77.0.1")?;
    assert_eq!(lab.client().fetch("http://10.77.0.100/", 3)?.len(), 3);
    daemon.stop()
}
