//! Next hops are kept fresh, and where they are not known the routing table serves.

use anyhow::{Result, ensure};
use evenkeel_tests::lab::{Arms, Forwarding};
use nix::sys::signal::Signal;

use crate::director::{Daemon, Setup, lab, lab_of, wait_until};

#[test]
fn a_real_server_with_a_new_ethernet_address_is_followed() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    daemon.wait_for_next_hops("resolved")?;
    let mac = "02:00:00:00:77:01";
    let real = lab.real(1).namespace();
    real.ip("link set eth0 down")?;
    real.ip(&format!("link set eth0 address {mac}"))?;
    real.ip("link set eth0 up")?;
    real.ip("route replace 10.77.0.0/24 dev eth0")?;
    // As a replaced machine does: it speaks, and the director's kernel learns.
    real.ping([10, 77, 1, 1].into(), 1)?;
    wait_until("the new address in the status", || Ok(daemon.status()?.to_string().contains(mac)))?;
    let bodies = lab.client().fetch("http://10.77.0.100/", 6)?;
    assert_eq!(bodies.iter().filter(|body| *body == "real1").count(), 2);
    daemon.stop()
}

#[test]
fn flushed_neighbours_are_managed_again() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    daemon.wait_for_next_hops("resolved")?;
    lab.director().ip("neigh flush dev eth0")?;
    wait_until("six managed neighbours", || {
        let neighbours = lab.director().ip("neigh show dev eth0")?;
        Ok(neighbours.lines().filter(|line| line.contains("managed") && line.contains("lladdr")).count() == 6)
    })?;
    daemon.wait_for_next_hops("resolved")?;
    assert_eq!(lab.client().fetch("http://10.77.0.100/", 6)?.len(), 6);
    daemon.stop()
}

#[test]
fn with_the_daemon_stopped_the_routing_table_finds_a_server_that_came_up_late() -> Result<()> {
    let Some(lab) = lab_of(1, Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let real = lab.real(1).namespace();
    real.ip("link set eth0 down")?;
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    ensure!(daemon.status()?["virtual_servers"][0]["real_servers"][0]["next_hop"]["state"] == "unresolved");
    // From here on nothing writes next hops; only bpf_fib_lookup can know the way.
    daemon.process.signal(Signal::SIGSTOP)?;
    real.ip("link set eth0 up")?;
    real.ip("route replace default via 10.77.1.1")?;
    wait_until("the server to answer the director", || Ok(lab.director().ping([10, 77, 1, 11].into(), 1).is_ok()))?;
    assert_eq!(lab.client().fetch("http://10.77.0.100/", 3)?, ["real1"; 3]);
    daemon.process.signal(Signal::SIGCONT)?;
    wait_until("the next hop", || {
        Ok(daemon.status()?["virtual_servers"][0]["real_servers"][0]["next_hop"]["state"] == "resolved")
    })?;
    daemon.stop()
}
