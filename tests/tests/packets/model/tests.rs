//! The model alone: stories with outcomes worked out by hand.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::connection::Timeouts;
use lb_common::drop_reason::DropReason;
use lb_common::hash::Secret;
use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Refusal, Scheduler};

use super::super::frame::{ACK, FIN, Frame, RST, SYN};
use super::super::scene::{Family, INGRESS, NAT_PORT, OUR_MAC, PORT, answer, number_of, real_mac};
use super::table::Table;
use super::world::{Hop, Persistence, RealServer, VirtualServer};
use super::{Model, Outcome, Settings};

/// A virtual server of TCP on the first IPv4 VIP, with real servers 0 to 7 in its one group.
pub fn virtual_server(scheduler: Scheduler) -> VirtualServer {
    VirtualServer {
        index: 0,
        address: SocketAddr::new(Family::V4.vip(0), PORT),
        protocol: Protocol::Tcp,
        scheduler,
        hash_port: false,
        hash_fallback: false,
        one_packet: false,
        sloppy_tcp: false,
        stateless_replies: false,
        persistence: None,
        no_real_server: Refusal::Reject,
        unknown_connection: Refusal::Drop,
        access: Vec::new(),
        sorry: None,
        ring: [].into(),
        groups: vec![0],
        lanes: 8,
        window: 0,
        cursor: 0,
    }
}

/// Real servers 0, 1, ... with these weights, reached by `nat`; real server n has the Ethernet address of n + 1.
pub fn reals(weights: &[u16]) -> BTreeMap<u16, RealServer> {
    let real = |(index, weight): (u16, &u16)| {
        let n = u8::try_from(index).expect("few") + 1;
        let real = RealServer {
            index,
            virtual_server: 0,
            address: SocketAddr::new(Family::V4.real(n), NAT_PORT),
            forwarding: ForwardingMethod::Nat,
            generation: 1,
            weight: *weight,
            is_removed: false,
            upper: 0,
            lower: 0,
            rank: 0,
            hop: Hop::Known { ifindex: INGRESS, mtu: 1500, to: real_mac(n), from: OUR_MAC },
            tunnel_source: None,
            active: 0,
            inactive: 0,
            is_overloaded: false,
        };
        (index, real)
    };
    (0..).zip(weights).map(real).collect()
}

/// The first VIP with round robin over real servers of these weights, and a table of `buckets` buckets.
fn model(buckets: u32, weights: &[u16]) -> Model {
    let secret = Secret { words: [1, 2] };
    let table = Table::new(buckets, Timeouts::new(10, 100, 20, 5, 50), secret);
    let mut model = Model::new(Settings { secret, rejects_per_tick: 2 }, table);
    let mut server = virtual_server(Scheduler::Rr);
    server.ring = (0..).zip(weights).filter(|(_, weight)| **weight > 0).map(|(index, _)| index).collect();
    model.services.push(server);
    model.reals = reals(weights);
    model
}

fn segment(port: u16, flags: u8) -> Frame {
    Frame::tcp(Family::V4.client(port), SocketAddr::new(Family::V4.vip(0), PORT), flags)
}

/// The index of the real server that a frame is sent on to.
fn sent_to(outcome: &Outcome) -> Option<u8> {
    match outcome {
        Outcome::Sent { bytes, .. } => number_of(&bytes[..6]).map(|n| n - 1),
        Outcome::Passed | Outcome::Refused { .. } | Outcome::Dropped(_) => None,
    }
}

#[test]
fn a_connection_keeps_its_real_server_and_is_counted_where_it_is() {
    let mut model = model(4, &[1, 1]);
    let take = |model: &mut Model, flags| sent_to(&model.take(&segment(1000, flags).bytes(), 1));
    assert_eq!(take(&mut model, SYN), Some(0));
    assert_eq!((model.reals[&0].active, model.reals[&0].inactive), (1, 0));
    assert_eq!(take(&mut model, ACK), Some(0));
    assert_eq!((model.reals[&0].active, model.reals[&0].inactive), (1, 0));
    assert_eq!(take(&mut model, FIN | ACK), Some(0));
    assert_eq!((model.reals[&0].active, model.reals[&0].inactive), (0, 1));
    // The next of the same client and port is a new one.
    assert_eq!(take(&mut model, SYN), Some(1));
    assert_eq!((model.reals[&0].inactive, model.reals[&1].active), (0, 1));
    assert_eq!(model.virtual_counters[&0].connections, 2);
    assert_eq!(model.virtual_counters[&0].packets_in, 4);
}

#[test]
fn an_answer_goes_back_from_the_vip_and_its_fin_is_noted() {
    let mut model = model(4, &[1]);
    let request = segment(1000, SYN);
    model.take(&request.bytes(), 1);
    model.take(&segment(1000, ACK).bytes(), 1);
    let real = SocketAddr::new(Family::V4.real(1), NAT_PORT);
    let last = answer(&request, real, 1, FIN | ACK);
    let back = Frame { source: request.destination, ..last.sent_on(request.mac_from) };
    let outcome = model.take(&last.bytes(), 1);
    assert_eq!(outcome, Outcome::Sent { ifindex: INGRESS, bytes: back.bytes() });
    assert_eq!((model.reals[&0].active, model.reals[&0].inactive), (0, 1));
    // An acceptance can't belong to it any more.
    assert_eq!(model.take(&answer(&request, real, 1, SYN | ACK).bytes(), 1), Outcome::Passed);
    assert_eq!(model.table.entries().count(), 0);
}

#[test]
fn what_is_refused_is_answered_so_many_times_a_tick_and_a_reset_never() {
    let mut model = model(4, &[0]);
    let mut refused = |flags, now| match model.take(&segment(1000, flags).bytes(), now) {
        Outcome::Refused { reason, .. } => (reason, true),
        Outcome::Dropped(reason) => (reason, false),
        other => panic!("{other:?}"),
    };
    let want = DropReason::NoRealServer;
    assert_eq!([SYN, SYN, SYN].map(|flags| refused(flags, 1)), [(want, true), (want, true), (want, false)]);
    assert_eq!(refused(SYN, 2), (want, true));
    assert_eq!(refused(RST, 3), (DropReason::NoConnection, false));
    assert_eq!(model.drops, BTreeMap::from([(want, 4), (DropReason::NoConnection, 1)]));
}

#[test]
fn an_idle_connection_is_forgotten_after_its_timeout_and_not_before() {
    let mut model = model(4, &[1, 1]);
    model.take(&segment(1000, SYN).bytes(), 0);
    model.take(&segment(1000, ACK).bytes(), 10);
    assert_eq!(sent_to(&model.take(&segment(1000, ACK).bytes(), 110)), Some(0));
    assert_eq!(model.take(&segment(1000, ACK).bytes(), 211), Outcome::Dropped(DropReason::NoConnection));
    assert_eq!((model.reals[&0].active, model.table.entries().count()), (0, 0));
}

#[test]
fn a_client_persists_at_a_server_that_is_drained_of_none() {
    let mut model = model(64, &[1, 1, 1]);
    model.services[0].persistence = Some(Persistence { timeout: 500, prefix_length: 24 });
    let open = |model: &mut Model, port| sent_to(&model.take(&segment(port, SYN).bytes(), 1));
    assert_eq!([1, 2, 3].map(|port| open(&mut model, port)), [Some(0); 3]);
    // Not even an overloaded one is left, but one of weight 0 is.
    model.reals.get_mut(&0).expect("is there").is_overloaded = true;
    assert_eq!(open(&mut model, 4), Some(0));
    model.reals.get_mut(&0).expect("is there").weight = 0;
    assert_eq!([5, 6].map(|port| open(&mut model, port)), [Some(1); 2]);
    // Six connections and one template.
    assert_eq!(model.table.entries().count(), 7);
}

#[test]
fn thresholds_are_reached_by_all_connections_and_left_below_the_lower() {
    let mut model = model(4, &[1, 1]);
    model.reals.get_mut(&0).expect("is there").upper = 2;
    let take = |model: &mut Model, port, flags| sent_to(&model.take(&segment(port, flags).bytes(), 1));
    assert_eq!([1, 2, 3, 4, 5].map(|port| take(&mut model, port, SYN)), [Some(0), Some(1), Some(0), Some(1), Some(1)]);
    // Closing does not count down; the next SYN takes the slot, and one of two is below three quarters of two.
    assert_eq!(take(&mut model, 1, FIN), Some(0));
    assert_eq!(take(&mut model, 1, SYN), Some(0));
}

#[test]
fn of_one_bucket_full_of_established_connections_dr_goes_by_hash() {
    let mut model = model(1, &[1, 1, 1]);
    model.reals.values_mut().for_each(|real| real.forwarding = ForwardingMethod::Dr);
    for port in 0..8 {
        for flags in [SYN, ACK, ACK] {
            model.take(&segment(port, flags).bytes(), 1);
        }
    }
    let by_hash = sent_to(&model.take(&segment(9, SYN).bytes(), 1));
    assert!(by_hash.is_some());
    for flags in [ACK, FIN | ACK, SYN] {
        assert_eq!(sent_to(&model.take(&segment(9, flags).bytes(), 1)), by_hash);
    }
    assert_eq!(model.table.counters.refused, 2);
    model.reals.values_mut().for_each(|real| real.forwarding = ForwardingMethod::Nat);
    assert_eq!(model.take(&segment(9, SYN).bytes(), 1), Outcome::Dropped(DropReason::TableFull));
    assert_eq!(model.take(&segment(9, ACK).bytes(), 1), Outcome::Dropped(DropReason::NoConnection));
}
