//! `[[virtual_server.real_server]]`: who serves, and that it can serve its virtual server.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use lb_common::REAL_SERVERS_MAX;
use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;
use toml::Spanned;

use super::address::{self, Role};
use super::reader::Reader;
use super::report::Report;
use super::schema;
use super::sorry_server;
use super::virtual_server::FORWARDING_METHODS;
use crate::model::{RealServer, Thresholds, Weight};

/// Most virtual servers of a protocol that one address and port may serve by `nat`: a reply is told apart by trying each.
const SAME_NAT_MAX: usize = 64;

const WEIGHT_HELP: &str = "it is a share of new connections; 0 takes none";
const THRESHOLD_HELP: &str = "it counts connections, active and inactive; 0 sets no limit";

/// What a real server needs to know of its virtual server.
pub struct Parent<'c> {
    /// The VIP and port, and the line on which they are written; `None` when they are wrong or missing.
    pub address: Option<(SocketAddr, usize)>,
    /// The protocol; `None` when it is wrong or missing.
    pub protocol: Option<Protocol>,
    /// The forwarding method of real servers that name none.
    pub forwarding: Option<ForwardingMethod>,
    /// What all virtual servers have used up so far.
    pub tally: &'c mut Tally,
    /// The line of the first of its servers that is reached by `nat`, once they are read.
    pub first_nat: Option<usize>,
    /// The line of the first `upper_threshold` of its servers that sets a limit, once they are read.
    pub first_threshold: Option<usize>,
}

/// What the virtual servers of a file use up together.
#[derive(Default)]
pub struct Tally {
    servers: usize,
    behind_nat: HashMap<(SocketAddr, Protocol), usize>,
    /// By address: where each stands, for which virtual server, and on which port.
    nat_ports: HashMap<(IpAddr, Protocol), Vec<NatPort>>,
}

/// A port of an address behind `nat`.
struct NatPort {
    /// Where it stands.
    line: usize,
    /// The virtual server.
    vip: SocketAddr,
    /// Zero: all.
    port: u16,
}

/// Who serves a virtual server.
pub struct Servers {
    /// Those without errors, in the order of the file.
    pub real: Vec<RealServer>,
    /// `None` also when it has errors.
    pub sorry: Option<RealServer>,
}

impl Tally {
    fn count(&mut self, table: &Reader<'_>, report: &mut Report<'_>) {
        self.servers += 1;
        if u32::try_from(self.servers).is_ok_and(|servers| servers == REAL_SERVERS_MAX + 1) {
            let message =
                format!("more than {REAL_SERVERS_MAX} real servers in all, must be at most {REAL_SERVERS_MAX}");
            let help = "this is the first too many; each virtual server counts its own, and its sorry_server; give the \
                        rest to another instance";
            report.error(&table.span, message, Some(help.into()));
        }
    }
}

impl Parent<'_> {
    /// Counts the virtual servers that the server in `table` serves by `nat`.
    pub fn claim_nat(&mut self, table: &Reader<'_>, site: &Site, report: &mut Report<'_>) {
        let Site { address, forwarding, span } = site;
        let Some(protocol) = self.protocol.filter(|_| *forwarding == Some(ForwardingMethod::Nat)) else { return };
        self.keep_replies_apart(site, protocol, table, report);
        let count = self.tally.behind_nat.entry((*address, protocol)).or_default();
        *count += 1;
        if *count == SAME_NAT_MAX + 1 {
            let message = format!(
                "{} is {address}, which serves {SAME_NAT_MAX} virtual servers of protocol {} by nat already, must be at most \
                 {SAME_NAT_MAX}",
                table.path("address"),
                protocol.name(),
            );
            let help = "each of its replies is told apart by trying them all; take another address or port, or \"dr\" or \"tun\"";
            report.error(span, message, Some(help.into()));
        }
    }

    /// A reply from a port belongs to the virtual server that has it behind that port, or to one on all ports; where a client
    /// could reach the same port by both, it would not be known by which.
    fn keep_replies_apart(&mut self, site: &Site, protocol: Protocol, table: &Reader<'_>, report: &mut Report<'_>) {
        let Site { address, forwarding: _, span } = site;
        let Some((vip, _)) = self.address else { return };
        let known = self.tally.nat_ports.entry((address.ip(), protocol)).or_default();
        let meets = |other: &&NatPort| {
            let (all, own, own_port) = match (address.port(), other.port) {
                (0, port) if port != 0 => (vip, other.vip, port),
                (port, 0) if port != 0 => (other.vip, vip, port),
                _ => return false,
            };
            // Clients of the same VIP reach that port by the virtual server of its own alone.
            !(all.ip() == own.ip() && own.port() == own_port)
        };
        if let Some(NatPort { line, .. }) = known.iter().find(meets) {
            let message = format!(
                "{} is {address} by nat, which serves another virtual server of protocol {} by nat on line {line}, one of the two \
                 on all ports, so that replies could not be told apart",
                table.path("address"),
                protocol.name(),
            );
            let help = "take another address for one of the two, or \"dr\" or \"tun\"".to_owned();
            report.error(span, message, Some(help));
        }
        known.push(NatPort { line: report.line(span), vip, port: address.port() });
    }
}

/// Where a server is and how packets reach it.
pub struct Site {
    /// Address and port.
    pub address: SocketAddr,
    /// Its own forwarding method, or its virtual server's.
    pub forwarding: Option<ForwardingMethod>,
    /// Where the address is written.
    pub span: Range<usize>,
}

/// Reads every real server of the virtual server in `table`, and its sorry server.
pub fn read_all(table: &Reader<'_>, parent: &mut Parent<'_>, report: &mut Report<'_>) -> Servers {
    let tables = table.tables("real_server", &schema::REAL_SERVER, report);
    if tables.is_empty() && (table.lacks("real_server", report) || table.is_empty_array("real_server")) {
        let help = r#"write [[virtual_server.real_server]] below it, and under that address = "10.0.1.11:80""#;
        report.error(
            &table.span,
            "virtual_server has no real_server, must have at least one".into(),
            Some(help.into()),
        );
    }
    let sorry_table = table.table("sorry_server", &schema::SORRY_SERVER, report);
    check_forwarding(table, &tables, sorry_table.as_ref(), report);
    let mut lines = HashMap::new();
    let mut real = vec![];
    for table in &tables {
        real.extend(read(table, parent, &mut lines, report));
    }
    let sorry = sorry_table.as_ref().and_then(|table| sorry_server::read(table, parent, &lines, report));
    Servers { real, sorry }
}

/// Reported once for the virtual server, not for each of its servers.
fn check_forwarding(table: &Reader<'_>, real: &[Reader<'_>], sorry: Option<&Reader<'_>>, report: &mut Report<'_>) {
    let line = |table: &Reader<'_>| (!table.has("forwarding")).then(|| report.line(&table.span));
    let lines: Vec<usize> = real.iter().filter_map(line).collect();
    let sorry = sorry.and_then(line).map(|line| format!("under the sorry_server on line {line}"));
    let real = match lines.as_slice() {
        [] => None,
        [line] => Some(format!("under the real_server on line {line}")),
        [line, ..] => Some(format!("under each of {} real servers, the first on line {line}", lines.len())),
    };
    let elsewhere: Vec<String> = real.into_iter().chain(sorry).collect();
    if !elsewhere.is_empty() {
        let help = format!("write it here, or {}", elsewhere.join(", and "));
        table.require("forwarding", r#""nat", "dr" or "tun""#, &help, report);
    }
}

fn read(
    table: &Reader<'_>,
    parent: &mut Parent<'_>,
    lines: &mut HashMap<SocketAddr, usize>,
    report: &mut Report<'_>,
) -> Option<RealServer> {
    let weight = table.integer("weight", 0..=u16::MAX, WEIGHT_HELP, report).map_or(Weight::ONE, Weight::new);
    let thresholds = thresholds(table, report);
    if let Some(span) = table.place("upper_threshold").filter(|_| thresholds.upper > 0) {
        parent.first_threshold.get_or_insert(report.line(&span));
    }
    let site = site(table, r#"write address = "10.0.1.11:80""#, parent, report)?;
    let Site { address, forwarding, ref span } = site;
    if let Some(line) = lines.insert(address, report.line(span)) {
        let message = format!("{} {address} is there twice, first on line {line}", schema::REAL_SERVER.path);
        let help = "remove one of the two; a larger weight gives a real server more connections".to_owned();
        report.error(span, message, Some(help));
    } else {
        parent.claim_nat(table, &site, report);
    }
    Some(RealServer { address, weight, forwarding: forwarding?, thresholds })
}

fn thresholds(table: &Reader<'_>, report: &mut Report<'_>) -> Thresholds {
    let mut threshold = |key| table.integer(key, 0..=u32::MAX, THRESHOLD_HELP, report);
    let (upper, lower) = (threshold("upper_threshold"), threshold("lower_threshold"));
    let unreadable = upper.is_none() && !table.lacks("upper_threshold", report);
    let thresholds = Thresholds { upper: upper.unwrap_or_default(), lower: lower.unwrap_or_default() };
    if !unreadable && thresholds.lower > thresholds.upper {
        report_lower_threshold(table, thresholds, report);
    }
    thresholds
}

fn report_lower_threshold(table: &Reader<'_>, thresholds: Thresholds, report: &mut Report<'_>) {
    let Thresholds { upper, lower } = thresholds;
    let span = table.place("lower_threshold").unwrap_or_else(|| table.span.clone());
    let path = table.path("lower_threshold");
    let (message, help) = match table.place("upper_threshold") {
        Some(place) if upper > 0 => (
            format!("{path} is {lower}, must be at most upper_threshold, {upper} on line {}", report.line(&place)),
            "with fewer connections than it a real server that had too many takes new ones again",
        ),
        Some(_) | None => (
            format!("{path} is {lower} without an upper_threshold, must be 0"),
            "write upper_threshold, the connections from which on it takes no new ones, or remove it",
        ),
    };
    report.error(&span, message, Some(help.to_owned()));
}

/// Where the server in `table` is; `None` when that is wrong or missing, for which `example` is the way out.
pub fn site(table: &Reader<'_>, example: &str, parent: &mut Parent<'_>, report: &mut Report<'_>) -> Option<Site> {
    parent.tally.count(table, report);
    table.require("address", r#""ip:port" or "ip""#, example, report);
    let own = table.word("forwarding", &FORWARDING_METHODS, report);
    let inherited = if table.has("forwarding") { None } else { parent.forwarding };
    let forwarding = own.or(inherited);
    if forwarding == Some(ForwardingMethod::Nat) {
        parent.first_nat.get_or_insert(report.line(&table.span));
    }
    let written = written_address(table, report)?;
    let address = fit(&written, forwarding, parent, table, report)?;
    Some(Site { address, forwarding, span: written.span() })
}

fn written_address(table: &Reader<'_>, report: &mut Report<'_>) -> Option<Spanned<address::Written>> {
    let text = table.string("address", report)?;
    match address::parse(text.get_ref(), Role::RealServer) {
        Ok(written) => Some(Spanned::new(text.span(), written)),
        Err(address::Fault { what, help }) => {
            let message = format!("{} is \"{}\", {what}", table.path("address"), text.get_ref().escape_debug());
            report.error(&text.span(), message, help);
            None
        }
    }
}

/// Checks that the server at `written` can serve its virtual server; yields its address and port.
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
    let (path, family) = (table.path("address"), |v4| if v4 { "IPv4" } else { "IPv6" });
    if let Some(method @ (ForwardingMethod::Nat | ForwardingMethod::Dr)) = forwarding
        && ip.is_ipv4() != vip.is_ipv4()
    {
        let (found, allowed) = (family(ip.is_ipv4()), family(vip.is_ipv4()));
        let message = format!("{path} is {found}, must be {allowed} like the virtual server's on line {line}");
        let why = match method {
            ForwardingMethod::Nat => "nat does not translate between families",
            ForwardingMethod::Dr | ForwardingMethod::Tun => "dr sends packets as they are",
        };
        let help = format!("{why}; forwarding = \"tun\" carries either family in the other");
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
    let wrong = match (vip.port(), port) {
        (_, None) | (0, Some(0)) => None,
        (0, Some(port)) => Some((
            format!(
                "port {port}, must have none: the virtual server on line {line} serves all ports, and packets keep theirs"
            ),
            format!("write \"{}\"", address::alone(ip)),
        )),
        (allowed, Some(0)) => Some((
            format!("port 0, must be {}", Role::RealServer.ports()),
            format!("write \"{}\"; 0 is for a virtual server on all ports", address::with_port(ip, allowed)),
        )),
        (allowed, Some(found)) => keeps_port.filter(|_| found != allowed).map(|method| {
            (
                format!("port {found}, must be {allowed} as on line {line}: {} does not change ports", method.name()),
                format!("write \"{}\", or forwarding = \"nat\"", address::with_port(ip, allowed)),
            )
        }),
    };
    if let Some((what, help)) = wrong {
        report.error(span, format!("{path} has {what}"), Some(help));
    }
    Some(SocketAddr::new(ip, port.unwrap_or(vip.port())))
}
