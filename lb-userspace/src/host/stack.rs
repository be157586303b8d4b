//! Devices that are made of others, and what that means for XDP on them. Pure.

use super::link::{Kind, Link};

/// Everything that frames come through before they are `link`'s: parents of VLANs and macvlans, slaves of bonds, and
/// what those are made of.
pub fn below<'a>(links: &'a [Link], link: &Link) -> Vec<&'a Link> {
    let mut found: Vec<&Link> = Vec::new();
    let mut unseen = vec![link.index];
    while let Some(index) = unseen.pop() {
        let is_parent = |other: &&Link| {
            links.iter().any(|link| link.index == index && link.parent == Some(other.index))
                || other.controller == Some(index)
        };
        for other in links.iter().filter(is_parent) {
            if other.index != link.index && !found.iter().any(|known| known.index == other.index) {
                found.push(other);
                unseen.push(other.index);
            }
        }
    }
    found
}

/// The VLAN devices that stand on `link` itself.
pub fn vlans_on<'a>(links: &'a [Link], link: &Link) -> Vec<&'a Link> {
    links.iter().filter(|other| other.kind == Kind::Vlan && other.parent == Some(link.index)).collect()
}

/// The slaves of `link`, where that is a bond: in native mode XDP runs on them, and frames come in by them.
pub fn slaves<'a>(links: &'a [Link], link: &Link) -> Vec<&'a Link> {
    let is_bond = link.kind == Kind::Bond;
    links.iter().filter(|other| is_bond && other.controller == Some(link.index)).collect()
}

/// The devices that could take VLAN tags off before XDP on `link` sees the frame, where that would make frames of the VLAN
/// devices on it look like its own.
///
/// None where `link` is a VLAN device itself: hardware takes off one tag, the outer one, which is `link`'s own.
pub fn untagging<'a>(links: &'a [Link], link: &'a Link) -> Vec<&'a Link> {
    if link.kind == Kind::Vlan || vlans_on(links, link).is_empty() {
        return Vec::new();
    }
    std::iter::once(link).chain(below(links, link)).collect()
}

/// A veth device among those that `link` is made of, or itself.
pub fn veth<'a>(links: &'a [Link], link: &'a Link) -> Option<&'a Link> {
    std::iter::once(link).chain(below(links, link)).find(|link| link.kind == Kind::Veth)
}

/// Why the program cannot serve on `link` in any mode, and the way out.
pub fn unfit(links: &[Link], link: &Link) -> Option<String> {
    let name = &link.name;
    if link.kind == Kind::Bridge {
        return Some(format!("interface {name} is a bridge, {BRIDGE}"));
    }
    let controller = links.iter().find(|other| link.controller == Some(other.index))?;
    let by = &controller.name;
    match controller.kind {
        Kind::Bond | Kind::Team => Some(format!(
            "interface {name} is a part of {by}, which has the addresses and chooses the way out; list {by} in \
             xdp.interfaces instead, which covers all of its parts"
        )),
        Kind::Bridge => Some(format!("interface {name} is a port of bridge {by}, {BRIDGE}")),
        // A VRF, for example, which is about routes and not about frames.
        Kind::Veth | Kind::Vlan | Kind::MacVlan | Kind::Other => None,
    }
}

/// Of a bridge the program would see what its ports have merged, and of a port it could not send what is for the bridge.
const BRIDGE: &str = "where the program sees only a part of the frames and cannot send to the other ports; give the \
                      director's addresses to an end of a veth pair whose other end is a port of the bridge, or to a device \
                      outside of it, and list that";

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Kind) -> Link {
        Link { name: name.to_owned(), index, kind, ..Link::named("") }
    }

    fn on(parent: u32, link: Link) -> Link {
        Link { parent: Some(parent), ..link }
    }

    fn part_of(controller: u32, link: Link) -> Link {
        Link { controller: Some(controller), ..link }
    }

    /// VLAN 5 in service VLAN 100 on a bond of two; a VLAN of its own on another card; a bridge with one port.
    fn host() -> Vec<Link> {
        vec![
            part_of(4, link(2, "eth0", Kind::Other)),
            part_of(4, link(3, "eth1", Kind::Veth)),
            link(4, "bond0", Kind::Bond),
            on(4, link(5, "bond0.100", Kind::Vlan)),
            on(5, link(6, "bond0.100.5", Kind::Vlan)),
            link(7, "eth2", Kind::Other),
            on(7, link(8, "eth2.7", Kind::Vlan)),
            link(9, "br0", Kind::Bridge),
            part_of(9, link(10, "eth3", Kind::Other)),
            part_of(12, link(11, "eth4", Kind::Other)),
            link(12, "vrf0", Kind::Other),
        ]
    }

    fn names(links: &[&Link]) -> Vec<String> {
        let mut names: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
        names.sort();
        names
    }

    fn named<'a>(host: &'a [Link], name: &str) -> &'a Link {
        host.iter().find(|link| link.name == name).unwrap()
    }

    #[test]
    fn a_device_stands_on_all_that_its_frames_come_through() {
        let host = host();
        let below = |name: &str| names(&below(&host, named(&host, name)));
        assert_eq!(below("bond0.100.5"), ["bond0", "bond0.100", "eth0", "eth1"]);
        assert_eq!(below("eth2.7"), ["eth2"]);
        assert_eq!(below("eth2"), [""; 0]);
    }

    #[test]
    fn tags_matter_where_vlan_devices_stand_on_one_that_is_none() {
        let host = host();
        let untagging = |name: &str| names(&untagging(&host, named(&host, name)));
        assert_eq!(untagging("bond0"), ["bond0", "eth0", "eth1"]);
        assert_eq!(untagging("eth2"), ["eth2"]);
        assert_eq!(untagging("bond0.100"), [""; 0]);
        assert_eq!(untagging("eth2.7"), [""; 0]);
        assert_eq!(untagging("eth3"), [""; 0]);
    }

    #[test]
    fn frames_of_a_bond_come_in_by_its_slaves() {
        let host = host();
        assert_eq!(names(&slaves(&host, named(&host, "bond0"))), ["eth0", "eth1"]);
        assert_eq!(names(&slaves(&host, named(&host, "br0"))), [""; 0]);
    }

    #[test]
    fn a_veth_device_is_found_below_a_bond() {
        let host = host();
        assert_eq!(veth(&host, named(&host, "bond0")).unwrap().name, "eth1");
        assert!(veth(&host, named(&host, "eth2")).is_none());
    }

    #[test]
    fn bridges_and_parts_of_others_are_refused_with_the_way_out() {
        let host = host();
        let unfit = |name: &str| unfit(&host, named(&host, name)).unwrap_or_default();
        assert!(unfit("br0").starts_with("interface br0 is a bridge, where"), "{}", unfit("br0"));
        assert!(unfit("eth3").starts_with("interface eth3 is a port of bridge br0, where"), "{}", unfit("eth3"));
        assert!(unfit("eth0").contains("is a part of bond0") && unfit("eth0").contains("list bond0 in"));
        for fit in ["bond0", "bond0.100", "bond0.100.5", "eth2", "eth2.7", "eth4"] {
            assert_eq!(unfit(fit), "");
        }
    }
}
