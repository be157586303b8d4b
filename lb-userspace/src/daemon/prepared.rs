//! A start: first all that can fail and that nobody notices, then the rest.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tracing::warn;

use super::attaching::{attach_program, interfaces};
use super::command_line::CommandLine;
use super::firewall_watch::FirewallWatch;
use super::predecessor::Legacy;
use super::tables::{self, Loaded, Made};
use super::{Daemon, Predecessor, StartError, first_resolution, refuse, set_ways, targets, ways};
use crate::config::Config;
use crate::control::server;
use crate::datapath::xdp::adoptable::Unfit;
use crate::datapath::xdp::attach::Attachment;
use crate::datapath::xdp::table::task::Scan;
use crate::datapath::xdp::{XdpDatapath, packet_log};
use crate::handover::{Arrival, Lost};
use crate::host::jiffies_per_second;
use crate::host::link::{self, Link};
use crate::host::preflight::Facts;
use crate::instance::Instance;
use crate::nexthop::{Resolution, Resolver};
use crate::reconcile::desired::Desired;

/// A running daemon, and what it hands over.
pub type Inheritance<'a> = (&'a Predecessor, Legacy);

/// Everything that a daemon needs, before anything that others use is changed.
pub struct Prepared {
    file: PathBuf,
    config: Config,
    command_line: CommandLine,
    /// All interfaces of the host, and those that the program is to be on.
    links: (Vec<Link>, Vec<Link>),
    desired: Desired,
    loaded: Loaded,
    resolver: Arc<Resolver>,
    resolution: Resolution,
    instance: Instance,
    firewall: FirewallWatch,
}

impl Prepared {
    /// Checks the host, locks the instance or borrows it, loads the program, and resolves the next hops.
    pub async fn new(file: PathBuf, config: Config, predecessor: Option<&Predecessor>) -> Result<Self, StartError> {
        let command_line = CommandLine::of_this().map_err(StartError::CommandLine)?;
        let handle = link::connect().map_err(StartError::Netlink)?;
        let facts = Facts::gather(&config, link::links(&handle).await?, link::addresses(&handle).await?);
        refuse(facts.problems(&config))?;
        let instance = match predecessor {
            Some(running) => Instance::borrow(&config, running.locks().await?)?,
            None => Instance::acquire(&config)?,
        };
        for line in facts.warnings(&config) {
            warn!("{line}");
        }
        let firewall = FirewallWatch::default();
        firewall.look(&config);
        let host = facts.links;
        let links = interfaces(&config, &instance, &host)?;
        let desired = Desired::new(config.virtual_servers.clone(), jiffies_per_second());
        let loaded = tables::load(&config, instance.pins(), &desired)?;
        let resolver = Arc::new(Resolver::new(handle, instance.journal(), targets(&config)));
        resolver.set_hands_off(predecessor.is_some());
        let resolution = first_resolution(&resolver).await?;
        refuse(ways::problems(&config, &resolution))?;
        for warning in ways::warnings(&config, &resolution) {
            warn!("{warning}");
        }
        let links = (host, links);
        Ok(Self { file, config, command_line, links, desired, loaded, resolver, resolution, instance, firewall })
    }

    /// Takes the place of an earlier daemon, dead or running, and serves.
    pub fn serve(self, inheritance: Option<Inheritance<'_>>) -> Result<Daemon, StartError> {
        let Self {
            file,
            config,
            command_line,
            links,
            mut desired,
            loaded,
            resolver,
            resolution,
            mut instance,
            firewall,
        } = self;
        if let Some((_, legacy)) = &inheritance {
            instance.read_journal()?;
            resolver.set_hands_off(false);
            legacy.state.restore(&mut desired, Instant::now());
        }
        let ways = |datapath: &mut XdpDatapath| {
            datapath.set_own_addresses(&resolution.addresses)?;
            set_ways(datapath, &resolution, &config.xdp)
        };
        let (mut datapath, made) = loaded.serve(&mut desired, ways)?;
        let packet_log = config.xdp.packet_log.then(|| packet_log::spawn(datapath.ebpf())).transpose()?;
        let scan = Some(Scan::start(&datapath, made.constants())?);
        let attachments = attach_program(&config, &mut instance, &mut datapath, &made, (&links.0, &links.1))?;
        made.given_up.iter().for_each(tables::mourn);
        let listener = listener(&mut instance, inheritance, &made, &attachments)?;
        let (resolutions_sender, resolutions) = mpsc::channel(4);
        let (calls_sender, calls) = mpsc::channel(16);
        let mut daemon = Daemon {
            file,
            config,
            made,
            desired,
            resolver,
            resolution,
            resolutions,
            calls,
            senders: (calls_sender, resolutions_sender),
            conversations: mpsc::channel(1),
            listener,
            tasks: Vec::new(),
            packet_log,
            command_line,
            firewall,
            successor: None,
            attachments,
            scan,
            frozen: Vec::new(),
            datapath,
            instance,
            since: Instant::now(),
            failure: None,
        };
        daemon.start_tasks()?;
        Ok(daemon)
    }
}

/// The control socket; with another daemon's, its place is taken now.
fn listener(
    instance: &mut Instance,
    inheritance: Option<Inheritance<'_>>,
    made: &Made,
    attachments: &[Attachment],
) -> Result<UnixListener, StartError> {
    let Some((running, legacy)) = inheritance else {
        return server::bind(&instance.socket()).map_err(StartError::socket(&instance.socket()));
    };
    instance.settle()?;
    let lost = |unfit: &Unfit| Lost { differences: unfit.differences.clone(), connections: unfit.connections };
    let gaps = attachments.iter().filter(|attachment| attachment.had_gap);
    running.serving(Arrival {
        lost: made.given_up.as_ref().map(lost),
        gaps: gaps.map(|attachment| attachment.interface.clone()).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        executable: std::env::current_exe().unwrap_or_default(),
    });
    Ok(legacy.listener)
}
