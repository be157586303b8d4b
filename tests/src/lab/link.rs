//! Bridges and veth pairs, as lines for `ip -batch` in the switch's namespace. It runs nothing.

use super::namespace::Namespace;

/// A bridge that floods multicast (neighbour discovery has no querier here) and forwards at once.
pub(super) fn bridge(name: &str) -> Vec<String> {
    vec![
        format!("link add name {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"),
        format!("link set {name} up"),
    ]
}

/// A veth pair: `interface` in `host`, and `port` on the bridge of the namespace that runs the lines.
pub(super) fn veth(port: &str, bridge: &str, host: &Namespace, interface: &str, mtu: u16) -> Vec<String> {
    let host = host.name();
    vec![
        format!("link add name {port} mtu {mtu} type veth peer name {interface} mtu {mtu} netns {host}"),
        format!("link set {port} master {bridge} up"),
    ]
}
