//! Who has which place in maps that an earlier daemon has left, perhaps in the middle of a change. Pure: what lies in the maps
//! is given.
//!
//! Nothing is taken for what it is by its index alone: a virtual server is one by its key, a real server by virtual server,
//! role, address and port. What belongs to no virtual server any more, or not yet, is a stray.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use lb_common::real::RealServerEntry;
use lb_common::service::{ForwardingMethod, VirtualServerEntry};

use super::chains::Source;
use super::entries;
use super::places::Tenant;
use super::slots::Slots;
use crate::model::Service;

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// Who has what.
    pub slots: Slots,
    /// Real servers of no virtual server.
    pub strays: Vec<u16>,
    /// Every source of replies, with its real servers in order.
    pub chains: BTreeMap<Source, BTreeSet<u16>>,
}

/// Sorts out what lies in the maps: virtual servers as packets see them, real servers by index. Those of removed real servers
/// that keep their connections leave as of `now`.
///
/// # Errors
///
/// In words, what cannot have been written by this version, whatever it was in the middle of.
pub fn sort_out(
    virtual_servers: &BTreeMap<Service, VirtualServerEntry>,
    real_servers: &[(u16, RealServerEntry)],
    mut slots: Slots,
    now: Instant,
) -> Result<Found, String> {
    for (service, entry) in virtual_servers {
        if !slots.found(*service, *entry) {
            return Err(format!(
                "{service} at index {}, with a ring at {}, beside another",
                entry.index, entry.ring.start
            ));
        }
    }
    let by_index: BTreeMap<u32, Service> =
        virtual_servers.iter().map(|(service, entry)| (entry.index, *service)).collect();
    let (mut strays, mut chains) = (Vec::new(), BTreeMap::<Source, BTreeSet<u16>>::new());
    for (index, entry) in real_servers.iter().filter(|(_, entry)| entry.generation != 0) {
        let Some(service) = by_index.get(&entry.virtual_server) else {
            strays.push(*index);
            continue;
        };
        let (role, address) = (entries::role(entry), entries::address(entry));
        let tenant = Tenant { service: *service, role, address };
        if !slots.places.found(tenant, *index, entry.generation) {
            return Err(format!("{address} of {service} at index {index}, beside another"));
        }
        if entries::is_removed(entry) {
            slots.places.leave(*index, now);
        }
        if entry.forwarding == ForwardingMethod::Nat {
            let source = Source { address: tenant.address, protocol: service.protocol };
            slots.chains.insert(source, *index);
            chains.entry(source).or_default().insert(*index);
        }
    }
    Ok(Found { slots, strays, chains })
}

#[cfg(test)]
mod tests {
    use lb_common::net::{Port, Protocol};
    use lb_common::real::real_flag;
    use lb_common::service::{NONE, Run, Scheduler};

    use super::*;
    use crate::datapath::Policy;
    use crate::datapath::xdp::entries::{Behind, free_place};
    use crate::datapath::xdp::places::Role;
    use crate::model;

    fn service(port: u16) -> Service {
        Service { address: ([10, 0, 0, 1], port).into(), protocol: Protocol::Tcp }
    }

    fn published(port: u16, index: u32, ring: u32, sorry_server: Option<u16>) -> (Service, VirtualServerEntry) {
        let ring = Run { start: ring, length: 2 };
        let behind = Behind { ring, chunks: Run::EMPTY, lanes: 2, sorry_server, prefixes: Run::EMPTY, digest: 0 };
        let policy = Policy::new(&model::Policy::new(Scheduler::Rr), 250);
        (service(port), entries::virtual_server(service(port), index, &policy, &behind))
    }

    fn real(index: u16, virtual_server: u32, n: u8) -> (u16, RealServerEntry) {
        let address = std::net::IpAddr::from([10, 0, 1, n]).into();
        (index, RealServerEntry { generation: 7, virtual_server, address, port: Port::new(80), ..free_place(NONE) })
    }

    fn found(
        virtual_servers: &[(Service, VirtualServerEntry)],
        reals: &[(u16, RealServerEntry)],
    ) -> Result<Found, String> {
        sort_out(&virtual_servers.iter().copied().collect(), reals, Slots::new(64, 8), Instant::now())
    }

    fn place(found: &Found, port: u16, role: Role, n: u8) -> Option<u16> {
        found.slots.places.find(&Tenant { service: service(port), role, address: ([10, 0, 1, n], 80).into() })
    }

    fn sorry(index: u16, virtual_server: u32, n: u8) -> (u16, RealServerEntry) {
        (index, RealServerEntry { flags: real_flag::SORRY, ..real(index, virtual_server, n).1 })
    }

    #[test]
    fn everybody_is_found_by_name_and_those_of_nobody_are_strays() {
        let servers = [published(80, 3, 0, Some(2)), published(81, 0, 32, None)];
        let reals = [real(0, 3, 1), real(1, 3, 2), sorry(2, 3, 9), real(8, 0, 1), real(16, 5, 1)];
        let found = found(&servers, &reals).unwrap();
        assert_eq!([1, 2].map(|n| place(&found, 80, Role::Real, n)), [Some(0), Some(1)]);
        assert_eq!(place(&found, 80, Role::Sorry, 9), Some(2));
        assert_eq!(place(&found, 81, Role::Real, 1), Some(8));
        assert_eq!(found.strays, [16]);
        assert_eq!((found.slots.index(&service(80)), found.slots.index(&service(81))), (Some(3), Some(0)));
        let source = Source { address: ([10, 0, 1, 1], 80).into(), protocol: Protocol::Tcp };
        assert_eq!(found.chains[&source], [0, 8].into());
    }

    #[test]
    fn a_removed_one_leaves() {
        let (index, entry) = real(0, 0, 1);
        let removed = (index, RealServerEntry { flags: real_flag::REMOVED, ..entry });
        let found = found(&[published(80, 0, 0, None)], &[removed, real(1, 0, 2)]).unwrap();
        assert_eq!((place(&found, 80, Role::Real, 1), place(&found, 80, Role::Real, 2)), (Some(0), Some(1)));
        assert!(found.slots.places.leaving().map(|(index, _)| index).eq([0]));
    }

    #[test]
    fn what_nobody_can_have_written_is_named() {
        let said = |servers: &[_], reals: &[_]| found(servers, reals).unwrap_err();
        let two = [published(80, 0, 0, None), published(81, 1, 0, None)];
        assert_eq!(said(&two, &[]), "tcp 10.0.0.1:81 at index 1, with a ring at 0, beside another");
        let two = [published(80, 0, 0, None), published(81, 1, 32, None)];
        assert_eq!(
            said(&two, &[real(0, 0, 1), real(1, 1, 1)]),
            "10.0.1.1:80 of tcp 10.0.0.1:81 at index 1, beside another"
        );
        assert_eq!(
            said(&two, &[real(0, 0, 1), real(1, 0, 1)]),
            "10.0.1.1:80 of tcp 10.0.0.1:80 at index 1, beside another"
        );
    }

    #[test]
    fn a_sorry_server_is_one_whether_its_virtual_server_names_it_already_still_or_no_more() {
        for named in [None, Some(0), Some(1)] {
            let found = found(&[published(80, 0, 0, named)], &[sorry(0, 0, 1), real(1, 0, 1)]).unwrap();
            assert_eq!((place(&found, 80, Role::Sorry, 1), place(&found, 80, Role::Real, 1)), (Some(0), Some(1)));
            assert!(found.strays.is_empty());
        }
    }
}
