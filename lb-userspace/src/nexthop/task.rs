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
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use super::neighbour;
use super::resolve::{Resolution, Resolver};

/// Changes come in bursts; a round waits this long for the rest of one.
const BURST: Duration = Duration::from_millis(20);
/// A round is run at least this often, in case a notification was lost.
const PERIOD: Duration = Duration::from_secs(10);

/// Sends a [`Resolution`] at every change, until the receiver is gone.
///
/// # Errors
///
/// When the kernel gives no netlink socket.
pub async fn watch(resolver: Resolver, resolutions: mpsc::Sender<Resolution>) -> io::Result<()> {
    let (connection, _handle, mut messages) = new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ])?;
    tokio::spawn(connection);
    let mut last = Resolution::default();
    loop {
        match resolver.resolve().await {
            Ok(resolution) if resolution != last => {
                last = resolution.clone();
                if resolutions.send(resolution).await.is_err() {
                    return Ok(());
                }
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "cannot read interfaces and neighbours"),
        }
        let hops = next_hops(&last);
        let deadline = Instant::now() + PERIOD;
        loop {
            tokio::select! {
                () = sleep_until(deadline) => break,
                () = resolutions.closed() => return Ok(()),
                message = messages.next() => match message {
                    Some((message, _)) if matters(&message.payload, &hops) => {
                        // The rest of the burst needs no round of its own.
                        while timeout(BURST, messages.next()).await.is_ok_and(|next| next.is_some()) {}
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
    let hop = |(target, found): (&IpAddr, &super::Found)| found.route().map(|r| r.gateway.unwrap_or(*target));
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
