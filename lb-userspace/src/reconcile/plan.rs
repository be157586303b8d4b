//! The changes that turn one service table into another. Pure: no kernel, no clock.

use crate::datapath::{Change, ServiceTable};

/// The changes that turn `actual` into `desired`: removals first, so that their places are free.
pub fn plan(desired: &ServiceTable, actual: &ServiceTable) -> Vec<Change> {
    let removed = actual.keys().filter(|service| !desired.contains_key(service)).copied().map(Change::Remove);
    let changed = desired
        .iter()
        .filter(|(service, servers)| actual.get(service) != Some(servers))
        .map(|(service, servers)| Change::Put(*service, servers.clone()));
    removed.chain(changed).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_common::net::Protocol;
    use lb_common::service::{ForwardingMethod, Scheduler};
    use proptest::prelude::*;

    use super::*;
    use crate::datapath::{Datapath, DatapathError, Policy, Servers, Settings};
    use crate::model::{self, Service, Thresholds, Weight};
    use crate::reconcile::reconcile;

    /// A data path that is only a table.
    #[derive(Default)]
    struct Fake(ServiceTable);

    impl Datapath for Fake {
        fn installed(&mut self) -> Result<ServiceTable, DatapathError> {
            Ok(self.0.clone())
        }

        fn apply(&mut self, change: &Change) -> Result<(), DatapathError> {
            match change {
                Change::Put(service, servers) => drop(self.0.insert(*service, servers.clone())),
                Change::Remove(service) => drop(self.0.remove(service)),
            }
            Ok(())
        }
    }

    fn service(last: u8) -> Service {
        Service { address: ([10, 0, 0, last], 80).into(), protocol: Protocol::Tcp }
    }

    fn servers(weights: &[u16]) -> Servers {
        let settings = |weight: u16| Settings {
            weight: Weight::new(weight),
            forwarding: ForwardingMethod::Nat,
            thresholds: Thresholds::default(),
        };
        let real_servers = (1_u8..).zip(weights).map(|(n, w)| (([10, 0, 1, n], 80).into(), settings(*w))).collect();
        let policy = Policy::new(&model::Policy::new(Scheduler::Rr), 250);
        Servers { policy, access: None, real_servers, sorry_server: None }
    }

    #[test]
    fn removals_come_before_additions() {
        let desired = BTreeMap::from([(service(1), servers(&[1]))]);
        let actual = BTreeMap::from([(service(2), servers(&[1]))]);
        assert_eq!(plan(&desired, &actual), [Change::Remove(service(2)), Change::Put(service(1), servers(&[1]))]);
    }

    #[test]
    fn a_changed_weight_puts_the_virtual_server_again() {
        let desired = BTreeMap::from([(service(1), servers(&[1, 0]))]);
        let actual = BTreeMap::from([(service(1), servers(&[1, 1]))]);
        assert_eq!(plan(&desired, &actual), [Change::Put(service(1), servers(&[1, 0]))]);
    }

    #[test]
    fn a_changed_policy_or_sorry_server_puts_the_virtual_server_again() {
        let actual = BTreeMap::from([(service(1), servers(&[1]))]);
        let mut other = servers(&[1]);
        other.policy.scheduler = Scheduler::Wlc;
        let desired = BTreeMap::from([(service(1), other.clone())]);
        assert_eq!(plan(&desired, &actual), [Change::Put(service(1), other)]);
        let mut other = servers(&[1]);
        other.sorry_server = Some((([10, 0, 1, 9], 80).into(), ForwardingMethod::Dr));
        let desired = BTreeMap::from([(service(1), other.clone())]);
        assert_eq!(plan(&desired, &actual), [Change::Put(service(1), other)]);
    }

    proptest! {
        #[test]
        fn after_reconcile_nothing_is_left_to_do(
            desired in prop::collection::btree_map(0_u8..8, prop::collection::vec(0_u16..3, 1..4), 0..6),
            actual in prop::collection::btree_map(0_u8..8, prop::collection::vec(0_u16..3, 1..4), 0..6),
        ) {
            let table = |spec: BTreeMap<u8, Vec<u16>>| -> ServiceTable {
                spec.into_iter().map(|(last, weights)| (service(last), servers(&weights))).collect()
            };
            let (desired, mut fake) = (table(desired), Fake(table(actual)));
            reconcile(&mut fake, &desired).unwrap();
            prop_assert_eq!(plan(&desired, &fake.installed().unwrap()), []);
        }
    }
}
