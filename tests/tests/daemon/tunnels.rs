//! Tunnels to real servers of the other family, and where tunnelled packets come from.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{Arms, Forwarding, Lab, address, file_body};
use socket2::{Domain, Protocol, Socket, Type};

use crate::director::{Daemon, PATIENCE, Setup, decapsulators, lab, lab_of, url};

const SECOND: Duration = Duration::from_secs(1);
const FILE: u64 = 20_000_000;

/// The configuration with each real server at its address of the other family.
fn crossed(lab: &Lab, setup: &Setup) -> Result<PathBuf> {
    let file = setup.write(lab)?;
    let line = |line: &str| match line.strip_prefix("address = \"") {
        Some(rest) if rest.starts_with("10.77.1.") => line.replace("10.77.1.", "fd77:1::"),
        Some(rest) if rest.starts_with("fd77:1::") => line.replace("fd77:1::", "10.77.1."),
        _ => line.to_owned(),
    };
    let text = std::fs::read_to_string(&file)?;
    let crossed: Vec<String> = text.lines().map(line).collect();
    ensure!(crossed.join("\n").contains("[[virtual_server.real_server]]"), "the configuration is not as expected");
    std::fs::write(&file, crossed.join("\n"))?;
    Ok(file)
}

#[test]
fn either_family_is_served_over_the_other() -> Result<()> {
    let Some(lab) = lab(Forwarding::Tunnel, Arms::One)? else { return Ok(()) };
    let mut decapsulators = decapsulators(&lab)?;
    let setup = Setup::of(&lab);
    let file = crossed(&lab, &setup)?;
    let mut daemon = Daemon::start_file(&lab, setup, &file)?;
    daemon.wait_for_next_hops("resolved")?;
    for vip in address::vips() {
        let mut bodies = lab.client().fetch(&url(vip, ""), 30)?;
        bodies.sort();
        let expected: Vec<String> = (0..30).map(|n| format!("real{}", n / 10 + 1)).collect();
        assert_eq!(bodies, expected, "{vip}");
        let echo = lab.client().udp_echo((vip, address::UDP_PORT).into(), "across", SECOND)?;
        ensure!(echo.ends_with(" across"), "{vip} answered {echo:?}");
        let whole = lab.client().download(&url(vip, &format!("file/{FILE}")))?;
        assert_eq!((whole.length, whole.digest), (FILE, file_body(FILE).digest()), "{vip}");
    }
    let status = daemon.status()?;
    for (reason, count) in status["drops"].as_object().into_iter().flatten() {
        assert_eq!(count, 0, "dropped for {reason}: {:#}", status["drops"]);
    }
    daemon.stop()?;
    for decapsulator in &mut decapsulators {
        decapsulator.terminate(PATIENCE)?;
        let log = decapsulator.log();
        ensure!(log.contains("unwrapped 0 IPIP, "), "{log}");
        ensure!(log.contains(" and 0 IP6IP6 packets, dropped 0 for congestion"), "{log}");
        ensure!(!log.contains(", 0 6in4") && !log.contains(", 0 4in6"), "{log}");
    }
    Ok(())
}

/// The outer packets of IPv4 in IPv4 as a raw socket of a real server without a decapsulator sees them.
fn outer_packets(lab: &Lab) -> Result<Socket> {
    let socket = lab
        .real(1)
        .namespace()
        .run(|| Socket::new(Domain::IPV4, Type::from(libc::SOCK_RAW), Some(Protocol::from(4))))?;
    let socket = socket.context("no raw socket")?;
    socket.set_read_timeout(Some(3 * SECOND))?;
    Ok(socket)
}

/// Outer source and inner source port of the next packet.
fn next_source(socket: &Socket) -> Result<(Ipv4Addr, u16)> {
    let mut buffer = [0; 2048];
    let mut reader = socket;
    let length = reader.read(&mut buffer).context("no tunnelled packet came")?;
    let bytes = &buffer[..length];
    let outer: [u8; 4] = bytes[12..16].try_into()?;
    Ok((outer.into(), u16::from_be_bytes([bytes[40], bytes[41]])))
}

#[test]
fn a_source_prefix_spreads_flows_and_a_source_address_is_the_only_one() -> Result<()> {
    let Some(lab) = lab_of(1, Forwarding::Tunnel, Arms::One)? else { return Ok(()) };
    let packets = outer_packets(&lab)?;
    for (source, is_prefix) in [("10.99.0.0/16", true), ("10.77.1.77", false)] {
        let setup = Setup { xdp: format!("tunnel_source_ipv4 = \"{source}\""), ..Setup::of(&lab) };
        let mut daemon = Daemon::start(&lab, setup)?;
        daemon.wait_for_next_hops("resolved")?;
        let warned = format!("xdp.tunnel_source_ipv4 {source} is");
        ensure!(daemon.process.log().contains(&warned), "{}", daemon.process.log());
        let mut sources = BTreeSet::new();
        for port in 20_000..20_032_u16 {
            let from = lab.client().run(|| -> Result<UdpSocket> {
                let socket = UdpSocket::bind(("0.0.0.0", port))?;
                socket.connect((address::VIP4, address::UDP_PORT))?;
                Ok(socket)
            })??;
            from.send(b"one")?;
            from.send(b"two")?;
            let both = [next_source(&packets)?, next_source(&packets)?];
            assert_eq!(both[0], both[1], "a flow comes from one address");
            assert_eq!(both[0].1, port);
            sources.insert(both[0].0);
        }
        if is_prefix {
            ensure!(sources.iter().all(|source| source.octets().starts_with(&[10, 99])), "{sources:?}");
            ensure!(sources.len() > 28, "32 flows come from {sources:?}");
        } else {
            assert_eq!(sources, BTreeSet::from([Ipv4Addr::new(10, 77, 1, 77)]));
        }
        daemon.stop()?;
    }
    Ok(())
}
