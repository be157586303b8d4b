//! `[[virtual_server.real_server]]`: who serves, and that it can serve its virtual server.

use std::collections::HashMap;
use std::net::SocketAddr;

use lb_common::REAL_SERVERS_MAX;
use lb_common::service::ForwardingMethod;
use toml::Spanned;

use super::address;
use super::reader::Reader;
use super::report::Report;
use super::schema;
use super::virtual_server::FORWARDING_METHODS;
use crate::model::{RealServer, Weight};

const WEIGHT_HELP: &str = "it is a share of new connections; 0 takes none";

/// What a real server needs to know of its virtual server.
pub struct Parent<'c> {
    /// The VIP and port, and the line on which they are written; `None` when they are wrong or missing.
    pub address: Option<(SocketAddr, usize)>,
    /// The forwarding method of real servers that name none.
    pub forwarding: Option<ForwardingMethod>,
    /// Real servers in the file so far.
    pub count: &'c mut usize,
}

/// Reads every real server of the virtual server in `table`; those with errors are left out.
pub fn read_all(table: &Reader<'_>, parent: Parent<'_>, report: &mut Report<'_>) -> Vec<RealServer> {
    let tables = table.tables("real_server", &schema::REAL_SERVER, report);
    if tables.is_empty() && (table.lacks("real_server", report) || table.is_empty_array("real_server")) {
        let help = r#"write [[virtual_server.real_server]] below it, and under that address = "10.0.1.11:80""#;
        report.error(
            &table.span,
            "virtual_server has no real_server, must have at least one".into(),
            Some(help.into()),
        );
    }
    check_forwarding(table, &tables, report);
    let mut first = HashMap::new();
    let mut servers = vec![];
    for table in &tables {
        count(table, parent.count, report);
        servers.extend(read(table, &parent, &mut first, report));
    }
    servers
}

/// Reported once for the virtual server, not for each of its real servers.
fn check_forwarding(table: &Reader<'_>, tables: &[Reader<'_>], report: &mut Report<'_>) {
    let lines = tables.iter().filter(|table| !table.has("forwarding")).map(|table| report.line(&table.span));
    let lines: Vec<usize> = lines.collect();
    let help = match lines.as_slice() {
        [] => return,
        [line] => format!("write it here, or under the real_server on line {line}"),
        [line, ..] => format!("write it here, or under each of {} real servers, the first on line {line}", lines.len()),
    };
    table.require("forwarding", r#""nat", "dr" or "tun""#, &help, report);
}

fn count(table: &Reader<'_>, count: &mut usize, report: &mut Report<'_>) {
    *count += 1;
    if u32::try_from(*count).is_ok_and(|count| count == REAL_SERVERS_MAX + 1) {
        let message = format!("more than {REAL_SERVERS_MAX} real servers in all, must be at most {REAL_SERVERS_MAX}");
        let help = "this is the first too many; each virtual server counts its own; give the rest to another instance";
        report.error(&table.span, message, Some(help.into()));
    }
}

fn read(
    table: &Reader<'_>,
    parent: &Parent<'_>,
    first: &mut HashMap<SocketAddr, usize>,
    report: &mut Report<'_>,
) -> Option<RealServer> {
    table.require("address", r#""ip:port" or "ip""#, r#"write address = "10.0.1.11:80""#, report);
    let weight = table.integer("weight", 0..=u16::MAX, WEIGHT_HELP, report).map_or(Weight::ONE, Weight::new);
    let own = table.word("forwarding", &FORWARDING_METHODS, report);
    let inherited = if table.has("forwarding") { None } else { parent.forwarding };
    let written = written_address(table, report)?;
    let address = fit(&written, own.or(inherited), parent, table, report)?;
    if let Some(line) = first.insert(address, report.line(&written.span())) {
        let message = format!("{} {address} is there twice, first on line {line}", schema::REAL_SERVER.path);
        let help = "remove one of the two; a larger weight gives a real server more connections".to_owned();
        report.error(&written.span(), message, Some(help));
    }
    Some(RealServer { address, weight, forwarding: own.or(inherited)? })
}

fn written_address(table: &Reader<'_>, report: &mut Report<'_>) -> Option<Spanned<address::Written>> {
    let text = table.string("address", report)?;
    match address::parse(text.get_ref(), address::REAL_SERVER) {
        Ok(written) => Some(Spanned::new(text.span(), written)),
        Err(address::Fault { what, help }) => {
            let message = format!("{} is \"{}\", {what}", table.path("address"), text.get_ref().escape_debug());
            report.error(&text.span(), message, help);
            None
        }
    }
}

/// Checks that the real server at `written` can serve its virtual server; yields its address and port.
fn fit(
    written: &Spanned<address::Written>,
    forwarding: Option<ForwardingMethod>,
    parent: &Parent<'_>,
    table: &Reader<'_>,
    report: &mut Report<'_>,
) -> Option<SocketAddr> {
    let (address::Written { ip, port }, span) = (*written.get_ref(), &written.span());
    let Some((vip, line)) = parent.address else {
        return port.map(|port| SocketAddr::new(ip, port));
    };
    let address = SocketAddr::new(ip, port.unwrap_or(vip.port()));
    let (path, family) = (table.path("address"), |v4| if v4 { "IPv4" } else { "IPv6" });
    if ip.is_ipv4() != vip.is_ipv4() {
        let (found, allowed) = (family(ip.is_ipv4()), family(vip.is_ipv4()));
        let message = format!("{path} is {found}, must be {allowed} like the virtual server's on line {line}");
        let help = "mixed families are not available yet; write one virtual_server for each family".to_owned();
        report.error(span, message, Some(help));
    }
    if ip == vip.ip() {
        let message = format!("{path} is {ip}, must not be the virtual server's own address on line {line}");
        let help = "write an address that the real server alone has, also with dr and tun".to_owned();
        report.error(span, message, Some(help));
    }
    let keeps_port = match forwarding {
        Some(ForwardingMethod::Dr | ForwardingMethod::Tun) => forwarding,
        Some(ForwardingMethod::Nat) | None => None,
    };
    if let Some(method) = keeps_port.filter(|_| address.port() != vip.port()) {
        let (found, allowed, name) = (address.port(), vip.port(), method.name());
        let message =
            format!("{path} has port {found}, must be {allowed} as on line {line}: {name} does not change ports");
        let meant = address::with_port(ip, allowed);
        report.error(span, message, Some(format!("write \"{meant}\", or forwarding = \"nat\"")));
    }
    Some(address)
}
