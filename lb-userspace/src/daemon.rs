//! The running daemon: start in order, serve, and stop.
//!
//! Everything that it changes on the host hangs on [`Instance`], whose drop puts it back whatever way this module is left.

use std::time::{Duration, Instant};

use lb_common::REAL_SERVERS_MAX;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::control::protocol::{Request, Response};
use crate::control::server::{self, Call};
use crate::datapath::xdp::attach::{self, AttachedMode, Attachment};
use crate::datapath::xdp::object::{self, LoadOptions};
use crate::datapath::xdp::{XdpDatapath, packet_log, pins};
use crate::datapath::{DatapathError, Servers, ServiceTable};
use crate::error::chain;
use crate::host::journal::HostChange;
use crate::host::link::{self, Link};
use crate::host::offload;
use crate::host::preflight::{Facts, Problem};
use crate::instance::{Instance, InstanceError};
use crate::nexthop::{self, Found, Resolution, Resolver};
use crate::reconcile::reconcile;
use crate::status;

mod start_error;
mod ways;

pub use start_error::StartError;

/// How long a start waits for the next hops' Ethernet addresses; packets before that take the kernel's routing table.
const NEXT_HOPS_WAIT: Duration = Duration::from_secs(1);
/// How often the installed state is compared with the desired one.
const RECONCILE_PERIOD: Duration = Duration::from_secs(10);

/// Serves `config` until SIGTERM or SIGINT.
///
/// # Errors
///
/// [`StartError`] when it could not start; the host is as before then.
pub async fn run(config: Config) -> Result<(), StartError> {
    let mut signals = Signals::new()?;
    let started = tokio::select! {
        started = Daemon::start(config) => started?,
        name = signals.stop() => {
            info!(signal = name, "stopped before the start was complete");
            return Ok(());
        }
    };
    started.serve(signals).await;
    Ok(())
}

/// A started daemon. The fields are dropped in this order: tasks, data path, then the instance with its clean-up.
struct Daemon {
    config: Config,
    resolution: Resolution,
    resolutions: mpsc::Receiver<Resolution>,
    calls: mpsc::Receiver<Call>,
    tasks: Vec<JoinHandle<()>>,
    attachments: Vec<Attachment>,
    datapath: XdpDatapath,
    instance: Instance,
    since: Instant,
    /// Why the last comparison with the configuration failed.
    failure: Option<String>,
}

impl Daemon {
    /// Checks, loads and resolves first; what an earlier daemon has left forwards until all of that is done.
    async fn start(config: Config) -> Result<Self, StartError> {
        let handle = link::connect().map_err(StartError::Netlink)?;
        let facts = Facts::gather(&config, link::links(&handle).await?, link::addresses(&handle).await?);
        refuse(facts.problems(&config))?;
        let mut instance = Instance::acquire(&config)?;
        for line in facts.warnings(&config) {
            warn!("{line}");
        }
        let links = interfaces(&config, &instance, facts.links)?;

        let mut datapath = load(&config)?;
        let resolver = Resolver::new(handle, instance.journal(), targets(&config));
        let resolution = first_resolution(&resolver).await?;
        refuse(ways::problems(&config, &resolution))?;
        for warning in ways::warnings(&config, &resolution) {
            warn!("{warning}");
        }
        set_ways(&mut datapath, &resolution)?;
        for link in &links {
            datapath.set_interface(link.index, link.mac)?;
        }
        reconcile(&mut datapath, &desired(&config))?;
        let mut tasks = Vec::new();
        if config.xdp.packet_log {
            tasks.push(packet_log::spawn(datapath.ebpf())?);
        }

        let attachments = attach_program(&config, &mut instance, &mut datapath, &links)?;
        let listener = server::bind(&instance.socket()).map_err(StartError::socket(&instance.socket()))?;

        let (resolutions_sender, resolutions) = mpsc::channel(4);
        let (calls_sender, calls) = mpsc::channel(16);
        tasks.push(tokio::spawn(server::serve(listener, calls_sender)));
        tasks.push(tokio::spawn(nexthop::watch(resolver, resolutions_sender)));
        let since = Instant::now();
        Ok(Self {
            config,
            resolution,
            resolutions,
            calls,
            tasks,
            attachments,
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
        loop {
            tokio::select! {
                name = signals.stop() => {
                    info!(signal = name, "stopping");
                    break;
                }
                // Were one of the two tasks to end, packets would still be served; so is the rest.
                Some(resolution) = self.resolutions.recv() => self.resolved(resolution),
                Some((request, answer)) = self.calls.recv() => {
                    // The caller may have hung up; then nobody wants the answer.
                    drop(answer.send(self.answer(&request)));
                }
                _ = period.tick() => {
                    let failure = reconcile(&mut self.datapath, &desired(&self.config)).err().map(|error| chain(&error));
                    if let Some(error) = failure.as_ref().filter(|_| failure != self.failure) {
                        error!(error, "the data path is not as configured");
                    }
                    self.failure = failure;
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
        let mut result = set_ways(&mut self.datapath, &resolution);
        for attachment in &mut self.attachments {
            let link = resolution.links.iter().find(|link| link.index == attachment.ifindex);
            if attachment.observe(link) {
                error!(interface = attachment.interface, state = attachment.state(), "the XDP program is not attached");
            }
            if let Some(link) = link {
                result = result.and(self.datapath.set_interface(link.index, link.mac));
            }
        }
        if let Err(error) = result {
            error!(error = chain(&error), "next hops could not be written");
        }
        self.resolution = resolution;
    }

    fn answer(&self, request: &Request) -> Response {
        match request {
            Request::Status => {
                let status = status::Sources {
                    config: &self.config,
                    pins: self.instance.pins().directory(),
                    attachments: &self.attachments,
                    datapath: &self.datapath,
                    resolution: &self.resolution,
                    uptime: self.since.elapsed(),
                };
                status.collect().map_or_else(|error| Response::Error(chain(&error)), Response::Status)
            }
        }
    }
}

/// The table that the configuration asks for.
fn desired(config: &Config) -> ServiceTable {
    config.virtual_servers.iter().map(|server| (server.service, Servers::from(server))).collect()
}

/// Every real server's address.
fn targets(config: &Config) -> Vec<std::net::IpAddr> {
    config.virtual_servers.iter().flat_map(|server| &server.real_servers).map(|real| real.address.ip()).collect()
}

fn refuse(problems: Vec<Problem>) -> Result<(), StartError> {
    if problems.is_empty() { Ok(()) } else { Err(StartError::Unfit(problems)) }
}

/// The configured interfaces, in the order of the file; refused where somebody else's XDP program is on one.
fn interfaces(config: &Config, instance: &Instance, links: Vec<Link>) -> Result<Vec<Link>, StartError> {
    let ours = instance.pins().programs();
    let wanted = config.xdp.interfaces.iter().filter_map(|name| links.iter().find(|link| link.name == *name));
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
    links: &[Link],
) -> Result<Vec<Attachment>, StartError> {
    let mode = attach::mode_for(links, config.xdp.mode);
    let in_place = attach::can_replace(links, mode, instance.pins());
    take_over(config, instance, if in_place { links } else { &[] })?;
    for link in links {
        disable_offloads(instance, link, &[offload::LRO])?;
    }
    instance.pins().pin_maps(datapath.ebpf())?;
    let attachments = if in_place {
        attach::replace_all(datapath.ebpf(), links, instance.pins())?
    } else {
        attach::attach_all(datapath.ebpf(), links, mode, instance.pins())?
    };
    for (attachment, link) in attachments.iter().zip(links) {
        match attachment.mode {
            AttachedMode::Generic => disable_offloads(instance, link, &offload::GENERIC)?,
            AttachedMode::Native => instance.restore_offloads(&link.name, &[offload::LRO]),
        }
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

fn disable_offloads(instance: &Instance, link: &Link, features: &[&'static str]) -> Result<(), StartError> {
    let interface = || link.name.clone();
    let active = match offload::active(&link.name, features) {
        Ok(active) => active,
        // A device that knows no features at all aggregates nothing.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
        Err(source) => return Err(StartError::Features { interface: interface(), source }),
    };
    for feature in active {
        let interface = interface();
        instance.disable_offload(&link.name, feature).map_err(|source| StartError::Offload {
            interface,
            feature,
            source,
        })?;
    }
    Ok(())
}

fn load(config: &Config) -> Result<XdpDatapath, StartError> {
    use lb_common::connection::Timeouts;
    use lb_common::service::ForwardingMethod;
    let real_servers = config.virtual_servers.iter().flat_map(|server| &server.real_servers);
    let options = LoadOptions {
        connections_max: config.xdp.connections_max,
        real_servers_max: slots(real_servers.clone().count()),
        nat: real_servers.clone().any(|real| real.forwarding == ForwardingMethod::Nat),
        packet_log: config.xdp.packet_log,
        timeouts: Timeouts::ipvs_defaults(crate::host::jiffies_per_second()),
    };
    Ok(XdpDatapath::new(object::load(attach::PROGRAM, &pins::MAPS, &options)?)?)
}

/// Places for `count` real servers and as many again, so that `bpftool map dump` prints few empty ones.
fn slots(count: usize) -> u32 {
    let count = u32::try_from(count).unwrap_or(REAL_SERVERS_MAX);
    count.saturating_mul(2).clamp(16, REAL_SERVERS_MAX).next_power_of_two()
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

fn set_ways(datapath: &mut XdpDatapath, resolution: &Resolution) -> Result<(), DatapathError> {
    for (address, found) in &resolution.found {
        let way = found.way();
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
            warn!(real_server = %address, "real server is an address of this host, which is not served yet")
        }
        Found::NoRoute => warn!(real_server = %address, "no route to the real server"),
    }
}

/// The signals that stop the daemon, and one that must not.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// What operators send to other daemons to reload or to dump their state; dying of it would take the service down.
    ignored: [Signal; 3],
}

impl Signals {
    fn new() -> Result<Self, StartError> {
        let listen = |kind| signal(kind).map_err(StartError::Signals);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            ignored: [
                listen(SignalKind::hangup())?,
                listen(SignalKind::user_defined1())?,
                listen(SignalKind::user_defined2())?,
            ],
        })
    }

    /// The name of the signal that asks to stop.
    async fn stop(&mut self) -> &'static str {
        let Self { terminate, interrupt, ignored: [hangup, user1, user2] } = self;
        loop {
            tokio::select! {
                _ = terminate.recv() => return "SIGTERM",
                _ = interrupt.recv() => return "SIGINT",
                _ = hangup.recv() => warn!("SIGHUP ignored: reload is not available yet, restart instead"),
                _ = user1.recv() => warn!("SIGUSR1 ignored: `evenkeel status` shows the state"),
                _ = user2.recv() => warn!("SIGUSR2 ignored: `evenkeel status` shows the counters"),
            }
        }
    }
}
