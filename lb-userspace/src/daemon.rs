//! The running daemon: start in order, serve, and stop.
//!
//! Everything that it changes on the host hangs on [`Instance`], whose drop puts it back whatever way this module is left.

use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config::{self, Config};
use crate::control::protocol::{Request, Response};
use crate::control::server::{self, Call};
use crate::datapath::DatapathError;
use crate::datapath::xdp::attach::Attachment;
use crate::datapath::xdp::table::task::Scan;
use crate::datapath::xdp::tables::Way;
use crate::datapath::xdp::{XdpDatapath, origin};
use crate::error::chain;
use crate::host::preflight::Problem;
use crate::host::service_manager;
use crate::instance::{Instance, InstanceError};
use crate::model::VirtualServer;
use crate::nexthop::{self, Found, Resolution, Resolver};
use crate::reconcile::desired::Desired;
use crate::status;

use self::firewall_watch::FirewallWatch;

mod attaching;
mod command_line;
mod devices;
mod firewall_watch;
mod interfaces;
mod operator;
mod predecessor;
mod prepared;
mod restart;
mod signals;
mod start_error;
mod state;
mod successor;
mod tables;
mod ways;

use command_line::CommandLine;
pub use predecessor::{HandoverError, Predecessor};
use prepared::Prepared;
use restart::Frozen;
use signals::{Event, Signals};
pub use start_error::StartError;
use successor::Successor;
use tables::Made;

/// How long a start waits for the next hops' Ethernet addresses; packets before that take the kernel's routing table.
const NEXT_HOPS_WAIT: Duration = Duration::from_secs(1);
/// How often the installed state is compared with the desired one.
const RECONCILE_PERIOD: Duration = Duration::from_secs(10);
/// How long answers that are under way may take when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves `config`, which was read from `file`, until SIGTERM or SIGINT. SIGHUP and `evenkeel reload` read the file again.
/// Takes the place of `predecessor`, where there is one.
///
/// # Errors
///
/// [`StartError`] when it could not start; the host is as before then.
pub async fn run(file: PathBuf, config: Config, predecessor: Option<&Predecessor>) -> Result<(), StartError> {
    let mut signals = Signals::new()?;
    let started = tokio::select! {
        started = Daemon::start(file, config, predecessor) => started?,
        name = signals.stop() => return Err(StartError::Stopped(name)),
    };
    started.serve(signals).await;
    Ok(())
}

/// A started daemon. The fields are dropped in this order: tasks, scan, data path, then the instance with its clean-up.
struct Daemon {
    /// Where the configuration is read from again.
    file: PathBuf,
    config: Config,
    /// The tables, and what the program was loaded for.
    made: Made,
    desired: Desired,
    resolver: Arc<Resolver>,
    resolution: Resolution,
    resolutions: mpsc::Receiver<Resolution>,
    calls: mpsc::Receiver<Call>,
    /// For the tasks that ask and tell.
    senders: (mpsc::Sender<Call>, mpsc::Sender<Resolution>),
    /// Ends when the last conversation on the control socket has.
    conversations: (mpsc::Sender<Infallible>, mpsc::Receiver<Infallible>),
    listener: UnixListener,
    tasks: Vec<JoinHandle<()>>,
    packet_log: Option<JoinHandle<()>>,
    command_line: CommandLine,
    firewall: FirewallWatch,
    /// Who prepares to take this daemon's place.
    successor: Option<Successor>,
    attachments: Vec<Attachment>,
    /// None while another process may be about to take this daemon's place.
    scan: Option<Scan>,
    /// What has been stopped for that and does not go on yet, and why not.
    frozen: Vec<(Frozen, Option<String>)>,
    datapath: XdpDatapath,
    instance: Instance,
    since: Instant,
    /// Why the last comparison with the configuration failed.
    failure: Option<String>,
}

impl Daemon {
    /// Checks, loads and resolves first; what an earlier daemon has left, or still does, goes on until all of that is done.
    async fn start(file: PathBuf, config: Config, predecessor: Option<&Predecessor>) -> Result<Self, StartError> {
        let prepared = Prepared::new(file, config, predecessor).await?;
        let inheritance = match predecessor {
            Some(running) => Some((running, running.take_place().await?)),
            None => None,
        };
        // Nothing waits from here on: a signal does not end what follows half-way.
        prepared.serve(inheritance)
    }

    /// Begins to answer on the socket, and to follow next hops.
    fn start_tasks(&mut self) -> Result<(), StartError> {
        let listener = self.listener.try_clone().and_then(tokio::net::UnixListener::from_std);
        let listener = listener.map_err(StartError::socket(&self.instance.socket()))?;
        let (calls, resolutions) = self.senders.clone();
        self.tasks.push(tokio::spawn(server::serve(listener, calls, self.conversations.0.clone())));
        self.tasks.push(tokio::spawn(nexthop::watch(self.resolver.clone(), resolutions)));
        Ok(())
    }

    async fn serve(mut self, mut signals: Signals) {
        info!(
            instance = self.config.global.instance,
            virtual_servers = self.config.virtual_servers.len(),
            socket = %self.instance.socket().display(),
            "ready"
        );
        service_manager::ready();
        let mut period = tokio::time::interval(RECONCILE_PERIOD);
        let mut due = None;
        let end = loop {
            // One that was found earlier stays: a rising weight's moves on with the time at which it is asked for.
            due = self.desired.deadline(Instant::now()).into_iter().chain(due).min();
            tokio::select! {
                event = signals.next() => match event {
                    Event::Stop(name) => {
                        info!(signal = name, "stopping");
                        break End::Withdraw;
                    }
                    Event::Reload => drop(self.answer(Request::Reload).await),
                },
                // Were one of the two tasks to end, packets would still be served; so is the rest.
                Some(resolution) = self.resolutions.recv() => self.resolved(resolution),
                Some((request, answer)) = self.calls.recv() => {
                    if let Some(end) = self.called(request, answer).await {
                        break end;
                    }
                }
                (successor, word) = next_word(&mut self.successor) => {
                    let pid = successor.pid();
                    if self.hear(successor, word).await {
                        break End::Succeeded(pid);
                    }
                }
                () = sleep_until(due) => {
                    due = None;
                    self.expire();
                }
                _ = period.tick() => self.look_after().await,
            }
        };
        self.end(end, &mut signals).await;
    }

    /// Takes new ways to real servers, and what became of our own interfaces, into the data path.
    fn resolved(&mut self, resolution: Resolution) {
        for (address, found) in &resolution.found {
            if self.resolution.found.get(address) != Some(found) {
                log_found(*address, found);
            }
        }
        let known = ways::warnings(&self.config, &self.resolution);
        for warning in ways::warnings(&self.config, &resolution).iter().filter(|warning| !known.contains(warning)) {
            warn!("{warning}");
        }
        let before = std::mem::replace(&mut self.resolution, resolution);
        if !self.may_write() {
            return;
        }
        if before.links != self.resolution.links {
            // Before ways lead there.
            self.follow_interfaces();
        }
        if let Err(error) = self.write_ways(before.routes) {
            error!(error = chain(&error), "next hops could not be written");
        }
    }

    /// Tells the program of ways and addresses; `routes` is their generation that it knows.
    fn write_ways(&mut self, routes: u32) -> Result<(), DatapathError> {
        let mut result = set_ways(&mut self.datapath, &self.resolution, &self.config.xdp);
        // Before ways back to clients are looked up anew, which is when packets ask.
        result = result.and(self.datapath.set_own_addresses(&self.resolution.addresses));
        if self.resolution.routes != routes {
            result = result.and(self.datapath.routes_changed());
        }
        result
    }

    /// Gives up the places of removed real servers that have no connection any more.
    fn release_idle(&mut self) {
        match self.datapath.release_idle() {
            Ok(0) => {}
            Ok(real_servers) => info!(real_servers, "removed real servers have lost their last connection"),
            Err(error) => error!(error = chain(&error), "places of removed real servers could not be given up"),
        }
    }

    /// What is done now and then.
    async fn look_after(&mut self) {
        if !self.frozen.is_empty() {
            self.thaw().await;
        }
        if !self.may_write() {
            return;
        }
        if self.attachments.iter().any(|attachment| attachment.failure.is_some()) {
            self.follow_interfaces();
        }
        let failure = self.reconcile().err().map(|error| chain(&error));
        if let Some(error) = failure.as_ref().filter(|_| failure != self.failure) {
            error!(error, "the data path is not as configured");
        }
        self.failure = failure;
        self.release_idle();
        self.revive_scan();
    }

    /// Has the connection table scanned again, should the scan have died.
    fn revive_scan(&mut self) {
        match self.scan.as_mut().map(Scan::revive).transpose() {
            Ok(None | Some(false)) => {}
            Ok(Some(true)) => info!("the connection table is scanned again"),
            Err(error) => {
                error!(error = chain(&error), "the connection table is not scanned, idle connections stay counted")
            }
        }
    }

    /// Does what an operator asks; how to end, where that is it.
    async fn called(&mut self, request: Request, answer: oneshot::Sender<Response>) -> Option<End> {
        let response = match request {
            Request::Restart => {
                self.restart(answer);
                return None;
            }
            Request::Stop { keep } => {
                info!(keep, "stopping as an operator has asked");
                // The caller may have hung up; then nobody wants the answer.
                drop(answer.send(Response::Stopping { pid: std::process::id() }));
                return Some(if keep { End::Leave } else { End::Withdraw });
            }
            request => self.answer(request).await,
        };
        drop(answer.send(response));
        None
    }

    async fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Status => {
                let status = status::Sources {
                    config: &self.config,
                    pins: self.instance.pins().directory(),
                    attachments: &self.attachments,
                    datapath: &self.datapath,
                    scan: self.scan.as_ref().map(Scan::report).unwrap_or_default(),
                    resolution: &self.resolution,
                    desired: &self.desired,
                    now: Instant::now(),
                    uptime: self.since.elapsed(),
                    is_adopted: self.made.are_adopted,
                    tables_age: origin::since_boot().saturating_sub(self.made.made_at),
                };
                match status.collect() {
                    Ok(status) => Response::Status(Box::new(status)),
                    Err(error) => Response::Error(chain(&error)),
                }
            }
            Request::Drain { .. } | Request::Undrain { .. } | Request::Reload if !self.may_write() => {
                Response::Error("the tables could not be read back after a failed restart; the log says why".to_owned())
            }
            Request::Drain { real_server, seconds } => self.drain(&real_server, seconds.map(Duration::from_secs)),
            Request::Undrain { real_server } => self.undrain(&real_server),
            Request::Reload => match self.reload().await {
                Ok(changes) => {
                    info!(changes, "configuration reloaded");
                    Response::Reloaded { changes }
                }
                Err(error) => {
                    error!(error = chain(&error), "configuration not reloaded; the old one still holds");
                    Response::Error(chain(&error))
                }
            },
            Request::Restart | Request::Stop { .. } => Response::Error("the daemon is ending".to_owned()),
        }
    }
}

/// How a daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The host is as it was before.
    Withdraw,
    /// Everything stays, for another daemon to go on with.
    Leave,
    /// The process with this id has taken its place.
    Succeeded(u32),
}

/// Waits for what `successor` says next, for ever without one.
async fn next_word(successor: &mut Option<Successor>) -> (Successor, successor::Word) {
    let word = match successor {
        Some(successor) => successor.next().await,
        None => std::future::pending().await,
    };
    match successor.take() {
        Some(successor) => (successor, word),
        None => std::future::pending().await,
    }
}

/// Waits until `deadline`, for ever without one.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Every real server's address.
fn targets(config: &Config) -> Vec<std::net::IpAddr> {
    let reals = |server: &VirtualServer| {
        server.real_servers.iter().chain(&server.sorry_server).map(|real| real.address.ip()).collect::<Vec<_>>()
    };
    config.virtual_servers.iter().flat_map(reals).collect()
}

fn refuse(problems: Vec<Problem>) -> Result<(), StartError> {
    if problems.is_empty() { Ok(()) } else { Err(StartError::Unfit(problems)) }
}

/// Resolves until every next hop is known, but no longer than a start may wait.
async fn first_resolution(resolver: &Resolver) -> Result<Resolution, StartError> {
    let deadline = Instant::now() + NEXT_HOPS_WAIT;
    loop {
        let resolution = resolver.resolve().await?;
        let missing = resolution.found.values().any(|found| matches!(found, Found::NoNeighbour(_)));
        if !missing || Instant::now() >= deadline {
            for (address, found) in &resolution.found {
                log_found(*address, found);
            }
            return Ok(resolution);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn set_ways(datapath: &mut XdpDatapath, resolution: &Resolution, xdp: &config::Xdp) -> Result<(), DatapathError> {
    for (address, found) in &resolution.found {
        let way = Way { tunnel_source: xdp.tunnel_sources.to(*address), ..found.way(&xdp.interfaces) };
        if datapath.known_way(*address) != Some(way) {
            datapath.set_way(*address, way)?;
        }
    }
    Ok(())
}

fn log_found(address: std::net::IpAddr, found: &Found) {
    match found {
        Found::Way(route, hop) => {
            info!(real_server = %address, interface = route.interface.name, mac = %hop.destination, "next hop known");
        }
        Found::NoNeighbour(route) => {
            warn!(real_server = %address, interface = route.interface.name, "next hop does not answer");
        }
        Found::Local => {
            info!(real_server = %address, "this host is the real server")
        }
        Found::NoRoute => warn!(real_server = %address, "no route to the real server"),
    }
}
