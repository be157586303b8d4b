//! The running daemon: start in order, serve, and stop.
//!
//! Everything that it changes on the host hangs on [`Instance`], whose drop puts it back whatever way this module is left.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::connection::{State, Timeouts};
use lb_common::hash::Secret;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config::{self, Config};
use crate::control::protocol::{Request, Response};
use crate::control::server::{self, Call};
use crate::datapath::xdp::attach::{self, AttachedMode, Attachment};
use crate::datapath::xdp::capacity::Capacity;
use crate::datapath::xdp::object::{self, LoadOptions};
use crate::datapath::xdp::table::scanner::Constants;
use crate::datapath::xdp::table::task::Scan;
use crate::datapath::xdp::tables::Way;
use crate::datapath::xdp::{XdpDatapath, packet_log, pins};
use crate::datapath::{DatapathError, ticks};
use crate::error::chain;
use crate::host::journal::HostChange;
use crate::host::link::{self, Link};
use crate::host::preflight::{Facts, Problem};
use crate::host::{firewall, jiffies_per_second};
use crate::instance::{Instance, InstanceError};
use crate::model::VirtualServer;
use crate::nexthop::{self, Found, Resolution, Resolver};
use crate::reconcile::desired::Desired;
use crate::reconcile::reconcile;
use crate::status;

mod devices;
mod operator;
mod signals;
mod start_error;
mod ways;

use signals::{Event, Signals};
pub use start_error::StartError;

/// How long a start waits for the next hops' Ethernet addresses; packets before that take the kernel's routing table.
const NEXT_HOPS_WAIT: Duration = Duration::from_secs(1);
/// How often the installed state is compared with the desired one.
const RECONCILE_PERIOD: Duration = Duration::from_secs(10);

/// Serves `config`, which was read from `file`, until SIGTERM or SIGINT. SIGHUP and `evenkeel reload` read the file again.
///
/// # Errors
///
/// [`StartError`] when it could not start; the host is as before then.
pub async fn run(file: PathBuf, config: Config) -> Result<(), StartError> {
    let mut signals = Signals::new()?;
    let started = tokio::select! {
        started = Daemon::start(file, config) => started?,
        name = signals.stop() => {
            info!(signal = name, "stopped before the start was complete");
            return Ok(());
        }
    };
    started.serve(signals).await;
    Ok(())
}

/// A started daemon. The fields are dropped in this order: tasks, scan, data path, then the instance with its clean-up.
struct Daemon {
    /// Where the configuration is read from again.
    file: PathBuf,
    config: Config,
    /// What the program was loaded for.
    capacity: Capacity,
    desired: Desired,
    resolver: Arc<Resolver>,
    resolution: Resolution,
    resolutions: mpsc::Receiver<Resolution>,
    calls: mpsc::Receiver<Call>,
    tasks: Vec<JoinHandle<()>>,
    attachments: Vec<Attachment>,
    scan: Scan,
    datapath: XdpDatapath,
    instance: Instance,
    since: Instant,
    /// Why the last comparison with the configuration failed.
    failure: Option<String>,
}

impl Daemon {
    /// Checks, loads and resolves first; what an earlier daemon has left forwards until all of that is done.
    async fn start(file: PathBuf, config: Config) -> Result<Self, StartError> {
        let handle = link::connect().map_err(StartError::Netlink)?;
        let facts = Facts::gather(&config, link::links(&handle).await?, link::addresses(&handle).await?);
        refuse(facts.problems(&config))?;
        let mut instance = Instance::acquire(&config)?;
        for line in facts.warnings(&config) {
            warn!("{line}");
        }
        warn_of_the_firewall(&config);
        let host = facts.links;
        let links = interfaces(&config, &instance, &host)?;

        let desired = Desired::new(config.virtual_servers.clone(), jiffies_per_second());
        let capacity = Capacity::of(&desired.largest_table());
        let secret = object::random_secret().map_err(StartError::Random)?;
        let mut datapath = load(&config, capacity, secret)?;
        let resolver = Arc::new(Resolver::new(handle, instance.journal(), targets(&config)));
        let resolution = first_resolution(&resolver).await?;
        refuse(ways::problems(&config, &resolution))?;
        for warning in ways::warnings(&config, &resolution) {
            warn!("{warning}");
        }
        set_ways(&mut datapath, &resolution, &config.xdp)?;
        datapath.set_own_addresses(&resolution.addresses)?;
        for link in &links {
            devices::register(&mut datapath, &host, link)?;
        }
        reconcile(&mut datapath, &desired.table(Instant::now()))?;
        let mut tasks = Vec::new();
        if config.xdp.packet_log {
            tasks.push(packet_log::spawn(datapath.ebpf())?);
        }
        let (timeouts, jiffies_per_second) = (timeouts(&config.timeouts), jiffies_per_second());
        let scan = Scan::start(&datapath, Constants { timeouts, secret, jiffies_per_second })?;

        let attachments = attach_program(&config, &mut instance, &mut datapath, (&host, &links))?;
        let listener = server::bind(&instance.socket()).map_err(StartError::socket(&instance.socket()))?;

        let (resolutions_sender, resolutions) = mpsc::channel(4);
        let (calls_sender, calls) = mpsc::channel(16);
        tasks.push(tokio::spawn(server::serve(listener, calls_sender)));
        tasks.push(tokio::spawn(nexthop::watch(resolver.clone(), resolutions_sender)));
        let since = Instant::now();
        Ok(Self {
            file,
            config,
            capacity,
            desired,
            resolver,
            resolution,
            resolutions,
            calls,
            tasks,
            attachments,
            scan,
            datapath,
            instance,
            since,
            failure: None,
        })
    }

    async fn serve(mut self, mut signals: Signals) {
        info!(
            instance = self.config.global.instance,
            virtual_servers = self.config.virtual_servers.len(),
            socket = %self.instance.socket().display(),
            "ready"
        );
        let mut period = tokio::time::interval(RECONCILE_PERIOD);
        let mut due = None;
        loop {
            // One that was found earlier stays: a rising weight's moves on with the time at which it is asked for.
            due = self.desired.deadline(Instant::now()).into_iter().chain(due).min();
            tokio::select! {
                event = signals.next() => match event {
                    Event::Stop(name) => {
                        info!(signal = name, "stopping");
                        break;
                    }
                    Event::Reload => match self.reload().await {
                        Ok(changes) => info!(changes, "configuration reloaded"),
                        Err(error) => error!(error = chain(&error), "configuration not reloaded; the old one still holds"),
                    },
                },
                // Were one of the two tasks to end, packets would still be served; so is the rest.
                Some(resolution) = self.resolutions.recv() => self.resolved(resolution),
                Some((request, answer)) = self.calls.recv() => {
                    let response = self.answer(request).await;
                    // The caller may have hung up; then nobody wants the answer.
                    drop(answer.send(response));
                }
                () = sleep_until(due) => {
                    due = None;
                    self.expire();
                }
                _ = period.tick() => {
                    let failure = self.reconcile().err().map(|error| chain(&error));
                    if let Some(error) = failure.as_ref().filter(|_| failure != self.failure) {
                        error!(error, "the data path is not as configured");
                    }
                    self.failure = failure;
                    self.release_idle();
                    self.revive_scan();
                }
            }
        }
        for task in &self.tasks {
            task.abort();
        }
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
        let mut result = set_ways(&mut self.datapath, &resolution, &self.config.xdp);
        // Before ways back to clients are looked up anew, which is when packets ask.
        result = result.and(self.datapath.set_own_addresses(&resolution.addresses));
        if resolution.routes != self.resolution.routes {
            result = result.and(self.datapath.routes_changed());
        }
        for attachment in &mut self.attachments {
            let link = resolution.links.iter().find(|link| link.index == attachment.ifindex);
            if attachment.observe(link) {
                error!(interface = attachment.interface, state = attachment.state(), "the XDP program is not attached");
            }
            if let Some(link) = link {
                result = result.and(devices::register(&mut self.datapath, &resolution.links, link));
                if resolution.links != self.resolution.links
                    && let Err(error) = devices::settle(&self.instance, &resolution.links, link, attachment.mode)
                {
                    error!(error = chain(&error), "packets of a device may come merged, or without their VLAN tags");
                }
            }
        }
        if let Err(error) = result {
            error!(error = chain(&error), "next hops could not be written");
        }
        self.resolution = resolution;
    }

    /// Gives up the places of removed real servers that have no connection any more.
    fn release_idle(&mut self) {
        match self.datapath.release_idle() {
            Ok(0) => {}
            Ok(real_servers) => info!(real_servers, "removed real servers have lost their last connection"),
            Err(error) => error!(error = chain(&error), "places of removed real servers could not be given up"),
        }
    }

    /// Has the connection table scanned again, should the scan have died.
    fn revive_scan(&mut self) {
        match self.scan.revive() {
            Ok(false) => {}
            Ok(true) => info!("the connection table is scanned again"),
            Err(error) => {
                error!(error = chain(&error), "the connection table is not scanned, idle connections stay counted")
            }
        }
    }

    async fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Status => {
                let status = status::Sources {
                    config: &self.config,
                    pins: self.instance.pins().directory(),
                    attachments: &self.attachments,
                    datapath: &self.datapath,
                    scan: self.scan.report(),
                    resolution: &self.resolution,
                    desired: &self.desired,
                    now: Instant::now(),
                    uptime: self.since.elapsed(),
                };
                match status.collect() {
                    Ok(status) => Response::Status(Box::new(status)),
                    Err(error) => Response::Error(chain(&error)),
                }
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
        }
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

/// In a thread of its own: a large ruleset takes its tools a while, and the start waits for none of it.
fn warn_of_the_firewall(config: &Config) {
    let config = config.clone();
    drop(std::thread::spawn(move || firewall::warnings(&config).iter().for_each(|line| warn!("{line}"))));
}

/// The configured interfaces, in the order of the file; refused where somebody else's XDP program is on one.
fn interfaces(config: &Config, instance: &Instance, host: &[Link]) -> Result<Vec<Link>, StartError> {
    let ours = instance.pins().programs();
    let wanted = config.xdp.interfaces.iter().filter_map(|name| host.iter().find(|link| link.name == *name));
    let wanted: Vec<Link> = wanted.cloned().collect();
    for link in &wanted {
        attach::check_free(link, &ours)?;
    }
    Ok(wanted)
}

/// Takes the place of an earlier daemon, if there was one, and attaches the program; what comes before can still be undone.
fn attach_program(
    config: &Config,
    instance: &mut Instance,
    datapath: &mut XdpDatapath,
    (host, links): (&[Link], &[Link]),
) -> Result<Vec<Attachment>, StartError> {
    let mode = attach::mode_for(host, links, config.xdp.mode);
    let in_place = attach::can_replace(links, mode, instance.pins());
    take_over(config, instance, if in_place { links } else { &[] })?;
    for link in links {
        devices::settle(instance, host, link, AttachedMode::Native)?;
    }
    instance.pins().pin_maps(datapath.ebpf())?;
    let attachments = if in_place {
        attach::replace_all(datapath.ebpf(), links, instance.pins())?
    } else {
        attach::attach_all(datapath.ebpf(), links, mode, instance.pins())?
    };
    for (attachment, link) in attachments.iter().zip(links) {
        devices::settle(instance, host, link, attachment.mode)?;
        instance.restore_offloads(&link.name, &devices::unwanted(host, link, attachment.mode));
        info!(interface = link.name, mode = attachment.mode.name(), "XDP program attached");
    }
    Ok(attachments)
}

/// Takes the place of an earlier daemon of the instance that has died; its program stays on the interfaces in `keep`.
fn take_over(config: &Config, instance: &mut Instance, keep: &[Link]) -> Result<(), StartError> {
    let keep: Vec<u32> = keep.iter().map(|link| link.index).collect();
    let undone = instance.take_over(&keep, |change| match change {
        HostChange::NeighbourManaged { .. } => true,
        HostChange::OffloadDisabled { interface, feature: _ } => {
            // Which of them the mode needs off is seen once the program is attached.
            config.xdp.interfaces.contains(interface)
        }
    })?;
    for line in undone.done {
        warn!("left by an earlier run: {line}");
    }
    for line in undone.failed {
        warn!("left by an earlier run, not undone: {line}");
    }
    Ok(())
}

fn load(config: &Config, capacity: Capacity, secret: Secret) -> Result<XdpDatapath, StartError> {
    let Capacity { real_servers_max, ring_chunks, prefix_lines, nat, wide_tuples } = capacity;
    let options = LoadOptions {
        connections_max: config.xdp.connections_max,
        real_servers_max,
        ring_chunks,
        prefix_lines,
        nat,
        wide_tuples,
        reject_rate: config.xdp.reject_rate,
        packet_log: config.xdp.packet_log,
        timeouts: timeouts(&config.timeouts),
        secret,
    };
    Ok(XdpDatapath::new(object::load(attach::PROGRAM, &pins::MAPS, &options)?)?)
}

/// The timeouts of the packet path; those that IPVS has no setting for are its own.
fn timeouts(configured: &config::Timeouts) -> Timeouts {
    let config::Timeouts { tcp, tcp_fin, udp } = *configured;
    let hz = jiffies_per_second();
    let defaults = Timeouts::ipvs_defaults(hz);
    Timeouts::new(
        defaults.of(State::OPENING),
        ticks(tcp, hz),
        ticks(tcp_fin, hz),
        defaults.of(State::CLOSED),
        ticks(udp, hz),
    )
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
        if datapath.way(*address) != way {
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
