//! Clients that are let in or kept out, and the firewall that does not see them.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{Arms, Crowd, Forwarding, Lab, address};

use crate::director::{PATIENCE, lab, run};
use crate::operated::{ECHO, ECHO4, Operated, Server, UdpFlow, each, echoes, newcomers};

/// Shorter than the time after which a SYN is sent again.
const SOON: Duration = Duration::from_millis(700);

/// The client's network and one beside it.
const fn networks(vip: IpAddr) -> (&'static str, &'static str) {
    match vip {
        IpAddr::V4(_) => ("10.77.0.0/28", "10.77.0.16/28"),
        IpAddr::V6(_) => ("fd77::/122", "fd77::40/122"),
    }
}

/// TCP and UDP on both VIPs; `keys` is told the client's network and the one beside it.
fn servers(keys: impl Fn(&str, &str) -> String) -> Vec<Server> {
    let on = |vip: IpAddr| {
        let (its, beside) = networks(vip);
        let tcp = Server::tcp((vip, ECHO)).reals([1, 2]).key(&keys(its, beside));
        [tcp, Server::udp((vip, address::UDP_PORT)).reals([1, 2]).key(&keys(its, beside))]
    };
    address::vips().into_iter().flat_map(on).collect()
}

/// Whether the client is served on every port and VIP; it must be so everywhere.
fn is_served(lab: &Lab) -> Result<bool> {
    let mut all = Vec::new();
    for vip in address::vips() {
        let target = SocketAddr::new(vip, ECHO);
        let tcp = lab.client().run(|| TcpStream::connect_timeout(&target, SOON))?;
        all.push(match tcp {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::TimedOut => false,
            Err(error) => return Err(error).context("a client that is kept out hears nothing"),
        });
        all.push(UdpFlow::open(lab, (vip, address::UDP_PORT).into())?.ask_within(SOON).is_ok());
    }
    ensure!(all.iter().all(|served| *served == all[0]), "served here and not there: {all:?}");
    Ok(all[0])
}

#[test]
fn a_reload_lets_clients_in_and_shuts_them_out() -> Result<()> {
    for forwarding in [Forwarding::Nat, Forwarding::Direct] {
        let Some(lab) = lab(forwarding, Arms::One)? else { return Ok(()) };
        let _echoes = echoes(&lab, ECHO)?;
        let mut operated = Operated::start(&lab, &servers(|_, beside| format!("deny = [{beside:?}]")))?;
        ensure!(is_served(&lab)?);
        let mut crowd = Crowd::connect(lab.client(), ECHO4, 4)?;

        operated.reload(&servers(|its, _| format!("deny = [{its:?}]")))?;
        ensure!(!is_served(&lab)?);
        assert_eq!(operated.does(&["connections", "--protocol", "tcp", "--json"])?, "", "they have ended");
        crowd.talk()?;
        let ends = crowd.ended();
        assert_eq!(ends.values().sum::<usize>(), 4, "{ends:?}");
        let status = operated.daemon.status()?;
        let denied = |server: &serde_json::Value| server["denied"].as_u64();
        let each_denied: Vec<_> = status["virtual_servers"].as_array().into_iter().flatten().map(denied).collect();
        ensure!(each_denied.len() == 4 && each_denied.iter().all(|count| *count > Some(0)), "{status:#}");
        ensure!(status["drops"]["denied"].as_u64() >= Some(8), "{status:#}");
        ensure!(operated.does(&["status", "--drops"])?.contains("denied: "));

        operated.reload(&servers(|its, beside| format!("allow = [{beside:?}]\ndeny = [{its:?}]")))?;
        ensure!(!is_served(&lab)?);
        operated.reload(&servers(|its, _| format!("allow = [{its:?}]")))?;
        ensure!(is_served(&lab)?);
        operated.reload(&servers(|_, beside| format!("allow = [{beside:?}]")))?;
        ensure!(!is_served(&lab)?);
        operated.reload(&servers(|_, _| String::new()))?;
        ensure!(is_served(&lab)?);
        operated.stop()?;
    }
    Ok(())
}

#[test]
fn a_file_of_thousands_is_read_again_and_refused_with_its_line() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let file = lab.directory().join("denied");
    let write = |more: &str| {
        let far = (0..20_000_u32).map(|n| format!("{}/27\n", std::net::Ipv4Addr::from(0x6440_0000 + n * 64)));
        std::fs::write(&file, far.collect::<String>() + more)
    };
    let server = [Server::tcp(ECHO4).reals([1, 2]).key(&format!("deny_file = {:?}", file.to_string_lossy()))];
    write("# nobody near\n")?;
    let mut operated = Operated::start(&lab, &server)?;
    assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(1, 2), (2, 2)]));
    write("10.77.0.10 # the client\n")?;
    assert_eq!(operated.does(&["reload"])?, "reloaded: 1 virtual server has changed\n");
    let kept_out = lab.client().run(|| TcpStream::connect_timeout(&ECHO4, SOON))?;
    assert_eq!(kept_out.map_err(|error| error.kind()).err(), Some(ErrorKind::TimedOut));
    write("10.77.0.300\n")?;
    operated.refuses(&["reload"], &["denied:20001: \"10.77.0.300\" must be a prefix or an address"])?;
    write("")?;
    assert_eq!(operated.does(&["reload"])?, "reloaded: 1 virtual server has changed\n");
    assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(1, 2), (2, 2)]));
    // Many times over, so that each takes the place of the one before the last.
    for n in 0..8 {
        write(&format!("192.0.2.{n}\n"))?;
        assert_eq!(operated.does(&["reload"])?, "reloaded: 1 virtual server has changed\n");
        assert_eq!(newcomers(&lab, ECHO4, 2)?.values().sum::<usize>(), 2);
    }
    operated.stop()
}

#[test]
fn firewall_rules_about_a_vip_are_named_by_check_a_start_and_a_reload() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let _echoes = echoes(&lab, ECHO)?;
    let server = [Server::tcp(ECHO4).reals([1])];
    let mut operated = Operated::start(&lab, &server)?;
    let file = lab.directory().join("operated.toml");
    let check = || run(&lab, &["check", &file.to_string_lossy()]);
    ensure!(!check()?.stderr.contains("firewall"), "there are no rules");
    operated.stop()?;
    let rules = "table inet guard { chain incoming { type filter hook input priority 0; ip daddr 10.77.0.64/26 tcp dport 7 drop; }; }";
    lab.director().command("nft")?.args([rules]).limit(PATIENCE).run()?;
    let checked = check()?;
    let rule = "nftables table inet guard, chain incoming, rule with handle 2, mentions 10.77.0.100";
    ensure!(checked.status.success() && checked.stderr.contains(rule), "{}", checked.stderr);
    let mut operated = Operated::start(&lab, &server)?;
    operated.daemon.process.wait_for_log(rule, PATIENCE)?;
    // And so it is: the rule drops nothing.
    assert_eq!(newcomers(&lab, ECHO4, 2)?, each(&[(1, 2)]));
    // With each reload what is new, and nothing else again.
    operated.reload(&[server[0].clone(), Server::tcp(([10, 77, 0, 101], ECHO)).reals([1])])?;
    operated.daemon.process.wait_for_log("rule with handle 2, mentions 10.77.0.101", PATIENCE)?;
    assert_eq!(operated.daemon.process.log().matches(rule).count(), 1);
    operated.stop()
}
