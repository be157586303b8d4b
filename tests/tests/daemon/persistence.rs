//! A client keeps its real server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use evenkeel_tests::lab::{Arms, Crowd, Forwarding, Lab};
use socket2::{Domain, Socket, Type};

use crate::director::{PATIENCE, lab};
use crate::operated::{ECHO, ECHO4, Operated, Server, echoes};

/// The server of `count` connections from one address, which must be the same for all.
fn server_of(lab: &Lab, client: Ipv4Addr, count: usize) -> Result<String> {
    let open = || -> std::io::Result<Vec<std::net::TcpStream>> {
        let one = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((client, 0)).into())?;
            socket.connect_timeout(&ECHO4.into(), PATIENCE)?;
            Ok(socket.into())
        };
        (0..count).map(one).collect()
    };
    let servers = Crowd::adopt(lab.client().run(open)??)?.servers();
    ensure!(servers.len() == 1, "{client} has {servers:?}");
    Ok(servers.into_keys().next().unwrap_or_default())
}

#[test]
fn a_client_keeps_its_server_until_that_is_drained_and_others_spread() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let clients: Vec<Ipv4Addr> = (20..26).map(|last| Ipv4Addr::new(10, 77, 0, last)).collect();
    for client in &clients {
        lab.client().ip(&format!("address add {client}/24 dev eth0"))?;
    }
    let tcp = Server::tcp(ECHO4).key("persistence_timeout = \"5m\"").reals([1, 2, 3]);
    let mut operated = Operated::start(&lab, &[tcp])?;
    let first: Vec<String> = clients.iter().map(|client| server_of(&lab, *client, 10)).collect::<Result<_>>()?;
    // In turn by client.
    for real in lab.real_servers() {
        assert_eq!(first.iter().filter(|server| *server == real.name()).count(), 2, "{first:?}");
    }
    let again: Vec<String> = clients.iter().map(|client| server_of(&lab, *client, 5)).collect::<Result<_>>()?;
    assert_eq!(again, first);

    let left = first[0].trim_start_matches("real").parse::<usize>()?;
    operated.does(&["drain", &IpAddr::from(lab.real(left).address4()).to_string()])?;
    let moved: Vec<String> = clients.iter().map(|client| server_of(&lab, *client, 5)).collect::<Result<_>>()?;
    for (before, after) in first.iter().zip(&moved) {
        ensure!((before == after) != (*before == first[0]), "{first:?} became {moved:?}");
    }
    operated.does(&["undrain", &IpAddr::from(lab.real(left).address4()).to_string()])?;
    // They stay where they are now.
    let at_last: Vec<String> = clients.iter().map(|client| server_of(&lab, *client, 5)).collect::<Result<_>>()?;
    assert_eq!(at_last, moved);
    operated.stop()
}

#[test]
fn clients_of_one_network_have_one_server() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    // Six of 10.77.0.16/29, and one of the next network.
    let clients = [17, 18, 19, 20, 21, 22, 24].map(|last| Ipv4Addr::new(10, 77, 0, last));
    for client in &clients {
        lab.client().ip(&format!("address add {client}/24 dev eth0"))?;
    }
    let tcp = Server::tcp(ECHO4).key("persistence_timeout = \"5m\"\npersistence_granularity = 29").reals([1, 2, 3]);
    let mut operated = Operated::start(&lab, &[tcp])?;
    let servers: Vec<String> = clients.iter().map(|client| server_of(&lab, *client, 2)).collect::<Result<_>>()?;
    ensure!(servers[1..6].iter().all(|server| *server == servers[0]), "{servers:?}");
    assert_ne!(servers[6], servers[0]);
    operated.stop()
}
