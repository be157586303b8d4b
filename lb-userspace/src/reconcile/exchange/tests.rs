use std::collections::{BTreeMap, BTreeSet};

use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Scheduler};

use super::*;
use crate::datapath::{Policy, Servers, Settings};
use crate::model::{self, Thresholds, Weight};

/// A data path that is only a table, with room for so many real servers.
struct Fake {
    table: ServiceTable,
    room: usize,
    /// The first change of each that fails, by the kernel's will.
    failing: BTreeSet<Service>,
    /// The fewest virtual servers that were there at any time.
    fewest: usize,
}

impl Fake {
    fn new(table: &ServiceTable, room: usize) -> Self {
        Self { table: table.clone(), room, failing: BTreeSet::new(), fewest: table.len() }
    }
}

impl Datapath for Fake {
    fn installed(&mut self) -> Result<ServiceTable, DatapathError> {
        Ok(self.table.clone())
    }

    fn apply(&mut self, change: &Change) -> Result<(), DatapathError> {
        let service = change.service();
        if self.failing.remove(&service) {
            return Err(DatapathError::Foreign { map: "real_servers", found: "nonsense".to_owned() });
        }
        match change {
            Change::Put(_, servers) => {
                let others = self.table.iter().filter(|(other, _)| **other != service);
                let taken: usize = others.map(|(_, servers)| servers.real_servers.len()).sum();
                if taken + servers.real_servers.len() > self.room {
                    return Err(DatapathError::Full { table: "real_servers", capacity: 0, remedy: "".into() });
                }
                self.table.insert(service, servers.clone());
            }
            Change::Remove(_) => {
                self.table.remove(&service);
            }
        }
        self.fewest = self.fewest.min(self.table.len());
        Ok(())
    }
}

fn service(last: u8) -> Service {
    Service { address: ([10, 0, 0, last], 80).into(), protocol: Protocol::Tcp }
}

/// By the last octet of the VIP, how many real servers.
fn table(counts: &[(u8, u8)]) -> ServiceTable {
    let settings =
        Settings { weight: Weight::ONE, forwarding: ForwardingMethod::Dr, thresholds: Thresholds::default() };
    let servers = |count: u8| Servers {
        policy: Policy::new(&model::Policy::new(Scheduler::Rr), 250),
        access: None,
        real_servers: (0..count).map(|n| (([10, 0, 1, n], 80).into(), settings)).collect(),
        sorry_server: None,
    };
    counts.iter().map(|(last, count)| (service(*last), servers(*count))).collect::<BTreeMap<_, _>>()
}

fn put_back(result: Result<usize, ExchangeError>) -> PutBack {
    match result {
        Err(ExchangeError::Change { put_back, source: _ }) => put_back,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_removed_stays_until_all_else_is_there() {
    let before = table(&[(1, 1), (2, 1), (3, 1)]);
    let mut fake = Fake::new(&before, 6);
    let desired = table(&[(4, 1), (5, 1), (6, 1)]);
    assert_eq!(exchange(&mut fake, &before, &desired).unwrap(), 6);
    assert_eq!((fake.table, fake.fewest), (desired, 3));
}

#[test]
fn where_there_is_no_room_for_both_only_so_many_are_removed_first_as_wait() {
    // Room for one more: two wait.
    let before = table(&[(1, 1), (2, 1), (3, 1)]);
    let mut fake = Fake::new(&before, 4);
    let desired = table(&[(4, 1), (5, 1), (6, 1)]);
    assert_eq!(exchange(&mut fake, &before, &desired).unwrap(), 6);
    assert_eq!((fake.table, fake.fewest), (desired, 2));
    // None: of all that there may be, one is replaced.
    let before = table(&[(1, 1), (2, 1), (3, 1)]);
    let mut fake = Fake::new(&before, 3);
    let desired = table(&[(2, 1), (3, 1), (4, 1)]);
    assert_eq!(exchange(&mut fake, &before, &desired).unwrap(), 2);
    assert_eq!((fake.table, fake.fewest), (desired, 2));
}

#[test]
fn one_that_becomes_smaller_makes_room_for_another_and_nothing_is_removed_first() {
    let before = table(&[(1, 1), (2, 1), (3, 4)]);
    let mut fake = Fake::new(&before, 6);
    let desired = table(&[(1, 3), (3, 1)]);
    assert_eq!(exchange(&mut fake, &before, &desired).unwrap(), 3);
    assert_eq!((fake.table, fake.fewest), (desired, 2));
}

#[test]
fn where_there_is_no_room_at_all_the_old_configuration_stands() {
    let before = table(&[(1, 2), (2, 2)]);
    let mut fake = Fake::new(&before, 4);
    let back = put_back(exchange(&mut fake, &before, &table(&[(1, 3), (2, 2)])));
    assert_eq!((back, &fake.table), (PutBack::default(), &before));
    // Here something had to go before that was seen.
    let back = put_back(exchange(&mut fake, &before, &table(&[(1, 2), (3, 3)])));
    assert_eq!((back.interrupted.as_slice(), fake.table), (&[service(2)][..], before));
    assert_eq!(
        PutBack { interrupted: vec![service(2)], lost: Vec::new() }.to_string(),
        "the old one was put back; these had been withdrawn and lost their connections: tcp 10.0.0.2:80"
    );
}

#[test]
fn a_removal_that_fails_leaves_the_old_configuration_in_place() {
    let before = table(&[(1, 2), (2, 1), (3, 1)]);
    let mut fake = Fake::new(&before, 99);
    fake.failing = BTreeSet::from([service(3)]);
    let back = put_back(exchange(&mut fake, &before, &table(&[(1, 1), (4, 1)])));
    assert_eq!(back, PutBack { interrupted: vec![service(2), service(3)], lost: Vec::new() });
    assert_eq!(fake.table, before);
}

#[test]
fn what_cannot_be_put_back_is_named() {
    struct Stubborn(Fake);
    impl Datapath for Stubborn {
        fn installed(&mut self) -> Result<ServiceTable, DatapathError> {
            self.0.installed()
        }
        fn apply(&mut self, change: &Change) -> Result<(), DatapathError> {
            self.0.failing.insert(service(2));
            self.0.apply(change)
        }
    }
    let before = table(&[(1, 1), (2, 1)]);
    let mut stubborn = Stubborn(Fake::new(&before, 99));
    let back = put_back(exchange(&mut stubborn, &before, &table(&[(1, 2), (2, 2)])));
    assert_eq!(back, PutBack { interrupted: Vec::new(), lost: vec![service(2)] });
    assert_eq!(stubborn.0.table, before);
    assert_eq!(back.to_string(), "the old one was put back but for tcp 10.0.0.2:80, which is tried again every 10 s");
}
