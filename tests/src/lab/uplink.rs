//! What stands between the switch and the interface with the director's addresses, as lines for `ip -batch`. It runs nothing.

use super::link;
use super::namespace::Namespace;

/// How the director is connected on its clients' side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// By `eth0` itself.
    Plain,
    /// By `eth0.5`: VLAN 5 on `eth0`.
    Vlan,
    /// By `eth0.100.5`: VLAN 5 (802.1Q) in the service VLAN 100 (802.1ad) on `eth0`.
    Qinq,
    /// By `bond0`: `eth0` and `eth1`, of which one is active, both on the switch.
    Bond,
    /// By `mac0`, a macvlan on `eth0`.
    MacVlan,
}

impl Uplink {
    /// The director's interface that has its addresses.
    pub fn interface(self) -> &'static str {
        match self {
            Self::Plain => "eth0",
            Self::Vlan => "eth0.5",
            Self::Qinq => "eth0.100.5",
            Self::Bond => "bond0",
            Self::MacVlan => "mac0",
        }
    }

    /// The kernel modules that it needs.
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::MacVlan => &[],
            Self::Vlan | Self::Qinq => &["8021q"],
            Self::Bond => &["bonding"],
        }
    }

    /// The switch's ends of the cables to the director.
    pub(super) fn ports(self) -> &'static [&'static str] {
        match self {
            Self::Plain | Self::Vlan | Self::Qinq | Self::MacVlan => &["director"],
            Self::Bond => &["director", "director2"],
        }
    }

    /// The cables from `bridge`, for the switch.
    pub(super) fn switch_lines(self, bridge: &str, director: &Namespace, mtu: u16) -> Vec<String> {
        let mut lines = link::veth("director", bridge, director, "eth0", mtu);
        match self {
            Self::Plain | Self::MacVlan => {}
            Self::Vlan => {
                lines.push("link set director nomaster".to_owned());
                lines.push("link add link director name director.5 type vlan id 5".to_owned());
                lines.push(format!("link set director.5 master {bridge} up"));
            }
            Self::Qinq => {
                lines.push("link set director nomaster mtu 1508".to_owned());
                lines.extend(service_vlan("director", "director.100"));
                lines.extend(customer_vlan("director.100", "director.100.5"));
                lines.push(format!("link set director.100.5 master {bridge}"));
            }
            Self::Bond => lines.extend(link::veth("director2", bridge, director, "eth1", mtu)),
        }
        lines
    }

    /// Settings of the director, before it has interfaces.
    pub(super) fn director_settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Plain | Self::Vlan | Self::Qinq | Self::Bond => &[],
            // `eth0` is in the same network, and must not answer for the macvlan's addresses.
            Self::MacVlan => &[("ipv4/conf/all/arp_ignore", "1"), ("ipv4/conf/default/arp_ignore", "1")],
        }
    }

    /// What is made of `eth0`, for the director.
    pub(super) fn director_lines(self) -> Vec<String> {
        let mut lines = Vec::new();
        match self {
            Self::Plain => lines.push("link set eth0 up".to_owned()),
            Self::Vlan => {
                lines.push("link set eth0 up".to_owned());
                lines.push("link add link eth0 name eth0.5 type vlan id 5".to_owned());
                lines.push("link set eth0.5 up".to_owned());
            }
            Self::Qinq => {
                lines.push("link set eth0 mtu 1508 up".to_owned());
                lines.extend(service_vlan("eth0", "eth0.100"));
                lines.extend(customer_vlan("eth0.100", "eth0.100.5"));
            }
            Self::Bond => {
                lines.push("link add name bond0 type bond mode active-backup miimon 10".to_owned());
                lines.push("link set eth0 master bond0".to_owned());
                lines.push("link set eth1 master bond0".to_owned());
                lines.push("link set bond0 up".to_owned());
            }
            Self::MacVlan => {
                lines.push("link set eth0 up".to_owned());
                lines.push("link add link eth0 name mac0 type macvlan mode bridge".to_owned());
                lines.push("link set mac0 up".to_owned());
            }
        }
        lines
    }
}

/// 1504 bytes, for packets of 1500 and the inner tag.
fn service_vlan(parent: &str, name: &str) -> [String; 2] {
    [
        format!("link add link {parent} name {name} type vlan protocol 802.1ad id 100"),
        format!("link set {name} mtu 1504 up"),
    ]
}

fn customer_vlan(parent: &str, name: &str) -> [String; 2] {
    [format!("link add link {parent} name {name} type vlan id 5"), format!("link set {name} mtu 1500 up")]
}
