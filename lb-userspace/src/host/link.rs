//! Interfaces and addresses, read by rtnetlink. Changes nothing.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use lb_common::net::MacAddress;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Whether it carries Ethernet frames.
    pub is_ethernet: bool,
    /// What kind of device it is.
    pub kind: Kind,
    /// Index of the device that it stands on (of a VLAN, of a macvlan), where that is in this network namespace.
    pub parent: Option<u32>,
    /// Index of the device that it is a part of: the bond of a slave, the bridge of a port.
    pub controller: Option<u32>,
    /// Whether it is set up.
    pub is_up: bool,
    /// Its Ethernet address; zero where it has none.
    pub mac: MacAddress,
    /// The largest IP packet it takes, in bytes.
    pub mtu: u32,
    /// The id of the XDP program attached to it.
    pub xdp_program: Option<u32>,
    /// Whether that program runs in the driver.
    pub xdp_is_native: bool,
}

/// Kinds of devices that XDP tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One end of a veth pair.
    Veth,
    /// A VLAN on another device.
    Vlan,
    /// A macvlan or macvtap on another device.
    MacVlan,
    /// A bond of other devices.
    Bond,
    /// A team of other devices.
    Team,
    /// A bridge between other devices.
    Bridge,
    /// Any other; most are hardware.
    Other,
}

impl From<&InfoKind> for Kind {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the kernel has fifty kinds, most of which do not carry Ethernet"
    )]
    fn from(kind: &InfoKind) -> Self {
        match kind {
            InfoKind::Veth => Self::Veth,
            InfoKind::Vlan => Self::Vlan,
            InfoKind::MacVlan | InfoKind::MacVtap => Self::MacVlan,
            InfoKind::Bond => Self::Bond,
            InfoKind::Team => Self::Team,
            InfoKind::Bridge => Self::Bridge,
            _ => Self::Other,
        }
    }
}

/// A route netlink connection whose driver runs as a task of the current runtime.
///
/// # Errors
///
/// When the kernel gives no netlink socket.
pub fn connect() -> std::io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Every interface of this network namespace.
///
/// # Errors
///
/// When the kernel refuses the dump.
pub async fn links(handle: &Handle) -> Result<Vec<Link>, rtnetlink::Error> {
    handle.link().get().execute().map_ok(|message| Link::from(&message)).try_collect().await
}

/// Every address of this network namespace.
///
/// # Errors
///
/// When the kernel refuses the dump.
pub async fn addresses(handle: &Handle) -> Result<Vec<IpAddr>, rtnetlink::Error> {
    let messages: Vec<_> = handle.address().get().execute().try_collect().await?;
    Ok(messages.iter().filter_map(|message| own_address(&message.attributes)).collect())
}

/// Our end: on a point-to-point link the other attribute is the peer's address.
fn own_address(attributes: &[AddressAttribute]) -> Option<IpAddr> {
    let local = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Self {
            name: String::new(),
            index: message.header.index,
            is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            kind: Kind::Other,
            parent: None,
            controller: None,
            is_up: message.header.flags.contains(LinkFlags::Up),
            mac: MacAddress::ZERO,
            mtu: 0,
            xdp_program: None,
            xdp_is_native: false,
        };
        let mut is_parent_elsewhere = false;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(bytes) => link.mac = mac(bytes),
                LinkAttribute::LinkInfo(info) => {
                    for item in info {
                        if let LinkInfo::Kind(kind) = item {
                            link.kind = kind.into();
                        }
                    }
                }
                LinkAttribute::Link(index) => link.parent = Some(*index),
                LinkAttribute::LinkNetNsId(_) => is_parent_elsewhere = true,
                LinkAttribute::Controller(index) => link.controller = Some(*index).filter(|index| *index != 0),
                LinkAttribute::Xdp(xdp) => {
                    link.xdp_program = link.xdp_program.or_else(|| program_id(xdp));
                    link.xdp_is_native = xdp.contains(&LinkXdp::Attached(XdpAttached::Driver));
                }
                _ => {}
            }
        }
        // Other kinds have a link that is no parent: a veth's is its peer.
        if is_parent_elsewhere || !matches!(link.kind, Kind::Vlan | Kind::MacVlan) {
            link.parent = None;
        }
        link
    }
}

/// Six bytes as an Ethernet address; zero for any other number of them.
pub fn mac(bytes: &[u8]) -> MacAddress {
    <[u8; 6]>::try_from(bytes).map_or(MacAddress::ZERO, |octets| MacAddress { octets })
}

fn program_id(xdp: &[LinkXdp]) -> Option<u32> {
    xdp.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
            Some(*id).filter(|id| *id != 0)
        }
        _ => None,
    })
}

#[cfg(test)]
impl Link {
    /// An Ethernet interface of no special kind, index 2, that is up.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            index: 2,
            is_ethernet: true,
            kind: Kind::Other,
            parent: None,
            controller: None,
            is_up: true,
            mac: MacAddress::ZERO,
            mtu: 1500,
            xdp_program: None,
            xdp_is_native: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_of_a_point_to_point_link_is_not_ours() {
        let (own, peer): (IpAddr, IpAddr) = ("10.9.5.1".parse().unwrap(), "10.9.5.2".parse().unwrap());
        assert_eq!(own_address(&[AddressAttribute::Address(peer), AddressAttribute::Local(own)]), Some(own));
        // IPv6 has no local attribute where there is no peer.
        assert_eq!(own_address(&[AddressAttribute::Address(own)]), Some(own));
    }
}
