//! Fragments: what became of a packet's first one, which has ports, and what that means for the others.

use std::net::{IpAddr, SocketAddr};

use lb_common::drop_reason::DropReason;
use lb_common::service::ForwardingMethod;

use super::super::oracle::{Change, Part, Whole};
use super::super::scene::{INGRESS, Mac, OUR_MAC};
use super::{Model, Outcome, Packet, Way};

/// What became of a packet's first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub went: Went,
    /// When, in ticks.
    pub since: u16,
}

/// Where a first fragment went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Went {
    /// Up to the host.
    Up,
    /// To the real server of this index and generation.
    ToServer(u16, u8),
    /// From the real server of this index and generation to this station, from this VIP.
    ToClient(u16, u8, Mac, IpAddr),
}

impl Model {
    /// Notes what `outcome` means for the other fragments of a packet whose first this is.
    pub(super) fn note_first(&mut self, packet: &Packet, outcome: &Outcome) {
        let Part::First(whole) = packet.reading.part else { return };
        match outcome {
            Outcome::Passed if self.is_of_interest(&whole) => self.note(packet, Went::Up),
            Outcome::Dropped(_) | Outcome::Refused { .. } => drop(self.fragments.remove(&whole)),
            Outcome::Passed | Outcome::Sent { .. } => {}
        }
    }

    /// Notes where a packet went, if others belong to it.
    pub(super) fn note(&mut self, packet: &Packet, went: Went) {
        if let Part::First(whole) = packet.reading.part {
            self.fragments.insert(whole, Known { went, since: packet.now });
        }
    }

    /// A first fragment without ports.
    pub(super) fn tiny(&mut self, whole: Whole) -> Outcome {
        if !self.is_of_interest(&whole) {
            return Outcome::Passed;
        }
        self.fragments.remove(&whole);
        Outcome::Dropped(DropReason::TinyFragment)
    }

    /// A fragment that is not the first.
    pub(super) fn later(&mut self, packet: &Packet, whole: Whole, fault: Option<DropReason>) -> Outcome {
        let known = self.fragments.get(&whole).filter(|known| packet.now.wrapping_sub(known.since) <= self.patience);
        let Some(Known { went, .. }) = known.copied() else {
            return match self.is_of_interest(&whole) {
                true => Outcome::Dropped(DropReason::UnknownFragment),
                false => Outcome::Passed,
            };
        };
        match (went, fault) {
            (Went::Up, _) => Outcome::Passed,
            (_, Some(reason)) if reason != DropReason::TtlExpired => Outcome::Dropped(reason),
            (Went::ToServer(index, generation) | Went::ToClient(index, generation, ..), _)
                if !self.is_still(index, generation) =>
            {
                Outcome::Dropped(DropReason::UnknownFragment)
            }
            (Went::ToServer(index, _), _) => self.send_to(packet, index, false),
            (Went::ToClient(..), Some(reason)) => Outcome::Dropped(reason),
            (Went::ToClient(index, _, station, vip), None) => self.send_back(packet, index, station, vip),
        }
    }

    fn send_back(&mut self, packet: &Packet, index: u16, station: Mac, vip: IpAddr) -> Outcome {
        let length = u64::try_from(packet.reading.length()).expect("fits");
        let server = self.reals[&index].virtual_server;
        self.count(server, index, |counters| {
            counters.packets_out += 1;
            counters.bytes_out += length;
        });
        let vip = SocketAddr::new(vip, 0);
        Way::Out { ifindex: INGRESS, to: station, from: OUR_MAC }.send(packet, Change::Source(vip))
    }

    fn is_still(&self, index: u16, generation: u8) -> bool {
        self.reals.get(&index).is_some_and(|real| real.generation == generation)
    }

    /// Whether by its addresses a packet may be of a virtual server: to a VIP, or from a real server reached by `nat` to
    /// others than this host.
    fn is_of_interest(&self, whole: &Whole) -> bool {
        let is_source = |ip: IpAddr| {
            self.reals.values().any(|real| real.forwarding == ForwardingMethod::Nat && real.address.ip() == ip)
        };
        self.services.iter().any(|server| server.address.ip() == whole.destination)
            || (is_source(whole.source) && !self.own.contains(&whole.destination))
    }
}
