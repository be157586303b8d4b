//! What operators ask of a running daemon: drain, undrain, reload.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tracing::{error, info, warn};

use super::{Daemon, StartError, first_resolution, refuse, set_ways, targets, ways};
use crate::config::{self, Config, LoadError};
use crate::control::protocol::{self, Changed, Response};
use crate::datapath::DatapathError;
use crate::datapath::xdp::capacity::Capacity;
use crate::error::chain;
use crate::host::link;
use crate::host::preflight::Facts;
use crate::model::Service;
use crate::reconcile::desired::{Desired, Member, Selector};
use crate::reconcile::exchange::{ExchangeError, exchange};
use crate::reconcile::reconcile;

/// Why a configuration was not taken; the old one holds.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file cannot be read, or has errors.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// Something changed that is fixed at the start.
    #[error("{} cannot change while the daemon runs; restart it", .0.join(", "))]
    Restart(Vec<&'static str>),
    /// The host is not as the new configuration needs it, or next hops cannot be read.
    #[error(transparent)]
    Host(#[from] StartError),
    /// Another process takes this daemon's place, with the configuration as it was.
    #[error("a restart is under way")]
    Restarting,
    /// The ways to real servers could not be written.
    #[error("nothing of the new configuration was installed, because next hops could not be written")]
    Ways(#[source] DatapathError),
    /// The new configuration could not be installed.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

impl Daemon {
    /// Makes the data path serve what is desired now; returns how many virtual servers changed.
    pub(super) fn reconcile(&mut self) -> Result<usize, DatapathError> {
        reconcile(&mut self.datapath, &self.desired.table(Instant::now()))
    }

    /// Ends drains whose time is over, and lets weights rise.
    pub(super) fn expire(&mut self) {
        for (service, address) in self.desired.expire(Instant::now()) {
            info!(virtual_server = %service, real_server = %address, "drain is over");
        }
        if self.may_write()
            && let Err(error) = self.reconcile()
        {
            error!(error = chain(&error), "weights could not be written");
        }
    }

    /// Answers [`protocol::Request::Drain`].
    pub(super) fn drain(&mut self, selector: &protocol::Selector, span: Option<Duration>) -> Response {
        let selector = match self.selector(selector) {
            Ok(selector) => selector,
            Err(text) => return Response::Error(text),
        };
        let members = self.desired.drain(&selector, span, Instant::now());
        if members.is_empty() {
            return Response::Error(format!("no virtual server has {}", shown(&selector)));
        }
        self.changed(members, "drained")
    }

    /// Answers [`protocol::Request::Undrain`].
    pub(super) fn undrain(&mut self, selector: &protocol::Selector) -> Response {
        let selector = match self.selector(selector) {
            Ok(selector) => selector,
            Err(text) => return Response::Error(text),
        };
        let members = self.desired.undrain(&selector, Instant::now());
        if members.is_empty() {
            return Response::Error(format!("{} is not drained", shown(&selector)));
        }
        self.changed(members, "given back")
    }

    fn selector(&self, asked: &protocol::Selector) -> Result<Selector, String> {
        let protocol::Selector { ip, port, virtual_server } = asked;
        let service = virtual_server.as_deref().map(|text| self.service(text)).transpose()?;
        Ok(Selector { ip: *ip, port: *port, service })
    }

    /// The virtual server with this name, or at this address if there is one only.
    fn service(&self, text: &str) -> Result<Service, String> {
        let servers = self.desired.virtual_servers();
        let is_meant = |service: &Service| {
            text.parse::<SocketAddr>().is_ok_and(|address| address == service.address) || text == service.to_string()
        };
        let meant = servers.iter().filter(|server| server.name.as_deref() == Some(text) || is_meant(&server.service));
        match meant.map(|server| server.service).collect::<Vec<_>>().as_slice() {
            [service] => Ok(*service),
            [] => Err(format!("no virtual server is called {text:?} or has that address")),
            [first, second, ..] => Err(format!("{text} may be \"{first}\" or \"{second}\"; write one of those")),
        }
    }

    fn changed(&mut self, members: Vec<Member>, what: &'static str) -> Response {
        if let Err(error) = self.reconcile() {
            return Response::Error(chain(&error));
        }
        let statistics = match self.datapath.statistics() {
            Ok(statistics) => statistics,
            Err(error) => return Response::Error(chain(&error)),
        };
        let connections = |(service, address): &Member| {
            let reals = statistics.iter().filter(|s| s.service == *service).flat_map(|s| &s.real_servers);
            let of = reals.filter(|real| real.address == *address && !real.is_sorry);
            of.map(|real| u64::from(real.connections.active) + u64::from(real.connections.inactive)).sum()
        };
        let changed = members.iter().map(|member| {
            let (service, address) = member;
            info!(virtual_server = %service, real_server = %address, "real server {what}");
            Changed { virtual_server: service.to_string(), real_server: *address, connections: connections(member) }
        });
        Response::Changed(changed.collect())
    }

    /// Reads the configuration's file again and serves what it says; returns how many virtual servers changed.
    ///
    /// # Errors
    ///
    /// As [`ReloadError`] tells; nothing has changed then.
    pub(super) async fn reload(&mut self) -> Result<usize, ReloadError> {
        if self.successor.is_some() {
            return Err(ReloadError::Restarting);
        }
        let config = config::load(&self.file)?;
        let now = Instant::now();
        let mut desired = self.desired.clone();
        desired.replace(config.virtual_servers.clone(), now);
        self.refuse_what_is_fixed(&config, &desired)?;
        let handle = link::connect().map_err(StartError::Netlink)?;
        let addresses = link::addresses(&handle).await.map_err(StartError::from)?;
        let links = link::links(&handle).await.map_err(StartError::from)?;
        let facts = Facts::gather(&config, links, addresses);
        refuse(facts.problems(&config))?;

        self.resolver.set_targets(targets(&config));
        let prepared = self.prepare(&config, &desired, now).await;
        let changes = match prepared {
            Ok(changes) => changes,
            Err(error) => {
                self.resolver.set_targets(targets(&self.config));
                return Err(error);
            }
        };
        self.firewall.look(&config);
        self.config = config;
        self.desired = desired;
        Ok(changes)
    }

    /// Resolves the next hops, and installs `desired`; where that fails, what was installed before is put back.
    async fn prepare(&mut self, config: &Config, desired: &Desired, now: Instant) -> Result<usize, ReloadError> {
        let resolution = first_resolution(&self.resolver).await?;
        refuse(ways::problems(config, &resolution))?;
        for warning in ways::warnings(config, &resolution) {
            warn!("{warning}");
        }
        set_ways(&mut self.datapath, &resolution, &config.xdp).map_err(ReloadError::Ways)?;
        let changes = exchange(&mut self.datapath, &self.desired.table(now), &desired.table(now))?;
        self.resolution = crate::nexthop::Resolution { routes: self.resolution.routes, ..resolution };
        Ok(changes)
    }

    /// Names every key whose value was given to the program or the host at the start, and is another one now.
    fn refuse_what_is_fixed(&self, config: &Config, desired: &Desired) -> Result<(), ReloadError> {
        let mut fixed = self.config.fixed_differences(config);
        let table = desired.largest_table();
        let needed = Capacity::of(&table);
        if needed.nat && !self.made.capacity.nat {
            fixed.push("whether there are nat real servers");
        }
        if needed.wide_tuples && !self.made.capacity.wide_tuples {
            fixed.push("whether there are virtual servers with an IPv6 address or all ports");
        }
        if !self.made.capacity.has_room_for(&table) {
            fixed.push("the size of the tables, which so many real servers and such schedulers exceed,");
        }
        if fixed.is_empty() { Ok(()) } else { Err(ReloadError::Restart(fixed)) }
    }
}

fn shown(selector: &Selector) -> String {
    let Selector { ip, port, service } = selector;
    let real_server = port.map_or_else(|| ip.to_string(), |port| SocketAddr::new(*ip, port).to_string());
    match service {
        Some(service) => format!("real server {real_server} of {service}"),
        None => format!("real server {real_server}"),
    }
}
