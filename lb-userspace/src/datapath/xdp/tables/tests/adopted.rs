//! Tables that a daemon has left, whole or in the middle of a change, and another goes on with.

use std::sync::atomic::Ordering::Relaxed;

use lb_common::connection::{Bucket, Meta, State};

use super::*;
use crate::datapath::xdp::places::{Role, Tenant};
use crate::datapath::xdp::table::scanner::Constants;
use crate::datapath::xdp::table::task::sweep_once;

const CONSTANTS: Constants = Constants { timeouts: OPTIONS.timeouts, secret: OPTIONS.secret, jiffies_per_second: 250 };

/// What another daemon makes of the maps.
fn adopt(mut datapath: XdpDatapath) -> XdpDatapath {
    datapath.read_back(OPTIONS.timeouts).expect("they are this version's");
    sweep_once(&datapath, &CONSTANTS).expect("the table is swept");
    datapath
}

/// The maps that a change writes, in the order in which it makes something.
const MAPS: [&str; 7] =
    ["real_servers", "server_loads", "reply_index", "scheduler_rings", "services", "service_index", "lookups"];

/// One word of one of [`MAPS`].
#[derive(Clone, Copy, Debug)]
struct Write {
    map: usize,
    word: usize,
    value: u64,
}

/// Everything that lies in the maps.
struct Snapshot {
    words: Vec<Vec<u64>>,
    readable: Vec<(ServiceKey, VirtualServerEntry)>,
}

fn with_words<T>(datapath: &XdpDatapath, map: usize, work: impl FnOnce(&[AtomicU64]) -> T) -> T {
    let maps = &datapath.maps;
    match MAPS[map] {
        "real_servers" => work(maps.mapped::<RealServerEntry>("real_servers").unwrap().words()),
        "server_loads" => work(maps.mapped::<LoadChunk>("server_loads").unwrap().words()),
        "reply_index" => work(maps.mapped::<IndexBucket>("reply_index").unwrap().words()),
        "scheduler_rings" => work(maps.mapped::<RingChunk>("scheduler_rings").unwrap().words()),
        "services" => work(maps.mapped::<VirtualServerEntry>("services").unwrap().words()),
        "service_index" => work(maps.mapped::<IndexBucket>("service_index").unwrap().words()),
        _ => work(maps.mapped::<Lookups>("lookups").unwrap().words()),
    }
}

impl Snapshot {
    fn of(datapath: &XdpDatapath) -> Self {
        let copy = |words: &[AtomicU64]| words.iter().map(|word| word.load(Relaxed)).collect();
        let words = (0..MAPS.len()).map(|map| with_words(datapath, map, copy)).collect();
        Self { words, readable: datapath.maps.virtual_servers().unwrap() }
    }

    /// What leads from here to `after`, word by word: what a whole is made of before the word that makes it valid.
    fn writes_to(&self, after: &Self, is_removal: bool) -> Vec<Write> {
        let mut writes = Vec::new();
        for map in 0..MAPS.len() {
            let words = self.words[map].iter().zip(&after.words[map]).enumerate();
            let differing = words.filter(|(_, (old, new))| old != new);
            writes.extend(differing.map(|(word, (_, new))| Write { map, word, value: *new }));
        }
        // An element is written from its last word to its first.
        let element = |write: &Write| match MAPS[write.map] {
            "real_servers" | "services" => write.word / 16,
            "reply_index" | "service_index" => write.word / 2,
            _ => write.word,
        };
        // But a real server that goes is void first.
        let goes = |write: &Write| {
            let generation = after.words[write.map].get(write.word / 16 * 16).copied().unwrap_or(1) & 0xffff_ffff;
            MAPS[write.map] == "real_servers" && generation == 0
        };
        let order = |write: &Write| if goes(write) { write.word } else { usize::MAX - write.word };
        writes.sort_by_key(|write| (write.map, element(write), order(write)));
        if is_removal {
            // The index leads nowhere first, and real servers go last.
            writes.sort_by_key(|write| Reverse(write.map));
        }
        writes
    }
}

/// The maps are as in `before`, but for the first `count` writes; what people read changes first where something is removed,
/// and last where it is made.
fn tear(datapath: &mut XdpDatapath, before: &Snapshot, after: &Snapshot, count: usize, is_removal: bool) {
    for (map, words) in before.words.iter().enumerate() {
        with_words(datapath, map, |live| {
            live.iter().zip(words).for_each(|(word, value)| word.store(*value, Relaxed));
        });
    }
    let writes = before.writes_to(after, is_removal);
    for Write { map, word, value } in writes.iter().take(count) {
        with_words(datapath, *map, |live| live[*word].store(*value, Relaxed));
    }
    let is_told = if is_removal { count > 0 } else { count >= writes.len() };
    let (readable, stale) =
        if is_told { (&after.readable, &before.readable) } else { (&before.readable, &after.readable) };
    stale.iter().for_each(|(key, _)| datapath.maps.remove_virtual_server(*key).unwrap());
    readable.iter().for_each(|(key, entry)| datapath.maps.put_virtual_server(*key, *entry).unwrap());
}

/// A connection of each real server: place and generation of each.
fn connect(datapath: &XdpDatapath) -> BTreeMap<(Tenant, u32), (u16, u32)> {
    let connections = datapath.maps.mapped::<Bucket>("connections").unwrap();
    connections.words().iter().for_each(|word| word.store(0, Relaxed));
    datapath.views.counts.words().iter().for_each(|word| word.store(0, Relaxed));
    let now = crate::datapath::xdp::table::clock::Clock::load().unwrap().tick().unwrap();
    let mut connected = BTreeMap::new();
    for (number, (tenant, index)) in datapath.slots.places.all().enumerate() {
        let entry = datapath.real_server(index).unwrap();
        let octet = entry.generation.to_le_bytes()[0];
        let meta = Meta::new(index, State::ESTABLISHED, octet, now, 0);
        let words = connections.words();
        words[2 * number].store(u64::from(index) | 1 << 40, Relaxed);
        words[2 * number + 1].store(meta.0, Relaxed);
        datapath.views.counts.word(index.into()).unwrap().store(1 << 32, Relaxed);
        connected.insert((tenant, entry.forwarding as u32), (index, entry.generation));
    }
    connected
}

/// Whoever is in all of `tables` by the same method still has its place, and its connection.
fn goes_on(
    datapath: &XdpDatapath,
    connected: &BTreeMap<(Tenant, u32), (u16, u32)>,
    tables: [&ServiceTable; 3],
) -> Result<(), TestCaseError> {
    let connections = datapath.maps.mapped::<Bucket>("connections").unwrap();
    for ((tenant, forwarding), (index, generation)) in connected {
        let Tenant { service, role, address } = *tenant;
        let is_in = |table: &&ServiceTable| {
            let Some(servers) = table.get(&service) else { return false };
            match role {
                Role::Real => {
                    servers.real_servers.get(&address).is_some_and(|real| real.forwarding as u32 == *forwarding)
                }
                Role::Sorry => {
                    servers.sorry_server.is_some_and(|(sorry, m)| sorry == address && m as u32 == *forwarding)
                }
            }
        };
        if !tables.iter().all(is_in) {
            continue;
        }
        prop_assert_eq!(datapath.slots.places.find(tenant), Some(*index));
        prop_assert_eq!(datapath.real_server(*index).unwrap().generation, *generation);
        prop_assert_eq!(datapath.counts(*index).unwrap(), ServerCounts { active: 1, inactive: 0 });
        let is_held =
            |pair: &[AtomicU64]| Meta(pair[1].load(Relaxed)).real_server() == *index && pair[1].load(Relaxed) != 0;
        prop_assert!(connections.words().chunks(2).any(is_held), "{address} of {service} has lost its connection");
    }
    Ok(())
}

/// Forgets all connections, which [`check`] knows nothing of, with what they have cost.
fn disconnect(datapath: &mut XdpDatapath, desired: &ServiceTable) {
    datapath.views.counts.words().iter().for_each(|word| word.store(0, Relaxed));
    let places: Vec<u16> = datapath.slots.places.leaving().map(|(index, _)| index).collect();
    places.into_iter().for_each(|index| datapath.free(index).unwrap());
    datapath.is_settled = false;
    datapath.settle(desired).unwrap();
}

/// A daemon is killed at any write of a change, another adopts what it finds and serves one configuration or the other.
#[test]
fn after_a_kill_at_any_write_everything_fits_together_and_connections_keep_their_server() {
    let Some(datapath) = load(&OPTIONS) else { return };
    let held = std::cell::RefCell::new(Some(datapath));
    let cases =
        ProptestConfig { cases: 48, failure_persistence: None, max_shrink_iters: 64, ..ProptestConfig::default() };
    let tables = (any_table(), any_table(), any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<bool>());
    let result = TestRunner::new(cases).run(&tables, |(before, after, which, how_far, is_undone)| {
        let mut datapath = held.borrow_mut().take().or_else(|| load(&OPTIONS)).unwrap();
        reconcile(&mut datapath, &before).unwrap();
        let leaving: Vec<u16> = datapath.slots.places.leaving().map(|(index, _)| index).collect();
        leaving.into_iter().for_each(|index| datapath.free(index).unwrap());
        let connected = connect(&datapath);
        let changes = plan(&after, &before);
        let last = if changes.is_empty() { 0 } else { which.index(changes.len()) };
        for change in changes.iter().take(last) {
            datapath.apply(change).unwrap();
        }
        if let Some(change) = changes.get(last) {
            let is_removal = matches!(change, Change::Remove(_));
            let whole = Snapshot::of(&datapath);
            datapath.apply(change).unwrap();
            let done = Snapshot::of(&datapath);
            let count = how_far.index(whole.writes_to(&done, is_removal).len() + 1);
            tear(&mut datapath, &whole, &done, count, is_removal);
        }
        let desired = if is_undone { &before } else { &after };
        let mut adopted = adopt(datapath);
        adopted.settle(desired).unwrap();
        prop_assert_eq!(plan(desired, &adopted.installed().unwrap()), []);
        goes_on(&adopted, &connected, [&before, &after, desired])?;
        disconnect(&mut adopted, desired);
        check(&adopted, desired);
        *held.borrow_mut() = Some(adopted);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn connections_of_a_generation_that_is_gone_are_ended_before_a_place_is_given_again() {
    let Some(mut datapath) = load(&OPTIONS) else { return };
    let web = service(0);
    put(&mut datapath, web, servers(web, ForwardingMethod::Dr, Scheduler::Rr, &[(1, 1), (2, 1)]));
    let connected = connect(&datapath);
    let (index, _) = place_of(&datapath, 2).unwrap();
    // Its daemon is killed when it has just freed the place: nobody remembers its generation.
    datapath.free(index).unwrap();
    let mut adopted = adopt(datapath);
    let table = ServiceTable::from([(web, servers(web, ForwardingMethod::Dr, Scheduler::Rr, &[(1, 1), (3, 1)]))]);
    adopted.settle(&table).unwrap();
    let (again, entry) = place_of(&adopted, 3).unwrap();
    assert_eq!((again, entry.generation), (index, 1));
    assert_eq!(adopted.counts(index).unwrap(), ServerCounts::default());
    let connections = adopted.maps.mapped::<Bucket>("connections").unwrap();
    let live = connections.words().chunks(2).filter(|pair| pair[1].load(Relaxed) != 0).count();
    assert_eq!((connected.len(), live), (2, 1));
}

#[test]
fn what_no_version_has_written_is_named_and_not_touched() {
    let Some(mut datapath) = load(&OPTIONS) else { return };
    let web = service(0);
    put(&mut datapath, web, servers(web, ForwardingMethod::Nat, Scheduler::Rr, &[(1, 1)]));
    let whole = Snapshot::of(&datapath);
    // The first words of the first real server and the fourth of the first virtual server, which hold numbers of enums.
    let spoilt = [(0, 0, 9 << 32 | 1, "forwarding method 9"), (4, 3, 77 << 32, "scheduler 77")];
    for (map, word, value, said) in spoilt {
        with_words(&datapath, map, |words| words[word].store(value, Relaxed));
        let Err(DatapathError::Foreign { found, .. }) = datapath.read_back(OPTIONS.timeouts) else {
            panic!("it was taken for its own");
        };
        assert!(found.contains(said), "{found}");
        with_words(&datapath, map, |words| words[word].store(whole.words[map][word], Relaxed));
    }
    datapath.read_back(OPTIONS.timeouts).unwrap();
}
