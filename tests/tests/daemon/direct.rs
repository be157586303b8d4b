//! Who speaks with a real server by its own address is not disturbed by a virtual server that has it behind `nat`.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{Arms, Forwarding, Lab, Namespace, address, get};
use socket2::{Domain, Socket, Type};

use crate::director::{Daemon, Setup, lab_of, url};

const SECOND: Duration = Duration::from_secs(1);
/// Of the client, through the VIP and directly; and of the director, as a health check's.
const PORT: u16 = 25_000;

#[test]
fn with_one_arm_nobody_else_is_answered_from_the_vip() -> Result<()> {
    undisturbed(Arms::One)
}

#[test]
fn with_two_arms_nobody_else_is_answered_from_the_vip() -> Result<()> {
    undisturbed(Arms::Two)
}

/// Only clients then depend on their connection; the director's own checks never.
#[test]
fn with_stateless_replies_the_directors_own_checks_are_undisturbed() -> Result<()> {
    let Some(lab) = lab_of(1, Forwarding::Nat, Arms::Two)? else { return Ok(()) };
    let mut daemon = start(&lab, "stateless_replies = true")?;
    for (vip, real) in pairs(&lab) {
        checks(&lab, real)?;
        assert_eq!(lab.client().fetch(&url(vip, ""), 3)?, ["real1"; 3]);
        let socket = socket(lab.client(), (vip, address::UDP_PORT).into())?;
        assert_eq!(ask(&socket)?, "real1 hello");
        checks(&lab, real)?;
    }
    daemon.stop()
}

fn undisturbed(arms: Arms) -> Result<()> {
    let Some(lab) = lab_of(1, Forwarding::Nat, arms)? else { return Ok(()) };
    let mut daemon = start(&lab, "")?;
    for (vip, real) in pairs(&lab) {
        checks(&lab, real)?;
        // A connection through the VIP and one straight to the real server, one after the other from one port.
        for target in [vip, real, vip, real] {
            let target = (target, address::HTTP_PORT).into();
            let page = lab.client().run(|| get(target, "/", SECOND))?;
            assert_eq!(page.with_context(|| format!("{target}"))?.real_server, "real1");
        }
        tcp_from_one_port(&lab, vip, real)?;
        // A socket that asks both in turn; it hears only the address that it is connected to.
        let socket = socket(lab.client(), (vip, address::UDP_PORT).into())?;
        for target in [vip, real, real, vip, vip, real] {
            socket.connect(SocketAddr::from((target, address::UDP_PORT)))?;
            assert_eq!(ask(&socket).with_context(|| format!("{target}"))?, "real1 hello");
        }
        checks(&lab, real)?;
    }
    daemon.stop()
}

fn start(lab: &Lab, policy: &str) -> Result<Daemon> {
    // With one arm the director tells both of the shorter way by IPv6, past itself.
    for host in [lab.client(), lab.real(1).namespace()] {
        host.sysctl("ipv6/conf/eth0/accept_redirects", "0")?;
    }
    let mut setup = Setup::of(lab);
    setup.policy = policy.to_owned();
    let daemon = Daemon::start(lab, setup)?;
    daemon.wait_for_next_hops("resolved")?;
    Ok(daemon)
}

/// Each VIP, and the first real server's address of the same family.
fn pairs(lab: &Lab) -> [(IpAddr, IpAddr); 2] {
    let real = lab.real(1);
    let [vip4, vip6] = address::vips();
    [(vip4, real.address4().into()), (vip6, real.address6().into())]
}

/// What a health check on the director does: HTTP and UDP, also from the port that the client uses.
fn checks(lab: &Lab, real: IpAddr) -> Result<()> {
    assert_eq!(lab.director().fetch(&url(real, ""), 3)?, ["real1"; 3]);
    let socket = socket(lab.director(), (real, address::UDP_PORT).into())?;
    assert_eq!(ask(&socket)?, "real1 hello");
    Ok(())
}

/// Connects to the real server itself from the port of a connection through the VIP that has just ended.
fn tcp_from_one_port(lab: &Lab, vip: IpAddr, real: IpAddr) -> Result<()> {
    lab.client().run(|| -> Result<()> {
        for ip in [vip, real] {
            let target = SocketAddr::from((ip, address::HTTP_PORT));
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            // Ended by a reset, so that the port is free at once on both sides.
            socket.set_linger(Some(Duration::ZERO))?;
            socket.bind(&SocketAddr::from((any(ip), PORT)).into())?;
            socket.connect_timeout(&target.into(), SECOND)?;
            let stream = TcpStream::from(socket);
            ensure!(stream.peer_addr()? == target, "answered by another");
        }
        Ok(())
    })?
}

fn socket(namespace: &Namespace, target: SocketAddr) -> Result<UdpSocket> {
    namespace.run(|| -> Result<UdpSocket> {
        let socket = UdpSocket::bind((any(target.ip()), PORT))?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(SECOND))?;
        Ok(socket)
    })?
}

fn any(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() }
}

fn ask(socket: &UdpSocket) -> Result<String> {
    socket.send(b"hello")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
