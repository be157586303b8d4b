//! What a daemon has in mind that its configuration does not tell, for the process that takes its place. Pure: time is given.

use std::time::{Duration, Instant};

use lb_common::net::Protocol;

use crate::handover::{Drain, Rise};
use crate::model::Service;
use crate::reconcile::desired::{Desired, Selector};

/// What operators have drained, and whose weight is on its way up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// What operators have drained.
    pub drains: Vec<Drain>,
    /// Whose weight is on its way up.
    pub rises: Vec<Rise>,
}

impl State {
    /// That of `desired`, as of `now`.
    pub fn of(desired: &Desired, now: Instant) -> Self {
        let drains = desired.drains().map(|((service, real_server), until)| Drain {
            virtual_server: service.address,
            protocol: service.protocol as u8,
            real_server,
            milliseconds: until.map(|until| milliseconds(until.saturating_duration_since(now))),
        });
        let rises = desired.rises().map(|((service, real_server), since)| Rise {
            virtual_server: service.address,
            protocol: service.protocol as u8,
            real_server,
            milliseconds: milliseconds(now.saturating_duration_since(since)),
        });
        Self { drains: drains.collect(), rises: rises.collect() }
    }

    /// Has it in `desired`, too, as far as the real servers are still there.
    pub fn restore(&self, desired: &mut Desired, now: Instant) {
        for Drain { virtual_server, protocol, real_server, milliseconds } in &self.drains {
            let Some(protocol) = Protocol::from_number(*protocol) else { continue };
            let service = Some(Service { address: *virtual_server, protocol });
            let selector = Selector { ip: real_server.ip(), port: Some(real_server.port()), service };
            desired.drain(&selector, milliseconds.map(Duration::from_millis), now);
        }
        for Rise { virtual_server, protocol, real_server, milliseconds } in &self.rises {
            let Some(protocol) = Protocol::from_number(*protocol) else { continue };
            let service = Service { address: *virtual_server, protocol };
            // A machine that has just been started has no such time; then it begins anew.
            let since = now.checked_sub(Duration::from_millis(*milliseconds)).unwrap_or(now);
            desired.rise_since((service, *real_server), since);
        }
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use lb_common::service::{ForwardingMethod, Scheduler};

    use super::*;
    use crate::model::{Policy, RealServer, Thresholds, VirtualServer, Weight};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_one_daemon_has_in_mind_the_next_has_too() {
        let service = Service { address: ([10, 0, 0, 1], 80).into(), protocol: Protocol::Tcp };
        let address = |n| SocketAddr::from(([10, 0, 1, n], 80));
        let real = |n| RealServer {
            address: address(n),
            weight: Weight::new(100),
            forwarding: ForwardingMethod::Dr,
            thresholds: Thresholds::default(),
        };
        let server = VirtualServer {
            name: None,
            service,
            policy: Policy { slow_start: 100 * SECOND, ..Policy::new(Scheduler::Wlc) },
            access: None,
            real_servers: [1, 2, 3, 4].map(real).to_vec(),
            sorry_server: None,
        };
        let new = || Desired::new(vec![server.clone()], 250);
        let (begun, mut first) = (Instant::now(), new());
        let of = |n| Selector { ip: address(n).ip(), port: None, service: None };
        first.drain(&of(1), None, begun);
        first.drain(&of(2), Some(60 * SECOND), begun);
        first.rise_since((service, address(3)), begun);
        // A real server that is not there any more is passed over.
        let mut state = State::of(&first, begun + 20 * SECOND);
        state.rises.push(Rise { real_server: address(9), ..state.rises[0].clone() });
        let mut second = new();
        state.restore(&mut second, begun + 20 * SECOND);
        assert_eq!(second.drains().collect::<Vec<_>>(), first.drains().collect::<Vec<_>>());
        assert_eq!(second.rises().collect::<Vec<_>>(), [((service, address(3)), begun)]);
    }
}
