//! Who gets a connection.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use evenkeel_tests::lab::{Arms, Crowd, Forwarding, Lab, address};
use socket2::{Domain, Socket, Type};

use crate::director::{PATIENCE, lab, lab_of};
use crate::operated::{ECHO, ECHO4, ECHO6, Operated, Server, UdpFlow, each, echoes, while_talking};

#[test]
fn with_mh_connections_keep_their_server_across_a_killed_daemon() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let hashed = |target| Server::tcp(target).key("scheduler = \"mh\"\nhash_port = true").reals([1, 2, 3]);
    let servers = [hashed(ECHO4), hashed(ECHO6)];
    let mut operated = Operated::start(&lab, &servers)?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 60)?;
    crowd.grow(lab.client(), ECHO6, 60)?;
    assert_eq!(crowd.servers().len(), 3);
    let before = of_ports(&lab)?;
    while_talking(&mut crowd, |rounds| {
        // The new daemon's table is of another size, and thus a new one: they are all taken up in mid-stream.
        operated.connections_max *= 2;
        operated.write(&servers)?;
        operated.kill_and_start()?;
        rounds.pass()
    })?;
    assert_eq!(crowd.ended(), [].into());
    let counts = |server: &Server| -> Result<(u64, u64)> {
        let all = operated.connections(server, 3)?;
        Ok(all.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)))
    };
    assert_eq!((counts(&servers[0])?, counts(&servers[1])?), ((60, 0), (60, 0)));
    assert_eq!(of_ports(&lab)?, before);
    operated.stop()
}

/// The servers of new connections from twenty ports of the client.
fn of_ports(lab: &Lab) -> Result<Vec<String>> {
    let open = |port| -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        // Ended by RST, so that the port is free at once.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&SocketAddr::from(([0; 4], port)).into())?;
        socket.connect_timeout(&ECHO4.into(), PATIENCE)?;
        Ok(socket.into())
    };
    let streams = lab.client().run(|| (31_000..31_020).map(open).collect::<std::io::Result<Vec<_>>>())??;
    Ok(Crowd::adopt(streams)?.order().into_iter().map(str::to_owned).collect())
}

#[test]
fn wlc_shares_long_connections_by_weight() -> Result<()> {
    for forwarding in [Forwarding::Nat, Forwarding::Direct] {
        let Some(lab) = lab_of(4, forwarding, Arms::One)? else { return Ok(()) };
        let _echoes = echoes(&lab, ECHO)?;
        let tcp = Server::tcp(ECHO4).key("scheduler = \"wlc\"");
        let tcp =
            (1..).zip([1, 2, 3, 10]).fold(tcp, |server, (n, weight)| server.real(n, &format!("weight = {weight}")));
        let mut operated = Operated::start(&lab, &[tcp])?;
        let crowd = Crowd::connect(lab.client(), ECHO4, 320)?;
        let servers = crowd.servers();
        // A sixteenth of 320 is 20.
        for (real, ideal) in each(&[(1, 20), (2, 40), (3, 60), (4, 200)]) {
            let share = servers.get(&real).copied().unwrap_or(0);
            assert!(share.abs_diff(ideal) <= 1, "{real} has {share} of {servers:?}");
        }
        operated.stop()?;
    }
    Ok(())
}

#[test]
fn rr_takes_strict_turns() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let mut operated = Operated::start(&lab, &[Server::tcp(ECHO4).reals([1, 2, 3])])?;
    let crowd = Crowd::connect(lab.client(), ECHO4, 30)?;
    for turn in crowd.order().windows(4) {
        assert!(turn[0] == turn[3] && turn[0] != turn[1] && turn[1] != turn[2] && turn[0] != turn[2], "{turn:?}");
    }
    operated.stop()
}

#[test]
fn with_one_packet_each_datagram_of_a_flow_has_its_turn() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let server = |vip| Server::udp((vip, address::UDP_PORT)).key("one_packet = true").reals([1, 2, 3]);
    let servers = address::vips().map(server);
    let mut operated = Operated::start(&lab, &servers)?;
    for (vip, server) in address::vips().into_iter().zip(&servers) {
        let flow = UdpFlow::open(&lab, (vip, address::UDP_PORT).into())?;
        let answers: Vec<String> = (0..12).map(|_| flow.ask()).collect::<std::io::Result<_>>()?;
        for turn in answers.windows(4) {
            assert!(turn[0] == turn[3] && turn[0] != turn[1] && turn[1] != turn[2] && turn[0] != turn[2], "{turn:?}");
        }
        // Nothing is remembered, each is counted.
        assert_eq!(operated.connections(server, 3)?, [(0, 0); 3]);
        assert_eq!(operated.real(server, 1)?["counters"]["connections"], 4);
    }
    operated.stop()
}
