//! Ways back that the XDP program has made, in the kernel's own map. They need root and the XDP programs.

use std::collections::BTreeMap;
use std::time::Instant;

use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use lb_common::connection::{Meta, State};
use lb_common::net::{MacAddress, Protocol};
use lb_common::real::{NextHop, NextHopState};
use lb_common::service::{ForwardingMethod, Scheduler};

use super::super::clock::Clock;
use super::super::memory_maps::MappedTables;
use super::super::scanner::{Constants, Scanner};
use super::*;
use crate::datapath::xdp::tables::tests::{OPTIONS, load};
use crate::datapath::xdp::tables::{Way, XdpDatapath};
use crate::datapath::xdp::{attach, object, rest};
use crate::datapath::{Change, Datapath as _, Policy, Servers, Settings};
use crate::model::{self, Service, Thresholds, Weight};

/// `lo`, where test runs come in.
const INTERFACE: u32 = 1;
const OUR_MAC: MacAddress = MacAddress { octets: [2, 0, 0, 0, 0, 1] };
const XDP_TX: u32 = 3;

/// One real server behind `nat`, with a way that is known.
fn serving() -> Option<XdpDatapath> {
    let mut datapath = load(&OPTIONS)?;
    let settings =
        Settings { weight: Weight::ONE, forwarding: ForwardingMethod::Nat, thresholds: Thresholds::default() };
    let servers = Servers {
        policy: Policy::new(&model::Policy::new(Scheduler::Rr), 250),
        real_servers: BTreeMap::from([(([10, 0, 1, 1], 80).into(), settings)]),
        access: None,
        sorry_server: None,
    };
    let service = Service { address: ([10, 0, 0, 1], 80).into(), protocol: Protocol::Tcp };
    let next_hop = NextHop {
        state: NextHopState::Resolved,
        ifindex: INTERFACE,
        mtu: 1500,
        destination: MacAddress { octets: [2, 0, 0, 0, 0, 9] },
        source: OUR_MAC,
    };
    datapath.set_interface(INTERFACE, OUR_MAC, None).unwrap();
    datapath.set_way([10, 0, 1, 1].into(), Way { next_hop, ..Way::UNKNOWN }).unwrap();
    datapath.apply(&Change::Put(service, servers)).unwrap();
    Some(datapath)
}

/// A SYN of 192.0.2.1 from `port` to 10.0.0.1:80, by the router whose address ends in `router`.
fn syn(router: u8, port: u16) -> Vec<u8> {
    let mut frame = [OUR_MAC.octets, [2, 0, 0, 0, 1, router]].concat();
    frame.extend([0x08, 0]);
    // 40 bytes, TTL 64, TCP; the sum of the words is 0x4500 + 0x28 + 0x4006 + 0xc000 + 0x0201 + 0x0a00 + 1 = 0x15130.
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0xae, 0xce, 192, 0, 2, 1, 10, 0, 0, 1]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

fn send(datapath: &mut XdpDatapath, frame: &[u8]) {
    let program: &mut Xdp = object::program(datapath.ebpf(), attach::PROGRAM).unwrap();
    let verdict = program.test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() }).unwrap();
    assert_eq!(verdict.return_value, XDP_TX);
}

/// The number in the only slot that is in use.
fn number(tables: &Tables<'_>) -> u16 {
    let used: Vec<Meta> = tables.slots().map(|slot| slot.meta()).filter(|meta| meta.state() != State::FREE).collect();
    assert_eq!(used.len(), 1);
    used[0].client_hop()
}

fn state_of(tables: &Tables<'_>, hop: u16) -> u32 {
    state(word_of(tables, hop).unwrap().load(Acquire))
}

#[test]
fn a_number_that_no_connection_has_is_handed_out_anew_after_two_rounds() {
    let Some(mut datapath) = serving() else { return };
    let maps = MappedTables::of(&datapath).unwrap();
    let tables = maps.tables();
    let constants = Constants { timeouts: OPTIONS.timeouts, secret: OPTIONS.secret, jiffies_per_second: 250 };
    let (mut scanner, clock) = (Scanner::new(constants), Clock::load().unwrap());
    let mut round = |tables: &Tables<'_>| {
        let rounds = scanner.report().rounds;
        let begun = Instant::now();
        while scanner.report().rounds == rounds {
            scanner.slice(tables, clock.tick().unwrap());
            std::thread::sleep(rest::REST);
            assert!(begun.elapsed().as_secs() < 10);
        }
    };
    let end = |tables: &Tables<'_>| {
        for slot in tables.slots() {
            slot.replace(slot.meta(), Meta::FREE);
        }
    };
    send(&mut datapath, &syn(1, 1000));
    let first = number(&tables);
    round(&tables);
    assert_eq!((first != 0, state_of(&tables, first)), (true, hop_state::READABLE));
    end(&tables);
    round(&tables);
    assert_eq!(state_of(&tables, first), hop_state::RETIRING);
    // The same way in the meantime has another number.
    send(&mut datapath, &syn(1, 1001));
    let second = number(&tables);
    assert!(second != 0 && second != first);
    round(&tables);
    scanner.slice(&tables, clock.tick().unwrap());
    assert_eq!((state_of(&tables, first), state_of(&tables, second)), (hop_state::FREE, hop_state::READABLE));
    end(&tables);
    send(&mut datapath, &syn(1, 1002));
    assert_eq!((number(&tables), state_of(&tables, first)), (first, hop_state::READABLE));
}
