//! Resolves again whenever the kernel tells of a change that may matter, and now and then all the same.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lb_common::net::MacAddress;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{error, warn};

use super::neighbour;
use super::resolve::{Resolution, Resolver};

/// Changes come in bursts; a round waits for the rest of one until nothing has come for this long ...
const BURST_PAUSE: Duration = Duration::from_millis(20);
/// ... but no longer than this in all.
const BURST: Duration = Duration::from_millis(200);
/// A round is run at least this often, in case a notification was lost.
const PERIOD: Duration = Duration::from_secs(10);

/// A broken netlink connection is made anew after this.
const RETRY: Duration = Duration::from_secs(1);

/// Sends a [`Resolution`] at every change, until the receiver is gone.
pub async fn watch(resolver: Arc<Resolver>, resolutions: mpsc::Sender<Resolution>) {
    let mut last = Resolution::default();
    let mut told = None;
    while let Err(error) = follow(&resolver, &resolutions, &mut last).await {
        // Said once for each kind, not once a second.
        if told.replace(error.kind()) != Some(error.kind()) {
            error!(%error, "the kernel's notifications cannot be read; next hops may be stale");
        }
        sleep(RETRY).await;
    }
}

/// One netlink connection's worth of watching; returns when the receiver is gone.
async fn follow(resolver: &Resolver, resolutions: &mpsc::Sender<Resolution>, last: &mut Resolution) -> io::Result<()> {
    let (connection, _handle, mut messages) = new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ])?;
    tokio::spawn(connection);
    let mut macs = HashMap::new();
    // What was missed before this connection was made may have been anything.
    let mut routes = last.routes.wrapping_add(1);
    loop {
        let resolved = resolver.resolve().await.map(|resolution| Resolution { routes, ..resolution });
        match resolved {
            Ok(resolution) if resolution != *last => {
                resolver.release_unused(&resolution.found).await;
                last.clone_from(&resolution);
                if resolutions.send(resolution).await.is_err() {
                    return Ok(());
                }
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "cannot read interfaces and neighbours"),
        }
        let hops = next_hops(last);
        let deadline = Instant::now() + PERIOD;
        loop {
            tokio::select! {
                () = sleep_until(deadline) => break,
                () = resolutions.closed() => return Ok(()),
                () = resolver.asked() => break,
                message = messages.next() => {
                    let Some((message, _)) = message else { return Err(io::ErrorKind::BrokenPipe.into()) };
                    let mut change = Change::of(&message.payload, &hops, &mut macs);
                    if change == Change::NONE {
                        continue;
                    }
                    // The rest of the burst needs no round of its own.
                    let end = Instant::now() + BURST;
                    while let Ok(Some((message, _))) = timeout(BURST_PAUSE, messages.next()).await {
                        change = change.and(Change::of(&message.payload, &hops, &mut macs));
                        if Instant::now() >= end {
                            break;
                        }
                    }
                    routes = routes.wrapping_add(u32::from(change.moves_clients));
                    break;
                }
            }
        }
    }
}

/// The addresses whose neighbour entries are of interest.
fn next_hops(resolution: &Resolution) -> HashSet<IpAddr> {
    let hop = |(target, found): (&IpAddr, &super::Found)| found.route().map(|route| route.hop(*target).1);
    resolution.found.iter().filter_map(hop).collect()
}

/// What a notification may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    /// The way to a real server.
    moves_targets: bool,
    /// The way back to some client.
    moves_clients: bool,
}

impl Change {
    const NONE: Self = Self { moves_targets: false, moves_clients: false };
    const ANYTHING: Self = Self { moves_targets: true, moves_clients: true };

    /// `macs` are the neighbours' Ethernet addresses as they were told last.
    fn of(
        payload: &NetlinkPayload<RouteNetlinkMessage>,
        hops: &HashSet<IpAddr>,
        macs: &mut HashMap<(u32, IpAddr), MacAddress>,
    ) -> Self {
        let (NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message))
        | NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(message))) = payload
        else {
            // Links, routes and addresses change rarely. An overrun means that something was missed.
            return Self::ANYTHING;
        };
        let Some((key, neighbour)) = neighbour::read(message) else { return Self::NONE };
        // Neighbours change their state every half minute, and their address hardly ever.
        let moved = neighbour.mac.is_some_and(|mac| macs.insert(key, mac).is_some_and(|known| known != mac));
        if macs.len() > NEIGHBOURS_MAX {
            macs.clear();
        }
        Self { moves_targets: hops.contains(&key.1), moves_clients: moved }
    }

    fn and(self, other: Self) -> Self {
        Self {
            moves_targets: self.moves_targets || other.moves_targets,
            moves_clients: self.moves_clients || other.moves_clients,
        }
    }
}

/// Most neighbours whose Ethernet address is remembered.
const NEIGHBOURS_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::DoneMessage;
    use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};

    use super::*;

    fn neighbour(last: u8, mac: u8, state: NeighbourState) -> NetlinkPayload<RouteNetlinkMessage> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 3;
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, last].into())),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, mac]),
        ];
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message))
    }

    #[test]
    fn a_neighbour_moves_clients_only_when_it_gets_another_address() {
        let (hops, mut macs) = (HashSet::from([IpAddr::from([10, 0, 0, 9])]), HashMap::new());
        let mut change = |last, mac, state| Change::of(&neighbour(last, mac, state), &hops, &mut macs);
        assert_eq!(change(1, 1, NeighbourState::Reachable), Change::NONE);
        assert_eq!(change(1, 1, NeighbourState::Stale), Change::NONE);
        assert_eq!(change(1, 2, NeighbourState::Reachable), Change { moves_targets: false, moves_clients: true });
        assert_eq!(change(9, 1, NeighbourState::Reachable), Change { moves_targets: true, moves_clients: false });
    }

    #[test]
    fn what_was_missed_may_have_been_anything() {
        let overrun = NetlinkPayload::Done(DoneMessage::default());
        assert_eq!(Change::of(&overrun, &HashSet::new(), &mut HashMap::new()), Change::ANYTHING);
    }
}
