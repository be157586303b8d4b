//! Resolves again whenever the kernel tells of a change that may matter, and now and then all the same.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt;
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
pub async fn watch(resolver: Resolver, resolutions: mpsc::Sender<Resolution>) {
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
    loop {
        match resolver.resolve().await {
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
                message = messages.next() => match message {
                    Some((message, _)) if matters(&message.payload, &hops) => {
                        // The rest of the burst needs no round of its own.
                        let end = Instant::now() + BURST;
                        while Instant::now() < end && timeout(BURST_PAUSE, messages.next()).await.is_ok_and(|m| m.is_some()) {}
                        break;
                    }
                    Some(_) => {}
                    None => return Err(io::ErrorKind::BrokenPipe.into()),
                },
            }
        }
    }
}

/// The addresses whose neighbour entries are of interest.
fn next_hops(resolution: &Resolution) -> HashSet<IpAddr> {
    let hop = |(target, found): (&IpAddr, &super::Found)| found.route().map(|route| route.hop(*target).1);
    resolution.found.iter().filter_map(hop).collect()
}

fn matters(payload: &NetlinkPayload<RouteNetlinkMessage>, hops: &HashSet<IpAddr>) -> bool {
    match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message),
        ) => neighbour::read(message).is_some_and(|((_, address), _)| hops.contains(&address)),
        // Links, routes and addresses change rarely. An overrun means that something was missed.
        _ => true,
    }
}
