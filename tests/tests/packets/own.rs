//! A real server that is this host: its packets go up, and need not live any longer.

use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;
use lb_userspace::model::Service;

use super::bench::{Bench, in_namespace};
use super::frame::{ACK, Frame, SYN, Transport};
use super::icmp;
use super::oracle::Told;
use super::scene::{FAMILIES, Family, INGRESS, opening, real_server, service};

/// A virtual server on this host, and on real server 2 if there are two.
fn serving(family: Family, protocol: Protocol, reals: u8) -> (Bench, Service) {
    let (mut bench, service) = (Bench::empty(), service(family, protocol));
    bench.local(family, 1);
    bench.way(family, 2, INGRESS, 1500);
    let reals: Vec<_> = (1..=reals).map(|n| (real_server(family, ForwardingMethod::Dr, n), 1)).collect();
    bench.serve(service, ForwardingMethod::Dr, &reals);
    (bench, service)
}

#[test]
fn a_packet_whose_time_ends_here_goes_up_to_this_host() {
    in_namespace(|| {
        for family in FAMILIES {
            for protocol in Protocol::ALL {
                let (bench, service) = serving(family, protocol, 1);
                let opening = opening(service, 1000);
                for ttl in [1, 0, 64] {
                    bench.expect_untouched(&Frame { ttl, ..opening.clone() });
                }
            }
            let (bench, service) = serving(family, Protocol::Tcp, 1);
            let [syn, ack] = [SYN, ACK].map(|flags| Frame::tcp(family.client(1000), service.address, flags));
            bench.expect_untouched(&Frame { ttl: 1, ..syn });
            bench.expect_untouched(&Frame { ttl: 1, ..ack.payload(b"data") });
        }
    });
}

#[test]
fn an_error_whose_time_ends_here_goes_up_to_this_host() {
    in_namespace(|| {
        for family in FAMILIES {
            let (bench, service) = serving(family, Protocol::Tcp, 1);
            bench.expect_untouched(&opening(service, 1000));
            let sent = Frame::new(service.address, family.client(1000), Transport::Tcp { flags: SYN | ACK });
            let kind = if family == Family::V4 { (3, 1, 0) } else { (1, 0, 0) };
            let error = icmp::error(family.stranger(), service.address.ip(), kind, &icmp::quote(&sent, 20));
            bench.expect_untouched(&Frame { ttl: 1, ..error });
        }
    });
}

/// Of two real servers in turn, only the one elsewhere needs the packet to live on.
#[test]
fn a_packet_for_another_host_needs_time() {
    in_namespace(|| {
        for family in FAMILIES {
            let (bench, service) = serving(family, Protocol::Tcp, 2);
            bench.expect_untouched(&Frame { ttl: 1, ..opening(service, 1000) });
            assert_eq!(bench.open(family, 1001), 2);
            let data = Frame::tcp(family.client(1001), service.address, ACK).payload(b"data");
            bench.expect_told(&Frame { ttl: 1, ..data.clone() }, service.address.ip(), Told::Expired);
            assert_eq!(bench.server_of(&data), 2);
            let own = Frame::tcp(family.client(1000), service.address, ACK).payload(b"data");
            bench.expect_untouched(&Frame { ttl: 1, ..own });
        }
    });
}
