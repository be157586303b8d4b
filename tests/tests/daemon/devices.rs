//! Devices that are made of others: VLANs, bonds, bridges, macvlans, tunnels. Where the kernel has none of a kind, its test is
//! skipped; the kernels of `cargo xtask test --vm` have all of them.

use anyhow::Result;
use evenkeel_tests::lab::{Forwarding, Lab, Namespace, SshLike, Uplink, address, available, has_modules};

use crate::director::{Daemon, PATIENCE, Setup, run, wait_until};
use crate::refusals::refused;
use crate::serving::serves_all;

/// A lab with three real servers on this uplink; `None`, with a word why, where it can't be made.
fn lab(forwarding: Forwarding, uplink: Uplink) -> Result<Option<Lab>> {
    if !available() || !has_modules(uplink.modules()) {
        return Ok(None);
    }
    Lab::builder().real_servers(3).forwarding(forwarding).uplink(uplink).build().map(Some)
}

fn with_mode(lab: &Lab, mode: &'static str) -> Setup {
    Setup { mode, ..Setup::of(lab) }
}

/// Whether `ethtool -k` shows the feature as on.
fn is_on(namespace: &Namespace, interface: &str, feature: &str) -> Result<bool> {
    let features = namespace.command("ethtool")?.args(["-k", interface]).run()?;
    Ok(features.lines().any(|line| line.trim().starts_with(&format!("{feature}: on"))))
}

/// A tunnel lab whose real servers have the kernel's devices.
fn lab_with_tunnel_devices() -> Result<Option<Lab>> {
    if !available() || !has_modules(&["ipip", "ip6_tunnel"]) {
        return Ok(None);
    }
    let lab = Lab::builder().real_servers(3).forwarding(Forwarding::Tunnel).build()?;
    for real in lab.real_servers() {
        let (v4, v6) = (real.address4(), real.address6());
        real.namespace().ip_batch(&[
            format!("link add name unwrap4 type ipip local {v4} remote any"),
            "link set unwrap4 up".to_owned(),
            format!("link add name unwrap6 type ip6tnl mode ip6ip6 local {v6} remote any"),
            "link set unwrap6 up".to_owned(),
        ])?;
    }
    Ok(Some(lab))
}

#[test]
fn the_kernels_tunnel_devices_unwrap_requests() -> Result<()> {
    let Some(lab) = lab_with_tunnel_devices()? else { return Ok(()) };
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    daemon.wait_for_next_hops("resolved")?;
    for url in ["http://10.77.0.100/", "http://[fd77::100]/"] {
        let mut answers = lab.client().fetch(url, 3)?;
        answers.sort_unstable();
        assert_eq!(answers, ["real1", "real2", "real3"]);
    }
    daemon.stop()
}

#[test]
fn the_kernels_tunnel_devices_unwrap_all_that_tun_sends() -> Result<()> {
    let Some(lab) = lab_with_tunnel_devices()? else { return Ok(()) };
    serves_all(&lab, Setup::of(&lab), "native")
}

#[test]
fn a_vlan_device_is_served_in_generic_mode() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Uplink::Vlan)? else { return Ok(()) };
    refused(
        &lab,
        &with_mode(&lab, "native"),
        &["interface eth0.5 takes no XDP program in native mode", "after the kernel has taken the tag off", "\"auto\""],
    )?;
    lab.director().command("ethtool")?.args(["-K", "eth0", "gro", "on"]).run()?;
    let mut daemon = Daemon::start(&lab, with_mode(&lab, "auto"))?;
    // What the parent merged would come to the program as one packet.
    assert!(!is_on(lab.director(), "eth0", "generic-receive-offload")?, "{}", daemon.process.log());
    daemon.stop()?;
    assert!(is_on(lab.director(), "eth0", "generic-receive-offload")?, "{}", daemon.process.log());
    serves_all(&lab, with_mode(&lab, "auto"), "generic")
}

#[test]
fn a_vlan_in_a_vlan_is_served_in_generic_mode() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Uplink::Qinq)? else { return Ok(()) };
    serves_all(&lab, with_mode(&lab, "generic"), "generic")
}

#[test]
fn a_macvlan_is_served_in_generic_mode() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Uplink::MacVlan)? else { return Ok(()) };
    serves_all(&lab, with_mode(&lab, "auto"), "generic")
}

#[test]
fn a_bond_is_served_in_native_mode_by_whichever_slave() -> Result<()> {
    for forwarding in [Forwarding::Nat, Forwarding::Direct] {
        let Some(lab) = lab(forwarding, Uplink::Bond)? else { return Ok(()) };
        refused(
            &lab,
            &Setup { interfaces: vec!["eth0".to_owned()], ..Setup::of(&lab) },
            &["interface eth0 is a part of bond0", "list bond0 in xdp.interfaces instead"],
        )?;
        let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
        daemon.wait_for_next_hops("resolved")?;
        for slave in ["eth0", "eth1"] {
            let other = if slave == "eth0" { "eth1" } else { "eth0" };
            lab.director().ip(&format!("link set {slave} up"))?;
            lab.director().ip(&format!("link set {other} down"))?;
            let active = || Ok(lab.director().ip("-d link show bond0")?.contains(&format!("active_slave {slave}")));
            wait_until("the other slave", active)?;
            for url in ["http://10.77.0.100/", "http://[fd77::100]/"] {
                let answers = lab.client().fetch(url, 30)?;
                assert_eq!(answers.iter().filter(|answer| *answer == "real1").count(), 10, "{forwarding:?} {slave}");
            }
        }
        let status = daemon.status()?;
        assert_eq!(status["interfaces"][0]["mode"], "native");
        daemon.stop()?;
    }
    Ok(())
}

#[test]
fn a_bond_is_served_as_any_interface() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Uplink::Bond)? else { return Ok(()) };
    serves_all(&lab, Setup::of(&lab), "native")
}

/// VLAN 5 beside the lab's network, between client and director; the director's cable carries tags in the frames, as a
/// real one does.
fn add_vlan(lab: &Lab) -> Result<()> {
    lab.switch().command("ethtool")?.args(["-K", "director", "tx-vlan-offload", "off"]).run()?;
    for (host, address) in [(lab.client(), "10.78.0.10/24"), (lab.director(), "10.78.0.1/24")] {
        host.ip_batch(&[
            "link add link eth0 name eth0.5 type vlan id 5".to_owned(),
            "link set eth0.5 up".to_owned(),
            format!("addr add {address} dev eth0.5"),
        ])?;
    }
    Ok(())
}

#[test]
fn frames_of_a_vlan_on_a_listed_device_are_not_its_own() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Uplink::Plain)?.filter(|_| has_modules(Uplink::Vlan.modules())) else {
        return Ok(());
    };
    add_vlan(&lab)?;
    let _host = SshLike::start(lab.director(), (address::VIP4, 80).into())?;
    let setup = Setup::of(&lab);
    let mut daemon = Daemon::start(&lab, setup.clone())?;
    daemon.wait_for_next_hops("resolved")?;
    assert!(!is_on(lab.director(), "eth0", "rx-vlan-offload")?, "{}", daemon.process.log());
    assert_eq!(lab.client().fetch("http://10.77.0.100/", 3)?.len(), 3);
    // The same address by the VLAN: that is the host's, and its answer is no HTTP.
    lab.client().ip("route add 10.77.0.100/32 via 10.78.0.1 dev eth0.5")?;
    let heard = lab.client().talk((address::VIP4, 80).into(), &["one"], PATIENCE)?;
    assert_eq!(heard[1..], ["one"]);
    daemon.stop()?;
    assert!(is_on(lab.director(), "eth0", "rx-vlan-offload")?, "not restored");

    let mut daemon = Daemon::start(&lab, setup.clone())?;
    daemon.process.kill9()?;
    assert!(!is_on(lab.director(), "eth0", "rx-vlan-offload")?);
    let file = setup.write(&lab)?;
    let cleaned = run(&lab, &["cleanup", "--config", &file.to_string_lossy()])?;
    assert!(cleaned.status.success(), "{}", cleaned.stderr);
    assert!(is_on(lab.director(), "eth0", "rx-vlan-offload")?, "not restored: {}", cleaned.stderr);
    Ok(())
}

#[test]
fn a_vlan_that_comes_later_is_heeded() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Uplink::Plain)?.filter(|_| has_modules(Uplink::Vlan.modules())) else {
        return Ok(());
    };
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    assert!(is_on(lab.director(), "eth0", "rx-vlan-offload")?);
    add_vlan(&lab)?;
    wait_until("the offload", || Ok(!is_on(lab.director(), "eth0", "rx-vlan-offload")?))?;
    daemon.stop()?;
    assert!(is_on(lab.director(), "eth0", "rx-vlan-offload")?, "not restored");
    Ok(())
}

#[test]
fn a_bridge_and_its_port_are_refused() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Uplink::Plain)? else { return Ok(()) };
    lab.director().ip("link add br9 type bridge")?;
    lab.director().ip("link add name port9 type veth peer name peer9")?;
    lab.director().ip("link set port9 master br9")?;
    let way_out = "an end of a veth pair whose other end is a port of the bridge";
    for mode in ["native", "auto", "generic"] {
        for (interface, what) in [("br9", "br9 is a bridge"), ("port9", "port9 is a port of bridge br9")] {
            let setup = Setup { interfaces: vec![interface.to_owned()], ..with_mode(&lab, mode) };
            refused(&lab, &setup, &[what, way_out])?;
        }
    }
    Ok(())
}
