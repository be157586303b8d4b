//! A packet to no virtual server: the answer of a real server reached by `nat`, or nothing of ours.

use std::net::SocketAddr;

use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;

use super::super::frame::{ACK, SYN};
use super::super::oracle::Change;
use super::super::scene::{INGRESS, OUR_MAC};
use super::fragments::Went;
use super::state::{Side, State};
use super::table::{Entry, Kind, Place};
use super::world::RealServer;
use super::{Model, Outcome, Packet, Way, is_of};

impl Model {
    pub(super) fn reply(&mut self, packet: Packet, fault: Option<DropReason>) -> Outcome {
        let Some((real, place, entry)) = self.answered(&packet) else {
            let reals = self.sharing(packet.reading.source, &packet);
            return self.stray(&packet, &reals, fault);
        };
        // The client's last datagram went to the real server itself, or this host asked it something.
        if entry.state == State::UdpDirect || self.own.contains(&packet.reading.destination.ip()) {
            return Outcome::Passed;
        }
        let vip = self.vip_of(&real, packet.reading.source.port());
        if let Some(reason) = fault {
            return self.stopped(&packet, vip.ip(), reason.into());
        }
        if packet.flags & (SYN | ACK) == SYN | ACK && entry.state.is_closing() {
            // It answers a connection that the client opened to the real server itself, with a port that it used before.
            self.free(place);
            return Outcome::Passed;
        }
        if packet.reading.is_authenticated {
            return Outcome::Dropped(DropReason::ExtensionHeader);
        }
        self.follow(place, Side::Server, &packet);
        let station = self.stations[&place];
        let length = u64::try_from(packet.reading.length()).expect("fits");
        self.count(real.virtual_server, real.index, |counters| {
            counters.packets_out += 1;
            counters.bytes_out += length;
        });
        self.note(&packet, Went::ToClient(real.index, real.generation, station, vip.ip()));
        Way::Out { ifindex: INGRESS, to: station, from: OUR_MAC }.send(&packet, Change::Source(vip))
    }

    /// The connection that a packet of a real server answers.
    pub(super) fn answered(&self, packet: &Packet) -> Option<(RealServer, Place, Entry)> {
        let (source, client) = (packet.reading.source, packet.reading.destination);
        let reals = self.sharing(source, packet);
        let with = |real| self.connection_with(real, source.port(), client, packet.now);
        let connections: Vec<_> = reals.iter().filter_map(with).collect();
        // The client may have gone on from one virtual server to another: rather the connection that is in use.
        let in_use = connections.iter().find(|(_, _, entry)| !entry.state.is_closing());
        in_use.or(connections.first()).cloned()
    }

    /// What the client knows `port` of a real server as.
    pub(super) fn vip_of(&self, real: &RealServer, port: u16) -> SocketAddr {
        let server = self.services.iter().find(|server| server.index == real.virtual_server);
        let mut vip = server.expect("it was found by it").address;
        if vip.port() == 0 {
            vip.set_port(port);
        }
        vip
    }

    /// A packet of no connection, which comes from one of `reals` or from nobody that is known here.
    fn stray(&mut self, packet: &Packet, reals: &[RealServer], fault: Option<DropReason>) -> Outcome {
        if let [real] = reals
            && self.services.iter().any(|server| server.index == real.virtual_server && server.stateless_replies)
            && !self.own.contains(&packet.reading.destination.ip())
        {
            // No way back was learnt, and the test's namespace forwards nothing.
            let vip = self.vip_of(real, packet.reading.source.port()).ip();
            let otherwise = match packet.reading.is_authenticated {
                true => DropReason::ExtensionHeader,
                false => DropReason::ForwardingDisabled,
            };
            return self.stopped(packet, vip, fault.unwrap_or(otherwise).into());
        }
        if u32::from(packet.reading.protocol) == Protocol::Udp as u32 {
            self.note_direct(packet);
        }
        Outcome::Passed
    }

    /// A client's datagram to a real server's own address: what comes back is not its virtual server's.
    fn note_direct(&mut self, packet: &Packet) {
        let (client, to) = (packet.reading.source, packet.reading.destination);
        for real in self.sharing(to, packet) {
            if let Some((_, place, entry)) = self.connection_with(&real, to.port(), client, packet.now) {
                self.table.set(place, Some(Entry { state: State::UdpDirect, last_seen: packet.now, ..entry }));
            }
        }
    }

    /// The real servers reached by `nat` at this address and port, each of another virtual server, in the order of their chain.
    pub(super) fn sharing(&self, address: SocketAddr, packet: &Packet) -> Vec<RealServer> {
        let with_port = |port| {
            let is_it = |real: &&RealServer| {
                let server = self.services.iter().find(|server| server.index == real.virtual_server);
                real.forwarding == ForwardingMethod::Nat
                    && real.address == SocketAddr::new(address.ip(), port)
                    && server.is_some_and(|server| is_of(server.protocol, &packet.reading))
            };
            let mut found: Vec<RealServer> = self.reals.values().filter(is_it).cloned().collect();
            found.sort_by_key(|real| real.rank);
            found
        };
        let exact = with_port(address.port());
        if exact.is_empty() { with_port(0) } else { exact }
    }

    /// The connection of `client` with `port` of `real`.
    pub(super) fn connection_with(
        &self,
        real: &RealServer,
        port: u16,
        client: SocketAddr,
        now: u16,
    ) -> Option<(RealServer, Place, Entry)> {
        let server = self.services.iter().position(|server| server.index == real.virtual_server)?;
        let vip_port = match self.services[server].address.port() {
            0 => port,
            vip_port => vip_port,
        };
        let key = self.services[server].connection_key(client, vip_port, &self.settings.secret);
        let (place, entry) = self.peek(key, Kind::Connection, server, now)?;
        (entry.real == real.index).then(|| (real.clone(), place, entry))
    }
}
