//! What routers say, and what the director says as one: the path's MTU found, refused datagrams, and traceroute.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use evenkeel_tests::lab::{Arms, Forwarding, Lab, Namespace, address, file_body};
use socket2::{Domain, Protocol, Socket, Type};

use crate::director::{Daemon, PATIENCE, Setup, decapsulators, lab_of, url};
use crate::operated::{Operated, Server};

const FILE: u64 = 20_000_000;
/// A port on which no real server listens.
const DEAF: u16 = 9;

/// Clients' packets of full size do not fit with the outer header; the client is a router further away.
#[test]
fn an_upload_by_tunnel_finds_the_mtu_without_the_outer_header() -> Result<()> {
    let Some(lab) = lab_of(1, Forwarding::Tunnel, Arms::One)? else { return Ok(()) };
    let far = lab.far_client(1500)?;
    let _decapsulators = decapsulators(&lab)?;
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    daemon.wait_for_next_hops("resolved")?;
    for (vip, mtu) in address::vips().into_iter().zip(["mtu 1480", "mtu 1460"]) {
        assert_eq!(far.upload(&url(vip, "digest"), FILE)?, file_body(FILE).digest());
        knows(&far, vip, mtu)?;
    }
    let told = daemon.status()?["drops"]["packet_too_big"].as_u64();
    ensure!(told.is_some_and(|told| told > 0), "nothing was too big: {told:?}");
    daemon.stop()
}

/// The router before the client does not send more than 1400 bytes on, and tells the VIP.
#[test]
fn a_download_over_a_narrow_link_finds_its_mtu() -> Result<()> {
    for forwarding in [Forwarding::Nat, Forwarding::Direct, Forwarding::Tunnel] {
        let Some(lab) = lab_of(1, forwarding, Arms::One)? else { return Ok(()) };
        let far = lab.far_client(1400)?;
        let _decapsulators = decapsulators(&lab)?;
        let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
        daemon.wait_for_next_hops("resolved")?;
        for (vip, client) in address::vips().into_iter().zip(["10.99.0.2", "fd99::2"]) {
            let whole = far.download(&url(vip, &format!("file/{FILE}")))?;
            assert_eq!((whole.length, whole.digest), (FILE, file_body(FILE).digest()), "{forwarding:?}");
            knows(lab.real(1).namespace(), client.parse()?, "mtu 1400")?;
        }
        daemon.stop()?;
    }
    Ok(())
}

/// With `nat`, the way to the client is the director's, and narrow there: the real server is told by the director.
#[test]
fn a_real_server_is_told_what_fits_on_the_way_to_the_client() -> Result<()> {
    let Some(lab) = lab_of(1, Forwarding::Nat, Arms::One)? else { return Ok(()) };
    for (client, vip) in [("10.77.0.10/32", address::vips()[0]), ("fd77::10/128", address::vips()[1])] {
        lab.director().ip(&format!("route add {client} dev eth0 mtu lock 1300"))?;
        let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
        daemon.wait_for_next_hops("resolved")?;
        let whole = lab.client().download(&url(vip, &format!("file/{FILE}")))?;
        assert_eq!((whole.length, whole.digest), (FILE, file_body(FILE).digest()));
        let client = client.split('/').next().unwrap_or_default();
        knows(lab.real(1).namespace(), client.parse()?, "mtu 1300")?;
        daemon.stop()?;
    }
    Ok(())
}

/// Whether the kernel has learnt an MTU of the way to `address`.
fn knows(host: &Namespace, address: IpAddr, mtu: &str) -> Result<()> {
    let shown = host.ip(&format!("route get {address}"))?;
    ensure!(shown.contains(mtu), "not {mtu} to {address} in {}: {shown}", host.name());
    Ok(())
}

#[test]
fn a_datagram_that_the_real_server_refuses_is_refused_by_the_vip() -> Result<()> {
    let Some(lab) = lab_of(1, Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let servers = address::vips().map(|vip| Server::udp((vip, DEAF)).reals([1]));
    let mut operated = Operated::start(&lab, &servers)?;
    for vip in address::vips() {
        let target = SocketAddr::new(vip, DEAF);
        // The kernel gives it to the socket only where the quoted packet is the one that was sent.
        let error = lab.client().run(|| -> Result<ErrorKind> {
            let socket = UdpSocket::bind((unspecified(vip), 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(target)?;
            socket.send(b"anybody?")?;
            Ok(socket.recv(&mut [0; 16]).map_or_else(|error| error.kind(), |_| ErrorKind::Other))
        })??;
        assert_eq!(error, ErrorKind::ConnectionRefused);
        let unreachable = if vip.is_ipv4() { [3, 3] } else { [1, 4] };
        assert_eq!(hears(&lab, target, 64, unreachable)?, vip);
    }
    // The programs that the first one jumps to outlive the daemon, too.
    operated.daemon.process.kill9()?;
    assert_eq!(hears(&lab, (address::VIP4, DEAF).into(), 64, [3, 3])?, address::VIP4);
    Ok(())
}

/// What traceroute sees of a director: the VIP, one hop away, by every method.
#[test]
fn a_packet_that_lives_no_longer_is_answered_by_the_vip() -> Result<()> {
    for forwarding in [Forwarding::Nat, Forwarding::Direct, Forwarding::Tunnel] {
        let Some(lab) = lab_of(1, forwarding, Arms::One)? else { return Ok(()) };
        let _decapsulators = decapsulators(&lab)?;
        let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
        for vip in address::vips() {
            let exceeded = if vip.is_ipv4() { [11, 0] } else { [3, 0] };
            assert_eq!(hears(&lab, (vip, address::UDP_PORT).into(), 1, exceeded)?, vip);
            // The VIP itself is answered by the host, as ever.
            lab.client().ping(vip, 2)?;
        }
        daemon.stop()?;
    }
    Ok(())
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() }
}

/// Sends datagrams from the client, and returns who answers with an ICMP message of this type and code.
fn hears(lab: &Lab, target: SocketAddr, ttl: u32, kind_and_code: [u8; 2]) -> Result<IpAddr> {
    lab.client().run(|| {
        // Raw sockets of IPv4 show the IP header.
        let (domain, protocol, at) = match target {
            SocketAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 20),
            SocketAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 0),
        };
        // A datagram socket of the standard library only reads and tells from whom.
        let raw = UdpSocket::from(Socket::new(domain, Type::RAW, Some(protocol))?);
        raw.set_read_timeout(Some(Duration::from_millis(200)))?;
        let datagram = Socket::new(domain, Type::DGRAM, None)?;
        match target {
            SocketAddr::V4(_) => datagram.set_ttl_v4(ttl)?,
            SocketAddr::V6(_) => datagram.set_unicast_hops_v6(ttl)?,
        }
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            datagram.send_to(b"where are you?", &target.into())?;
            let mut buffer = [0; 256];
            let Ok((length, from)) = raw.recv_from(&mut buffer) else { continue };
            if buffer[..length].get(at..at + 2) == Some(&kind_and_code[..]) {
                return Ok(from.ip());
            }
        }
        anyhow::bail!("no ICMP {kind_and_code:?} from {target}")
    })?
}
