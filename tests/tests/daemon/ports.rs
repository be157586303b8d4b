//! Virtual servers on all ports, and a real server that is the director itself.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use evenkeel_tests::lab::{Arms, Crowd, Forwarding, SshLike, TcpEcho, UdpEcho, address, get};

use crate::director::{lab, lab_of};
use crate::operated::{ECHO, ECHO4, ECHO6, Operated, Server, UdpFlow, echoes, newcomers};

/// Another port than [`ECHO`].
const OTHER: u16 = 7001;

#[test]
fn with_nat_all_ports_of_a_vip_are_served_and_other_vips_are_not() -> Result<()> {
    all_ports(Forwarding::Nat)
}

#[test]
fn with_direct_routing_all_ports_of_a_vip_are_served_and_other_vips_are_not() -> Result<()> {
    all_ports(Forwarding::Direct)
}

fn all_ports(forwarding: Forwarding) -> Result<()> {
    let Some(lab) = lab(forwarding, Arms::One)? else { return Ok(()) };
    let _echoes = (echoes(&lab, ECHO)?, echoes(&lab, OTHER)?);
    lab.director().ip("address add 10.77.0.101/32 dev eth0")?;
    let local = SocketAddr::from(([10, 77, 0, 101], ECHO));
    let _local = SshLike::start(lab.director(), local)?;
    let mut servers = Vec::new();
    for vip in address::vips() {
        servers.push(Server::tcp((vip, 0)).reals([1, 2, 3]));
        servers.push(Server::udp((vip, 0)).reals([1, 2, 3]));
        // A port with a virtual server of its own.
        servers.push(Server::tcp((vip, address::HTTP_PORT)).reals([2]));
    }
    let mut operated = Operated::start(&lab, &servers)?;
    for vip in address::vips() {
        for port in [ECHO, OTHER] {
            let mut crowd = Crowd::connect(lab.client(), (vip, port).into(), 9)?;
            assert_eq!(crowd.servers().into_values().collect::<Vec<_>>(), [3; 3], "{vip} port {port}");
            crowd.talk()?;
            assert_eq!(crowd.ended(), [].into());
        }
        for _ in 0..3 {
            let flow = UdpFlow::open(&lab, (vip, address::UDP_PORT).into())?;
            let server = flow.ask()?;
            assert_eq!((flow.ask()?, flow.ask()?), (server.clone(), server));
            let page = lab.client().run(|| get((vip, address::HTTP_PORT).into(), "/", Duration::from_secs(3)))??;
            assert_eq!(page.real_server, "real2");
        }
        lab.client().ping(vip, 2)?;
    }
    let heard = lab.client().talk(local, &["one", "two"], Duration::from_secs(2))?;
    assert_eq!(heard[1..], ["one", "two"]);
    lab.client().ping(local.ip(), 2)?;
    operated.stop()
}

#[test]
fn the_director_serves_its_own_share_beside_others() -> Result<()> {
    let Some(lab) = lab_of(2, Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let _own = (TcpEcho::start(lab.director(), ECHO, "director")?, UdpEcho::start(lab.director(), "director")?);
    let (tcp4, tcp6) = (Server::tcp(ECHO4), Server::tcp(ECHO6));
    let udp = Server::udp((address::VIP4, address::UDP_PORT));
    let servers = [
        tcp4.reals([1, 2]).real_at(address::DIRECTOR4.into(), ""),
        tcp6.reals([1, 2]).real_at(address::DIRECTOR6.into(), ""),
        udp.reals([1, 2]).real_at(address::DIRECTOR4.into(), ""),
    ];
    let mut operated = Operated::start(&lab, &servers)?;
    for target in [ECHO4, ECHO6] {
        let mut crowd = Crowd::connect(lab.client(), target, 30)?;
        assert_eq!(
            crowd.servers().into_iter().collect::<Vec<_>>(),
            [("director".to_owned(), 10), ("real1".to_owned(), 10), ("real2".to_owned(), 10)]
        );
        crowd.talk()?;
        assert_eq!(crowd.ended(), [].into());
    }
    let answers = (0..3).map(|_| Ok(UdpFlow::open(&lab, (address::VIP4, address::UDP_PORT).into())?.ask()?));
    let mut answers = answers.collect::<Result<Vec<String>>>()?;
    answers.sort();
    assert_eq!(answers, ["director", "real1", "real2"]);
    let status = operated.daemon.status()?;
    ensure!(status.to_string().contains("\"state\":\"local\""), "{status:#}");
    // Drained, it serves no more.
    operated.does(&["drain", "10.77.0.1"])?;
    assert_eq!(newcomers(&lab, ECHO4, 4)?.into_keys().collect::<Vec<_>>(), ["real1", "real2"]);
    operated.stop()
}
