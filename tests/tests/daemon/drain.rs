//! Drain, undrain and removal of real servers: what goes on, what moves, what ends.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{Arms, Crowd, Forwarding, Lab, Rounds, address};
use nix::sys::signal::Signal;

use crate::director::{decapsulators, lab, lab_of, wait_until};
use crate::operated::{ECHO, ECHO4, Operated, Server, UdpFlow, each, echoes, newcomers, while_talking};

#[test]
fn with_nat_two_thousand_connections_outlast_drain_undrain_and_removal() -> Result<()> {
    outlasts(Forwarding::Nat, address::VIP4.into(), 2000)
}

#[test]
fn with_direct_routing_two_thousand_connections_outlast_drain_undrain_and_removal() -> Result<()> {
    outlasts(Forwarding::Direct, address::VIP4.into(), 2000)
}

#[test]
fn with_ipv6_and_tunnels_connections_outlast_drain_undrain_and_removal() -> Result<()> {
    outlasts(Forwarding::Tunnel, address::VIP6.into(), 400)
}

/// Long-lived connections to the VIP's echo, shared by four real servers; the fourth comes and goes.
fn outlasts(forwarding: Forwarding, vip: IpAddr, connections: usize) -> Result<()> {
    let Some(lab) = lab_of(4, forwarding, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let _decapsulators = decapsulators(&lab)?;
    let case = Case { lab: &lab, vip, quarter: connections / 4 };
    let (tcp, udp) = (case.tcp(), Server::udp((vip, address::UDP_PORT)));
    let (all, without) = ([1, 2, 3, 4], [1, 2, 3]);
    let with_all = [tcp.clone().reals(all), udp.clone().reals(all)];
    let without_fourth = [tcp.clone().reals(without), udp.clone().reals(without)];
    let mut operated = Operated::start(&lab, &with_all)?;
    let mut crowd = Crowd::connect(lab.client(), case.target(), connections)?;
    let quarters = each(&all.map(|number| (number, case.quarter)));
    assert_eq!(crowd.servers(), quarters);
    while_talking(&mut crowd, |rounds| {
        case.drained_and_given_back(&operated, rounds)?;
        let flow = case.flow_of("real4")?;
        // By command.
        operated.reload(&without_fourth)?;
        assert_eq!(newcomers(&lab, case.target(), 30)?, each(&[(1, 10), (2, 10), (3, 10)]));
        assert_ne!(flow.ask()?, "real4");
        rounds.pass()?;
        let kept = operated.real(&tcp, 4)?;
        assert_eq!((&kept["role"], &kept["active"]), (&"removed".into(), &case.quarter.into()), "{kept:#}");
        // By signal, and back.
        operated.write(&with_all)?;
        operated.daemon.process.signal(Signal::SIGHUP)?;
        wait_until("the fourth real server", || Ok(operated.real(&tcp, 4)?["role"] == "serving"))?;
        assert_eq!(newcomers(&lab, case.target(), 40)?, each(&all.map(|number| (number, 10))));
        rounds.pass()
    })?;
    assert_eq!(crowd.ended(), [].into());
    assert_eq!(crowd.servers(), quarters);
    let active: Vec<u64> = operated.connections(&tcp, 4)?.into_iter().map(|(active, _)| active).collect();
    assert_eq!(active, [case.quarter as u64; 4]);

    // With the other policy the connections of the removed one end, and no others.
    let [tcp_of_three, udp_of_three] = without_fourth;
    operated.reload(&[tcp_of_three.key("removed_real_server = \"expire\""), udp_of_three])?;
    crowd.talk()?;
    assert_eq!(crowd.ended(), [(("real4".to_owned(), ErrorKind::ConnectionReset), case.quarter)].into());
    crowd.talk()?;
    assert_eq!(crowd.servers(), each(&without.map(|number| (number, case.quarter))));
    operated.stop()
}

struct Case<'a> {
    lab: &'a Lab,
    vip: IpAddr,
    /// How many of the connections each real server has.
    quarter: usize,
}

impl Case<'_> {
    fn target(&self) -> SocketAddr {
        SocketAddr::new(self.vip, ECHO)
    }

    fn tcp(&self) -> Server {
        Server::tcp(self.target())
    }

    /// While the fourth is drained it gets no new connection; then its share again.
    fn drained_and_given_back(&self, operated: &Operated<'_>, rounds: &Rounds) -> Result<()> {
        let (lab, target, fourth) = (self.lab, self.target(), self.lab.real(4));
        let ip = if self.vip.is_ipv4() { IpAddr::from(fourth.address4()) } else { fourth.address6().into() };
        let named = format!("{} of tcp {target}", SocketAddr::new(ip, ECHO));
        let flow = self.flow_of("real4")?;
        let said = operated.does(&["drain", &ip.to_string()])?;
        ensure!(said.contains(&format!("{named}: drained, {} connections", self.quarter)), "{said}");
        assert_eq!(said.lines().count(), 2, "TCP and UDP: {said}");
        assert_eq!(newcomers(lab, target, 30)?, each(&[(1, 10), (2, 10), (3, 10)]));
        let drained = operated.real(&self.tcp(), 4)?;
        assert_eq!((&drained["drained"], &drained["weight"]), (&true.into(), &0.into()), "{drained:#}");
        assert_eq!((&drained["active"], &drained["inactive"]), (&self.quarter.into(), &0.into()), "{drained:#}");
        assert_eq!(flow.ask()?, "real4");
        rounds.pass()?;
        let said = operated.does(&["undrain", &ip.to_string()])?;
        ensure!(said.contains(&format!("{named}: given back")), "{said}");
        assert_eq!(newcomers(lab, target, 40)?, each(&[(1, 10), (2, 10), (3, 10), (4, 10)]));
        rounds.pass()
    }

    /// A UDP flow that this server has.
    fn flow_of(&self, server: &str) -> Result<UdpFlow> {
        for _ in 0..8 {
            let flow = UdpFlow::open(self.lab, (self.vip, address::UDP_PORT).into())?;
            if flow.ask()? == server {
                return Ok(flow);
            }
        }
        anyhow::bail!("{server} gets none of eight flows")
    }
}

#[test]
fn a_drain_for_two_seconds_ends_by_itself() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let tcp = Server::tcp(ECHO4);
    let mut operated = Operated::start(&lab, &[tcp.clone().reals([1, 2])])?;
    let begun = Instant::now();
    let said = operated.does(&["drain", "10.77.1.11:7", "--for", "2s"])?;
    assert_eq!(said, "10.77.1.11:7 of tcp 10.77.0.100:7: drained for 2s, no connections\n");
    ensure!(operated.real(&tcp, 1)?["drained_for_seconds"].as_u64().is_some_and(|left| left <= 2));
    assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(2, 4)]));
    wait_until("the end of the drain", || Ok(operated.real(&tcp, 1)?["drained"] == false))?;
    let lasted = begun.elapsed();
    ensure!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&lasted), "it lasted {lasted:?}");
    assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(1, 2), (2, 2)]));
    operated.stop()
}

#[test]
fn what_cannot_be_drained_or_given_back_is_told() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let (tcp, udp) = (Server::tcp((address::VIP4, 5353)).reals([1, 2]), Server::udp((address::VIP4, 5353)).reals([1]));
    let mut operated = Operated::start(&lab, &[tcp.clone(), udp.clone()])?;
    operated.refuses(&["drain", "10.77.1.99"], &["no virtual server has real server 10.77.1.99"])?;
    operated.refuses(&["drain", "10.77.1.11:81"], &["no virtual server has real server 10.77.1.11:81"])?;
    operated.refuses(&["undrain", "10.77.1.11"], &["real server 10.77.1.11 is not drained"])?;
    let ambiguous = ["drain", "10.77.1.11", "--virtual-server", "10.77.0.100:5353"];
    operated.refuses(&ambiguous, &["\"tcp 10.77.0.100:5353\" or \"udp 10.77.0.100:5353\"; write one of those"])?;
    operated.refuses(&["drain", "10.77.1.11", "--virtual-server", "web"], &["no virtual server is called \"web\""])?;
    operated.refuses(&["drain", "10.77.1.11", "--for", "1500ms"], &["whole seconds"])?;
    // Of none has anything become of it.
    assert_eq!(
        (operated.real(&tcp, 1)?["drained"].clone(), operated.real(&udp, 1)?["drained"].clone()),
        (false.into(), false.into())
    );
    operated.does(&["drain", "10.77.1.11", "--virtual-server", "udp 10.77.0.100:5353"])?;
    assert_eq!(
        (operated.real(&tcp, 1)?["drained"].clone(), operated.real(&udp, 1)?["drained"].clone()),
        (false.into(), true.into())
    );
    operated.stop()
}

#[test]
fn a_server_that_comes_back_gets_its_weight_little_by_little() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let tcp = Server::tcp(ECHO4).key("scheduler = \"wrr\"\nslow_start = \"4s\"");
    let server = tcp.clone().real(1, "weight = 20").real(2, "weight = 20");
    // While a weight rises, another scheduler with weights of its own is in this one's place.
    let rr = Server::tcp((address::VIP4, 80)).key("slow_start = \"4s\"");
    let mut operated = Operated::start(&lab, &[server, rr.clone().real(1, "weight = 7").real(2, "weight = 7")])?;
    let weight = || -> Result<u64> { operated.real(&tcp, 1)?["weight"].as_u64().context("no weight") };
    assert_eq!(weight()?, 20);
    operated.does(&["drain", "10.77.1.11"])?;
    assert_eq!(weight()?, 0);
    operated.does(&["undrain", "10.77.1.11"])?;
    let first = weight()?;
    let shown = |server: &Server, number| -> Result<_> {
        let real = operated.real(server, number)?;
        Ok((real["weight"].as_u64().context("no weight")?, real["rising"].as_bool().context("not said")?))
    };
    assert_eq!((shown(&tcp, 2)?, shown(&rr, 2)?), ((20, false), (7, false)));
    ensure!(shown(&tcp, 1)?.1 && (1..7).contains(&shown(&rr, 1)?.0), "{:?}", (shown(&tcp, 1)?, shown(&rr, 1)?));
    assert_eq!(operated.scheduler(&rr)?, "rr");
    ensure!((1..=10).contains(&first), "weight {first} at once");
    // A fifth of the connections at most come now, not half.
    let early = newcomers(&lab, ECHO4, 20)?.get("real1").copied().unwrap_or(0);
    ensure!(early < 8, "{early} of 20 at once");
    let mut seen = vec![first];
    wait_until("the whole weight", || {
        let weight = weight()?;
        seen.push(weight);
        Ok(weight == 20)
    })?;
    ensure!(seen.is_sorted() && seen.iter().any(|weight| (first + 1..20).contains(weight)), "{seen:?}");
    assert_eq!(newcomers(&lab, ECHO4, 20)?, each(&[(1, 10), (2, 10)]));
    wait_until("the other's end", || Ok(shown(&rr, 1)? == (7, false)))?;
    operated.stop()
}

#[test]
fn the_status_counts_connections_as_they_are() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::Two)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let tcp = Server::tcp(ECHO4).reals([1, 2, 3]);
    let mut operated = Operated::start(&lab, std::slice::from_ref(&tcp))?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 30)?;
    assert_eq!(operated.connections(&tcp, 3)?, [(10, 0); 3]);
    crowd.close("real2", 4);
    wait_until("four closing connections", || Ok(operated.connections(&tcp, 3)? == [(10, 0), (6, 4), (10, 0)]))?;
    operated.stop()
}
