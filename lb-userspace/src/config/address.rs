//! Reads `ip:port` as people write it, and says what is wrong with what they wrote. Looks up no names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::suggest::did_you_mean;

/// An address as written, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The address.
    pub ip: IpAddr,
    /// The port; 0 for all ports.
    pub port: Option<u16>,
}

/// Whose address it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is what clients address.
    VirtualServer,
    /// It serves.
    RealServer,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::VirtualServer => "virtual server",
            Self::RealServer => "real server",
        }
    }

    /// The ports that may be written, as messages name them.
    pub const fn ports(self) -> &'static str {
        match self {
            Self::VirtualServer => "0..=65535 (0 for all ports)",
            Self::RealServer => "1..=65535",
        }
    }
}

/// What is wrong with an address; `what` follows `... is "found", `.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong, or what is allowed.
    pub what: String,
    /// The way out.
    pub help: Option<String>,
}

impl Fault {
    fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self { what: what.into(), help: Some(help.into()) }
    }
}

const EXAMPLES: &str = r#"write it as "10.0.0.100:80" or "[2001:db8::100]:80""#;

/// Reads the address of a `role`. Whether port 0 may stand there depends on more than that, and is not checked.
pub fn parse(text: &str, role: Role) -> Result<Written, Fault> {
    if text.trim().is_empty() {
        return Err(Fault::new(format!("must be the address and port of a {}", role.name()), EXAMPLES));
    }
    if let Some((left, right)) = text.split_once('/') {
        return Err(prefixed(left, right, role));
    }
    let (host, port) = split(text)?;
    let ip = host_address(host, port)?;
    let port = port.map(|port| port_number(port, role)).transpose()?;
    match forbidden(ip) {
        Some(kind) => Err(forbidden_fault(ip, port, kind, role)),
        None => Ok(Written { ip, port }),
    }
}

/// `ip:port` as it is to be written.
pub fn with_port(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}

/// An address without a port, as it is to be written.
pub fn alone(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

fn split(text: &str) -> Result<(&str, Option<&str>), Fault> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let parts = bracketed.split_once(']').map(|(host, rest)| (host, rest, rest.strip_prefix(':')));
        return match parts {
            Some((host, "", _)) => Ok((host, None)),
            Some((host, _, Some(port))) if host.contains(':') => Ok((host, Some(port))),
            _ => Err(Fault::new("must be an IPv6 address in brackets, a colon and a port", EXAMPLES)),
        };
    }
    match text.rsplit_once(':') {
        None => Ok((text, None)),
        Some((host, port)) if !host.contains(':') => Ok((host, Some(port))),
        Some((host, port)) => split_bare_ipv6(text, host, port),
    }
}

/// `fd00::1:80` is an address of its own and may also be meant as port 80 of `fd00::1`: we do not guess.
fn split_bare_ipv6<'t>(text: &'t str, host: &str, port: &str) -> Result<(&'t str, Option<&'t str>), Fault> {
    let whole = text.parse::<Ipv6Addr>().is_ok();
    let Some(host) = host.parse::<Ipv6Addr>().ok().filter(|_| port.parse::<u16>().is_ok()) else {
        return Ok((text, None));
    };
    let meant = if whole { format!(", or \"[{text}]\" if {port} is part of the address") } else { String::new() };
    Err(Fault::new(
        "must have the IPv6 address in brackets",
        format!("write \"[{host}]:{port}\" for port {port}{meant}"),
    ))
}

fn host_address(host: &str, port: Option<&str>) -> Result<IpAddr, Fault> {
    if let Ok(ip) = host.parse() {
        return Ok(ip);
    }
    if let Some((ip, zone)) = host.split_once('%') {
        return Err(Fault::new(
            format!("must have no zone, but has \"%{}\"", zone.escape_debug()),
            format!("write {ip} alone"),
        ));
    }
    let numeric = !host.is_empty() && host.chars().all(|c| c.is_ascii_digit() || c == '.');
    if numeric && host.contains('.') {
        return Err(Fault::new(
            format!("but {host} is no IPv4 address"),
            "write four numbers, 0..=255 each, without leading zeros",
        ));
    }
    if host.contains(':') {
        return Err(Fault::new(format!("but {} is no IPv6 address", host.escape_debug()), EXAMPLES));
    }
    if host.chars().any(char::is_alphabetic) {
        let port = port.map(|port| format!(" and port {}", port.escape_debug())).unwrap_or_default();
        return Err(Fault::new(
            "must be an address, not a name",
            format!("write the IP address{port}; names are not looked up"),
        ));
    }
    Err(Fault::new("must be an IP address and a port", EXAMPLES))
}

fn port_number(port: &str, role: Role) -> Result<u16, Fault> {
    let digits = !port.is_empty() && port.chars().all(|c| c.is_ascii_digit());
    match port.parse() {
        Ok(number) if digits => Ok(number),
        _ if digits => Err(Fault { what: format!("port {port} must be {}", role.ports()), help: None }),
        _ => Err(Fault::new(
            format!("port \"{}\" must be a number, {}", port.escape_debug(), role.ports()),
            "names of ports are not looked up",
        )),
    }
}

fn prefixed(left: &str, right: &str, role: Role) -> Fault {
    let (length, right_port) = right.split_once(':').map_or((right, None), |(length, port)| (length, Some(port)));
    let (host, left_port) = match left.parse::<IpAddr>() {
        Ok(_) => (left, None),
        Err(_) => split(left).unwrap_or((left, None)),
    };
    let name = role.name();
    let one = format!("a {name} is one address, without a prefix length");
    let network = host.parse().ok().zip(length.parse().ok()).and_then(|(ip, length)| IpNet::new(ip, length).ok());
    let Some(network) = network else {
        return Fault::new(one, EXAMPLES);
    };
    let ip = network.addr();
    let port = left_port.or(right_port).and_then(|port| port_number(port, role).ok());
    let alone = did_you_mean(&port.map_or_else(|| ip.to_string(), |port| with_port(ip, port)));
    if network.prefix_len() == network.max_prefix_len() {
        return Fault::new(one, alone);
    }
    if network.trunc() == network {
        return Fault::new(
            format!("a {name} is one address, and {network} is a whole network"),
            format!("write one {name} for each address"),
        );
    }
    let network = network.trunc();
    Fault::new(format!("{one}; {ip} has host bits in {network}"), alone)
}

/// The kind of address that nobody can be reached at, `None` for all others.
pub fn forbidden(ip: IpAddr) -> Option<&'static str> {
    match ip {
        _ if ip.is_unspecified() => Some("the unspecified address"),
        _ if ip.is_loopback() => Some("a loopback address"),
        _ if ip.is_multicast() => Some("a multicast address"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4-mapped address"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn forbidden_fault(ip: IpAddr, port: Option<u16>, kind: &str, role: Role) -> Fault {
    let mapped = if let IpAddr::V6(v6) = ip { v6.to_ipv4_mapped() } else { None };
    let help = match (mapped, port) {
        (Some(v4), Some(port)) => did_you_mean(&with_port(v4.into(), port)),
        (Some(v4), None) => did_you_mean(&v4.to_string()),
        (None, _) => match role {
            Role::VirtualServer => "write the address that clients connect to".into(),
            Role::RealServer => "write the address under which the director reaches the real server".into(),
        },
    };
    Fault::new(format!("must not be {kind}"), help)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(String, Option<u16>)> {
        parse(text, Role::VirtualServer).ok().map(|written| (written.ip.to_string(), written.port))
    }

    fn fault(text: &str) -> String {
        let Fault { what, help } = parse(text, Role::VirtualServer).unwrap_err();
        format!("{what} | {}", help.unwrap_or_default())
    }

    #[test]
    fn both_families_are_read_with_and_without_a_port() {
        assert_eq!(read("10.0.0.100:80"), Some(("10.0.0.100".into(), Some(80))));
        assert_eq!(read("10.0.0.100"), Some(("10.0.0.100".into(), None)));
        assert_eq!(read("10.0.0.100:0"), Some(("10.0.0.100".into(), Some(0))));
        assert_eq!(read("[fd77::100]:65535"), Some(("fd77::100".into(), Some(65535))));
        assert_eq!(read("[fd77::100]"), Some(("fd77::100".into(), None)));
        assert_eq!(read("fd77::"), Some(("fd77::".into(), None)));
        assert_eq!(read("fd77:1::11"), Some(("fd77:1::11".into(), None)));
        assert_eq!(read("fd77::1:abcd"), Some(("fd77::1:abcd".into(), None)));
    }

    #[test]
    fn an_ipv6_address_that_may_end_in_a_port_is_refused() {
        assert_eq!(
            fault("fd77::100:80"),
            "must have the IPv6 address in brackets | write \"[fd77::100]:80\" for port 80, or \"[fd77::100:80]\" if 80 is part of the address"
        );
        assert_eq!(
            fault("1:2:3:4:5:6:7:8:80"),
            "must have the IPv6 address in brackets | write \"[1:2:3:4:5:6:7:8]:80\" for port 80"
        );
    }

    #[test]
    fn a_prefix_length_is_explained_wherever_it_stands() {
        let host_bits = "a virtual server is one address, without a prefix length; 10.0.0.100 has host bits in 10.0.0.0/24 | did you mean \"10.0.0.100:80\"?";
        assert_eq!(fault("10.0.0.100/24:80"), host_bits);
        assert_eq!(fault("10.0.0.100:80/24"), host_bits);
        assert!(fault("[fd77::100]:80/64").ends_with("did you mean \"[fd77::100]:80\"?"));
        assert!(fault("[fd77::100]/64").ends_with("did you mean \"fd77::100\"?"));
        assert!(fault("10.0.0.100/32").ends_with("without a prefix length | did you mean \"10.0.0.100\"?"));
        assert!(fault("10.0.0.0/24").contains("10.0.0.0/24 is a whole network"));
        assert!(fault("10.0.0.1/99").contains("without a prefix length"));
    }

    #[test]
    fn every_address_that_nobody_serves_is_refused() {
        for (text, kind) in [
            ("0.0.0.0:80", "the unspecified address"),
            ("[::]:80", "the unspecified address"),
            ("127.1.2.3:80", "a loopback address"),
            ("[::1]:80", "a loopback address"),
            ("224.0.0.18:80", "a multicast address"),
            ("[ff02::12]:80", "a multicast address"),
            ("255.255.255.255:80", "the broadcast address"),
            ("[fe80::1]:80", "a link-local address"),
            ("[::ffff:10.0.0.1]:80", "an IPv4-mapped address"),
        ] {
            assert!(fault(text).starts_with(&format!("must not be {kind} |")), "{text}: {}", fault(text));
        }
    }

    #[test]
    fn an_address_alone_reads_back_also_when_it_ends_like_a_port() {
        for ip in ["10.0.0.100", "fd77::100:80"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(parse(&alone(ip), Role::RealServer), Ok(Written { ip, port: None }));
        }
    }

    #[test]
    fn malformed_addresses_are_refused_each_for_its_reason() {
        for (text, what) in [
            ("", "must be the address and port"),
            ("10.0.0.256:80", "but 10.0.0.256 is no IPv4 address"),
            ("010.0.0.1:80", "but 010.0.0.1 is no IPv4 address"),
            ("10.0.0.1:+80", "port \"+80\" must be a number"),
            ("10.0.0.1:65536", "port 65536 must be 0..=65535 (0 for all ports)"),
            ("10.0.0.1:http", "port \"http\" must be a number"),
            ("10.0.0.1:", "port \"\" must be a number"),
            ("www.example.com:80", "must be an address, not a name"),
            ("[10.0.0.1]:80", "must be an IPv6 address in brackets"),
            ("[fd77::1", "must be an IPv6 address in brackets"),
            ("[fd77::1]80", "must be an IPv6 address in brackets"),
            ("[fd77::zz]:80", "but fd77::zz is no IPv6 address"),
            ("[fd77::1%eth0]:80", "must have no zone"),
            (":80", "must be an IP address and a port"),
        ] {
            assert!(fault(text).starts_with(what), "{text}: {}", fault(text));
        }
    }
}
