//! An ICMP error about a packet of a connection, or nothing of ours.

use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;

use super::super::oracle::Change;
use super::super::quotation::{self, Quotation};
use super::super::scene::{INGRESS, OUR_MAC};
use super::request::spread;
use super::state::State;
use super::table::Kind;
use super::{Model, Outcome, Packet, Way};

impl Model {
    /// Goes where the quoted packet came from, and leaves no trace.
    pub(super) fn error(&self, frame: &[u8], now: u16) -> Outcome {
        let Some(quotation) = quotation::read(frame) else { return Outcome::Passed };
        let packet = Packet { frame, reading: quotation.answer, flags: 0, now };
        match self.service_of(&quotation.answer) {
            Some(server) => self.error_to_server(&packet, &quotation, server),
            None => self.error_to_client(&packet, &quotation),
        }
    }

    fn error_to_server(&self, packet: &Packet, quotation: &Quotation, server: usize) -> Outcome {
        let (client, vip) = (packet.reading.source, packet.reading.destination);
        let key = self.services[server].connection_key(client, vip.port(), &self.settings.secret);
        let Some((_, entry)) = self.peek(key, Kind::Connection, server, packet.now) else { return Outcome::Passed };
        let real = &self.reals[&entry.real];
        if real.is_removed && self.services[server].protocol == Protocol::Udp {
            return Outcome::Passed;
        }
        if let Some(reason) = quotation.fault.filter(|reason| *reason != DropReason::TtlExpired) {
            return Outcome::Dropped(reason);
        }
        let way = match self.outgoing(packet, entry.real) {
            Ok(way) => way,
            Err(stop) => return Outcome::Dropped(stop.reason()),
        };
        match (real.forwarding, real.tunnel_source) {
            (ForwardingMethod::Dr, _) => way.send_error(packet, quotation, Change::Nothing),
            (ForwardingMethod::Nat, _) => {
                way.send_error(packet, quotation, Change::Destination(real.destination(vip.port())))
            }
            (ForwardingMethod::Tun, source) => match way.send_error(packet, quotation, Change::Nothing) {
                Outcome::Sent { ifindex, bytes } => {
                    let source = spread(source.expect("without one there is no way"), packet.reading.flow());
                    Outcome::Sent { ifindex, bytes: packet.reading.wrapped(&bytes, source, real.address.ip()) }
                }
                other => other,
            },
        }
    }

    fn error_to_client(&self, packet: &Packet, quotation: &Quotation) -> Outcome {
        let Some((real, place, entry)) = self.answered(packet) else { return Outcome::Passed };
        // About what the client, or this host itself, has sent straight to the real server.
        if entry.state == State::UdpDirect || self.own.contains(&packet.reading.destination.ip()) {
            return Outcome::Passed;
        }
        if let Some(reason) = quotation.fault {
            return Outcome::Dropped(reason);
        }
        let vip = self.vip_of(&real, packet.reading.source.port());
        let way = Way::Out { ifindex: INGRESS, to: self.stations[&place], from: OUR_MAC };
        way.send_error(packet, quotation, Change::Source(vip))
    }
}

impl Way {
    fn send_error(self, packet: &Packet, quotation: &Quotation, change: Change) -> Outcome {
        match self {
            Self::Up => Outcome::Passed,
            Self::Out { ifindex, to, from } => {
                let changed = quotation.forwarded(packet.frame, change, &[]);
                Outcome::Sent { ifindex, bytes: [&to, &from, &changed[12..]].concat() }
            }
        }
    }
}
