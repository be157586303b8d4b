//! What does not fit into one frame of 1500 bytes: datagrams in fragments, and jumbo frames in native mode.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use evenkeel_tests::lab::{Arms, Forwarding, Lab, address, available, file_body};
use serde_json::Value;

use crate::director::{Daemon, Setup, decapsulators, lab, url};

const SECOND: Duration = Duration::from_secs(1);
const FILE: u64 = 20_000_000;

#[test]
fn large_datagrams_arrive_whole_and_are_answered_with_nat() -> Result<()> {
    datagrams_arrive_whole(Forwarding::Nat, Arms::Two)
}

#[test]
fn large_datagrams_arrive_whole_and_are_answered_with_direct_routing() -> Result<()> {
    datagrams_arrive_whole(Forwarding::Direct, Arms::One)
}

#[test]
fn large_datagrams_arrive_whole_and_are_answered_with_tunnelling() -> Result<()> {
    datagrams_arrive_whole(Forwarding::Tunnel, Arms::One)
}

/// 8 and 60 kilobytes, 6 and 41 fragments, each datagram from a port of its own.
fn datagrams_arrive_whole(forwarding: Forwarding, arms: Arms) -> Result<()> {
    let Some(lab) = lab(forwarding, arms)? else { return Ok(()) };
    let _decapsulators = decapsulators(&lab)?;
    leave_room_for_tunnels(&lab, 1500)?;
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    daemon.wait_for_next_hops("resolved")?;
    let sizes = [8_000, 60_000];
    for vip in address::vips() {
        for size in sizes {
            let payload: String = ('a'..='z').cycle().take(size).collect();
            for turn in 0..6 {
                let answer = lab.client().udp_echo((vip, address::UDP_PORT).into(), &payload, 3 * SECOND)?;
                let (server, echoed) = answer.split_at("realN ".len());
                ensure!(echoed == payload, "{size} bytes of {vip}, {turn}: {} came back of {server}", echoed.len());
            }
        }
    }
    let status = daemon.status()?;
    for real in servers(&status, "udp").flat_map(|server| server["real_servers"].as_array().into_iter().flatten()) {
        // Each of them got each size twice, and whole: else it would not have answered.
        assert_eq!(real["counters"]["connections"], 4, "{status:#}");
        ensure!(real["counters"]["packets_in"].as_u64().is_some_and(|packets| packets >= 2 * (6 + 41)), "{status:#}");
        let out = real["counters"]["packets_out"].as_u64().unwrap_or_default();
        ensure!((out >= 2 * (6 + 41)) == (forwarding == Forwarding::Nat), "{status:#}");
    }
    nothing_was_dropped(&status)?;
    daemon.stop()
}

#[test]
fn jumbo_frames_carry_files_with_nat() -> Result<()> {
    jumbo_frames_carry_files(Forwarding::Nat, Arms::Two)
}

#[test]
fn jumbo_frames_carry_files_with_direct_routing() -> Result<()> {
    jumbo_frames_carry_files(Forwarding::Direct, Arms::One)
}

#[test]
fn jumbo_frames_carry_files_with_tunnelling() -> Result<()> {
    jumbo_frames_carry_files(Forwarding::Tunnel, Arms::One)
}

fn jumbo_frames_carry_files(forwarding: Forwarding, arms: Arms) -> Result<()> {
    if !available() {
        return Ok(());
    }
    let lab = Lab::builder().real_servers(2).forwarding(forwarding).arms(arms).mtu(9000).build()?;
    let _decapsulators = decapsulators(&lab)?;
    leave_room_for_tunnels(&lab, 9000)?;
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    daemon.wait_for_next_hops("resolved")?;
    for interface in daemon.status()?["interfaces"].as_array().into_iter().flatten() {
        assert_eq!(interface["mode"], "native");
    }
    for vip in address::vips() {
        let whole = lab.client().download(&url(vip, &format!("file/{FILE}")))?;
        assert_eq!((whole.length, whole.digest), (FILE, file_body(FILE).digest()));
        assert_eq!(lab.client().upload(&url(vip, "digest"), FILE)?, file_body(FILE).digest());
        // In frames of more than one page, which the driver gives in several buffers, and in fragments of that size.
        let payload: String = ('a'..='z').cycle().take(60_000).collect();
        let answer = lab.client().udp_echo(SocketAddr::from((vip, address::UDP_PORT)), &payload, 3 * SECOND)?;
        ensure!(answer.ends_with(&payload), "{} bytes came back", answer.len());
    }
    let status = daemon.status()?;
    for server in servers(&status, "tcp") {
        let number = |name: &str| server["counters"][name].as_u64().unwrap_or_default();
        // Without acknowledgements of the download there are a few thousand packets up.
        ensure!(number("bytes_in") > FILE, "{server:#}");
        if forwarding == Forwarding::Nat {
            ensure!(number("bytes_out") > FILE, "{server:#}");
        }
    }
    let largest = servers(&status, "udp").map(|server| {
        let number = |name: &str| server["counters"][name].as_u64().unwrap_or_default();
        number("bytes_in") / number("packets_in").max(1)
    });
    ensure!(largest.min().is_some_and(|bytes| bytes > 7_000), "{status:#}");
    nothing_was_dropped(&status)?;
    daemon.stop()
}

/// Has the client send packets that still fit into `mtu` with an outer header.
fn leave_room_for_tunnels(lab: &Lab, mtu: u16) -> Result<()> {
    if lab.forwarding() == Forwarding::Tunnel {
        for vip in address::vips() {
            let length = if vip.is_ipv4() { 32 } else { 128 };
            lab.client().ip(&format!("route add {vip}/{length} dev eth0 mtu {}", mtu - 40))?;
        }
    }
    Ok(())
}

fn servers<'a>(status: &'a Value, protocol: &'a str) -> impl Iterator<Item = &'a Value> {
    status["virtual_servers"].as_array().into_iter().flatten().filter(move |server| server["protocol"] == protocol)
}

fn nothing_was_dropped(status: &Value) -> Result<()> {
    for (reason, count) in status["drops"].as_object().into_iter().flatten() {
        ensure!(count == 0, "dropped for {reason}: {:#}", status["drops"]);
    }
    Ok(())
}

/// The director's own large packets, and others' that it routes.
#[test]
fn fragments_of_others_are_undisturbed() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::Two)? else { return Ok(()) };
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    let payload: String = ('a'..='z').cycle().take(30_000).collect();
    let own: [IpAddr; 2] = [address::DIRECTOR4.into(), address::DIRECTOR6.into()];
    for target in own.into_iter().chain(address::vips()) {
        let target = target.to_string();
        let arguments = ["-n", "-c", "2", "-i", "0.05", "-s", "20000", "-W", "1", "-w", "10", &target];
        let printed = lab.client().command("ping")?.args(arguments).limit(15 * SECOND).run()?;
        ensure!(printed.contains(" 0% packet loss"), "{printed}");
    }
    for real in lab.real_servers() {
        for host in [IpAddr::from(real.address4()), real.address6().into()] {
            let echo = lab.client().udp_echo((host, address::UDP_PORT).into(), &payload, 3 * SECOND)?;
            assert_eq!(echo, format!("{} {payload}", real.name()));
        }
    }
    nothing_was_dropped(&daemon.status()?)?;
    daemon.stop()
}
