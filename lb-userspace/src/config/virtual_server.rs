//! `[[virtual_server]]`: what is balanced, and that no two of them contradict each other.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;

use lb_common::VIRTUAL_SERVERS_MAX;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;

use super::access::{self, Files};
use super::address::{self, Role};
use super::policy;
use super::reader::{Reader, Words};
use super::real_server::{self, Parent, Servers, Tally};
use super::report::Report;
use super::schema;
use crate::model::{Service, VirtualServer};

const NAME_LENGTH_MAX: usize = 64;
const EXAMPLE: &str = "write [[virtual_server]], and under it address, protocol, forwarding and its real servers";
const PROTOCOL_HELP: &str = r#"write protocol = "tcp", protocol = "udp" or protocol = "sctp""#;

/// The words of `protocol`.
pub static PROTOCOLS: Words<Protocol> =
    Words { now: &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)], later: &[], never: &[] };

/// How packets reach a real server: the words of `forwarding`.
pub static FORWARDING_METHODS: Words<ForwardingMethod> = Words {
    now: &[("nat", ForwardingMethod::Nat), ("dr", ForwardingMethod::Dr), ("tun", ForwardingMethod::Tun)],
    later: &[],
    never: &[],
};

/// What other virtual servers have claimed, and on which line.
#[derive(Default)]
struct Claimed {
    services: HashMap<Service, usize>,
    names: HashMap<String, usize>,
    tally: Tally,
}

/// Reads every `[[virtual_server]]`; those with errors are left out.
pub fn read_all(root: &Reader<'_>, files: Files<'_>, report: &mut Report<'_>) -> Vec<VirtualServer> {
    let tables = root.tables("virtual_server", &schema::VIRTUAL_SERVER, report);
    if tables.is_empty() && (root.lacks("virtual_server", report) || root.is_empty_array("virtual_server")) {
        report.error_in_file("there is no virtual_server, must be at least one".into(), Some(EXAMPLE.into()));
    }
    if let Some(first_over) = tables.get(usize::try_from(VIRTUAL_SERVERS_MAX).unwrap_or(usize::MAX)) {
        let message = format!("{} virtual servers, must be at most {VIRTUAL_SERVERS_MAX}", tables.len());
        let help = "this is the first too many; give the rest to another instance".to_owned();
        report.error(&first_over.span, message, Some(help));
    }
    let mut claimed = Claimed::default();
    tables.iter().filter_map(|table| read(table, &mut claimed, files, report)).collect()
}

fn read(table: &Reader<'_>, claimed: &mut Claimed, files: Files<'_>, report: &mut Report<'_>) -> Option<VirtualServer> {
    let name = name(table, claimed, report);
    table.require("address", r#""ip:port""#, r#"write address = "10.0.0.100:80""#, report);
    let address = vip(table, report);
    table.require("protocol", r#""tcp", "udp" or "sctp""#, PROTOCOL_HELP, report);
    let protocol = table.word("protocol", &PROTOCOLS, report);
    let forwarding = table.word("forwarding", &FORWARDING_METHODS, report);
    let service = address.as_ref().zip(protocol).map(|((address, span), protocol)| {
        let service = Service { address: *address, protocol };
        claim_service(service, span, claimed, report);
        service
    });
    let vip = address.as_ref().map(|(address, _)| address.ip());
    let policy = policy::read(table, vip, protocol, report);
    let access = access::read(table, vip, files, report);
    let mut parent = Parent {
        address: address.map(|(address, span)| (address, report.line(&span))),
        protocol,
        forwarding,
        tally: &mut claimed.tally,
        first_nat: None,
        first_threshold: None,
    };
    let Servers { real: real_servers, sorry: sorry_server } = real_server::read_all(table, &mut parent, report);
    match parent.first_nat {
        Some(line) if policy.one_packet => policy::report_one_packet_nat(table, line, report),
        None if policy.stateless_replies => policy::report_stateless_without_nat(table, report),
        Some(_) | None => {}
    }
    if let Some(line) = parent.first_threshold.filter(|_| policy.one_packet) {
        policy::report_one_packet_threshold(table, line, report);
    }
    if let Some(line) = parent.first_nat.filter(|_| protocol == Some(Protocol::Sctp)) {
        report_sctp_nat(table, line, report);
    }
    policy::check_number(table, policy.scheduler, real_servers.len(), report);
    Some(VirtualServer { name, service: service?, policy, access, real_servers, sorry_server })
}

/// Reports protocol `sctp` for a virtual server of which the server on `line` is reached by `nat`.
fn report_sctp_nat(table: &Reader<'_>, line: usize, report: &mut Report<'_>) {
    let span = table.place("protocol").unwrap_or_else(|| table.span.clone());
    let message = format!(
        "{} is \"sctp\", must not be with forwarding \"nat\", as of the server on line {line}",
        table.path("protocol")
    );
    let help = "SCTP's checksum is a CRC32c over all of a packet, and its associations carry addresses inside: neither is rewritten; \
                write forwarding = \"dr\" or \"tun\"";
    report.error(&span, message, Some(help.to_owned()));
}

fn name(table: &Reader<'_>, claimed: &mut Claimed, report: &mut Report<'_>) -> Option<String> {
    let written = table.string("name", report)?;
    let (name, span) = (*written.get_ref(), written.span());
    let (path, shown) = (table.path("name"), name.escape_debug());
    let length = name.chars().count();
    let printable = |c: char| c == ' ' || !(c.is_control() || c.is_whitespace());
    if !(1..=NAME_LENGTH_MAX).contains(&length) {
        let message = format!("{path} has {length} characters, must have 1..={NAME_LENGTH_MAX}");
        report.error(&span, message, None);
    } else if !name.chars().all(printable) {
        report.error(&span, format!("{path} is \"{shown}\", must consist of printable characters"), None);
    } else if let Some(first) = claimed.names.get(name) {
        let message = format!("{path} is \"{shown}\", which the virtual server on line {first} is called already");
        report.error(&span, message, Some("give each virtual server a name of its own, or none".into()));
    } else {
        claimed.names.insert(name.to_owned(), report.line(&span));
    }
    Some(name.to_owned())
}

fn vip(table: &Reader<'_>, report: &mut Report<'_>) -> Option<(SocketAddr, Range<usize>)> {
    let written = table.string("address", report)?;
    let (path, text, span) = (table.path("address"), *written.get_ref(), written.span());
    let read = address::parse(text, Role::VirtualServer);
    let (what, help) = match read {
        Ok(address::Written { ip, port: Some(port) }) => return Some((SocketAddr::new(ip, port), span)),
        Ok(address::Written { port: None, .. }) if table.has("port") => return None,
        Ok(address::Written { ip, port: None }) => {
            let [http, all] = [80, 0].map(|port| address::with_port(ip, port));
            let help = format!("write \"{http}\" for port 80, or \"{all}\" for all ports");
            (format!("must have a port, {}", Role::VirtualServer.ports()), Some(help))
        }
        Err(address::Fault { what, help }) => (what, help),
    };
    report.error(&span, format!("{path} is \"{}\", {what}", text.escape_debug()), help);
    None
}

fn claim_service(service: Service, span: &Range<usize>, claimed: &mut Claimed, report: &mut Report<'_>) {
    if let Some(first) = claimed.services.get(&service) {
        let message = format!("virtual_server {service} is there twice, first on line {first}");
        let help = "put the real servers of both under one, or change address, port or protocol".to_owned();
        report.error(span, message, Some(help));
        return;
    }
    claimed.services.insert(service, report.line(span));
}
