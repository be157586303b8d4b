//! Neighbours: reading them, and asking the kernel to keep one resolved (`NTF_EXT_MANAGED`, Linux 5.16).

use std::collections::HashMap;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use lb_common::net::MacAddress;
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
};

use crate::host::journal::HostChange;
use crate::host::link::mac;

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its Ethernet address, where it is known and in use.
    pub mac: Option<MacAddress>,
    /// Whether somebody set it by hand, for good.
    pub is_permanent: bool,
    /// Whether the kernel keeps it resolved.
    pub is_managed: bool,
}

/// Every neighbour, by interface index and address.
///
/// # Errors
///
/// When the kernel refuses the dump.
pub async fn all(handle: &Handle) -> Result<HashMap<(u32, IpAddr), Neighbour>, rtnetlink::Error> {
    let messages: Vec<NeighbourMessage> = handle.neighbours().get().execute().try_collect().await?;
    Ok(messages.iter().filter_map(read).collect())
}

/// Interface, address and state of a neighbour message; `None` for those of bridges and the like.
pub fn read(message: &NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    let mut address = None;
    let mut neighbour =
        Neighbour { mac: None, is_permanent: message.header.state == NeighbourState::Permanent, is_managed: false };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) if is_usable(message.header.state) => {
                neighbour.mac = Some(mac(bytes)).filter(|mac| *mac != MacAddress::ZERO);
            }
            NeighbourAttribute::ExtFlags(flags) => neighbour.is_managed = flags.contains(NeighbourExtFlags::Managed),
            _ => {}
        }
    }
    Some(((message.header.ifindex, address?), neighbour))
}

/// Asks the kernel to resolve `address` on interface `ifindex` now and to keep it resolved.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn manage(handle: &Handle, ifindex: u32, address: IpAddr) -> Result<(), rtnetlink::Error> {
    let mut request = handle.neighbours().add(ifindex, address).state(NeighbourState::None).replace();
    request.message_mut().attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
    request.execute().await
}

/// Leaves the neighbours among `changes` to the kernel again, with what it knows of them.
///
/// Entries that are not managed, or that an operator has made permanent since, are not touched.
///
/// # Errors
///
/// When the kernel refuses.
pub async fn release(handle: &Handle, changes: &[HostChange]) -> Result<(), rtnetlink::Error> {
    let present = all(handle).await?;
    for change in changes {
        let HostChange::NeighbourManaged { ifindex, address } = change else { continue };
        match present.get(&(*ifindex, *address)) {
            Some(neighbour) if neighbour.is_managed && !neighbour.is_permanent => match neighbour.mac {
                Some(mac) => unmanage(handle, *ifindex, *address, mac).await?,
                None => delete(handle, *ifindex, *address).await?,
            },
            _ => {}
        }
    }
    Ok(())
}

/// Writes the entry anew without the flag, so that packets of others who use it are not held up.
async fn unmanage(handle: &Handle, ifindex: u32, address: IpAddr, mac: MacAddress) -> Result<(), rtnetlink::Error> {
    let request = handle.neighbours().add(ifindex, address).state(NeighbourState::Stale).replace();
    request.link_layer_address(&mac.octets).execute().await
}

async fn delete(handle: &Handle, ifindex: u32, address: IpAddr) -> Result<(), rtnetlink::Error> {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = ifindex;
    let (family, destination) = match address {
        IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
    };
    message.header.family = family;
    message.attributes.push(NeighbourAttribute::Destination(destination));
    match handle.neighbours().del(message).execute().await {
        Err(rtnetlink::Error::NetlinkError(error)) if is_gone(error.raw_code()) => Ok(()),
        other => other,
    }
}

/// No such neighbour, or no such interface any more.
fn is_gone(code: i32) -> bool {
    [libc::ENOENT, libc::ENODEV, libc::ENXIO, libc::EINVAL].contains(&-code)
}

/// States in which the kernel itself sends to the address (`NUD_VALID`).
fn is_usable(state: NeighbourState) -> bool {
    matches!(
        state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Noarp
            | NeighbourState::Permanent
    )
}
