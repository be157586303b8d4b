//! Real clients get real files from real servers, by every method and both families.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use evenkeel_tests::lab::{Arms, Forwarding, Lab, SshLike, address, file_body, is_emulated};
use socket2::{Domain, Socket, Type};

use crate::director::{Daemon, Setup, decapsulators, lab, lab_of, url};

const SECOND: Duration = Duration::from_secs(1);

/// Bytes of a large file, and how many smaller ones are fetched at once, which with the other 301 connections makes the same
/// for each of three real servers. An emulated processor has less to do.
fn volume() -> (u64, usize) {
    if is_emulated() { (2_000_000, 11) } else { (20_000_000, 50) }
}

#[test]
fn nat_with_one_arm_serves() -> Result<()> {
    serves(Forwarding::Nat, Arms::One)
}

#[test]
fn nat_with_two_arms_serves() -> Result<()> {
    serves(Forwarding::Nat, Arms::Two)
}

#[test]
fn direct_routing_serves() -> Result<()> {
    serves(Forwarding::Direct, Arms::One)
}

#[test]
fn tunnelling_serves() -> Result<()> {
    serves(Forwarding::Tunnel, Arms::One)
}

fn serves(forwarding: Forwarding, arms: Arms) -> Result<()> {
    let Some(lab) = lab(forwarding, arms)? else { return Ok(()) };
    let _decapsulators = decapsulators(&lab)?;
    serves_all(&lab, Setup::of(&lab), "native")
}

/// A daemon with `setup` serves all that clients ask of both VIPs, and its program is attached in `mode`.
pub fn serves_all(lab: &Lab, setup: Setup, mode: &str) -> Result<()> {
    // On the director itself, where a packet that went up to the stack would be answered by it.
    let _at_vip = SshLike::start(lab.director(), (address::VIP4, 80).into())?;
    let mut daemon = Daemon::start(lab, setup)?;
    daemon.wait_for_next_hops("resolved")?;
    for interface in daemon.status()?["interfaces"].as_array().into_iter().flatten() {
        assert_eq!(interface["mode"], mode);
    }
    for vip in address::vips() {
        requests_are_split_evenly(lab, vip)?;
        datagrams_are_split_evenly(lab, vip)?;
        files_arrive_whole(lab, vip)?;
        uploads_arrive_whole(lab, vip)?;
    }
    others_are_undisturbed(lab)?;
    counters_tell(&daemon, lab.forwarding())?;
    daemon.stop()
}

/// 300 connections, one after another, go to the three in turn.
fn requests_are_split_evenly(lab: &Lab, vip: IpAddr) -> Result<()> {
    let bodies = lab.client().fetch(&url(vip, ""), 300)?;
    let expected: Vec<String> = (0..300).map(|turn| format!("real{}", (turn + first(&bodies)) % 3 + 1)).collect();
    assert_eq!(bodies, expected, "not in turn");
    Ok(())
}

fn first(bodies: &[String]) -> usize {
    let number = bodies.first().and_then(|body| body.strip_prefix("real")).and_then(|number| number.parse().ok());
    number.map_or(0, |number: usize| number - 1)
}

/// 300 flows, each from a port of its own, two datagrams each: exactly 100 flows a server, and a flow stays.
fn datagrams_are_split_evenly(lab: &Lab, vip: IpAddr) -> Result<()> {
    let target = SocketAddr::from((vip, address::UDP_PORT));
    let any: IpAddr = if vip.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let flows = lab.client().run(|| -> Result<BTreeMap<String, usize>> {
        let mut flows = BTreeMap::new();
        for port in 20_000..20_300 {
            let socket = UdpSocket::bind((any, port))?;
            socket.connect(target)?;
            socket.set_read_timeout(Some(SECOND))?;
            let answers = [ask(&socket)?, ask(&socket)?];
            ensure!(answers[0] == answers[1], "one flow, two servers: {answers:?}");
            *flows.entry(answers[0].clone()).or_insert(0) += 1;
        }
        Ok(flows)
    })??;
    let expected = BTreeMap::from(["real1", "real2", "real3"].map(|name| (format!("{name} hello"), 100)));
    assert_eq!(flows, expected);
    Ok(())
}

fn ask(socket: &UdpSocket) -> Result<String> {
    socket.send(b"hello")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn files_arrive_whole(lab: &Lab, vip: IpAddr) -> Result<()> {
    let (file, count) = volume();
    let whole = lab.client().download(&url(vip, &format!("file/{file}")))?;
    assert_eq!((whole.length, whole.digest), (file, file_body(file).digest()));
    const PART: u64 = 1_000_000;
    let expected = file_body(PART).digest();
    let many = lab.client().downloads(&url(vip, &format!("file/{PART}")), count)?;
    assert_eq!(many.len(), count);
    for one in many {
        assert_eq!((one.length, &one.digest), (PART, &expected));
    }
    Ok(())
}

/// The other way too; with tunnelling the client is told that its full-size packets do not fit.
fn uploads_arrive_whole(lab: &Lab, vip: IpAddr) -> Result<()> {
    let (file, _) = volume();
    assert_eq!(lab.client().upload(&url(vip, "digest"), file)?, file_body(file).digest());
    Ok(())
}

/// Ping and conversations with the director itself, and requests straight to a real server.
fn others_are_undisturbed(lab: &Lab) -> Result<()> {
    let own: [IpAddr; 2] = [address::DIRECTOR4.into(), address::DIRECTOR6.into()];
    for target in own.into_iter().chain(address::vips()) {
        lab.client().ping(target, 2)?;
    }
    for target in own {
        let target = SocketAddr::from((target, 22));
        let _server = SshLike::start(lab.director(), target)?;
        let heard = lab.client().talk(target, &["one", "two"], SECOND)?;
        assert_eq!(heard[1..], ["one", "two"]);
    }
    for real in lab.real_servers() {
        for host in [IpAddr::from(real.address4()), real.address6().into()] {
            assert_eq!(lab.client().fetch(&url(host, ""), 5)?, vec![real.name(); 5]);
            let echo = lab.client().udp_echo((host, address::UDP_PORT).into(), "direct", SECOND)?;
            assert_eq!(echo, format!("{} direct", real.name()));
        }
    }
    Ok(())
}

/// What was sent is what was counted: 300 requests, the files and an upload over TCP, 300 flows of two datagrams over UDP.
fn counters_tell(daemon: &Daemon, forwarding: Forwarding) -> Result<()> {
    let status = daemon.status()?;
    for server in status["virtual_servers"].as_array().into_iter().flatten() {
        let counters = &server["counters"];
        if server["protocol"] == "udp" {
            assert_eq!(counters["connections"], 300, "{server:#}");
            assert_eq!(counters["packets_in"], 600);
            let header = if server["address"].as_str().is_some_and(|a| a.starts_with('[')) { 48 } else { 28 };
            assert_eq!(counters["bytes_in"], 600 * (header + 5));
            let back = if forwarding == Forwarding::Nat { 600 } else { 0 };
            assert_eq!(counters["packets_out"], back);
        } else {
            let downloads = 301 + u64::try_from(volume().1)?;
            assert_eq!(counters["connections"], downloads + 1, "{server:#}");
            for real in server["real_servers"].as_array().into_iter().flatten() {
                let share = real["counters"]["connections"].as_u64();
                ensure!(share.is_some_and(|share| share == downloads / 3 || share == downloads / 3 + 1), "{server:#}");
            }
        }
    }
    for (reason, count) in status["drops"].as_object().into_iter().flatten() {
        // The last segments of a connection may come after its entry says that it is closing; none may be lost to a
        // fault of ours.
        let is_told = forwarding == Forwarding::Tunnel && reason == "packet_too_big";
        assert!(is_told || count == 0, "dropped for {reason}: {:#}", status["drops"]);
    }
    Ok(())
}

/// A client that opens a connection straight to a real server, from a port that it used through the VIP a moment ago.
#[test]
fn a_port_used_through_the_vip_serves_a_direct_connection_next() -> Result<()> {
    let Some(lab) = lab_of(1, Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    for host in [[10, 77, 0, 100], [10, 77, 1, 11], [10, 77, 0, 100], [10, 77, 1, 11]] {
        let answer = lab.client().run(|| get_from_port(31_000, (host, 80).into()))??;
        ensure!(answer.ends_with("real1\n"), "{host:?} answered {answer:?}");
    }
    daemon.stop()
}

/// One HTTP request from a local port that may have been used a moment ago; the server closes first.
fn get_from_port(port: u16, target: SocketAddr) -> Result<String> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from(([0; 4], port)).into())?;
    socket.connect_timeout(&target.into(), 3 * SECOND)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(3 * SECOND))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn forwarding_methods_mix_in_one_virtual_server() -> Result<()> {
    // Prepared for direct routing: the VIP is on the real servers, and they answer the client themselves.
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let real = |number: usize| lab.real(number).address4();
    let mut setup = Setup::of(&lab);
    setup.real_servers = vec![real(1).into(), real(2).into(), lab.real(1).address6().into()];
    let file = setup.write(&lab)?;
    let text = std::fs::read_to_string(&file)?;
    let second = format!("address = \"{}\"\n", real(2));
    // real2 is reached by nat: its reply must come back through the director.
    let mixed = text.replacen(&second, &format!("{second}forwarding = \"nat\"\n"), 1);
    ensure!(mixed != text, "the configuration is not as this test expects");
    lab.real(2).namespace().ip("route del 10.77.0.0/24 dev eth0")?;
    lab.real(2).namespace().ip("route replace default via 10.77.1.1")?;
    let mixed_file = lab.directory().join("mixed.toml");
    std::fs::write(&mixed_file, mixed)?;
    let mut program = std::process::Command::new(crate::director::evenkeel());
    program.arg("run").arg("--config").arg(mixed_file);
    let mut process = lab.start(lab.director(), "mixed", program)?;
    process.wait_for_log("ready", crate::director::PATIENCE)?;
    let mut bodies = lab.client().fetch("http://10.77.0.100/", 20)?;
    bodies.sort();
    assert_eq!(bodies[..10], vec!["real1"; 10]);
    assert_eq!(bodies[10..], vec!["real2"; 10]);
    process.terminate(crate::director::PATIENCE)?;
    Ok(())
}

#[test]
fn generic_mode_serves_with_gro_switched_off_and_back_on() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let gro = || -> Result<bool> {
        let features = lab.director().command("ethtool")?.args(["-k", "eth0"]).run()?;
        Ok(features.contains("generic-receive-offload: on"))
    };
    lab.director().command("ethtool")?.args(["-K", "eth0", "gro", "on"]).run()?;
    let setup = Setup { mode: "generic", ..Setup::of(&lab) };
    let mut daemon = Daemon::start(&lab, setup)?;
    assert_eq!(daemon.status()?["interfaces"][0]["mode"], "generic");
    ensure!(!gro()?, "GRO is on in generic mode");
    let bodies = lab.client().fetch("http://10.77.0.100/", 9)?;
    assert_eq!(bodies.iter().filter(|body| *body == "real1").count(), 3);
    daemon.stop()?;
    ensure!(gro()?, "GRO is not on again");
    Ok(())
}

/// `auto` takes generic mode on veth. There the peer needs no program and may leave checksums to us, but must not hand over
/// packets that are still to be segmented: a start says so.
#[test]
fn auto_on_veth_carries_files_once_the_peer_segments() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    lab.switch().command("ethtool")?.args(["-K", "director", "tx", "on", "tso", "off"]).run()?;
    let mut daemon = Daemon::start(&lab, Setup { mode: "auto", ..Setup::of(&lab) })?;
    assert_eq!(daemon.status()?["interfaces"][0]["mode"], "generic");
    ensure!(daemon.process.log().contains("ethtool -K PEER tso off"), "{}", daemon.process.log());
    for vip in address::vips() {
        files_arrive_whole(&lab, vip)?;
        uploads_arrive_whole(&lab, vip)?;
    }
    daemon.stop()
}
