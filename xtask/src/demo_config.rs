//! The demo's configuration: configs/demo.toml, with the folders of the lab and what the flags ask for.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use evenkeel_tests::lab::{Forwarding, address};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use crate::run::Demo;

/// The forwarding methods by their names in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Method {
    /// Addresses and ports are rewritten; replies come back through the director.
    Nat,
    /// Direct routing: the real server answers the client itself.
    Dr,
    /// Tunnelling: the real server unpacks and answers the client itself.
    Tun,
}

impl Method {
    /// As the configuration has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Dr => "dr",
            Self::Tun => "tun",
        }
    }

    /// How the lab prepares real servers for it.
    pub(crate) fn lab(self) -> Forwarding {
        match self {
            Self::Nat => Forwarding::Nat,
            Self::Dr => Forwarding::Direct,
            Self::Tun => Forwarding::Tunnel,
        }
    }
}

/// The configuration as text, and the name of the instance in it.
#[derive(Debug)]
pub(crate) struct DemoConfig {
    pub(crate) text: String,
    pub(crate) instance: String,
}

/// Edits the text of configs/demo.toml: the folders for the socket and for pinned maps, and what the flags ask for.
pub(crate) fn adjust(template: &str, demo: &Demo, runtime: &Path, pins: &Path) -> Result<DemoConfig> {
    let mut document: DocumentMut = template.parse().context("configs/demo.toml is not TOML")?;
    let global = table(&mut document, "global")?;
    global.insert("runtime_directory", value(runtime.display().to_string()));
    let instance = global.get("instance").and_then(Item::as_str).unwrap_or("evenkeel").to_owned();
    table(&mut document, "xdp")?.insert("pin_directory", value(pins.display().to_string()));
    let servers = document.get_mut("virtual_server").and_then(Item::as_array_of_tables_mut);
    for server in servers.context("configs/demo.toml has no [[virtual_server]]")?.iter_mut() {
        server.insert("scheduler", value(&demo.scheduler));
        server.insert("forwarding", value(demo.forwarding.name()));
        let reals = server.get_mut("real_server").and_then(Item::as_array_of_tables_mut);
        renumber(reals.context("configs/demo.toml has no [[virtual_server.real_server]]")?, demo.real_servers)?;
    }
    Ok(DemoConfig { text: document.to_string(), instance })
}

fn table<'a>(document: &'a mut DocumentMut, name: &str) -> Result<&'a mut Table> {
    let item = document.entry(name).or_insert_with(toml_edit::table);
    item.as_table_mut().with_context(|| format!("configs/demo.toml has {name}, but not as a table"))
}

/// Makes `count` real servers of the ones there are, each a copy of the first at the lab's next address.
fn renumber(reals: &mut ArrayOfTables, count: u8) -> Result<()> {
    let Some(first) = reals.get(0).cloned() else {
        bail!("configs/demo.toml has a virtual server without real servers")
    };
    let written =
        first.get("address").and_then(Item::as_str).context("configs/demo.toml: a real server has no address")?;
    let address: SocketAddr =
        written.parse().with_context(|| format!("configs/demo.toml: {written} is not ip:port"))?;
    while reals.len() > usize::from(count) {
        reals.remove(reals.len() - 1);
    }
    for number in 1..=count {
        let ip: IpAddr = match address {
            SocketAddr::V4(_) => address::real4(number).into(),
            SocketAddr::V6(_) => address::real6(number).into(),
        };
        if usize::from(number) > reals.len() {
            let mut copy = first.clone();
            // Without a position of its own it is printed where it stands in the list.
            copy.set_position(None);
            reals.push(copy);
        }
        let real = reals.get_mut(usize::from(number) - 1).context("just pushed")?;
        real.insert("address", value(SocketAddr::new(ip, address.port()).to_string()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = r#"# comment
[global]
instance = "demo"

[xdp]
interfaces = ["eth0"]

[[virtual_server]]
address = "10.77.0.100:80"
scheduler = "rr"
forwarding = "nat"

[[virtual_server.real_server]]
address = "10.77.1.11:80"

[[virtual_server.real_server]]
address = "10.77.1.12:80"

[[virtual_server]]
address = "[fd77::100]:5353"
scheduler = "rr"
forwarding = "nat"

[[virtual_server.real_server]]
address = "[fd77:1::11]:5353"
"#;

    fn edited(real_servers: u8) -> DemoConfig {
        let demo = Demo { duration: None, forwarding: Method::Tun, scheduler: "wlc".into(), real_servers };
        adjust(TEMPLATE, &demo, Path::new("/a/run"), Path::new("/a/bpffs/evenkeel")).unwrap()
    }

    #[test]
    fn folders_scheduler_and_method_are_set_and_comments_stay() {
        let DemoConfig { text, instance } = edited(1);
        assert_eq!(instance, "demo");
        assert!(text.starts_with("# comment\n"), "{text}");
        assert!(text.contains("runtime_directory = \"/a/run\"\n"), "{text}");
        assert!(text.contains("pin_directory = \"/a/bpffs/evenkeel\"\n"), "{text}");
        assert_eq!(text.matches("scheduler = \"wlc\"\n").count(), 2, "{text}");
        assert_eq!(text.matches("forwarding = \"tun\"\n").count(), 2, "{text}");
    }

    /// Each virtual server's own real servers follow it, in order, whether there are fewer or more than in the file.
    #[test]
    fn real_servers_are_as_many_as_asked() {
        for count in [1, 2, 3, 16] {
            let text = edited(count).text;
            let addresses: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("address = ")).collect();
            let mut expected = vec!["\"10.77.0.100:80\"".to_owned()];
            expected.extend((11..11 + count).map(|last| format!("\"10.77.1.{last}:80\"")));
            expected.push("\"[fd77::100]:5353\"".to_owned());
            expected.extend((11..11 + count).map(|last| format!("\"[fd77:1::{last}]:5353\"")));
            assert_eq!(addresses, expected, "{text}");
        }
    }
}
