//! SCTP associations from end to end, their packets made by the test: this kernel may have no SCTP.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{Arms, Cmd, Forwarding, Lab, Namespace, address};
use lb_common::crc32c;
use socket2::{Domain, Protocol, Socket, Type};

use crate::director::{Daemon, PATIENCE, Setup, decapsulators, evenkeel, lab_of};

const PORT: u16 = 5000;
const CLIENT_PORT: u16 = 40_000;
const WAIT: Duration = Duration::from_secs(3);

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// Common header and one chunk with 16 bytes of value.
type Packet = [u8; 32];

fn packet(from: u16, to: u16, tag: u32, kind: u8) -> Packet {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&from.to_be_bytes());
    bytes[2..4].copy_from_slice(&to.to_be_bytes());
    bytes[4..8].copy_from_slice(&tag.to_be_bytes());
    bytes[12..16].copy_from_slice(&[kind, 0, 0, 20]);
    bytes[16..20].copy_from_slice(&0x0a0b_0c0d_u32.to_be_bytes());
    let words =
        std::array::from_fn::<u32, 8, _>(|n| u32::from_ne_bytes(bytes[n * 4..n * 4 + 4].try_into().expect("four")));
    bytes[8..12].copy_from_slice(&crc32c::of_words(words).to_ne_bytes());
    bytes
}

/// One end: a raw socket for SCTP, at `own` where that is given.
fn end(namespace: &Namespace, vip: IpAddr, own: Option<IpAddr>) -> Result<Socket> {
    let domain = if vip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let made = namespace.run(|| -> Result<Socket> {
        let socket = Socket::new(domain, Type::from(libc::SOCK_RAW), Some(Protocol::from(132)))?;
        if let Some(own) = own {
            socket.bind(&SocketAddr::new(own, 0).into())?;
        }
        socket.set_read_timeout(Some(WAIT))?;
        Ok(socket)
    });
    made?.context("no raw socket")
}

/// The next SCTP packet that came to `end`, without its IP header.
fn received(end: &Socket, vip: IpAddr) -> Result<Vec<u8>> {
    let mut buffer = [0; 2048];
    let mut reader = end;
    let length = reader.read(&mut buffer)?;
    let bytes = &buffer[..length];
    // With IPv4 a raw socket gets the header, too.
    let header = if vip.is_ipv4() { usize::from(bytes[0] & 15) * 4 } else { 0 };
    Ok(bytes[header..].to_vec())
}

fn setup(lab: &Lab) -> Setup {
    use std::fmt::Write as _;
    let mut setup = Setup::of(lab);
    for vip in address::vips() {
        let service = SocketAddr::new(vip, PORT);
        let method = setup.forwarding;
        write!(
            setup.more,
            "\n[[virtual_server]]\naddress = \"{service}\"\nprotocol = \"sctp\"\nforwarding = \"{method}\"\n"
        )
        .expect("a string takes everything");
        for real in lab.real_servers() {
            let real: IpAddr = if vip.is_ipv4() { real.address4().into() } else { real.address6().into() };
            write!(setup.more, "[[virtual_server.real_server]]\naddress = \"{real}\"\n").expect("as above");
        }
    }
    setup
}

#[test]
fn associations_are_served_by_direct_routing() -> Result<()> {
    serves(Forwarding::Direct)
}

#[test]
fn associations_are_served_by_tunnelling() -> Result<()> {
    serves(Forwarding::Tunnel)
}

fn serves(forwarding: Forwarding) -> Result<()> {
    let Some(lab) = lab_of(2, forwarding, Arms::One)? else { return Ok(()) };
    let _decapsulators = decapsulators(&lab)?;
    let mut daemon = Daemon::start(&lab, setup(&lab))?;
    daemon.wait_for_next_hops("resolved")?;
    for vip in address::vips() {
        let client = end(lab.client(), vip, None)?;
        let reals = [1, 2].map(|n| end(lab.real(n).namespace(), vip, Some(vip)));
        let [first, second] = reals;
        let (first, second) = (first?, second?);
        // One after the other by round robin.
        for (turn, real) in [(0, &first), (1, &second)] {
            converse(&daemon, (&client, CLIENT_PORT + turn), real, vip)?;
        }
        // Out of the blue: the director answers in the VIP's name.
        client.send_to(&packet(CLIENT_PORT + 9, PORT, 0x1234_5678, DATA), &SocketAddr::new(vip, 0).into())?;
        let answer = received(&client, vip).context("no answer to what belongs to no association")?;
        assert_eq!(
            answer[..8],
            [&PORT.to_be_bytes()[..], &(CLIENT_PORT + 9).to_be_bytes(), &[0x12, 0x34, 0x56, 0x78]].concat()
        );
        assert_eq!(answer[12..16], [ABORT, 1, 0, 4]);
    }
    let status = daemon.status()?;
    let drops: Vec<_> = status["drops"].as_object().into_iter().flatten().filter(|(_, count)| **count != 0).collect();
    ensure!(drops.len() == 1 && status["drops"]["no_connection"] == 2, "{drops:?}");
    daemon.stop()
}

/// An association from beginning to end.
fn converse(daemon: &Daemon, (client, port): (&Socket, u16), real: &Socket, vip: IpAddr) -> Result<()> {
    let client_ip: IpAddr = if vip.is_ipv4() { address::CLIENT4.into() } else { address::CLIENT6.into() };
    let (to_vip, to_client) = (SocketAddr::new(vip, 0).into(), SocketAddr::new(client_ip, 0).into());
    let steps = [
        (INIT, INIT_ACK, "sctp-opening"),
        (COOKIE_ECHO, COOKIE_ACK, "established-new"),
        (DATA, SACK, "established"),
        (SHUTDOWN, SHUTDOWN_ACK, "client-fin"),
    ];
    for (ask, answer, state) in steps {
        let request = packet(port, PORT, if ask == INIT { 0 } else { 7 }, ask);
        client.send_to(&request, &to_vip)?;
        assert_eq!(received(real, vip).with_context(|| format!("chunk {ask} did not come"))?, request);
        let reply = packet(PORT, port, 9, answer);
        real.send_to(&reply, &to_client)?;
        assert_eq!(received(client, vip).with_context(|| format!("chunk {answer} did not come back"))?, reply);
        assert_eq!(connection(daemon, SocketAddr::new(client_ip, port))?, state);
    }
    client.send_to(&packet(port, PORT, 7, SHUTDOWN_COMPLETE), &to_vip)?;
    received(real, vip).context("the last chunk did not come")?;
    assert_eq!(connection(daemon, SocketAddr::new(client_ip, port))?, "closed");
    Ok(())
}

/// The state of a client's association as `evenkeel connections` shows it.
fn connection(daemon: &Daemon, client: SocketAddr) -> Result<String> {
    let listed = Cmd::new(evenkeel()).args(["connections", "--json", "--protocol", "sctp", "--socket"]);
    let listed = listed.arg(daemon.setup.socket()).limit(PATIENCE).run()?;
    for line in listed.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        if line["client"] == client.to_string() {
            assert_eq!(line["protocol"], "sctp");
            return Ok(line["state"].as_str().unwrap_or_default().to_owned());
        }
    }
    anyhow::bail!("{client} is not in:\n{listed}")
}
