//! Ways to real servers on which packets or their replies would be lost. Pure.

use lb_common::service::ForwardingMethod;

use crate::config::Config;
use crate::host::preflight::Problem;
use crate::nexthop::{Found, Resolution};

/// What is wrong with the ways that `resolution` found, for each real server of `config`.
pub fn problems(config: &Config, resolution: &Resolution) -> Vec<Problem> {
    let mut problems = Vec::new();
    for server in &config.virtual_servers {
        for real in &server.real_servers {
            let Some(route) = resolution.found.get(&real.address.ip()).and_then(Found::route) else { continue };
            let name = &route.interface.name;
            let method = real.forwarding.name();
            if !config.xdp.interfaces.contains(name) {
                problems.push(Problem::new(format!(
                    "{method} real server {} of {} is reached by interface {name}, which the program may not redirect to{}; \
                     add {name:?} to xdp.interfaces",
                    real.address,
                    server.service,
                    if real.forwarding == ForwardingMethod::Nat { ", and whose replies nobody would rewrite" } else { "" },
                )));
            }
            if real.forwarding == ForwardingMethod::Dr
                && let Some(gateway) = route.gateway
            {
                problems.push(Problem::new(format!(
                    "dr real server {} of {} is behind router {gateway}, which would route the packet to the VIP, back here; \
                     use tun or nat, or put it on a link of this host",
                    real.address, server.service
                )));
            }
        }
    }
    problems
}
