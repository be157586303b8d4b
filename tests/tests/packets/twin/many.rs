//! Hundreds of real servers behind one virtual server, of which a new connection compares a window.

use std::net::SocketAddr;

use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Scheduler};
use lb_userspace::datapath::xdp::object::LoadOptions;
use lb_userspace::model::{Policy, RealServer, Thresholds, VirtualServer, Weight};

use super::super::bench::{Bench, OPTIONS, in_namespace};
use super::super::frame::{ACK, Frame, RST, SYN};
use super::super::scene::{Family, service};
use super::Twin;

/// More than 256, from which on a connection compares eight groups of eight.
const REALS: u16 = 300;

fn real_server(n: u16) -> RealServer {
    let [high, low] = n.to_be_bytes();
    RealServer {
        address: SocketAddr::from(([10, 50, high, low], 80)),
        weight: Weight::new(1 + n % 3),
        forwarding: ForwardingMethod::Dr,
        thresholds: Thresholds::default(),
    }
}

#[test]
fn of_hundreds_of_real_servers_the_program_compares_the_window_that_the_model_does() {
    in_namespace(|| {
        for scheduler in [Scheduler::Lc, Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq, Scheduler::Fo] {
            let options = LoadOptions { real_servers_max: 512, ..OPTIONS };
            let mut twin = Twin::new(Bench::load(&options));
            let mut server = VirtualServer {
                name: None,
                service: service(Family::V4, Protocol::Tcp),
                policy: Policy::new(scheduler),
                access: None,
                real_servers: (0..REALS).map(real_server).collect(),
                sorry_server: None,
            };
            for (n, real) in (0..).zip(&server.real_servers) {
                let [high, low] = u16::to_be_bytes(n);
                twin.bench.way_by(real.address.ip(), [2, 0, 0, 1, high, low]);
            }
            twin.install(std::slice::from_ref(&server));
            for port in 1000..1600 {
                let segment = |flags| Frame::tcp(Family::V4.client(port), server.service.address, flags);
                let flags = if port % 5 == 0 { [SYN, ACK, RST] } else { [SYN, ACK, ACK] };
                flags.into_iter().for_each(|flags| drop(twin.send(&segment(flags))));
            }
            twin.compare_counters();
            // Whole windows without a real server that takes a connection: then they have their turns.
            server.real_servers.iter_mut().take(200).for_each(|real| real.weight = Weight::ZERO);
            twin.install(std::slice::from_ref(&server));
            for port in 2000..2300 {
                drop(twin.send(&Frame::tcp(Family::V4.client(port), server.service.address, SYN)));
            }
            twin.compare_counters();
        }
    });
}
