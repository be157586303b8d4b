//! What must be true of the host before anything is touched, all problems at once, each with its remedy.
//!
//! [`Facts`] are gathered first; judging them is pure.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use lb_common::service::ForwardingMethod;

use super::link::{Kind, Link};
use super::stack;
use crate::config::{Config, TunnelSources, XdpMode};
use crate::datapath::xdp::object;
use crate::instance::Paths;

/// What the judgement needs to know.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Effective capabilities, a bit each (`CapEff` of proc_pid_status(5)).
    pub capabilities: u64,
    /// Kernel version, major and minor.
    pub kernel: (u32, u32),
    /// Whether the XDP programs are in this binary.
    pub embedded: bool,
    /// Interfaces.
    pub links: Vec<Link>,
    /// Addresses of all interfaces.
    pub addresses: Vec<IpAddr>,
    /// Keys below `net.` that switch forwarding off for packets that come in by a configured interface.
    pub forwarding_off: Vec<ForwardingKey>,
}

/// `net.<family>.conf.<interface>.forwarding`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardingKey {
    /// The interface.
    pub interface: String,
    /// IPv4, else IPv6.
    pub ipv4: bool,
}

impl ForwardingKey {
    fn family(&self) -> &'static str {
        if self.ipv4 { "ipv4" } else { "ipv6" }
    }

    /// Whether forwarding is on; a kernel without the family forwards nothing of it, which is no fault.
    fn is_on(&self) -> bool {
        let path = format!("/proc/sys/net/{}/conf/{}/forwarding", self.family(), self.interface);
        std::fs::read_to_string(path).map_or(true, |text| text.trim() != "0")
    }
}

impl fmt::Display for ForwardingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // sysctl(8) takes a slash for a dot in an interface's name.
        write!(f, "net.{}.conf.{}.forwarding", self.family(), self.interface.replace('.', "/"))
    }
}

/// Something that must be mended before the daemon can start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem(String);

impl Problem {
    /// A problem in words: what is wrong, and the way out.
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Oldest kernel that the programs load on.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Longest path of a Unix socket, in bytes (`sun_path` of unix(7), less its terminating zero).
const SOCKET_PATH_MAX: usize = 107;

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

impl Facts {
    /// Gathers the facts that need no netlink; links and addresses are given.
    pub fn gather(config: &Config, links: Vec<Link>, addresses: Vec<IpAddr>) -> Self {
        let key = |interface: &String| [true, false].map(|ipv4| ForwardingKey { interface: interface.clone(), ipv4 });
        Self {
            capabilities: effective_capabilities(),
            kernel: kernel_version(),
            embedded: object::is_embedded(),
            links,
            addresses,
            forwarding_off: config.xdp.interfaces.iter().flat_map(key).filter(|key| !key.is_on()).collect(),
        }
    }

    /// What stands against running `config` here.
    pub fn problems(&self, config: &Config) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut add = |text: String| problems.push(Problem::new(text));
        if !self.embedded {
            add(object::LoadError::NotEmbedded.to_string());
        }
        if self.kernel < KERNEL_MIN {
            let (major, minor) = self.kernel;
            add(format!("this kernel is {major}.{minor}, backend \"xdp\" needs 6.1 or newer"));
        }
        let missing = self.missing_capabilities().join(" ");
        if !missing.is_empty() {
            add(format!(
                "missing capabilities: {missing}; run as root, or give the service AmbientCapabilities={missing}"
            ));
        }
        for name in &config.xdp.interfaces {
            match self.links.iter().find(|link| link.name == *name) {
                None => add(format!("interface {name} does not exist; there are {}", self.interface_names())),
                Some(link) if !link.is_ethernet => {
                    add(format!(
                        "interface {name} does not carry Ethernet; take the device that the packets arrive by"
                    ));
                }
                Some(link) => {
                    if let Some(why) = stack::unfit(&self.links, link) {
                        add(why);
                    }
                }
            }
        }
        let socket = Paths::new(&config.global.runtime_directory, &config.global.instance).socket();
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            add(format!(
                "the control socket's path {} has more than {SOCKET_PATH_MAX} bytes; \
                 choose a shorter global.runtime_directory",
                socket.display()
            ));
        }
        problems.extend(self.misplaced(config));
        problems
    }

    /// Real servers on this host that cannot serve here.
    fn misplaced(&self, config: &Config) -> Vec<Problem> {
        let mut problems = Vec::new();
        for server in &config.virtual_servers {
            let reals = server.real_servers.iter().chain(&server.sorry_server);
            for real in reals.filter(|real| self.addresses.contains(&real.address.ip())) {
                match real.forwarding {
                    ForwardingMethod::Dr => {}
                    ForwardingMethod::Nat | ForwardingMethod::Tun => problems.push(Problem(format!(
                        "real server {} of {} is an address of this host, which {} cannot reach; take it by \"dr\": \
                         its packets then go up to this host, which must have the VIP",
                        real.address,
                        server.service,
                        real.forwarding.name()
                    ))),
                }
            }
        }
        problems
    }

    /// What will work less well than it could; nothing here prevents a start.
    pub fn warnings(&self, config: &Config) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut vips: Vec<IpAddr> = config.virtual_servers.iter().map(|s| s.service.address.ip()).collect();
        vips.sort_unstable();
        vips.dedup();
        for vip in vips.iter().filter(|vip| !self.addresses.contains(vip)) {
            let length = if vip.is_ipv4() { 32 } else { 128 };
            warnings.push(format!(
                "no interface here has VIP {vip}, so nobody answers for it; add it with \
                 `ip address add {vip}/{length} dev INTERFACE`, or route it here"
            ));
        }
        warnings.extend(self.foreign_tunnel_sources(config));
        for link in self.links.iter().filter(|link| config.xdp.interfaces.contains(&link.name)) {
            let name = &link.name;
            if !link.is_up {
                warnings.push(format!("interface {name} is down; set it up with `ip link set {name} up`"));
            }
            warnings.extend(self.of_a_stack(link, config.xdp.mode));
        }
        for key in &self.forwarding_off {
            let reals = config.virtual_servers.iter().flat_map(|server| &server.real_servers);
            let mut reals = reals.filter(|real| real.address.is_ipv4() == key.ipv4).peekable();
            if reals.peek().is_none() {
                continue;
            }
            let consequence = if reals.any(|real| real.forwarding == ForwardingMethod::Nat) {
                "replies of nat real servers go back to where the request came from instead of by the routing table, and \
                 real servers reach nothing else through this host"
            } else {
                "packets to a real server whose next hop is not known yet are dropped instead of taking the routing table"
            };
            warnings.push(format!("{key} is 0: {consequence}; set it with `sysctl -w {key}=1`"));
        }
        warnings
    }

    /// Outer source addresses in use that are not this host's.
    fn foreign_tunnel_sources(&self, config: &Config) -> Vec<String> {
        let reals =
            config.virtual_servers.iter().flat_map(|server| server.real_servers.iter().chain(&server.sorry_server));
        let tunnelled: Vec<IpAddr> =
            reals.filter(|real| real.forwarding == ForwardingMethod::Tun).map(|real| real.address.ip()).collect();
        let TunnelSources { ipv4, ipv6 } = config.xdp.tunnel_sources;
        let is_used = |source: &IpNet| tunnelled.iter().any(|real| real.is_ipv4() == source.addr().is_ipv4());
        let is_ours =
            |source: &IpNet| source.prefix_len() == source.max_prefix_len() && self.addresses.contains(&source.addr());
        let foreign = ipv4.into_iter().chain(ipv6).filter(|source| is_used(source) && !is_ours(source));
        let warning = |source: IpNet| {
            let family = if source.addr().is_ipv4() { "ipv4" } else { "ipv6" };
            let (what, address) = if source.prefix_len() == source.max_prefix_len() {
                ("is no address of this host", source.addr().to_string())
            } else {
                ("is a prefix and not an address of this host", source.to_string())
            };
            format!(
                "xdp.tunnel_source_{family} {address} {what}: routers on the way may drop packets from it as forged (BCP 38), \
                 real servers too unless rp_filter is 0 there, and ICMP errors about them do not come back here"
            )
        };
        foreign.map(warning).collect()
    }

    /// What an interface that is veth, or is made of others, asks of those.
    fn of_a_stack(&self, link: &Link, mode: XdpMode) -> Vec<String> {
        let name = &link.name;
        let mut warnings = Vec::new();
        if let Some(veth) = stack::veth(&self.links, link) {
            let what = match veth.index == link.index {
                true => format!("interface {name} is a veth device"),
                false => format!("interface {name} stands on veth device {}", veth.name),
            };
            warnings.push(match mode {
                XdpMode::Native => format!(
                    "{what}: in native mode it loses what the program sends unless its peer has an XDP program too (one that \
                     passes everything will do) and complete checksums (`ethtool -K PEER tx off`); xdp.mode = \"generic\" \
                     needs less"
                ),
                XdpMode::Auto | XdpMode::Generic => format!(
                    "{what}, taken in generic mode: packets that its peer leaves unsegmented are dropped as packet_too_big \
                     unless that is switched off with `ethtool -K PEER tso off`"
                ),
            });
            if let Some(vlan) = stack::vlans_on(&self.links, link).first().filter(|_| link.kind != Kind::Vlan) {
                warnings.push(format!(
                    "{what} with VLAN device {} on it: its peer hands over VLAN tags apart from the frames, which would make \
                     frames of that VLAN look untagged and be served; switch that off with \
                     `ethtool -K PEER tx-vlan-offload off tx-vlan-stag-hw-insert off`",
                    vlan.name
                ));
            }
        }
        if matches!(link.kind, Kind::Vlan | Kind::MacVlan) && link.parent.is_none() {
            warnings.push(format!(
                "interface {name} stands on a device of another network namespace; where that merges received packets, they \
                 are dropped as packet_too_big unless that is switched off there with `ethtool -K PARENT gro off lro off`"
            ));
        }
        warnings
    }

    fn missing_capabilities(&self) -> Vec<&'static str> {
        let has = |bit: u32| self.capabilities & (1 << bit) != 0;
        [(CAP_NET_ADMIN, "CAP_NET_ADMIN"), (CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
            .into_iter()
            .filter(|(bit, _)| !has(*bit) && (*bit == CAP_NET_ADMIN || !has(CAP_SYS_ADMIN)))
            .map(|(_, name)| name)
            .collect()
    }

    fn interface_names(&self) -> String {
        let names: Vec<&str> = self.links.iter().map(|link| link.name.as_str()).collect();
        names.join(", ")
    }
}

fn effective_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn kernel_version() -> (u32, u32) {
    let Ok(name) = nix::sys::utsname::uname() else { return (0, 0) };
    parse_version(&name.release().to_string_lossy())
}

/// "6.12.38+deb13-amd64" is (6, 12); what is not a number is 0.
fn parse_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = r#"
            [xdp]
            interfaces = ["eth0"]
            [[virtual_server]]
            address = "10.0.0.100:80"
            protocol = "tcp"
            scheduler = "rr"
            forwarding = "nat"
            [[virtual_server.real_server]]
            address = "10.0.1.11:80"
        "#;
        crate::config::parse("test.toml", text).unwrap()
    }

    fn facts() -> Facts {
        Facts {
            capabilities: u64::MAX,
            kernel: (6, 18),
            embedded: true,
            links: vec![Link::named("eth0")],
            addresses: vec!["10.0.0.100".parse().unwrap()],
            forwarding_off: vec![ForwardingKey { interface: "eth0".to_owned(), ipv4: false }],
        }
    }

    fn texts(facts: &Facts) -> Vec<String> {
        facts.problems(&config()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_fit_host_has_neither_problem_nor_warning() {
        assert_eq!(texts(&facts()), [""; 0]);
        assert_eq!(facts().warnings(&config()), [""; 0]);
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let unfit = Facts {
            capabilities: 0,
            kernel: (5, 10),
            embedded: false,
            links: Vec::new(),
            addresses: vec!["10.0.1.11".parse().unwrap()],
            ..facts()
        };
        let texts = texts(&unfit);
        assert_eq!(texts.len(), 5, "{texts:#?}");
        assert!(texts[0].contains("cargo xtask build"));
        assert!(texts[1].contains("5.10") && texts[1].contains("6.1"));
        assert!(texts[2].contains("CAP_NET_ADMIN CAP_BPF CAP_PERFMON"));
        assert!(texts[3].contains("interface eth0 does not exist"));
        assert!(texts[4].contains("10.0.1.11:80"));
    }

    #[test]
    fn a_socket_path_that_the_kernel_would_not_take_is_named() {
        let mut config = config();
        config.global.runtime_directory = format!("/run/{}", "x".repeat(100)).into();
        let problems = facts().problems(&config);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().contains("shorter global.runtime_directory"), "{}", problems[0]);
    }

    #[test]
    fn sys_admin_stands_for_bpf_and_perfmon_but_not_for_net_admin() {
        let with = |bits: &[u32]| Facts { capabilities: bits.iter().map(|b| 1_u64 << b).sum(), ..facts() };
        assert_eq!(with(&[CAP_NET_ADMIN, CAP_SYS_ADMIN]).missing_capabilities(), [""; 0]);
        assert_eq!(with(&[CAP_SYS_ADMIN]).missing_capabilities(), ["CAP_NET_ADMIN"]);
        assert_eq!(with(&[CAP_NET_ADMIN, CAP_BPF]).missing_capabilities(), ["CAP_PERFMON"]);
    }

    #[test]
    fn an_absent_vip_and_forwarding_switched_off_are_warned_of() {
        let off = ForwardingKey { interface: "eth0".to_owned(), ipv4: true };
        let lacking = Facts { addresses: Vec::new(), forwarding_off: vec![off], ..facts() };
        let warnings = lacking.warnings(&config());
        assert_eq!(warnings.len(), 2, "{warnings:#?}");
        assert!(warnings[0].contains("ip address add 10.0.0.100/32"));
        assert!(warnings[1].contains("sysctl -w net.ipv4.conf.eth0.forwarding=1"));
    }

    #[test]
    fn a_tunnel_source_that_is_not_ours_is_warned_of_where_it_is_used() {
        let with = |ipv4: &str| {
            let mut config = config();
            config.xdp.tunnel_sources = TunnelSources { ipv4: Some(ipv4.parse().unwrap()), ipv6: None };
            config
        };
        assert_eq!(facts().warnings(&with("10.0.0.9/32")), [""; 0], "nothing is tunnelled");
        let tunnelled = |ipv4: &str| {
            let mut config = with(ipv4);
            for real in config.virtual_servers.iter_mut().flat_map(|server| &mut server.real_servers) {
                real.forwarding = ForwardingMethod::Tun;
            }
            facts().warnings(&config)
        };
        assert_eq!(tunnelled("10.0.0.100/32"), [""; 0], "it is an address of this host");
        let [warning] = &tunnelled("10.0.0.9/32")[..] else { panic!("one warning") };
        assert!(warning.starts_with("xdp.tunnel_source_ipv4 10.0.0.9 is no address of this host: "), "{warning}");
        let [warning] = &tunnelled("10.9.0.0/16")[..] else { panic!("one warning") };
        assert!(warning.starts_with("xdp.tunnel_source_ipv4 10.9.0.0/16 is a prefix and not"), "{warning}");
    }

    #[test]
    fn what_interfaces_are_made_of_is_looked_at() {
        let with = |links: Vec<Link>| Facts { links, ..facts() };
        let port = Link { controller: Some(7), ..Link::named("eth0") };
        let bridge = Link { index: 7, kind: Kind::Bridge, ..Link::named("br0") };
        let problems = texts(&with(vec![port, bridge]));
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(problems[0].contains("eth0 is a port of bridge br0") && problems[0].contains("an end of a veth pair"));

        let veth = Link { kind: Kind::Veth, ..Link::named("eth0") };
        let vlan = Link { index: 7, kind: Kind::Vlan, parent: Some(2), ..Link::named("eth0.5") };
        let warnings = with(vec![veth, vlan]).warnings(&config());
        assert_eq!(warnings.len(), 2, "{warnings:#?}");
        assert!(warnings[1].contains("VLAN device eth0.5 on it") && warnings[1].contains("tx-vlan-offload off"));

        let elsewhere = Link { kind: Kind::MacVlan, ..Link::named("eth0") };
        let warnings = with(vec![elsewhere]).warnings(&config());
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        assert!(warnings[0].contains("of another network namespace"));
    }

    #[test]
    fn distribution_kernels_parse() {
        assert_eq!(parse_version("6.12.38+deb13-amd64"), (6, 12));
        assert_eq!(parse_version("6.1.0-37-amd64"), (6, 1));
    }
}
