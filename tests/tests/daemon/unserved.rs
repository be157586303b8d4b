//! What a client hears when nobody serves it: the sorry server, a refusal, or nothing.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use evenkeel_tests::lab::{Arms, Crowd, Forwarding, Lab, address};
use serde_json::Value;

use crate::director::lab;
use crate::operated::{ECHO, ECHO4, ECHO6, Operated, Server, UdpFlow, each, echoes, newcomers};

/// A port whose virtual server is silent.
const SILENT: u16 = 8;
/// Shorter than the time after which a SYN is sent again.
const SOON: Duration = Duration::from_millis(700);

#[test]
fn the_sorry_server_takes_over_when_all_are_drained_and_hands_back() -> Result<()> {
    for forwarding in [Forwarding::Nat, Forwarding::Direct] {
        let Some(lab) = lab(forwarding, Arms::One)? else { return Ok(()) };
        let _echoes = echoes(&lab, ECHO)?;
        let tcp = Server::tcp(ECHO4).reals([1, 2]).sorry(3);
        let mut operated = Operated::start(&lab, std::slice::from_ref(&tcp))?;
        assert_eq!(newcomers(&lab, ECHO4, 6)?, each(&[(1, 3), (2, 3)]));
        let mut before = Crowd::connect(lab.client(), ECHO4, 2)?;
        operated.does(&["drain", "10.77.1.11"])?;
        assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(2, 4)]));
        operated.does(&["drain", "10.77.1.12"])?;
        let mut sorry = Crowd::connect(lab.client(), ECHO4, 4)?;
        assert_eq!(sorry.servers(), each(&[(3, 4)]));
        let shown = operated.real(&tcp, 3)?;
        assert_eq!((&shown["role"], &shown["active"]), (&"sorry".into(), &4.into()), "{shown:#}");
        operated.does(&["undrain", "10.77.1.11"])?;
        assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(1, 4)]));
        before.talk()?;
        sorry.talk()?;
        assert_eq!((before.ended(), sorry.ended()), ([].into(), [].into()));
        operated.stop()?;
    }
    Ok(())
}

/// Takes the VIPs away from the director, so that its kernel does not answer in place of the program.
fn only_the_program_answers(lab: &Lab) -> Result<()> {
    lab.director().ip("address del 10.77.0.100/32 dev eth0")?;
    lab.director().ip("address del fd77::100/128 dev eth0")?;
    lab.client().ip("route add 10.77.0.100/32 via 10.77.0.1")?;
    lab.client().ip("route add fd77::100/128 via fd77::1")?;
    Ok(())
}

fn connect(lab: &Lab, target: SocketAddr) -> Result<ErrorKind> {
    let end = lab.client().run(|| TcpStream::connect_timeout(&target, SOON))?;
    Ok(end.map_or_else(|error| error.kind(), |_| ErrorKind::Other))
}

#[test]
fn without_a_real_server_connections_are_refused_at_once_or_hear_nothing() -> Result<()> {
    for forwarding in [Forwarding::Nat, Forwarding::Direct] {
        let Some(lab) = lab(forwarding, Arms::One)? else { return Ok(()) };
        let _echoes = (echoes(&lab, ECHO)?, echoes(&lab, SILENT)?);
        only_the_program_answers(&lab)?;
        let mut servers = Vec::new();
        for vip in address::vips() {
            servers.push(Server::tcp((vip, ECHO)).reals([1]));
            servers.push(Server::tcp((vip, SILENT)).reals([1]).key("no_real_server = \"drop\""));
            servers.push(Server::udp((vip, address::UDP_PORT)).reals([1]));
        }
        let mut operated = Operated::start(&lab, &servers)?;
        let drain = |what: &str| -> Result<()> {
            let real = lab.real(1);
            for address in [IpAddr::from(real.address4()), real.address6().into()] {
                operated.does(&[what, &address.to_string()])?;
            }
            Ok(())
        };
        drain("drain")?;
        for vip in address::vips() {
            assert_eq!(connect(&lab, (vip, ECHO).into())?, ErrorKind::ConnectionRefused, "{vip}");
            assert_eq!(connect(&lab, (vip, SILENT).into())?, ErrorKind::TimedOut, "{vip}");
            let flow = UdpFlow::open(&lab, (vip, address::UDP_PORT).into())?;
            assert_eq!(flow.ask().map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused), "{vip}");
        }
        let drops = operated.daemon.status()?["drops"].clone();
        ensure!(drops["no_real_server"].as_u64().is_some_and(|drops| drops >= 2), "{drops:#}");
        drain("undrain")?;
        for vip in address::vips() {
            for port in [ECHO, SILENT] {
                assert_eq!(newcomers(&lab, (vip, port).into(), 1)?, each(&[(1, 1)]));
            }
            assert_eq!(UdpFlow::open(&lab, (vip, address::UDP_PORT).into())?.ask()?, "real1");
        }
        operated.stop()?;
    }
    Ok(())
}

#[test]
fn a_segment_of_an_unknown_connection_is_refused_at_once_or_dropped() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let _echoes = (echoes(&lab, ECHO)?, echoes(&lab, SILENT)?);
    only_the_program_answers(&lab)?;
    let mut servers = Vec::new();
    for vip in address::vips() {
        servers.push(Server::tcp((vip, ECHO)).reals([1, 2, 3]));
        servers.push(Server::tcp((vip, SILENT)).reals([1, 2, 3]).key("unknown_connection = \"drop\""));
    }
    let mut operated = Operated::start(&lab, &servers)?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 3)?;
    crowd.grow(lab.client(), ECHO6, 3)?;
    let silent = |vip| lab.client().run(|| TcpStream::connect((vip, SILENT)));
    let silent: Vec<_> = address::vips().into_iter().map(silent).collect::<Result<_>>()?;
    // The next daemon's table is of another size, and thus empty; these schedulers can't tell whose a connection is.
    operated.connections_max *= 2;
    operated.write(&servers)?;
    operated.kill_and_start()?;
    crowd.talk()?;
    let reset = |number: u8| ((format!("real{number}"), ErrorKind::ConnectionReset), 2);
    assert_eq!(crowd.ended(), [1, 2, 3].map(reset).into());
    for stream in silent {
        let mut stream = stream?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"one\n")?;
        let end = stream.read(&mut [0; 8]).map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::WouldBlock), "what a read that takes too long is called");
    }
    let drops = operated.daemon.status()?["drops"].clone();
    ensure!(drops["no_connection"].as_u64().is_some_and(|drops| drops >= 2), "{drops:#}");
    let explained = operated.does(&["status", "--drops"])?;
    ensure!(explained.contains("no_connection: ") && explained.contains("to do: "), "{explained}");
    ensure!(!explained.contains("no_headroom"), "nothing was dropped for that: {explained}");
    let every: Vec<Value> = serde_json::from_str(&operated.does(&["status", "--drops", "--all", "--json"])?)?;
    let known = drops.as_object().map_or(0, serde_json::Map::len);
    ensure!(every.len() == known && every.iter().all(|line| line["remedy"].is_string()), "{every:#?}");
    operated.stop()
}
