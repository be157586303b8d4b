//! A lab with a daemon in its director.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use evenkeel_tests::lab::{Arms, Cmd, Finished, Forwarding, Lab, Process, address, available, patience};
use serde_json::Value;

/// How long a daemon may take to start or stop.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A configuration to be written for a lab.
#[derive(Clone, Debug)]
pub struct Setup {
    pub instance: String,
    pub interfaces: Vec<String>,
    pub mode: &'static str,
    /// Where pins and sockets go; the lab's own folders unless two daemons are to share them.
    pub pins: PathBuf,
    pub runtime: PathBuf,
    /// Further lines for `[xdp]`.
    pub xdp: String,
    /// Further tables, after all others.
    pub more: String,
    pub forwarding: &'static str,
    /// Further lines for each virtual server.
    pub policy: String,
    /// Addresses of real servers, without port.
    pub real_servers: Vec<IpAddr>,
}

impl Setup {
    /// Both VIPs, TCP 80 and UDP 5353, over all real servers of `lab`.
    pub fn of(lab: &Lab) -> Self {
        let forwarding = match lab.forwarding() {
            Forwarding::Nat => "nat",
            Forwarding::Direct => "dr",
            Forwarding::Tunnel => "tun",
        };
        let addresses = |real: &evenkeel_tests::lab::RealServer| [real.address4().into(), real.address6().into()];
        Self {
            instance: "test".to_owned(),
            interfaces: lab.director_interfaces().iter().map(|name| (*name).to_owned()).collect(),
            mode: "native",
            pins: lab.bpffs().join("evenkeel"),
            runtime: lab.directory().join("run"),
            xdp: String::new(),
            more: String::new(),
            forwarding,
            policy: String::new(),
            real_servers: lab.real_servers().iter().flat_map(addresses).collect(),
        }
    }

    pub fn pin_folder(&self) -> PathBuf {
        self.pins.join(&self.instance)
    }

    pub fn socket(&self) -> PathBuf {
        self.runtime.join(format!("{}.sock", self.instance))
    }

    fn text(&self) -> String {
        let Self { instance, interfaces, mode, pins, runtime, xdp, more, forwarding, policy, real_servers } = self;
        let mut text = format!(
            "[global]\ninstance = {instance:?}\nruntime_directory = {runtime:?}\nlog_level = \"debug\"\n\n\
             [xdp]\ninterfaces = {interfaces:?}\nmode = {mode:?}\npin_directory = {pins:?}\n\
             connections_max = 65536\n{xdp}\n"
        );
        for vip in address::vips() {
            for (protocol, port) in [("tcp", 80), ("udp", address::UDP_PORT)] {
                let service = std::net::SocketAddr::from((vip, port));
                // Writing to a string cannot fail.
                write!(
                    text,
                    "\n[[virtual_server]]\naddress = \"{service}\"\nprotocol = \"{protocol}\"\nscheduler = \"rr\"\n\
                     forwarding = \"{forwarding}\"\n{policy}\n"
                )
                .expect("a string takes everything");
                for real in real_servers.iter().filter(|real| real.is_ipv4() == vip.is_ipv4()) {
                    write!(text, "[[virtual_server.real_server]]\naddress = \"{real}\"\n").expect("as above");
                }
            }
        }
        text + more
    }

    pub fn write(&self, lab: &Lab) -> Result<PathBuf> {
        let file = lab.directory().join(format!("{}.toml", self.instance));
        std::fs::write(&file, self.text())?;
        Ok(file)
    }
}

/// The binary under test.
pub fn evenkeel() -> PathBuf {
    let path = std::env::var_os("EVENKEEL_BIN").expect("EVENKEEL_BIN is set by `cargo xtask test`");
    PathBuf::from(path)
}

/// A running daemon.
pub struct Daemon {
    pub process: Process,
    pub setup: Setup,
}

impl Daemon {
    /// Starts a daemon in the lab's director and waits until it serves.
    pub fn start(lab: &Lab, setup: Setup) -> Result<Self> {
        let file = setup.write(lab)?;
        Self::start_file(lab, setup, &file)
    }

    /// The same with a configuration of one's own, whose instance, pins and runtime directory are those of `setup`.
    pub fn start_file(lab: &Lab, setup: Setup, file: &Path) -> Result<Self> {
        Self::start_by(lab, setup, file, Command::new(evenkeel()))
    }

    /// The same by another executable, or with an environment of its own.
    pub fn start_by(lab: &Lab, setup: Setup, file: &Path, mut program: Command) -> Result<Self> {
        program.arg("run").arg("--config").arg(file);
        let process = lab.start(lab.director(), &setup.instance, program)?;
        let mut daemon = Self { process, setup };
        daemon.process.wait_for_log("ready", PATIENCE)?;
        Ok(daemon)
    }

    /// `evenkeel status --json`.
    pub fn status(&self) -> Result<Value> {
        let arguments = ["status", "--json", "--socket"];
        let text = Cmd::new(evenkeel()).args(arguments).arg(self.setup.socket()).limit(PATIENCE).run()?;
        serde_json::from_str(&text).context("status is not JSON")
    }

    /// Waits until every next hop is in the state `state`.
    pub fn wait_for_next_hops(&self, state: &str) -> Result<()> {
        wait_until("the next hops", || {
            let status = self.status()?;
            Ok(hops(&status).all(|hop| hop == state))
        })
    }

    pub fn stop(&mut self) -> Result<()> {
        let status = self.process.terminate(PATIENCE)?;
        ensure!(status.success(), "the daemon ended with {status}:\n{}", self.process.log());
        Ok(())
    }
}

fn hops(status: &Value) -> impl Iterator<Item = &str> {
    let servers = status["virtual_servers"].as_array().into_iter().flatten();
    let reals = servers.flat_map(|server| server["real_servers"].as_array().into_iter().flatten());
    reals.filter_map(|real| real["next_hop"]["state"].as_str())
}

/// Runs `evenkeel` with these arguments in the director; the exit code and what it printed.
pub fn run(lab: &Lab, arguments: &[&str]) -> Result<Finished> {
    lab.director().command(&evenkeel().to_string_lossy())?.args(arguments).limit(PATIENCE).finish()
}

/// Asks again and again until `is_so`, within [`PATIENCE`].
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience(PATIENCE);
    while !is_so()? {
        if Instant::now() >= deadline {
            bail!("{what}: not within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts `evenkeel decap` for both VIPs in every real server of a lab that tunnels; none elsewhere.
pub fn decapsulators(lab: &Lab) -> Result<Vec<Process>> {
    if lab.forwarding() != Forwarding::Tunnel {
        return Ok(Vec::new());
    }
    let start = |real: &evenkeel_tests::lab::RealServer| {
        let mut program = Command::new(evenkeel());
        program.args(["decap", "--interface", "eth0"]);
        for vip in address::vips() {
            program.args(["--vip", &vip.to_string()]);
        }
        let mut process = lab.start(real.namespace(), &format!("decap-{}", real.name()), program)?;
        process.wait_for_log("unwrapping for", PATIENCE)?;
        Ok(process)
    };
    lab.real_servers().iter().map(start).collect()
}

/// A lab with three real servers; `None`, with a word why, where none can be made.
pub fn lab(forwarding: Forwarding, arms: Arms) -> Result<Option<Lab>> {
    lab_of(3, forwarding, arms)
}

/// As [`lab`], with so many real servers.
pub fn lab_of(real_servers: u8, forwarding: Forwarding, arms: Arms) -> Result<Option<Lab>> {
    if !available() {
        return Ok(None);
    }
    Lab::builder().real_servers(real_servers).forwarding(forwarding).arms(arms).build().map(Some)
}

/// The URL of `path` at a VIP.
pub fn url(vip: IpAddr, path: &str) -> String {
    match vip {
        IpAddr::V4(v4) => format!("http://{v4}/{path}"),
        IpAddr::V6(v6) => format!("http://[{v6}]/{path}"),
    }
}

/// Everything about the director's network that the daemon could have changed.
pub fn footprint(lab: &Lab, setup: &Setup) -> Result<String> {
    let director = lab.director();
    let mut text = String::new();
    for what in ["-o address show", "route show table all", "-6 route show table all"] {
        text.push_str(&director.ip(what)?);
    }
    let links = director.ip("-o link show")?;
    let managed = director.ip("neigh show")?.lines().filter(|line| line.contains("managed")).count();
    for interface in lab.director_interfaces() {
        text.push_str(&director.command("ethtool")?.args(["-k", interface]).run()?);
    }
    let present = |path: &Path| path.exists();
    write!(
        text,
        "xdp: {}, managed neighbours: {managed}, pins: {}, pin directory: {}, runtime directory: {}",
        links.contains("xdp"),
        present(&setup.pin_folder()),
        present(&setup.pins),
        present(&setup.runtime),
    )?;
    Ok(text)
}
