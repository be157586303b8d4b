//! Clients that a virtual server does not serve: by their prefixes, at whatever point of a connection.

use lb_common::counters::Counters;
use lb_common::drop_reason::DropReason;
use lb_common::net::Protocol;
use lb_common::service::Scheduler;
use lb_userspace::model::{Access, Policy};

use super::bench::{Bench, Verdict, in_namespace};
use super::frame::{ACK, Frame, SYN};
use super::scene::{FAMILIES, Family, METHODS, PROTOCOLS, opening, real_server, service};

/// A prefix that the client is in, and two beside it.
fn prefixes(family: Family) -> [&'static str; 3] {
    match family {
        Family::V4 => ["192.0.2.0/28", "192.0.2.16/28", "192.0.2.0/24"],
        Family::V6 => ["2001:db8:11:2233:4455:66:c::/112", "2001:db8:11:2233:4455:66:d:0/112", "2001:db8::/32"],
    }
}

#[test]
fn a_denied_client_is_counted_and_gets_nothing() {
    in_namespace(denied);
}

/// Also called for the reason's scene.
pub fn denied() {
    for method in METHODS {
        let mut bench = Bench::serving(method, 1);
        for family in FAMILIES {
            let [its, beside, around] = prefixes(family);
            for protocol in PROTOCOLS {
                let service = service(family, protocol);
                let index = bench.index(service);
                let packet = opening(service, 1000);
                bench.restrict(service, &[(beside, Access::Denied)]);
                assert_ne!(bench.send(&packet).verdict, Verdict::Drop, "{packet:?}");
                bench.restrict(service, &[(its, Access::Denied)]);
                let packet = opening(service, 1001);
                bench.expect_drop(&packet.bytes(), DropReason::Denied);
                bench.expect_drop(&packet.bytes(), DropReason::Denied);
                bench.restrict(service, &[(around, Access::Denied), (its, Access::Permitted)]);
                assert_ne!(bench.send(&packet).verdict, Verdict::Drop, "the longer prefix holds");
                bench.restrict(service, &[(beside, Access::Permitted)]);
                bench.expect_drop(&opening(service, 1002).bytes(), DropReason::Denied);
                assert_eq!(bench.sum::<Counters>("vs_counters", index).denied, 3);
                bench.restrict(service, &[]);
                assert_ne!(bench.send(&opening(service, 1002)).verdict, Verdict::Drop);
            }
        }
    }
}

#[test]
fn a_list_that_shuts_a_client_out_ends_its_connections_and_nobody_else_s() {
    in_namespace(|| {
        for method in METHODS {
            let mut bench = Bench::serving(method, 2);
            for family in FAMILIES {
                let service = service(family, Protocol::Tcp);
                let [its, beside, _] = prefixes(family);
                let server = bench.open(family, 2000);
                let data = Frame::tcp(family.client(2000), service.address, ACK);
                bench.restrict(service, &[(beside, Access::Denied)]);
                assert_eq!(bench.server_of(&data), server);
                bench.restrict(service, &[(its, Access::Denied)]);
                bench.expect_drop(&data.bytes(), DropReason::Denied);
                bench.restrict(service, &[]);
                // There is no connection any more: its segment is one of an unknown one.
                bench.expect_refusal(&data.bytes(), DropReason::NoConnection);
            }
        }
    });
}

#[test]
fn no_scheduler_template_or_sorry_server_takes_a_denied_client() {
    in_namespace(|| {
        for method in METHODS {
            let mut bench = Bench::serving(method, 2);
            for family in FAMILIES {
                let service = service(family, Protocol::Tcp);
                let [its, ..] = prefixes(family);
                let reals = [1, 2].map(|n| (real_server(family, method, n), 1));
                for scheduler in [Scheduler::Mh, Scheduler::Wlc] {
                    let policy = Policy { sloppy_tcp: true, ..Policy::new(scheduler) };
                    bench.serve_by(&policy, service, method, &reals);
                    bench.restrict(service, &[(its, Access::Denied)]);
                    for flags in [SYN, ACK, SYN | ACK, 0] {
                        let segment = Frame::tcp(family.client(3000), service.address, flags);
                        bench.expect_drop(&segment.bytes(), DropReason::Denied);
                    }
                    bench.restrict(service, &[]);
                }
            }
        }
    });
}
