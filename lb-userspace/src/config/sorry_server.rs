//! `[virtual_server.sorry_server]`: who takes the connections that would find no real server.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::reader::Reader;
use super::real_server::{self, Parent, Site};
use super::report::Report;
use crate::model::{RealServer, Thresholds, Weight};

/// Reads the sorry server in `table`; `real_servers` are those of its virtual server, with the lines of their addresses.
pub fn read(
    table: &Reader<'_>,
    parent: &mut Parent<'_>,
    real_servers: &HashMap<SocketAddr, usize>,
    report: &mut Report<'_>,
) -> Option<RealServer> {
    let site = real_server::site(table, r#"write address = "10.0.1.99:80""#, parent, report)?;
    let Site { address, forwarding, ref span } = site;
    if let Some(line) = real_servers.get(&address) {
        let message =
            format!("{} is {address}, must not be a real server of it too, as on line {line}", table.path("address"));
        let help = "it takes connections when no real server does; remove one of the two".to_owned();
        report.error(span, message, Some(help));
    } else {
        parent.claim_nat(table, &site, report);
    }
    Some(RealServer { address, weight: Weight::ONE, forwarding: forwarding?, thresholds: Thresholds::default() })
}
