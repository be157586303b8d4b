//! One round of resolving: for every target the route, the interface, and the neighbour.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::TryStreamExt;
use lb_common::net::MacAddress;
use lb_common::real::{NextHop, NextHopState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::sync::Notify;
use tracing::{debug, warn};

use super::neighbour::{self, Neighbour};
use crate::datapath::xdp::tables::Way;
use crate::host::journal::{HostChange, Journal};
use crate::host::link::{self, Link};

/// What is known of the way to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A route and the next hop's Ethernet address.
    Way(Route, NextHop),
    /// A route, but the next hop does not answer.
    NoNeighbour(Route),
    /// The address is this host's own.
    Local,
    /// No route, or one that refuses packets.
    NoRoute,
}

/// An interface, without what may change of it and does not matter to a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its Ethernet address.
    pub mac: MacAddress,
}

/// A route as the packet path needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Interface that packets leave by.
    pub interface: Interface,
    /// The router on the way; `None` where the target itself is on the link.
    pub gateway: Option<IpAddr>,
    /// Our address on that way.
    pub source: Option<IpAddr>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
}

impl Route {
    fn way(&self, next_hop: NextHop, interfaces: &[String]) -> Way {
        Way {
            next_hop,
            source: self.source,
            tunnel_source: None,
            is_routed: self.gateway.is_some(),
            is_local: false,
            is_listed: interfaces.contains(&self.interface.name),
        }
    }

    /// Interface and address of the next hop on the way to `target`.
    pub fn hop(&self, target: IpAddr) -> (u32, IpAddr) {
        (self.interface.index, self.gateway.unwrap_or(target))
    }
}

impl Found {
    /// What the packet path gets of it, where the program is attached to `interfaces`.
    pub fn way(&self, interfaces: &[String]) -> Way {
        match self {
            Self::Way(route, next_hop) => route.way(*next_hop, interfaces),
            Self::NoNeighbour(route) => route.way(NextHop::UNRESOLVED, interfaces),
            Self::Local => Way::LOCAL,
            Self::NoRoute => Way::UNKNOWN,
        }
    }

    /// The route, where there is one.
    pub fn route(&self) -> Option<&Route> {
        match self {
            Self::Way(route, _) | Self::NoNeighbour(route) => Some(route),
            Self::Local | Self::NoRoute => None,
        }
    }
}

/// The result of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// What was found for each target.
    pub found: BTreeMap<IpAddr, Found>,
    /// The interfaces as they were.
    pub links: Vec<Link>,
    /// This host's own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Another number than before when the way back to some client may have changed.
    pub routes: u32,
}

/// Resolves a set of addresses, as often as asked.
pub struct Resolver {
    handle: Handle,
    journal: Arc<Mutex<Journal>>,
    targets: Mutex<Vec<IpAddr>>,
    /// Woken when the targets have changed.
    asked: Notify,
    /// Whether to look only, and change nothing on the host.
    hands_off: AtomicBool,
    /// Next hops of which it has been said that the kernel refuses to manage them.
    refused: Mutex<HashSet<(u32, IpAddr)>>,
}

impl Resolver {
    /// For `targets`; what is changed on the host is written to `journal` first.
    pub fn new(handle: Handle, journal: Arc<Mutex<Journal>>, targets: Vec<IpAddr>) -> Self {
        let (hands_off, refused) = (AtomicBool::new(false), Mutex::default());
        let resolver = Self { handle, journal, targets: Mutex::default(), asked: Notify::new(), hands_off, refused };
        resolver.set_targets(targets);
        resolver
    }

    /// Whether to look only: while the next hops are another daemon's to keep resolved.
    pub fn set_hands_off(&self, hands_off: bool) {
        self.hands_off.store(hands_off, Relaxed);
    }

    /// Resolves these from now on.
    pub fn set_targets(&self, mut targets: Vec<IpAddr>) {
        targets.sort_unstable();
        targets.dedup();
        *self.targets.lock().unwrap_or_else(PoisonError::into_inner) = targets;
        self.asked.notify_one();
    }

    /// Returns when the targets have been set anew.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// What is resolved.
    pub fn targets(&self) -> Vec<IpAddr> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One round; also asks the kernel to keep the next hops resolved.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a dump of interfaces, addresses or neighbours.
    pub async fn resolve(&self) -> Result<Resolution, rtnetlink::Error> {
        let links = link::links(&self.handle).await?;
        let addresses = link::addresses(&self.handle).await?.into_iter().collect();
        let neighbours = neighbour::all(&self.handle).await?;
        let mut found = BTreeMap::new();
        for target in self.targets() {
            found.insert(target, self.resolve_one(target, &links, &neighbours).await);
        }
        Ok(Resolution { found, links, addresses, routes: 0 })
    }

    /// Next hops that no route leads by any more are left to the kernel again.
    pub async fn release_unused(&self, found: &BTreeMap<IpAddr, Found>) {
        let hop = |(target, found): (&IpAddr, &Found)| found.route().map(|route| route.hop(*target));
        let used: Vec<(u32, IpAddr)> = found.iter().filter_map(hop).collect();
        let is_unused = |change: &&HostChange| match change {
            HostChange::NeighbourManaged { ifindex, address } => !used.contains(&(*ifindex, *address)),
            HostChange::OffloadDisabled { .. } => false,
        };
        let unused: Vec<HostChange> = self.journal().changes().iter().filter(is_unused).cloned().collect();
        if unused.is_empty() {
            return;
        }
        if let Err(error) = neighbour::release(&self.handle, &unused).await {
            warn!(%error, "unused neighbours stay managed");
        } else if let Err(error) = self.journal().forget(&unused) {
            warn!(%error, "journal not updated");
        }
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn resolve_one(
        &self,
        target: IpAddr,
        links: &[Link],
        neighbours: &HashMap<(u32, IpAddr), Neighbour>,
    ) -> Found {
        let message = match self.route_to(target).await {
            Ok(Some(message)) => message,
            Ok(None) => return Found::NoRoute,
            Err(error) => {
                debug!(%target, %error, "no route");
                return Found::NoRoute;
            }
        };
        match message.header.kind {
            RouteType::Unicast => {}
            RouteType::Local => return Found::Local,
            _ => return Found::NoRoute,
        }
        let Some(route) = read_route(&message, links) else { return Found::NoRoute };
        let hop = route.hop(target);
        let known = neighbours.get(&hop);
        let is_kept = known.is_some_and(|neighbour| neighbour.is_managed || neighbour.is_permanent);
        if !is_kept && !self.hands_off.load(Relaxed) {
            self.manage(hop).await;
        }
        match known.and_then(|neighbour| neighbour.mac) {
            Some(mac) => {
                let next_hop = NextHop {
                    state: NextHopState::Resolved,
                    ifindex: route.interface.index,
                    mtu: route.mtu,
                    destination: mac,
                    source: route.interface.mac,
                };
                Found::Way(route, next_hop)
            }
            None => Found::NoNeighbour(route),
        }
    }

    async fn route_to(&self, target: IpAddr) -> Result<Option<RouteMessage>, rtnetlink::Error> {
        let length = if target.is_ipv4() { 32 } else { 128 };
        let builder = RouteMessageBuilder::<IpAddr>::new().destination_prefix(target, length);
        let query = builder.map_err(|_| rtnetlink::Error::RequestFailed)?.build();
        self.handle.route().get(query).execute().try_next().await
    }

    async fn manage(&self, (ifindex, address): (u32, IpAddr)) {
        let change = HostChange::NeighbourManaged { ifindex, address };
        let recorded = self.journal().record(change.clone());
        let done = match recorded {
            Ok(()) => neighbour::manage(&self.handle, ifindex, address).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = done {
            if let Err(error) = self.journal().forget(&[change]) {
                warn!(%error, "journal not updated");
            }
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            if refused.insert((ifindex, address)) && refused.len() == 1 {
                warn!(
                    %address,
                    error,
                    "the kernel does not keep this neighbour resolved, and perhaps others; \
                     where it has no room for more, raise net.ipv4.neigh.default.gc_thresh3 (and ipv6's)"
                );
            }
        }
    }
}

fn read_route(message: &RouteMessage, links: &[Link]) -> Option<Route> {
    let mut interface = None;
    let (mut gateway, mut source, mut route_mtu) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = links.iter().find(|link| link.index == *index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                route_mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let link: &Link = interface?;
    let mtu = route_mtu.unwrap_or(link.mtu).min(link.mtu);
    let interface = Interface { name: link.name.clone(), index: link.index, mac: link.mac };
    Some(Route { interface, gateway, source, mtu })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
