//! `allow`, `deny`, `allow_file` and `deny_file` of a virtual server: which clients it serves.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::PREFIXES_MAX;

use super::global::path;
use super::reader::Reader;
use super::report::Report;
use super::suggest::did_you_mean;
use crate::model::{Access, AccessList};

/// Reads files that the configuration names.
pub type Files<'f> = &'f dyn Fn(&Path) -> io::Result<String>;

/// Errors of one file that are told one by one.
const ERRORS_TOLD: usize = 10;

const EXAMPLES: &str = "write a prefix such as \"192.0.2.0/24\" or \"2001:db8::/32\", or one address";
const EMPTY_HELP: &str = "nobody would be served; remove it to serve everybody, or allow somebody";

/// Reads the list of the virtual server in `table` at `vip`; `None` where it serves everybody, or is unreadable.
pub fn read(
    table: &Reader<'_>,
    vip: Option<IpAddr>,
    files: Files<'_>,
    report: &mut Report<'_>,
) -> Option<Arc<AccessList>> {
    let mut prefixes = Prefixes { vip, found: BTreeMap::new() };
    prefixes.read_list(table, Key { name: "allow", access: Access::Permitted }, report);
    prefixes.read_file(table, Key { name: "allow_file", access: Access::Permitted }, files, report);
    prefixes.read_list(table, Key { name: "deny", access: Access::Denied }, report);
    prefixes.read_file(table, Key { name: "deny_file", access: Access::Denied }, files, report);
    let count = prefixes.found.len();
    if count > usize::try_from(PREFIXES_MAX).unwrap_or(usize::MAX) {
        let message = format!("virtual_server allows and denies {count} prefixes, must be at most {PREFIXES_MAX}");
        report.error(&table.span, message, Some("merge neighbours into shorter prefixes".to_owned()));
    }
    let access = prefixes.found.into_iter().map(|(prefix, (access, _))| (prefix, access)).collect::<BTreeMap<_, _>>();
    (!access.is_empty()).then(|| Arc::new(AccessList::new(access)))
}

/// The prefixes so far, each with where it was written.
struct Prefixes {
    vip: Option<IpAddr>,
    found: BTreeMap<IpNet, (Access, String)>,
}

/// A key, and what it says of the prefixes under it.
#[derive(Clone, Copy)]
struct Key {
    name: &'static str,
    access: Access,
}

/// What is wrong with a prefix, and the way out.
struct Fault {
    what: String,
    help: String,
}

impl Prefixes {
    fn read_list(&mut self, table: &Reader<'_>, key: Key, report: &mut Report<'_>) {
        let Key { name: key, access } = key;
        let Some(written) = table.strings(key, report) else { return };
        if written.get_ref().is_empty() && access == Access::Permitted {
            report_empty(table, key, &written.span(), report);
        }
        for text in written.get_ref() {
            let place = format!("on line {}", report.line(&text.span()));
            if let Err(Fault { what, help }) = self.add(text.get_ref(), access, place) {
                let message = format!("{} holds \"{}\", {what}", table.path(key), text.get_ref().escape_debug());
                report.error(&text.span(), message, Some(help));
            }
        }
    }

    fn read_file(&mut self, table: &Reader<'_>, key: Key, files: Files<'_>, report: &mut Report<'_>) {
        let Key { name: key, access } = key;
        let (Some(file), Some(span)) = (path(table, key, report), table.place(key)) else { return };
        let name = file.display();
        let text = match files(&file) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("{} is \"{name}\", which cannot be read: {error}", table.path(key));
                return report.error(&span, message, Some("give it one prefix a line; # begins a comment".to_owned()));
            }
        };
        let lines =
            text.lines().zip(1..).map(|(line, number)| (line.split('#').next().unwrap_or_default().trim(), number));
        let (mut count, mut faults) = (0, 0);
        for (line, number) in lines.filter(|(line, _): &(&str, usize)| !line.is_empty()) {
            count += 1;
            let Err(Fault { what, help }) = self.add(line, access, format!("in {name}:{number}")) else { continue };
            faults += 1;
            if faults <= ERRORS_TOLD {
                report.error(&span, format!("{name}:{number}: \"{}\" {what}", line.escape_debug()), Some(help));
            }
        }
        if faults > ERRORS_TOLD {
            report.error(&span, format!("{name}: {} more lines are wrong", faults - ERRORS_TOLD), None);
        }
        if count == 0 && access == Access::Permitted {
            report_empty(table, key, &span, report);
        }
    }

    fn add(&mut self, text: &str, access: Access, place: String) -> Result<(), Fault> {
        let prefix = self.prefix(text)?;
        match self.found.get(&prefix) {
            Some((present, first)) if *present != access => {
                let other = if access == Access::Denied { "allowed" } else { "denied" };
                let what = format!("which is {other} {first}, must be either");
                Err(Fault {
                    what,
                    help: "remove one of the two; of prefixes in each other the longer one holds".to_owned(),
                })
            }
            // Collected from several sources, lists have many an entry twice.
            Some(_) => Ok(()),
            None => {
                self.found.insert(prefix, (access, place));
                Ok(())
            }
        }
    }

    fn prefix(&self, text: &str) -> Result<IpNet, Fault> {
        let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        let Some(network) = network else {
            return Err(Fault { what: "must be a prefix or an address".to_owned(), help: EXAMPLES.to_owned() });
        };
        if network.trunc() != network {
            let help = did_you_mean(&network.trunc().to_string());
            return Err(Fault { what: format!("must have no bits beyond the first {}", network.prefix_len()), help });
        }
        match self.vip {
            Some(vip) if vip.is_ipv4() != network.addr().is_ipv4() => {
                let family = if vip.is_ipv4() { "IPv4" } else { "IPv6" };
                let help = format!("the virtual server's clients have {family} addresses; remove it");
                Err(Fault { what: format!("must be of {family}, as {vip}"), help })
            }
            Some(_) | None => Ok(network),
        }
    }
}

fn report_empty(table: &Reader<'_>, key: &'static str, span: &Range<usize>, report: &mut Report<'_>) {
    let message = format!("{} is empty, must hold at least one prefix", table.path(key));
    report.error(span, message, Some(EMPTY_HELP.to_owned()));
}
