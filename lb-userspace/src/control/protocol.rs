//! Requests and answers: one JSON object a line. Pure data; the socket is in `server.rs` and `client.rs`.
//!
//! `evenkeel status --json` prints [`Status`] as it is here, so a field keeps its name and meaning.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::handover::Arrival;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// What is served, and what was counted.
    Status,
    /// Takes a real server out of the schedule; its connections go on.
    Drain {
        /// Which one.
        real_server: Selector,
        /// For how long; `None`: until it is given back.
        seconds: Option<u64>,
    },
    /// Gives a drained real server back.
    Undrain {
        /// Which one.
        real_server: Selector,
    },
    /// Reads the configuration again, and serves what it says.
    Reload,
    /// Starts the executable that is on disk now in this daemon's place.
    Restart,
    /// Ends the daemon.
    Stop {
        /// Whether everything stays, forwarding, for another daemon to go on with.
        keep: bool,
    },
}

/// Which real servers are meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    /// Their address.
    pub ip: std::net::IpAddr,
    /// Their port; `None`: any.
    pub port: Option<u16>,
    /// The virtual server that they belong to, by name or `address:port`; `None`: every one.
    pub virtual_server: Option<String>,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Drain`] and [`Request::Undrain`]: the real servers that it was done with.
    Changed(Vec<Changed>),
    /// To [`Request::Reload`]: how many virtual servers were made, changed or removed.
    Reloaded {
        /// Their number.
        changes: usize,
    },
    /// To [`Request::Restart`]: the other process serves.
    Restarted {
        /// Its id.
        pid: u32,
        /// What it says of itself.
        #[serde(flatten)]
        arrival: Arrival,
    },
    /// To [`Request::Stop`]: it is about to end.
    Stopping {
        /// Its process id.
        pid: u32,
    },
    /// The request could not be carried out or understood.
    Error(String),
}

/// A real server of a virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// `tcp`, `udp` or `sctp`, and VIP and port of the virtual server.
    pub virtual_server: String,
    /// Address and port.
    pub real_server: SocketAddr,
    /// Its connections at that moment.
    pub connections: u64,
}

/// The state of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its instance name.
    pub instance: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it began to serve.
    pub uptime_seconds: u64,
    /// Whether it goes on with the tables of an earlier daemon, and their connections.
    pub adopted: bool,
    /// Seconds since the tables were made, by whatever daemon: counters count since then.
    pub tables_seconds: u64,
    /// `xdp`.
    pub backend: String,
    /// Where the maps are pinned.
    pub pin_directory: String,
    /// The interfaces that the program is attached to.
    pub interfaces: Vec<Interface>,
    /// The connection table.
    pub connection_table: ConnectionTable,
    /// In the order of their addresses.
    pub virtual_servers: Vec<VirtualServer>,
    /// Dropped packets by reason; every reason is there.
    pub drops: BTreeMap<String, u64>,
}

/// An interface with the program on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `native` or `generic`; `detached` where somebody has removed the program.
    pub mode: String,
}

/// How full the connection table is, and what became of connections in it since it was made; what expired and was repaired, since
/// the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionTable {
    /// Connections now: the real servers' active and inactive ones.
    pub connections: u64,
    /// With how many the table is as full as it should be (`xdp.connections_max`); above, connections may displace others.
    pub connections_max: u32,
    /// Half-open TCP connections, and UDP flows of one datagram, when the table was last gone through: up to 4 s ago.
    pub half_open: u64,
    /// Closing and closed TCP connections, likewise.
    pub closing: u64,
    /// Established TCP connections, and UDP flows of more than one datagram, likewise.
    pub established: u64,
    /// Persistence templates, likewise; they are no connections.
    pub templates: u64,
    /// Connections and templates that were entered.
    pub inserted: u64,
    /// Those that ended because their time was over, or their real server gone.
    pub expired: u64,
    /// Those of them whose slot a newcomer took, before the scan came by.
    pub reclaimed: u64,
    /// Half-open connections that newcomers displaced.
    pub evicted_half_open: u64,
    /// Closing connections that newcomers displaced.
    pub evicted_closing: u64,
    /// Connections established by one packet only that newcomers displaced. Others are never displaced.
    pub evicted_established: u64,
    /// Newcomers that found no slot: a real server is chosen by hash for each of their packets; with `nat` they are dropped.
    pub refused: u64,
    /// Newcomers that lost a race for a slot twice, and fared likewise.
    pub lost_races: u64,
    /// Counts and loads of real servers that were wrong and were put right by what is in the table.
    pub repaired: u64,
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualServer {
    /// The operator's name for it.
    pub name: Option<String>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// VIP and port.
    pub address: SocketAddr,
    /// IPVS's name of the scheduler.
    pub scheduler: String,
    /// What was counted.
    pub counters: Counters,
    /// Packets of clients that `allow` and `deny` do not let in; `None` where all clients are served.
    pub denied: Option<u64>,
    /// By address.
    pub real_servers: Vec<RealServer>,
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealServer {
    /// Address and port.
    pub address: SocketAddr,
    /// `nat`, `dr` or `tun`.
    pub forwarding: String,
    /// What it has now, 0..=65535: 0 when drained, less than configured while it starts slowly.
    pub weight: u32,
    /// Whether it starts slowly, so that its weight is on its way up to the configured one.
    pub rising: bool,
    /// Whether an operator has drained it.
    pub drained: bool,
    /// Seconds until a drain ends by itself; `None` without an end.
    pub drained_for_seconds: Option<u64>,
    /// `serving`, `sorry` for the sorry server, `removed` for one that is no longer configured and keeps its connections.
    pub role: String,
    /// Active connections: established TCP.
    pub active: u32,
    /// All others: half-open and closing TCP, UDP.
    pub inactive: u32,
    /// What was counted.
    pub counters: Counters,
    /// How packets get there.
    pub next_hop: NextHop,
}

/// The way to a real server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum NextHop {
    /// Known and in use.
    Resolved {
        /// Interface that packets leave by.
        interface: String,
        /// Ethernet address of the next hop.
        mac: String,
        /// The router on the way, where there is one.
        gateway: Option<std::net::IpAddr>,
        /// Largest IP packet, in bytes.
        mtu: u32,
    },
    /// This host is the real server.
    Local,
    /// Not known: packets take the kernel's routing table, and are dropped where that has no neighbour.
    Unresolved {
        /// Why.
        reason: String,
    },
}

/// Packets and bytes since the tables were made ([`Status::tables_seconds`]), or the server was added; bytes are those of IP packets as the client sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// New connections; for UDP, new flows.
    pub connections: u64,
    /// From clients.
    pub packets_in: u64,
    /// To clients; with `nat` only.
    pub packets_out: u64,
    /// From clients.
    pub bytes_in: u64,
    /// To clients; with `nat` only.
    pub bytes_out: u64,
}

impl From<lb_common::counters::Counters> for Counters {
    fn from(counters: lb_common::counters::Counters) -> Self {
        let lb_common::counters::Counters { connections, packets_in, packets_out, bytes_in, bytes_out, denied: _ } =
            counters;
        Self { connections, packets_in, packets_out, bytes_in, bytes_out }
    }
}
