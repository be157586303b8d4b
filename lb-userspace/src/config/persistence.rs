//! `persistence_timeout` and `persistence_granularity` of a virtual server.

use std::net::{IpAddr, Ipv4Addr};

use super::reader::Reader;
use super::report::Report;
use super::suggest::did_you_mean;
use super::timeouts::CLOCK_HELP;
use crate::model::Persistence;

/// Reads the persistence of the virtual server in `table` at `vip`; `None` when it has none, or an unreadable one.
pub fn read(table: &Reader<'_>, vip: Option<IpAddr>, report: &mut Report<'_>) -> Option<Persistence> {
    let timeout = table.duration("persistence_timeout", CLOCK_HELP, report);
    let granularity = Granularity::of(vip);
    let prefix_length = granularity.read(table, report).unwrap_or(granularity.longest);
    if let Some(span) = table.place("persistence_granularity").filter(|_| table.lacks("persistence_timeout", report)) {
        let (path, found) = (table.path("persistence_granularity"), report.quote(&span));
        let help = r#"write persistence_timeout = "300s", or remove it"#.to_owned();
        report.error(&span, format!("{path} is {found}, must be beside a persistence_timeout"), Some(help));
    }
    Some(Persistence { timeout: timeout?, prefix_length })
}

/// What `persistence_granularity` may be for one family of addresses.
struct Granularity {
    /// Bits of an address.
    longest: u8,
    /// Whether a netmask may stand for the prefix length.
    netmask: bool,
}

impl Granularity {
    const HELP: &str = "clients whose addresses share so many leading bits count as one";

    /// As for IPv6 where the address of the virtual server is unknown.
    const fn of(vip: Option<IpAddr>) -> Self {
        match vip {
            Some(IpAddr::V4(_)) => Self { longest: 32, netmask: true },
            Some(IpAddr::V6(_)) => Self { longest: 128, netmask: false },
            None => Self { longest: 128, netmask: true },
        }
    }

    fn allowed(&self) -> String {
        let length = format!("a prefix length, 1..={}", self.longest);
        if self.netmask { format!("a netmask in quotes or {length}") } else { length }
    }

    fn read(&self, table: &Reader<'_>, report: &mut Report<'_>) -> Option<u8> {
        let allowed = self.allowed();
        let written = table.text("persistence_granularity", &allowed, report)?;
        let text = written.get_ref().trim();
        let length = self.prefix_length(text);
        if length.is_none() {
            let (path, found) = (table.path("persistence_granularity"), report.quote(&written.span()));
            let help = self.meant(text).map_or_else(|| Self::HELP.to_owned(), |meant| did_you_mean(&meant));
            report.error(&written.span(), format!("{path} is {found}, must be {allowed}"), Some(help));
        }
        length
    }

    /// `24` or `255.255.255.0`.
    fn prefix_length(&self, text: &str) -> Option<u8> {
        let length = match text.parse::<Ipv4Addr>() {
            Ok(mask) if self.netmask => ones(mask)?,
            Ok(_) | Err(_) if text.starts_with('+') => return None,
            Ok(_) | Err(_) => text.parse().ok()?,
        };
        (1..=self.longest).contains(&length).then_some(length)
    }

    /// `/24` was meant as 24, and `0.0.0.255`, which is a mask of host bits, as 255.255.255.0.
    fn meant(&self, text: &str) -> Option<String> {
        let inverted = || text.parse().ok().map(|mask: Ipv4Addr| Ipv4Addr::from_bits(!mask.to_bits()).to_string());
        let meant = text.strip_prefix('/').map(str::to_owned).or_else(inverted)?;
        self.prefix_length(&meant).map(|_| meant)
    }
}

/// The leading ones of a netmask, `None` when there are gaps between them.
fn ones(mask: Ipv4Addr) -> Option<u8> {
    let ones = mask.to_bits().leading_ones();
    if ones == mask.to_bits().count_ones() { u8::try_from(ones).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: Granularity = Granularity { longest: 32, netmask: true };
    const V6: Granularity = Granularity { longest: 128, netmask: false };

    #[test]
    fn a_netmask_without_gaps_is_its_leading_ones() {
        assert_eq!(V4.prefix_length("255.255.255.0"), Some(24));
        assert_eq!(V4.prefix_length("255.255.255.255"), Some(32));
        assert_eq!(V4.prefix_length("128.0.0.0"), Some(1));
        for wrong in ["255.0.255.0", "0.0.0.255", "0.0.0.0", "255.255.255", "ffff::", "+24"] {
            assert_eq!(V4.prefix_length(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_prefix_length_is_at_most_that_of_an_address() {
        assert_eq!((V4.prefix_length("1"), V4.prefix_length("32"), V4.prefix_length("33")), (Some(1), Some(32), None));
        assert_eq!((V6.prefix_length("64"), V6.prefix_length("129")), (Some(64), None));
        assert_eq!((V4.prefix_length("0"), V6.prefix_length("255.255.255.0")), (None, None));
    }

    #[test]
    fn what_others_write_is_understood() {
        assert_eq!(V4.meant("/24").as_deref(), Some("24"));
        assert_eq!(V4.meant("0.0.0.255").as_deref(), Some("255.255.255.0"));
        assert_eq!(V6.meant("/64").as_deref(), Some("64"));
        assert_eq!((V4.meant("255.0.255.0"), V4.meant("/33"), V6.meant("0.0.0.255")), (None, None, None));
    }
}
