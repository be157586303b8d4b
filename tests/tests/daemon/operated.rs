//! A daemon with virtual servers as a test needs them, and what an operator does with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{Crowd, Finished, Lab, Rounds, TcpEcho, address};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::director::{Daemon, Setup, evenkeel, run, wait_until};

/// Port of [`TcpEcho`].
pub const ECHO: u16 = 7;
/// The echo behind the IPv4 VIP.
pub const ECHO4: SocketAddr = SocketAddr::new(IpAddr::V4(address::VIP4), ECHO);
/// The echo behind the IPv6 VIP.
pub const ECHO6: SocketAddr = SocketAddr::new(IpAddr::V6(address::VIP6), ECHO);

/// A virtual server of a configuration.
#[derive(Clone, Debug)]
pub struct Server {
    service: SocketAddr,
    protocol: &'static str,
    forwarding: Option<&'static str>,
    keys: Vec<String>,
    /// Addresses, and further keys.
    reals: Vec<(IpAddr, String)>,
    sorry: Option<IpAddr>,
}

impl Server {
    /// A TCP one without real servers; reached as the lab is prepared for, scheduled by `rr`.
    pub fn tcp(service: impl Into<SocketAddr>) -> Self {
        let service = service.into();
        Self { service, protocol: "tcp", forwarding: None, keys: Vec::new(), reals: Vec::new(), sorry: None }
    }

    /// A UDP one.
    pub fn udp(service: impl Into<SocketAddr>) -> Self {
        Self { protocol: "udp", ..Self::tcp(service) }
    }

    /// Another forwarding method than the lab's.
    pub fn forwarding(self, method: &'static str) -> Self {
        Self { forwarding: Some(method), ..self }
    }

    /// A further line for it.
    pub fn key(mut self, line: &str) -> Self {
        self.keys.push(line.to_owned());
        self
    }

    /// These real servers of the lab.
    pub fn reals(self, numbers: impl IntoIterator<Item = u8>) -> Self {
        numbers.into_iter().fold(self, |server, number| server.real(number, ""))
    }

    /// A real server of the lab, with further lines for it.
    pub fn real(self, number: u8, keys: &str) -> Self {
        let address = self.address(number);
        self.real_at(address, keys)
    }

    /// A real server anywhere.
    pub fn real_at(mut self, address: IpAddr, keys: &str) -> Self {
        self.reals.push((address, keys.to_owned()));
        self
    }

    /// A real server of the lab as the sorry server.
    pub fn sorry(self, number: u8) -> Self {
        Self { sorry: Some(self.address(number)), ..self }
    }

    fn address(&self, number: u8) -> IpAddr {
        if self.service.is_ipv4() { address::real4(number).into() } else { address::real6(number).into() }
    }

    fn write(&self, forwarding: &str, text: &mut String) -> std::fmt::Result {
        let Self { service, protocol, forwarding: own, keys, reals, sorry } = self;
        let forwarding = own.unwrap_or(forwarding);
        writeln!(text, "\n[[virtual_server]]\naddress = \"{service}\"\nprotocol = \"{protocol}\"")?;
        writeln!(text, "forwarding = \"{forwarding}\"\n{}", keys.join("\n"))?;
        if let Some(sorry) = sorry {
            writeln!(text, "[virtual_server.sorry_server]\naddress = \"{sorry}\"")?;
        }
        reals.iter().try_for_each(|(address, keys)| {
            writeln!(text, "[[virtual_server.real_server]]\naddress = \"{address}\"\n{keys}")
        })
    }
}

/// A daemon in a lab.
pub struct Operated<'a> {
    lab: &'a Lab,
    pub daemon: Daemon,
    /// `xdp.connections_max`, and what else is to be in the file beside virtual servers.
    pub connections_max: u32,
    pub more: &'static str,
    /// The process that has taken the place of the first one.
    heir: Option<Heir>,
}

/// A daemon that another daemon has started; dropping it kills it.
pub struct Heir(pub Pid);

impl Drop for Heir {
    fn drop(&mut self) {
        // It may have ended, and nobody else can have its number so soon.
        tell(self.0, Signal::SIGKILL);
    }
}

impl<'a> Operated<'a> {
    /// Starts one and waits until it knows its next hops.
    pub fn start(lab: &'a Lab, servers: &[Server]) -> Result<Self> {
        Self::start_with(lab, "", servers)
    }

    /// With further tables in the file.
    pub fn start_with(lab: &'a Lab, more: &'static str, servers: &[Server]) -> Result<Self> {
        Self::start_by(lab, more, servers, Command::new(evenkeel()))
    }

    /// By another executable, or with an environment of its own.
    pub fn start_by(lab: &'a Lab, more: &'static str, servers: &[Server], program: Command) -> Result<Self> {
        let setup = Setup::of(lab);
        let file = write(lab, &setup, 65_536, more, servers)?;
        let daemon = Daemon::start_by(lab, setup, &file, program)?;
        let operated = Self { lab, daemon, connections_max: 65_536, more, heir: None };
        operated.wait_for_next_hops()?;
        Ok(operated)
    }

    /// Kills the daemon and starts it again with the same file; packets flow meanwhile.
    pub fn kill_and_start(&mut self) -> Result<()> {
        self.kill9()?;
        self.start_again()
    }

    /// Kills the daemon, whichever process it is.
    pub fn kill9(&mut self) -> Result<()> {
        match self.heir.take() {
            Some(Heir(pid)) => {
                drop(Heir(pid));
                wait_until("the end of a killed daemon", || Ok(!runs(pid)))
            }
            None => self.daemon.process.kill9(),
        }
    }

    /// Has another process take the daemon's place; what `evenkeel restart` has printed.
    pub fn restart(&mut self) -> Result<String> {
        let told = self.does(&["restart"])?;
        self.succeed(&told)?;
        Ok(told)
    }

    /// Another process has taken the daemon's place, by what was `told`: the one before has ended well.
    pub fn succeed(&mut self, told: &str) -> Result<()> {
        let pid = told.split("pid ").nth(1).and_then(|rest| rest.split(',').next()).context(told.to_owned())?;
        let heir = Heir(Pid::from_raw(pid.trim().parse()?));
        match self.heir.replace(heir) {
            Some(before) => {
                wait_until("the end of the daemon before", || Ok(!runs(before.0)))?;
                std::mem::forget(before);
            }
            None => {
                let status = self.daemon.process.wait(crate::director::PATIENCE)?;
                ensure!(status.success(), "it ended with {status}: {}", self.daemon.process.log());
            }
        }
        assert_eq!(self.daemon.status()?["pid"].to_string(), pid);
        Ok(())
    }

    /// Starts a daemon with the same file.
    pub fn start_again(&mut self) -> Result<()> {
        self.daemon = Daemon::start_file(self.lab, self.daemon.setup.clone(), &file(self.lab))?;
        self.wait_for_next_hops()
    }

    fn wait_for_next_hops(&self) -> Result<()> {
        wait_until("the next hops", || Ok(!self.daemon.status()?.to_string().contains("\"unresolved\"")))
    }

    /// Writes a configuration, and doesn't tell the daemon.
    pub fn write(&self, servers: &[Server]) -> Result<()> {
        write(self.lab, &self.daemon.setup, self.connections_max, self.more, servers)?;
        Ok(())
    }

    /// Writes a configuration, and has the daemon take it.
    pub fn reload(&self, servers: &[Server]) -> Result<String> {
        self.write(servers)?;
        self.does(&["reload"])
    }

    /// What `evenkeel` prints, which must not fail.
    pub fn does(&self, arguments: &[&str]) -> Result<String> {
        let end = self.finish(arguments)?;
        ensure!(end.status.success(), "evenkeel {arguments:?} failed ({}): {}", end.status, end.stderr);
        Ok(String::from_utf8_lossy(&end.stdout).into_owned())
    }

    /// `evenkeel` must fail with exit code 1, and say all of `words`.
    pub fn refuses(&self, arguments: &[&str], words: &[&str]) -> Result<()> {
        let end = self.finish(arguments)?;
        ensure!(end.status.code() == Some(1), "evenkeel {arguments:?}: {}, {}", end.status, end.stderr);
        ensure!(end.stdout.is_empty(), "{arguments:?} has printed something");
        for word in words {
            ensure!(end.stderr.contains(word), "{word:?} is not in what {arguments:?} said: {}", end.stderr);
        }
        Ok(())
    }

    pub fn finish(&self, arguments: &[&str]) -> Result<Finished> {
        let socket = self.daemon.setup.socket();
        let socket = socket.to_string_lossy();
        let with_socket: Vec<&str> = arguments.iter().copied().chain(["--socket", &socket]).collect();
        run(self.lab, &with_socket)
    }

    /// Which scheduler the status says that a virtual server has.
    pub fn scheduler(&self, server: &Server) -> Result<String> {
        let status = self.daemon.status()?;
        let mut servers = status["virtual_servers"].as_array().into_iter().flatten();
        let (address, protocol) = (server.service.to_string(), server.protocol);
        let meant = servers.find(|entry| entry["address"] == address && entry["protocol"] == protocol);
        Ok(meant.and_then(|entry| entry["scheduler"].as_str()).context("no such virtual server")?.to_owned())
    }

    /// What the status says of a real server.
    pub fn real(&self, server: &Server, number: u8) -> Result<Value> {
        let status = self.daemon.status()?;
        let (service, address) = (server.service.to_string(), server.address(number));
        let servers = status["virtual_servers"].as_array().into_iter().flatten();
        let mut reals = servers
            .filter(|entry| entry["address"] == service && entry["protocol"] == server.protocol)
            .flat_map(|entry| entry["real_servers"].as_array().into_iter().flatten());
        let is_meant = |real: &&Value| {
            let address_of = real["address"].as_str().and_then(|text| text.parse::<SocketAddr>().ok());
            address_of.is_some_and(|found| found.ip() == address)
        };
        reals.find(is_meant).cloned().with_context(|| format!("{service} has no {address}: {status:#}"))
    }

    /// Active and inactive connections of real servers `1..=count`.
    pub fn connections(&self, server: &Server, count: u8) -> Result<Vec<(u64, u64)>> {
        let numbers = |number| -> Result<(u64, u64)> {
            let real = self.real(server, number)?;
            Ok((real["active"].as_u64().context("active")?, real["inactive"].as_u64().context("inactive")?))
        };
        (1..=count).map(numbers).collect()
    }

    pub fn stop(&mut self) -> Result<()> {
        let Some(heir) = self.heir.take() else { return self.daemon.stop() };
        assert_eq!(self.does(&["stop"])?, "stopped\n");
        ensure!(!runs(heir.0), "it has not ended");
        std::mem::forget(heir);
        ensure!(!self.daemon.setup.pin_folder().exists(), "pins are left");
        Ok(())
    }
}

/// Sends a signal; false where the process has gone.
pub fn tell(pid: Pid, signal: Signal) -> bool {
    kill(pid, signal).is_ok()
}

/// Whether a process is there that has not ended.
pub fn runs(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn file(lab: &Lab) -> PathBuf {
    lab.directory().join("operated.toml")
}

fn write(lab: &Lab, setup: &Setup, connections_max: u32, more: &str, servers: &[Server]) -> Result<PathBuf> {
    let Setup { instance, interfaces, mode, pins, runtime, forwarding, .. } = setup;
    let mut text = format!(
        "[global]\ninstance = {instance:?}\nruntime_directory = {runtime:?}\nlog_level = \"debug\"\n\n\
         [xdp]\ninterfaces = {interfaces:?}\nmode = {mode:?}\npin_directory = {pins:?}\n\
         connections_max = {connections_max}\n{more}\n"
    );
    for server in servers {
        server.write(forwarding, &mut text)?;
    }
    std::fs::write(file(lab), text)?;
    Ok(file(lab))
}

/// An echo on `port` of every real server.
pub fn echoes(lab: &Lab, port: u16) -> Result<Vec<TcpEcho>> {
    lab.real_servers().iter().map(|real| TcpEcho::start(real.namespace(), port, real.name())).collect()
}

/// Which servers `count` new connections get, which are closed again.
pub fn newcomers(lab: &Lab, target: SocketAddr, count: usize) -> Result<BTreeMap<String, usize>> {
    Ok(Crowd::connect(lab.client(), target, count)?.servers())
}

/// `real1` and so on, each with its number.
pub fn each(numbers: &[(u8, usize)]) -> BTreeMap<String, usize> {
    numbers.iter().map(|(number, count)| (format!("real{number}"), *count)).collect()
}

/// The crowd talks while `work` is done, and once more when it is.
pub fn while_talking(crowd: &mut Crowd, work: impl FnOnce(&Rounds) -> Result<()>) -> Result<()> {
    let (stop, rounds) = (AtomicBool::new(false), crowd.rounds());
    std::thread::scope(|scope| {
        let talk = scope.spawn(|| crowd.talk_until(&stop));
        let done = {
            let _stops = StopOnDrop(&stop);
            work(&rounds)
        };
        talk.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done
    })
}

/// Sets the flag also where a failed assertion unwinds: the scope would wait for ever.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A client's UDP port.
pub struct UdpFlow(UdpSocket);

impl UdpFlow {
    /// Of the lab's client, towards a virtual server with the UDP echo.
    pub fn open(lab: &Lab, target: SocketAddr) -> Result<Self> {
        let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = lab.client().run(|| UdpSocket::bind((any, 0)))??;
        socket.connect(target)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(Self(socket))
    }

    /// As [`Self::ask`], with less patience.
    pub fn ask_within(&self, time: Duration) -> std::io::Result<String> {
        self.0.set_read_timeout(Some(time))?;
        self.ask()
    }

    /// Sends a datagram; the name of the server that answers.
    pub fn ask(&self) -> std::io::Result<String> {
        self.0.send(b"hello")?;
        let mut buffer = [0; 64];
        let length = self.0.recv(&mut buffer)?;
        let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
        Ok(answer.trim_end_matches(" hello").to_owned())
    }
}
