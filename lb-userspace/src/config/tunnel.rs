//! `tunnel_source_ipv4` and `tunnel_source_ipv6` of `[xdp]`: from which addresses tunnelled packets come.

use std::net::IpAddr;

use ipnet::IpNet;

use super::address;
use super::model::TunnelSources;
use super::reader::Reader;
use super::report::Report;
use super::suggest::did_you_mean;
use crate::model::VirtualServer;

/// A key, and what may stand there.
struct Source {
    key: &'static str,
    family: &'static str,
    is_ipv4: bool,
    /// Shortest prefix, and bits of an address. What is filled is a word of 32 bits at most.
    lengths: [u8; 2],
    examples: &'static str,
}

const IPV4: Source = Source {
    key: "tunnel_source_ipv4",
    family: "IPv4",
    is_ipv4: true,
    lengths: [8, 32],
    examples: r#"write an address of this host, "10.0.1.1", or a prefix without host bits, "10.9.0.0/16""#,
};

const IPV6: Source = Source {
    key: "tunnel_source_ipv6",
    family: "IPv6",
    is_ipv4: false,
    lengths: [32, 128],
    examples: r#"write an address of this host, "2001:db8::1", or a prefix without host bits, "2001:db8:9::/64""#,
};

/// Reads both; `None` for what is missing or wrong.
pub fn read(table: &Reader<'_>, report: &mut Report<'_>) -> TunnelSources {
    TunnelSources { ipv4: IPV4.read(table, report), ipv6: IPV6.read(table, report) }
}

/// Reports sources that cannot be what `virtual_servers` are: a real server drops what seems to come from itself, and what
/// answers a VIP is taken for a client's.
pub fn check(root: &Reader<'_>, sources: &TunnelSources, virtual_servers: &[VirtualServer], report: &mut Report<'_>) {
    let TunnelSources { ipv4, ipv6 } = sources;
    for (Source { key, .. }, source) in [(IPV4, ipv4), (IPV6, ipv6)] {
        let Some(source) = source else { continue };
        let Some(place) = root.place_in("xdp", key) else { continue };
        for server in virtual_servers {
            let vip = server.service.address.ip();
            let mut reals = server.real_servers.iter().chain(&server.sorry_server).map(|real| real.address.ip());
            let what = if source.contains(&vip) {
                format!("VIP {vip}")
            } else if let Some(real) = reals.find(|real| source.contains(real)) {
                format!("the real server {real}")
            } else {
                continue;
            };
            let is_it = if source.prefix_len() == source.max_prefix_len() { "be" } else { "hold" };
            let message = format!("xdp.{key} is {}, must not {is_it} {what}", report.quote(&place));
            report.error(&place, message, Some("take an address or a prefix that nothing else has".to_owned()));
            break;
        }
    }
}

impl Source {
    fn read(&self, table: &Reader<'_>, report: &mut Report<'_>) -> Option<IpNet> {
        let written = table.string(self.key, report)?;
        let text = written.get_ref().trim();
        match self.parse(text) {
            Ok(source) => Some(source),
            Err((what, help)) => {
                let message = format!("{} is \"{}\", {what}", table.path(self.key), text.escape_debug());
                report.error(&written.span(), message, Some(help));
                None
            }
        }
    }

    /// What is wrong, and the way out.
    fn parse(&self, text: &str) -> Result<IpNet, (String, String)> {
        let Self { key: _, family, is_ipv4, lengths: [shortest, longest], examples } = *self;
        let example = || examples.to_owned();
        let host = text.parse::<IpAddr>().ok().map(IpNet::from);
        let Some(source) = host.or_else(|| text.parse().ok()) else {
            return Err((format!("must be an {family} address or prefix"), example()));
        };
        let address = source.addr();
        if address.is_ipv4() != is_ipv4 {
            let other = if is_ipv4 { IPV6.key } else { IPV4.key };
            return Err((format!("must be {family}"), format!("write it as {other}, or {examples}")));
        }
        if !(shortest..=longest).contains(&source.prefix_len()) {
            return Err((format!("must have a prefix length of {shortest}..={longest}"), example()));
        }
        if source.trunc() != source {
            let meant = [source.trunc().to_string(), address.to_string()];
            return Err((
                format!("must be without host bits: a hash of the flow fills them for {}", meant[0]),
                format!("{} Or \"{}\" for that address alone", did_you_mean(&meant[0]), meant[1]),
            ));
        }
        match address::forbidden(address) {
            Some(kind) => Err((format!("must not be {kind}"), example())),
            None => Ok(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &Source, text: &str) -> String {
        source.parse(text).map_or_else(|(what, _)| what, |net| net.to_string())
    }

    #[test]
    fn addresses_and_prefixes_are_read() {
        assert_eq!(read(&IPV4, "10.0.1.1"), "10.0.1.1/32");
        assert_eq!(read(&IPV4, "10.9.0.0/16"), "10.9.0.0/16");
        assert_eq!(read(&IPV6, "2001:db8::1"), "2001:db8::1/128");
        assert_eq!(read(&IPV6, "2001:db8:9::/64"), "2001:db8:9::/64");
    }

    #[test]
    fn what_no_packet_can_come_from_is_refused() {
        for (source, text, what) in [
            (&IPV4, "director", "must be an IPv4 address or prefix"),
            (&IPV4, "10.0.1.1:80", "must be an IPv4 address or prefix"),
            (&IPV4, "2001:db8::1", "must be IPv4"),
            (&IPV6, "10.0.1.1", "must be IPv6"),
            (&IPV4, "10.0.0.0/7", "must have a prefix length of 8..=32"),
            (&IPV6, "2000::/16", "must have a prefix length of 32..=128"),
            (&IPV4, "0.0.0.0", "must not be the unspecified address"),
            (&IPV4, "127.0.0.0/8", "must not be a loopback address"),
            (&IPV6, "fe80::/64", "must not be a link-local address"),
            (&IPV6, "::ffff:10.0.0.1", "must not be an IPv4-mapped address"),
        ] {
            assert_eq!(read(source, text), what, "{text}");
        }
        assert!(read(&IPV4, "10.9.0.1/16").starts_with("must be without host bits"));
    }
}
