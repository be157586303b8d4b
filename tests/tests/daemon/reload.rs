//! Another configuration for a running daemon: what it takes, and what it refuses without a trace.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use evenkeel_tests::lab::{Arms, Crowd, Forwarding, address};
use nix::sys::signal::Signal;

use crate::director::{PATIENCE, lab};
use crate::operated::{ECHO, ECHO4, Operated, Server, each, echoes, newcomers, while_talking};

#[test]
fn what_a_running_daemon_cannot_take_is_refused_and_everything_goes_on() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let tcp = Server::tcp(ECHO4);
    let (both, one) = ([tcp.clone().reals([1, 2])], [tcp.clone().reals([1])]);
    let mut operated = Operated::start(&lab, &both)?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 10)?;
    while_talking(&mut crowd, |rounds| {
        // Each of these would also take the second real server away.
        operated.write(&[one[0].clone().key("schedule = \"rr\"")])?;
        operated.refuses(&["reload"], &["operated.toml:", "schedule", "scheduler"])?;
        operated.daemon.process.signal(Signal::SIGHUP)?;
        operated.daemon.process.wait_for_log("configuration not reloaded; the old one still holds", PATIENCE)?;

        operated.connections_max = 131_072;
        operated.write(&one)?;
        operated.refuses(&["reload"], &["xdp.connections_max cannot change while the daemon runs; restart it"])?;
        operated.connections_max = 65_536;

        let nat = Server::tcp((address::VIP4, 8)).forwarding("nat").reals([3]);
        operated.write(&[one[0].clone(), nat])?;
        operated.refuses(&["reload"], &["whether there are nat real servers", "restart it"])?;
        let wide = Server::tcp((address::VIP6, 8)).reals([3]);
        operated.write(&[one[0].clone(), wide])?;
        operated.refuses(&["reload"], &["whether there are virtual servers with an IPv6 address", "restart it"])?;

        // More than the maps were made for: 264 places, and four Maglev tables, each beside the one in use.
        let far = |n: u16| [10, 78, n.to_be_bytes()[0], n.to_be_bytes()[1]];
        let many = (1..=264).fold(tcp.clone(), |server, n| server.real_at(far(n).into(), ""));
        operated.write(&[many])?;
        operated.refuses(
            &["reload"],
            &["the size of the tables, which so many real servers and such schedulers exceed", "restart it"],
        )?;
        operated.write(
            &[7, 8, 9, 10].map(|port| Server::tcp((address::VIP4, port)).key("scheduler = \"mh\"").reals([1])),
        )?;
        operated.refuses(
            &["reload"],
            &["the size of the tables, which so many real servers and such schedulers exceed", "restart it"],
        )?;

        std::fs::remove_file(lab.directory().join("operated.toml"))?;
        operated.refuses(&["reload"], &["operated.toml", "No such file"])?;
        assert_eq!(newcomers(&lab, ECHO4, 10)?, each(&[(1, 5), (2, 5)]));
        assert_eq!(operated.reload(&both)?, "reloaded: nothing has changed\n");
        assert_eq!(operated.reload(&one)?, "reloaded: 1 virtual server has changed\n");
        assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(1, 4)]));
        rounds.pass()
    })?;
    assert_eq!(crowd.ended(), [].into());
    operated.stop()
}

#[test]
fn a_second_real_server_comes_without_a_restart_also_where_weights_count() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let weighted = Server::tcp(ECHO4).key("scheduler = \"wlc\"");
    let mut operated = Operated::start(&lab, &[weighted.clone().reals([1])])?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 10)?;
    while_talking(&mut crowd, |rounds| {
        assert_eq!(operated.reload(&[weighted.clone().reals([1, 2])])?, "reloaded: 1 virtual server has changed\n");
        // Ten connections are the first's, so that the next ten are the second's.
        assert_eq!(newcomers(&lab, ECHO4, 5)?, each(&[(2, 5)]));
        rounds.pass()
    })?;
    assert_eq!(crowd.ended(), [].into());
    operated.stop()
}

#[test]
fn virtual_servers_come_and_go_beside_one_in_use() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let _echoes = (echoes(&lab, ECHO)?, echoes(&lab, 8)?);
    // Nobody here but the program answers for the VIP.
    lab.director().ip("address del 10.77.0.100/32 dev eth0")?;
    lab.client().ip("route add 10.77.0.100/32 via 10.77.0.1")?;
    let held = Server::tcp(ECHO4).reals([1, 2]);
    let other = (address::VIP4, 8).into();
    let both = [held.clone(), Server::tcp(other).reals([2, 3])];
    let mut operated = Operated::start(&lab, std::slice::from_ref(&held))?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 100)?;
    while_talking(&mut crowd, |rounds| {
        for _ in 0..5 {
            assert_eq!(operated.reload(&both)?, "reloaded: 1 virtual server has changed\n");
            assert_eq!(newcomers(&lab, other, 4)?, each(&[(2, 2), (3, 2)]));
            assert_eq!(operated.reload(std::slice::from_ref(&held))?, "reloaded: 1 virtual server has changed\n");
            let gone = lab.client().run(|| TcpStream::connect_timeout(&other, Duration::from_millis(200)))?;
            ensure!(gone.is_err(), "the removed virtual server serves");
            rounds.pass()?;
        }
        Ok(())
    })?;
    assert_eq!(crowd.ended(), [].into());
    assert_eq!(crowd.servers(), each(&[(1, 50), (2, 50)]));
    operated.stop()
}

/// Of all that there may be, one becomes another, then all but one: there is no room for both at once.
#[test]
fn as_many_virtual_servers_as_there_may_be_can_be_replaced() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let servers = |ports: std::ops::Range<u16>| -> Vec<Server> {
        let others = ports.map(|port| Server::tcp((address::VIP4, port)).reals([1]));
        [Server::tcp(ECHO4).reals([1, 2])].into_iter().chain(others).collect()
    };
    let mut operated = Operated::start(&lab, &servers(2000..3023))?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 10)?;
    while_talking(&mut crowd, |rounds| {
        assert_eq!(operated.reload(&servers(2001..3024))?, "reloaded: 2 virtual servers have changed\n");
        assert_eq!(operated.reload(&servers(4000..5023))?, "reloaded: 2046 virtual servers have changed\n");
        assert_eq!(operated.daemon.status()?["virtual_servers"].as_array().map(Vec::len), Some(1024));
        rounds.pass()
    })?;
    assert_eq!(crowd.ended(), [].into());
    operated.stop()
}

#[test]
fn another_scheduler_moves_no_connection() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    // First the one with the largest table, for which the maps are made.
    let by = |scheduler: &str| [Server::tcp(ECHO4).key(&format!("scheduler = \"{scheduler}\"")).reals([1, 2, 3])];
    let mut operated = Operated::start(&lab, &by("mh"))?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 30)?;
    while_talking(&mut crowd, |rounds| {
        // Not ovf, for which all are full with a connection each.
        for scheduler in ["rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq", "fo", "twos", "mh"] {
            assert_eq!(operated.reload(&by(scheduler))?, "reloaded: 1 virtual server has changed\n");
            assert_eq!(operated.daemon.status()?["virtual_servers"][0]["scheduler"], scheduler);
            let servers = newcomers(&lab, ECHO4, 12)?;
            let expected = match scheduler {
                "rr" | "wrr" => Some(3),
                // By the client's address and the VIP alone, and by the highest weight.
                "sh" | "dh" | "fo" | "mh" => Some(1),
                "lc" | "wlc" | "sed" | "nq" | "twos" => None,
                other => anyhow::bail!("how does {other} spread?"),
            };
            ensure!(expected.is_none_or(|count| servers.len() == count), "{scheduler} gave {servers:?}");
            rounds.pass()?;
        }
        Ok(())
    })?;
    assert_eq!(crowd.ended(), [].into());
    operated.stop()
}
