//! Allowed and denied clients while daemons are killed, restarted and configured anew.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{Arms, Crowd, Forwarding, Lab, address};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::adoption::is_exact;
use crate::director::lab;
use crate::operated::{ECHO, Operated, Server, UdpFlow, each, echoes, newcomers, while_talking};

/// Shorter than the time after which a SYN is sent again.
const SOON: Duration = Duration::from_millis(700);
const CROWD: usize = 40;

/// The client's network, the one beside it, and an address there that the client has too.
fn networks(vip: IpAddr) -> (&'static str, &'static str, IpAddr) {
    match vip {
        IpAddr::V4(_) => ("10.77.0.0/28", "10.77.0.16/28", [10, 77, 0, 20].into()),
        IpAddr::V6(_) => ("fd77::/122", "fd77::40/122", [0xfd77_u16, 0, 0, 0, 0, 0, 0, 0x45].into()),
    }
}

/// Which of a client's two networks is served.
#[derive(Clone, Copy)]
enum Served {
    Its,
    Beside,
}

/// TCP and UDP on a VIP. The two ways to say whom it serves take turns, so that a list is also exchanged for an equal one.
fn servers(vip: IpAddr, served: Served) -> Vec<Server> {
    let (its, beside, _) = networks(vip);
    let (allowed, denied) = match served {
        Served::Its => (its, beside),
        Served::Beside => (beside, its),
    };
    let tcp = Server::tcp((vip, ECHO)).key(&format!("deny = [{denied:?}]"));
    let udp = Server::udp((vip, address::UDP_PORT)).key(&format!("allow = [{allowed:?}]"));
    vec![tcp.reals([1, 2]), udp.reals([1, 2])]
}

#[test]
fn by_nat_denied_clients_stay_denied_while_daemons_are_killed_and_exchanged() -> Result<()> {
    stay_denied(Forwarding::Nat, address::VIP4.into())
}

#[test]
fn by_direct_routing_and_ipv6_denied_clients_stay_denied_while_daemons_are_killed_and_exchanged() -> Result<()> {
    stay_denied(Forwarding::Direct, address::VIP6.into())
}

fn stay_denied(forwarding: Forwarding, vip: IpAddr) -> Result<()> {
    let Some(lab) = lab(forwarding, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let (_, _, beside) = networks(vip);
    let prefix = if beside.is_ipv4() { "24" } else { "64" };
    // Deprecated, so that no connection is made from it unasked.
    let nodad = if beside.is_ipv4() { "" } else { "nodad" };
    lab.client().ip(&format!("addr add {beside}/{prefix} dev eth0 valid_lft forever preferred_lft 0 {nodad}"))?;
    let mut operated = Operated::start(&lab, &servers(vip, Served::Its))?;
    let target = SocketAddr::new(vip, ECHO);
    let mut crowd = Crowd::connect(lab.client(), target, CROWD)?;
    let (flow, denied) = (UdpFlow::open(&lab, (vip, address::UDP_PORT).into())?, Denied::new(&lab, beside, vip)?);
    let server = flow.ask()?;
    let mut knocks = 0;
    let sent = denied.while_sending(|| {
        while_talking(&mut crowd, |rounds| {
            for turn in 0..4 {
                if turn % 2 == 0 {
                    operated.kill_and_start()?;
                } else {
                    operated.restart()?;
                }
                rounds.pass()?;
                ensure!(!is_let_in(&lab, beside, target)?, "turn {turn}");
                knocks += 1;
                is_exact(&operated, CROWD)?;
                assert_eq!(flow.ask()?, server);
            }
            Ok(())
        })
    })?;
    assert_eq!(crowd.ended(), [].into());
    assert_eq!(newcomers(&lab, target, 4)?, each(&[(1, 2), (2, 2)]));
    // Each of their packets since the first daemon is counted, and no other.
    let status = operated.daemon.status()?;
    ensure!(status["adopted"] == true, "{status:#}");
    assert_eq!(denials(&status, "udp"), Some(sent), "{status:#}");
    assert_eq!(denials(&status, "tcp"), Some(knocks), "{status:#}");

    // Another list comes into force with the next daemon, also for connections that there are.
    operated.write(&servers(vip, Served::Beside))?;
    operated.kill_and_start()?;
    is_turned_round(&lab, &operated, [beside, client_of(vip)], target)?;
    assert_eq!(operated.does(&["connections", "--protocol", "udp", "--json"])?, "");
    drop(crowd);
    operated.write(&servers(vip, Served::Its))?;
    operated.restart()?;
    is_turned_round(&lab, &operated, [client_of(vip), beside], target)?;
    flow.ask()?;
    operated.stop()
}

/// The first of two addresses of the client is served and the other one is not; nobody of that one has a connection.
fn is_turned_round(lab: &Lab, operated: &Operated<'_>, [one, other]: [IpAddr; 2], target: SocketAddr) -> Result<()> {
    ensure!(is_let_in(lab, one, target)? && !is_let_in(lab, other, target)?, "{one} is served and {other} is not");
    let of_other = ["connections", "--protocol", "tcp", "--client", &other.to_string(), "--json"];
    assert_eq!(operated.does(&of_other)?, "", "they have ended");
    Ok(())
}

fn client_of(vip: IpAddr) -> IpAddr {
    if vip.is_ipv4() { address::CLIENT4.into() } else { address::CLIENT6.into() }
}

/// Whether the client gets a connection from its address `from`.
fn is_let_in(lab: &Lab, from: IpAddr, target: SocketAddr) -> Result<bool> {
    let connected = lab.client().run(|| -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect_timeout(&target.into(), SOON)?;
        Ok(socket.into())
    })?;
    match connected {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
        Err(error) => Err(error).context("a client that is kept out hears nothing"),
    }
}

/// How many packets to the virtual server of a protocol were those of denied clients.
fn denials(status: &Value, protocol: &str) -> Option<u64> {
    let mut servers = status["virtual_servers"].as_array()?.iter();
    servers.find(|server| server["protocol"] == protocol)?["denied"].as_u64()
}

/// A client that is denied, and sends all the same.
struct Denied(UdpSocket);

impl Denied {
    fn new(lab: &Lab, from: IpAddr, vip: IpAddr) -> Result<Self> {
        let socket = lab.client().run(|| UdpSocket::bind((from, 0)))??;
        socket.connect((vip, address::UDP_PORT))?;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        Ok(Self(socket))
    }

    /// How many datagrams it has sent while `work` was done; none may be answered.
    fn while_sending(&self, work: impl FnOnce() -> Result<()>) -> Result<u64> {
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            let sender = scope.spawn(|| -> Result<u64> {
                let mut sent = 0;
                while !is_done.load(Ordering::Relaxed) {
                    self.0.send(b"let me in")?;
                    sent += 1;
                    let answer = self.0.recv(&mut [0; 64]);
                    let is_silence = answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
                    ensure!(is_silence, "datagram {sent} was answered: {answer:?}");
                }
                Ok(sent)
            });
            let done = work();
            is_done.store(true, Ordering::Relaxed);
            let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            done.map(|()| sent)
        })
    }
}
