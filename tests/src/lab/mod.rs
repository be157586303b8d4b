//! A load balancer's surroundings on one machine: a client, a director and real servers, each in a network namespace of its own.
//!
//! Nothing here touches the interfaces, routes, firewall or settings of the host. Whatever a lab makes is named after the
//! process that made it (`ek<pid>x<n>-…`), goes away when the [`Lab`] is dropped (also while a panic unwinds), and is removed
//! by the next lab if the process was killed.
//!
//! ```no_run
//! use evenkeel_tests::lab::{Arms, Forwarding, Lab};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::builder().real_servers(3).forwarding(Forwarding::Nat).arms(Arms::One).build()?;
//! let mut daemon = std::process::Command::new("evenkeel");
//! daemon.args(["run", "--config"]).arg(lab.directory().join("evenkeel.toml"));
//! let mut daemon = lab.start(lab.director(), "evenkeel", daemon)?;
//! daemon.wait_for_log("ready", std::time::Duration::from_secs(5))?;
//! let answers = lab.client().fetch("http://10.77.0.100/", 30)?;
//! assert_eq!(answers.len(), 30);
//! # Ok(())
//! # }
//! ```

pub mod address;
mod available;
mod bpffs;
mod builder;
mod child;
mod client;
mod command;
mod crowd;
mod digest;
mod far;
mod http;
mod link;
mod namespace;
mod patience;
mod process;
mod real_server;
mod ssh_like;
mod stale;
mod tcp_echo;
mod topology;
mod udp_echo;
mod uplink;
mod xdp_pass;

use std::path::Path;
use std::process::Command;

use anyhow::Result;

pub use available::{available, has_modules, is_privileged, tools_missing};
pub use bpffs::Bpffs;
pub use builder::{Arms, Builder, Forwarding, REAL_SERVERS_MAX};
pub use client::{Answer, Download, udp_ask};
pub use command::{Cmd, Finished};
pub use crowd::{Crowd, Rounds};
pub use digest::{Digest, digest, file_body};
pub use http::{HttpAnswer, HttpServer, get};
pub use namespace::Namespace;
pub use patience::{is_emulated, patience};
pub use process::Process;
pub use real_server::RealServer;
pub use ssh_like::SshLike;
pub use stale::remove_stale;
pub use tcp_echo::TcpEcho;
pub use udp_echo::UdpEcho;
pub use uplink::Uplink;

/// A running lab; dropping it removes everything.
///
/// The order of the fields is the order in which they go: servers, programs on ports, namespaces, mount, directory, name.
#[derive(Debug)]
pub struct Lab {
    arms: Arms,
    uplink: Uplink,
    show_logs: process::ShowLog,
    forwarding: Forwarding,
    real_servers: Vec<RealServer>,
    _passes: Vec<xdp_pass::XdpPass>,
    client: Namespace,
    director: Namespace,
    switch: Namespace,
    bpffs: Bpffs,
    directory: tempfile::TempDir,
    identity: stale::Identity,
}

impl Lab {
    /// Starts describing a lab; [`Builder::build`] makes it.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The first part of every name in this lab: `ek<pid>x<n>`.
    pub fn name(&self) -> &str {
        self.identity.name()
    }

    /// How many interfaces the director has.
    pub fn arms(&self) -> Arms {
        self.arms
    }

    /// How the real servers were prepared to be reached.
    pub fn forwarding(&self) -> Forwarding {
        self.forwarding
    }

    /// The namespace that sends requests: 10.77.0.10 and fd77::10.
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// The namespace for the daemon: 10.77.0.1, 10.77.1.1, the VIPs, and their IPv6 counterparts.
    pub fn director(&self) -> &Namespace {
        &self.director
    }

    /// The namespace that holds the bridge, or the two bridges of a two-armed lab.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// The director's interfaces that have addresses: `eth0` or what the lab's [`Uplink`] makes of it, and `eth1` towards the
    /// real servers of a two-armed lab.
    pub fn director_interfaces(&self) -> &'static [&'static str] {
        match (self.arms, self.uplink) {
            (Arms::One, Uplink::Plain) => &["eth0"],
            (Arms::One, Uplink::Vlan) => &["eth0.5"],
            (Arms::One, Uplink::Qinq) => &["eth0.100.5"],
            (Arms::One, Uplink::Bond) => &["bond0"],
            (Arms::One, Uplink::MacVlan) => &["mac0"],
            (Arms::Two, _) => &["eth0", "eth1"],
        }
    }

    /// All real servers, `real1` first.
    pub fn real_servers(&self) -> &[RealServer] {
        &self.real_servers
    }

    /// The real servers, to stop and start what runs on them.
    pub fn real_servers_mut(&mut self) -> &mut [RealServer] {
        &mut self.real_servers
    }

    /// One real server, counted from 1 as in its name.
    ///
    /// # Panics
    /// If the lab has no such real server.
    pub fn real(&self, number: usize) -> &RealServer {
        let found = number.checked_sub(1).and_then(|index| self.real_servers.get(index));
        found.unwrap_or_else(|| panic!("this lab has real servers 1..={}, not {number}", self.real_servers.len()))
    }

    /// A folder of this lab's own, removed with it; logs of processes are in it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A bpf filesystem of this lab's own, for pinned maps and links.
    pub fn bpffs(&self) -> &Path {
        self.bpffs.path()
    }

    /// Makes the interface towards the real servers of a two-armed lab, which a test has deleted, again with this Ethernet
    /// address. What is returned must live as long as it is used.
    pub fn make_server_interface_again(&self, mac: &str) -> Result<impl Sized + use<>> {
        topology::make_server_interface(&self.switch, &self.director, mac)
    }

    /// Starts a long-running program in a namespace; its output goes to a log in [`Lab::directory`], which is
    /// shown if a test fails.
    ///
    /// It dies with the *thread* that started it, so start it from one that lives as long (a test's own is right).
    pub fn start(&self, namespace: &Namespace, name: &str, program: Command) -> Result<Process> {
        Process::start(namespace, (name, self.show_logs), self.directory(), program)
    }
}
