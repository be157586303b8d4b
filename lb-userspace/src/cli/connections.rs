//! `evenkeel connections`: lists and counts what is in the connection table.
//!
//! It reads the pinned maps itself: the daemon has no work with ten million connections, and need not live. So it needs root.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use comfy_table::{CellAlignment, Table, presets};
use ipnet::IpNet;
use lb_common::connection::{State, TICK_SHIFT};
use lb_common::net::Protocol;
use lb_common::service::ServiceKey;
use serde::Serialize;

use super::instance::{self, Known, Target};
use super::operator::RealServerName;
use super::table;
use crate::datapath::xdp::table::clock::Clock;
use crate::datapath::xdp::table::connection::{Connection, Endpoint, Filter, Reader, STATES, Totals};
use crate::datapath::xdp::table::memory_maps::{MappedTables, pinned_timeouts};
use crate::datapath::xdp::table::words::socket_address;
use crate::host::jiffies_per_second;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Options {
    /// VIP, VIP and port, or the name in the configuration.
    pub virtual_server: Option<String>,
    /// Who serves the connection.
    pub real_server: Option<RealServerName>,
    /// Where the client is.
    pub client: Option<IpNet>,
    /// A [`State`].
    pub state: Option<u8>,
    /// The transport protocol.
    pub protocol: Option<Protocol>,
    /// Whether to count instead of listing.
    pub count: bool,
    /// Most connections to list; zero: all.
    pub limit: usize,
    /// Whether to print JSON.
    pub json: bool,
}

/// Prints the connections that are meant, or their number.
///
/// # Errors
///
/// When no maps are found, or they cannot be read.
pub fn connections(target: &Target, options: &Options) -> anyhow::Result<ExitCode> {
    let known = match instance::find(target)? {
        Ok(known) => known,
        Err(code) => return Ok(code),
    };
    let filter = filter(options, &known)?;
    check_pins(&known.pins)?;
    let maps = MappedTables::pinned(&known.pins)?;
    let timeouts = pinned_timeouts(&known.pins)?;
    let now = Clock::load()?.tick()?;
    let reader = Reader::new(maps.tables(), &timeouts, now);
    let mut stdout = BufWriter::new(io::stdout().lock());
    let printed = if options.count {
        count(&reader.totals(&filter), options.json, &mut stdout)
    } else {
        list(&reader, &filter, options, &mut stdout)
    };
    super::ignore_closed_pipe(printed.and_then(|()| stdout.flush()))?;
    Ok(ExitCode::SUCCESS)
}

/// Says in plain words what is wrong where there are no maps to be read.
fn check_pins(directory: &Path) -> anyhow::Result<()> {
    match std::fs::metadata(directory.join("connections")) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            bail!("the maps in {} are for root only", directory.display())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("there is no connection table in {}: its daemon has not run, or was stopped", directory.display())
        }
        Err(error) => Err(error).with_context(|| format!("cannot look into {}", directory.display())),
    }
}

fn filter(options: &Options, known: &Known) -> anyhow::Result<Filter> {
    let Options { virtual_server, real_server, client, state, protocol, count: _, limit: _, json: _ } = options;
    let filter = Filter {
        protocol: *protocol,
        virtual_server: None,
        real_server: real_server.map(|RealServerName { ip, port }| Endpoint { ip, port }),
        client: *client,
        state: *state,
    };
    let Some(text) = virtual_server else { return Ok(filter) };
    if let Ok(endpoint) = endpoint(text) {
        return Ok(Filter { virtual_server: Some(endpoint), ..filter });
    }
    let Some(service) = known.names.get(text) else {
        let names: Vec<&str> = known.names.keys().map(String::as_str).collect();
        let names = if names.is_empty() { "none has a name".to_owned() } else { names.join(", ") };
        bail!("{text:?} is no address, and no virtual server's name here: {names}")
    };
    let port = Some(service.address.port()).filter(|port| *port != 0);
    let named = Endpoint { ip: service.address.ip(), port };
    if protocol.is_some_and(|protocol| protocol != service.protocol) {
        bail!("virtual server {text:?} is {service}, so no connection is meant");
    }
    Ok(Filter { virtual_server: Some(named), protocol: Some(service.protocol), ..filter })
}

/// Reads an address, or an address and a port.
///
/// # Errors
///
/// For clap: what may be written.
pub fn endpoint(text: &str) -> Result<Endpoint, String> {
    let RealServerName { ip, port } = text.parse()?;
    Ok(Endpoint { ip, port })
}

/// Reads a network, or an address that stands for itself.
///
/// # Errors
///
/// For clap: what may be written.
pub fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| "write an address, or a network as 192.0.2.0/24".to_owned())
}

/// Reads the name of a [`State`].
///
/// # Errors
///
/// For clap: the names.
pub fn state(text: &str) -> Result<u8, String> {
    let found = STATES.into_iter().find(|state| State::name(*state) == Some(text));
    found.ok_or_else(|| format!("states are {}", STATES.map(name).join(", ")))
}

/// Reads `tcp`, `udp` or `sctp`.
///
/// # Errors
///
/// For clap: the words.
pub fn protocol(text: &str) -> Result<Protocol, String> {
    Protocol::named(text).ok_or_else(|| "write tcp, udp or sctp".to_owned())
}

fn name(state: u8) -> &'static str {
    State::name(state).unwrap_or("unknown")
}

/// One line of `--json`.
#[derive(Debug, Serialize)]
struct Line {
    /// `tcp`, `udp` or `sctp`.
    protocol: &'static str,
    /// Address and port; for a persistence template, the network of its clients.
    client: String,
    /// What the client addressed.
    virtual_server: SocketAddr,
    /// Who serves it.
    real_server: SocketAddr,
    /// A name of [`State::name`].
    state: &'static str,
    /// Since the last packet; exact to about a second.
    idle_seconds: u64,
    /// Until it ends where no packet comes.
    expires_seconds: u64,
}

impl Line {
    fn new(connection: &Connection, hz: u32) -> Self {
        let Connection { protocol, client, virtual_address, real_server, state, idle, left } = connection;
        Self {
            protocol: protocol.name(),
            client: client.to_string(),
            virtual_server: *virtual_address,
            real_server: *real_server,
            state: name(*state),
            idle_seconds: seconds(*idle, hz),
            expires_seconds: seconds(*left, hz),
        }
    }
}

fn seconds(ticks: u16, hz: u32) -> u64 {
    (u64::from(ticks) << TICK_SHIFT) / u64::from(hz.max(1))
}

/// Prints line by line what is read, so that neither memory nor time is needed for what nobody sees.
fn list(reader: &Reader<'_>, filter: &Filter, options: &Options, out: &mut impl Write) -> io::Result<()> {
    let (hz, limit) = (jiffies_per_second(), if options.limit == 0 { usize::MAX } else { options.limit });
    // An IPv6 address in brackets with its port, and an IPv4 one.
    let width = if reader.has_ipv6() { 47 } else { 21 };
    if !options.json {
        let (client, vip, real) = ("client", "virtual server", "real server");
        let head =
            format!("proto  {client:width$}  {vip:width$}  {real:width$}  {:15}  {:>7}  expires", "state", "idle");
        writeln!(out, "{head}")?;
    }
    for (connection, number) in reader.connections(filter).zip(0..) {
        if number == limit {
            out.flush()?;
            eprintln!("there are more than {limit}; --limit 0 lists all, --count counts them");
            break;
        }
        let line = Line::new(&connection, hz);
        if options.json {
            serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            let Line { protocol, client, virtual_server, real_server, state, idle_seconds, expires_seconds } = line;
            let [vip, real] = [virtual_server, real_server].map(|address| address.to_string());
            let [idle, left] = [idle_seconds, expires_seconds].map(table::span);
            writeln!(
                out,
                "{protocol:5}  {client:width$}  {vip:width$}  {real:width$}  {state:15}  {idle:>7}  {left:>7}"
            )?;
        }
    }
    Ok(())
}

/// What `--count --json` prints.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Counts {
    #[serde(flatten)]
    all: Sum,
    /// In the order of their addresses; only those with connections.
    virtual_servers: Vec<VirtualServerCounts>,
}

/// Numbers of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Sum {
    /// Without persistence templates.
    connections: u64,
    /// Established TCP.
    active: u64,
    /// Connections and templates by state; only states that occur.
    states: BTreeMap<&'static str, u64>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct VirtualServerCounts {
    /// `tcp`, `udp` or `sctp`.
    protocol: &'static str,
    /// VIP and port; port 0 stands for all.
    address: SocketAddr,
    #[serde(flatten)]
    all: Sum,
    /// In the order of their addresses; only those with connections.
    real_servers: Vec<RealServerCounts>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct RealServerCounts {
    /// Address and port; port 0 where the virtual server serves all.
    address: SocketAddr,
    #[serde(flatten)]
    all: Sum,
}

impl Sum {
    fn add(&mut self, totals: &Totals) {
        self.connections += totals.connections();
        self.active += totals.active();
        for (state, number) in STATES.into_iter().zip(totals.states).filter(|(_, number)| *number != 0) {
            *self.states.entry(name(state)).or_default() += number;
        }
    }
}

impl Counts {
    /// `totals` are in the order of virtual servers.
    fn new(totals: &[Totals]) -> Self {
        let mut counts = Self { all: Sum::default(), virtual_servers: Vec::new() };
        for of_one in totals.chunk_by(|one, other| one.service == other.service) {
            let Some(ServiceKey { vip, port, reserved: _, protocol }) = of_one.first().map(|totals| totals.service)
            else {
                continue;
            };
            let mut all = Sum::default();
            let mut real_servers = Vec::new();
            for totals in of_one {
                counts.all.add(totals);
                all.add(totals);
                let mut own = Sum::default();
                own.add(totals);
                real_servers.push(RealServerCounts { address: totals.real_server, all: own });
            }
            let address = socket_address(vip, port);
            counts.virtual_servers.push(VirtualServerCounts { protocol: protocol.name(), address, all, real_servers });
        }
        counts
    }
}

fn count(totals: &[Totals], json: bool, out: &mut impl Write) -> io::Result<()> {
    let counts = Counts::new(totals);
    if json {
        serde_json::to_writer_pretty(&mut *out, &counts).map_err(io::Error::from)?;
        return writeln!(out);
    }
    writeln!(out, "{}", count_table(&counts))
}

/// A column for each state that occurs.
fn count_table(counts: &Counts) -> String {
    let states: Vec<&str> = STATES.map(name).into_iter().filter(|name| counts.all.states.contains_key(name)).collect();
    let mut table = Table::new();
    let header = ["virtual server / real server", "connections", "active"].into_iter().chain(states.iter().copied());
    table.load_preset(presets::NOTHING).set_header(header);
    let mut add = |title: String, sum: &Sum| {
        let of_states = states.iter().map(|state| sum.states.get(state).copied().unwrap_or(0));
        let numbers = [sum.connections, sum.active].into_iter().chain(of_states).map(|number| number.to_string());
        table.add_row([title].into_iter().chain(numbers));
    };
    for VirtualServerCounts { protocol, address, all, real_servers } in &counts.virtual_servers {
        add(format!("{protocol} {address}"), all);
        real_servers.iter().for_each(|real| add(format!("  -> {}", real.address), &real.all));
    }
    add("all".to_owned(), &counts.all);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1)).set_cell_alignment(CellAlignment::Left);
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use lb_common::net::{Address, Port};

    use super::*;
    use crate::model::Service;

    fn totals(vip: &str, real_server: &str, states: &[(u8, u64)]) -> Totals {
        let vip: SocketAddr = vip.parse().unwrap();
        let service = ServiceKey::new(Address::from(vip.ip()), Port::new(vip.port()), Protocol::Tcp);
        let number = |state: u8| states.iter().find(|(of, _)| *of == state).map_or(0, |(_, number)| *number);
        Totals { service, real_server: real_server.parse().unwrap(), states: STATES.map(number) }
    }

    fn three() -> [Totals; 3] {
        let established = (State::ESTABLISHED, 7);
        [
            totals("10.0.0.100:80", "10.0.1.11:80", &[established, (State::OPENING, 2), (State::TEMPLATE, 3)]),
            totals("10.0.0.100:80", "10.0.1.12:80", &[(State::SETTLING, 1)]),
            totals("[fd00::100]:80", "[fd00::11]:80", &[established]),
        ]
    }

    #[test]
    fn counts_are_a_table_with_a_column_for_each_state_that_occurs() {
        insta::assert_snapshot!(count_table(&Counts::new(&three())));
    }

    #[test]
    fn counts_are_an_object_with_the_same_numbers() {
        let json = serde_json::to_value(Counts::new(&three())).unwrap();
        assert_eq!((&json["connections"], &json["active"]), (&17.into(), &17.into()));
        let first = &json["virtual_servers"][0];
        assert_eq!((&first["protocol"], &first["address"]), (&"tcp".into(), &"10.0.0.100:80".into()));
        assert_eq!(first["states"]["template"], 3);
        assert_eq!(
            first["real_servers"][1],
            serde_json::json!({
                "address": "10.0.1.12:80", "connections": 1, "active": 1, "states": { "established-new": 1 },
            })
        );
    }

    #[test]
    fn without_connections_there_is_one_line_of_noughts() {
        let text = count_table(&Counts::new(&[]));
        assert_eq!(text.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(), ["all", "0", "0"]);
    }

    #[test]
    fn ages_are_told_in_seconds() {
        // 879 ticks of 256 / 250 s are 900.1 s.
        assert_eq!(seconds(879, 250), 900);
        assert_eq!(seconds(65_535, 1000), 16_776);
    }

    #[test]
    fn clients_are_networks_or_addresses() {
        assert_eq!(network("192.0.2.7").unwrap().to_string(), "192.0.2.7/32");
        assert_eq!(network("fd00::/64").unwrap().prefix_len(), 64);
        assert!(network("192.0.2.0/33").is_err());
    }

    #[test]
    fn states_and_protocols_go_by_the_names_that_are_printed() {
        assert!(STATES.into_iter().all(|number| state(name(number)) == Ok(number)));
        assert!(state("open").unwrap_err().contains("opening, established-new, established"));
        assert_eq!((protocol("sctp"), protocol("icmp").is_err()), (Ok(Protocol::Sctp), true));
    }

    #[test]
    fn a_virtual_server_goes_by_its_name_too() {
        let service = Service { address: "10.0.0.100:0".parse().unwrap(), protocol: Protocol::Udp };
        let known = Known { pins: "/nowhere".into(), names: BTreeMap::from([("voice".to_owned(), service)]) };
        let options = |text: &str, protocol| Options {
            virtual_server: Some(text.to_owned()),
            real_server: None,
            client: None,
            state: None,
            protocol,
            count: false,
            limit: 0,
            json: false,
        };
        // All ports.
        let vip = Some(Endpoint { ip: [10, 0, 0, 100].into(), port: None });
        let expected = Filter { virtual_server: vip, protocol: Some(Protocol::Udp), ..Filter::default() };
        assert_eq!(filter(&options("voice", None), &known).unwrap(), expected);
        let error = filter(&options("web", None), &known).unwrap_err().to_string();
        assert_eq!(error, "\"web\" is no address, and no virtual server's name here: voice");
        assert!(filter(&options("voice", Some(Protocol::Tcp)), &known).is_err());
    }
}
