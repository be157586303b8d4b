//! The checked configuration: every value in range, nothing contradicts. No opinion on how it was written.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::model::VirtualServer;

/// A configuration that passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[global]`
    pub global: Global,
    /// `[xdp]`
    pub xdp: Xdp,
    /// `[timeouts]`
    pub timeouts: Timeouts,
    /// `[[virtual_server]]`, in the order of the file; at least one, at most [`lb_common::VIRTUAL_SERVERS_MAX`].
    pub virtual_servers: Vec<VirtualServer>,
}

impl Config {
    /// The keys, and tables, whose values differ from `other`'s and are fixed while a daemon runs.
    pub fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let Self { global, xdp, timeouts, virtual_servers: _ } = self;
        let Global { instance, backend, runtime_directory, log_level } = global;
        let Xdp { interfaces, mode, connections_max, reject_rate, tunnel_sources, pin_directory, packet_log } = xdp;
        let differences = [
            ("global.instance", *instance != other.global.instance),
            ("global.backend", *backend != other.global.backend),
            ("global.runtime_directory", *runtime_directory != other.global.runtime_directory),
            ("global.log_level", *log_level != other.global.log_level),
            ("xdp.interfaces", *interfaces != other.xdp.interfaces),
            ("xdp.mode", *mode != other.xdp.mode),
            ("xdp.connections_max", *connections_max != other.xdp.connections_max),
            ("xdp.reject_rate", *reject_rate != other.xdp.reject_rate),
            ("xdp.tunnel_source_ipv4", tunnel_sources.ipv4 != other.xdp.tunnel_sources.ipv4),
            ("xdp.tunnel_source_ipv6", tunnel_sources.ipv6 != other.xdp.tunnel_sources.ipv6),
            ("xdp.pin_directory", *pin_directory != other.xdp.pin_directory),
            ("xdp.packet_log", *packet_log != other.xdp.packet_log),
            ("timeouts", *timeouts != other.timeouts),
        ];
        differences.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

/// What concerns the daemon as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Global {
    /// Tells several daemons on a host apart: `[a-z0-9_-]{1,32}`.
    pub instance: String,
    /// Who forwards packets.
    pub backend: Backend,
    /// Where lock and control socket lie; absolute.
    pub runtime_directory: PathBuf,
    /// The least severe message that is logged.
    pub log_level: LogLevel,
}

/// Who forwards packets. IPVS will be the other one; until it is, no configuration can ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The XDP program.
    Xdp,
}

impl Backend {
    /// The word of the configuration file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
        }
    }
}

/// The least severe message that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// An operator must act.
    Error,
    /// Degraded, but healing.
    Warn,
    /// Changes of state.
    Info,
    /// Single events.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The word of the configuration file, which `tracing` understands too.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The XDP data path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Names of the interfaces that the program is attached to: at least one, each 1..=15 bytes, none twice.
    pub interfaces: Vec<String>,
    /// How the program is attached.
    pub mode: XdpMode,
    /// Live connections with which the connection table is [`lb_common::connection::FILL_PERCENT`] full,
    /// 1024..=100000000.
    pub connections_max: u32,
    /// RSTs and ICMP errors a second and CPU that answer packets which find no real server or connection, or have expired,
    /// and as many again to packets that are too big, 0..=1000000.
    pub reject_rate: u32,
    /// From which addresses tunnelled packets come.
    pub tunnel_sources: TunnelSources,
    /// Where maps and links are pinned; absolute, on a bpffs.
    pub pin_directory: PathBuf,
    /// Whether the program logs its decision on every packet.
    pub packet_log: bool,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver where it can, else in the kernel's generic path.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the kernel's generic path, after the skb is allocated: works with any driver, but slowly.
    Generic,
}

impl XdpMode {
    /// The word of the configuration file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// The outer source addresses of tunnelled packets, by the family of the real server; `None`: what the routing table says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelSources {
    /// One address, or a prefix of at least 8 bits without host bits.
    pub ipv4: Option<IpNet>,
    /// One address, or a prefix of at least 32 bits without host bits.
    pub ipv6: Option<IpNet>,
}

impl TunnelSources {
    /// Those of packets to `real_server`.
    pub fn to(&self, real_server: IpAddr) -> Option<IpNet> {
        if real_server.is_ipv4() { self.ipv4 } else { self.ipv6 }
    }
}

/// How long an idle connection is remembered, each 1 s..=4 h. What is not here has IPVS's fixed times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, established.
    pub tcp: Duration,
    /// TCP, after either side's FIN.
    pub tcp_fin: Duration,
    /// UDP.
    pub udp: Duration,
}
