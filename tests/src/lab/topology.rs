//! Who is connected to whom, with which addresses, routes and settings.
//!
//! ```text
//! one arm                                         two arms
//!   client ── br0 ── eth0 director                  client ── br0 ── eth0 director eth1 ── br1 ── real1..N
//!              └──── real1..N
//! ```
//! Every host has one interface, `eth0`, and the director of a two-armed lab `eth1` as well. The bridges are in the switch.

use std::net::IpAddr;

use anyhow::Result;

use super::address::{self, CLIENT4, CLIENT6, DIRECTOR_SERVERS4, DIRECTOR_SERVERS6, DIRECTOR4, DIRECTOR6, VIP4, VIP6};
use super::builder::{Arms, Forwarding};
use super::link;
use super::namespace::Namespace;
use super::real_server::RealServer;
use super::uplink::Uplink;
use super::xdp_pass::XdpPass;

/// The bridge with the clients (and, with one arm, the real servers).
const CLIENT_BRIDGE: &str = "br0";
/// The bridge with the real servers of a two-armed lab.
const SERVER_BRIDGE: &str = "br1";

/// Settings of every host, before it has interfaces so that they inherit them: no autoconfiguration, and no
/// duplicate address detection that would delay the first packet by a second.
pub(super) const QUIET: [(&str, &str); 6] = [
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/router_solicitations", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
];

/// Settings of the director. `rp_filter` counts as the larger of `all` and the interface's, `send_redirects` as either.
const ROUTER: [(&str, &str); 6] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
];

/// Settings of a real server that has the VIP on `lo`: it doesn't answer ARP for it, nor speak as it.
const SILENT_VIP: [(&str, &str); 6] = [
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/default/arp_ignore", "1"),
    ("ipv4/conf/all/arp_announce", "2"),
    ("ipv4/conf/default/arp_announce", "2"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
];

/// Everything that was made; dropping it unmakes it.
pub(super) struct Made {
    pub(super) real_servers: Vec<RealServer>,
    pub(super) passes: Vec<XdpPass>,
    pub(super) client: Namespace,
    pub(super) director: Namespace,
    pub(super) switch: Namespace,
}

pub(super) fn make(
    lab: &str,
    real_servers: u8,
    forwarding: Forwarding,
    (arms, uplink): (Arms, Uplink),
    mtu: u16,
) -> Result<Made> {
    let switch = Namespace::create(format!("{lab}-switch"))?;
    let client = Namespace::create(format!("{lab}-client"))?;
    let director = Namespace::create(format!("{lab}-director"))?;
    let hosts: Result<Vec<Namespace>> =
        (1..=real_servers).map(|number| Namespace::create(format!("{lab}-real{number}"))).collect();
    let hosts = hosts?;

    switch.sysctls(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")])?;
    client.sysctls(&QUIET)?;
    director.sysctls(&QUIET)?;
    director.sysctls(&ROUTER)?;
    director.sysctls(uplink.director_settings())?;
    for host in &hosts {
        host.sysctls(&QUIET)?;
        match forwarding {
            Forwarding::Nat => {}
            Forwarding::Direct | Forwarding::Tunnel => host.sysctls(&SILENT_VIP)?,
        }
    }

    connect(&switch, (&client, &director, &hosts), (arms, uplink), mtu)?;
    client.ip_batch(&client_lines())?;
    director.ip_batch(&director_lines(arms, uplink))?;
    let passes = prepare_ports(&switch, arms, uplink)?;

    let mut made = Vec::new();
    for (number, host) in (1..).zip(hosts) {
        host.ip_batch(&real_server_lines(number, forwarding))?;
        made.push(RealServer::start(number, host)?);
    }
    Ok(Made { real_servers: made, passes, client, director, switch })
}

/// The switch's ports that face the director.
fn director_ports(arms: Arms, uplink: Uplink) -> impl Iterator<Item = &'static str> {
    let servers = match arms {
        Arms::One => None,
        Arms::Two => Some("director1"),
    };
    uplink.ports().iter().copied().chain(servers)
}

fn connect(
    switch: &Namespace,
    (client, director, hosts): (&Namespace, &Namespace, &[Namespace]),
    (arms, uplink): (Arms, Uplink),
    mtu: u16,
) -> Result<()> {
    let mut lines = link::bridge(CLIENT_BRIDGE);
    lines.extend(link::veth("client", CLIENT_BRIDGE, client, "eth0", mtu));
    lines.extend(uplink.switch_lines(CLIENT_BRIDGE, director, mtu));
    let server_bridge = match arms {
        Arms::One => CLIENT_BRIDGE,
        Arms::Two => {
            lines.extend(link::bridge(SERVER_BRIDGE));
            lines.extend(link::veth("director1", SERVER_BRIDGE, director, "eth1", mtu));
            SERVER_BRIDGE
        }
    };
    for (number, host) in (1..).zip(hosts) {
        let number: usize = number;
        lines.extend(link::veth(&format!("real{number}"), server_bridge, host, "eth0", mtu));
    }
    switch.ip_batch(&lines)
}

/// What a veth needs so that native XDP on the director works: a program on the other end, and
/// complete checksums from there, since the mark of a partial one is lost in XDP_TX and redirect.
fn prepare_ports(switch: &Namespace, arms: Arms, uplink: Uplink) -> Result<Vec<XdpPass>> {
    let mut passes = Vec::new();
    for port in director_ports(arms, uplink) {
        switch.command("ethtool")?.args(["-K", port, "tx", "off"]).run()?;
        passes.push(XdpPass::attach(switch, port)?);
    }
    Ok(passes)
}

/// The director's interface towards the real servers, once more, with an MTU of 1500.
pub(super) fn make_server_interface(switch: &Namespace, director: &Namespace, mac: &str) -> Result<XdpPass> {
    switch.ip_batch(&link::veth("director1", SERVER_BRIDGE, director, "eth1", 1500))?;
    switch.command("ethtool")?.args(["-K", "director1", "tx", "off"]).run()?;
    let pass = XdpPass::attach(switch, "director1")?;
    director.ip_batch(&[
        format!("link set eth1 address {mac} up"),
        address_line(DIRECTOR_SERVERS4, 24, "eth1"),
        address_line(DIRECTOR_SERVERS6, 64, "eth1"),
    ])?;
    Ok(pass)
}

fn up(interface: &str) -> [String; 2] {
    ["link set lo up".to_owned(), format!("link set {interface} up")]
}

/// An address for an interface, without duplicate address detection where there is one.
fn address_line(address: impl Into<IpAddr>, prefix: u8, interface: &str) -> String {
    let address = address.into();
    let nodad = if address.is_ipv6() { " nodad" } else { "" };
    format!("addr add {address}/{prefix} dev {interface}{nodad}")
}

fn client_lines() -> Vec<String> {
    let mut lines = up("eth0").to_vec();
    lines.push(address_line(CLIENT4, 24, "eth0"));
    lines.push(address_line(CLIENT6, 64, "eth0"));
    lines.push(format!("route add default via {DIRECTOR4}"));
    lines.push(format!("route add default via {DIRECTOR6}"));
    lines
}

fn director_lines(arms: Arms, uplink: Uplink) -> Vec<String> {
    let clients = uplink.interface();
    let servers = match arms {
        Arms::One => clients,
        Arms::Two => "eth1",
    };
    let mut lines = vec!["link set lo up".to_owned()];
    lines.extend(uplink.director_lines());
    lines.push(format!("link set {servers} up"));
    lines.push(address_line(DIRECTOR4, 24, clients));
    lines.push(address_line(DIRECTOR6, 64, clients));
    lines.push(address_line(DIRECTOR_SERVERS4, 24, servers));
    lines.push(address_line(DIRECTOR_SERVERS6, 64, servers));
    lines.push(address_line(VIP4, 32, clients));
    lines.push(address_line(VIP6, 128, clients));
    lines
}

fn real_server_lines(number: u8, forwarding: Forwarding) -> Vec<String> {
    let mut lines = up("eth0").to_vec();
    lines.push(address_line(address::real4(number), 24, "eth0"));
    lines.push(address_line(address::real6(number), 64, "eth0"));
    match forwarding {
        Forwarding::Nat => {
            lines.push(format!("route add default via {DIRECTOR_SERVERS4}"));
            lines.push(format!("route add default via {DIRECTOR_SERVERS6}"));
        }
        Forwarding::Direct | Forwarding::Tunnel => {
            lines.push(address_line(VIP4, 32, "lo"));
            lines.push(address_line(VIP6, 128, "lo"));
            lines.push("route add 10.77.0.0/24 dev eth0".to_owned());
            lines.push("route add fd77::/64 dev eth0".to_owned());
        }
    }
    lines
}
