//! Ways to real servers on which packets or their replies would be lost. Pure.

use lb_common::service::ForwardingMethod;

use crate::config::Config;
use crate::host::preflight::Problem;
use crate::model::{RealServer, Service};
use crate::nexthop::{Found, Resolution};

/// What prevents a start: virtual servers with no real server that packets could get to.
pub fn problems(config: &Config, resolution: &Resolution) -> Vec<Problem> {
    let mut problems = Vec::new();
    for server in &config.virtual_servers {
        let faults = server.real_servers.iter().map(|real| fault(config, resolution, server.service, real));
        // One good way is enough to serve; the others are warned of.
        problems.extend(faults.collect::<Option<Vec<_>>>().into_iter().flatten().map(Problem::new));
    }
    problems
}

/// What is wrong with the way to each real server.
pub fn warnings(config: &Config, resolution: &Resolution) -> Vec<String> {
    let reals = config.virtual_servers.iter().flat_map(|s| s.real_servers.iter().map(|real| (s.service, real)));
    reals.filter_map(|(service, real)| fault(config, resolution, service, real)).collect()
}

/// What is wrong with the way to `real`, where a route to it is known.
fn fault(config: &Config, resolution: &Resolution, service: Service, real: &RealServer) -> Option<String> {
    let route = resolution.found.get(&real.address.ip()).and_then(Found::route)?;
    let (name, method, address) = (&route.interface.name, real.forwarding.name(), real.address);
    if !config.xdp.interfaces.contains(name) {
        let replies = match real.forwarding {
            ForwardingMethod::Nat => ", and whose replies nobody would rewrite",
            ForwardingMethod::Dr | ForwardingMethod::Tun => "",
        };
        return Some(format!(
            "{method} real server {address} of {service} is reached by interface {name}, which the program may not \
             redirect to{replies}; add {name:?} to xdp.interfaces"
        ));
    }
    match (real.forwarding, route.gateway) {
        (ForwardingMethod::Dr, Some(gateway)) => Some(format!(
            "dr real server {address} of {service} is behind router {gateway}, which would route the packet to the VIP, \
             back here; use tun or nat, or put it on a link of this host"
        )),
        _ => None,
    }
}
