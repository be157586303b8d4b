//! Slots read as people know connections, for `evenkeel connections`. Changes nothing.
//!
//! Works from the maps alone, so also where no daemon runs.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use lb_common::connection::{Meta, State, Timeouts, Tuple, age};
use lb_common::net::{Address, Protocol};
use lb_common::service::ServiceKey;

use super::sweep::exact_client;
use super::words::{SlotWords, Tables};

/// A connection, or a persistence template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The transport protocol.
    pub protocol: Protocol,
    /// Who opened it.
    pub client: Client,
    /// What the client addressed.
    pub virtual_address: SocketAddr,
    /// Who serves it.
    pub real_server: SocketAddr,
    /// A [`State`].
    pub state: u8,
    /// Coarse ticks since the last packet.
    pub idle: u16,
    /// Coarse ticks until it ends where no packet comes; zero: it is due.
    pub left: u16,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A connection's.
    Socket(SocketAddr),
    /// The clients that a persistence template is for.
    Network(IpNet),
}

/// An address, and a port where that counts too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// `None`: any.
    pub port: Option<u16>,
}

/// Which connections are meant: those that are all of this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The transport protocol.
    pub protocol: Option<Protocol>,
    /// What the client addressed.
    pub virtual_server: Option<Endpoint>,
    /// Who serves it.
    pub real_server: Option<Endpoint>,
    /// A network that holds the client, or all of a template's.
    pub client: Option<IpNet>,
    /// A [`State`].
    pub state: Option<u8>,
}

/// States of a connection; [`Totals`] are in this order.
pub const STATES: [u8; 13] = [
    State::OPENING,
    State::SCTP_OPENING,
    State::SETTLING,
    State::ESTABLISHED,
    State::CLIENT_FIN,
    State::SERVER_FIN,
    State::BOTH_FIN,
    State::CLOSED,
    State::UDP_NEW,
    State::UDP,
    State::UDP_DIRECT,
    State::TEMPLATE_NEW,
    State::TEMPLATE,
];

/// Connections and templates of a real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// The virtual server that it belongs to.
    pub service: ServiceKey,
    /// The real server; its port is 0 where its virtual server serves all ports.
    pub real_server: SocketAddr,
    /// By state, in the order of [`STATES`].
    pub states: [u64; STATES.len()],
}

/// Reads the table.
pub struct Reader<'a> {
    tables: Tables<'a>,
    timeouts: &'a Timeouts,
    now: u16,
    servers: Vec<Option<Server>>,
}

/// What a slot's real server tells of the connection.
#[derive(Clone, Copy, Debug)]
struct Server {
    generation: u8,
    address: SocketAddr,
    service: ServiceKey,
    is_wide: bool,
    template_timeout: u16,
    template_prefix: u8,
}

impl<'a> Reader<'a> {
    /// A reader of `tables` at the coarse tick `now`; real and virtual servers are read at once.
    pub fn new(tables: Tables<'a>, timeouts: &'a Timeouts, now: u16) -> Self {
        let places = u16::try_from(tables.real_server_count()).unwrap_or(u16::MAX);
        let servers = (0..places).map(|index| Server::read(&tables, index)).collect();
        Self { tables, timeouts, now, servers }
    }

    /// Whether any virtual server has an IPv6 address.
    pub fn has_ipv6(&self) -> bool {
        self.servers.iter().flatten().any(|server| !server.service.vip.is_ipv4())
    }

    /// Every connection and template that is meant, in the order of the table, which is none.
    ///
    /// Those whose time is over are there until the scan takes them out; those whose real server is gone are not.
    pub fn connections(&self, filter: &Filter) -> impl Iterator<Item = Connection> {
        let is_meant = self.servers_meant(filter);
        let is_candidate = move |meta: Meta| filter.may_mean(meta, &is_meant);
        self.tables.slots().enumerate().filter_map(move |(number, slot)| {
            is_candidate(slot.meta()).then_some(())?;
            self.connection(slot, number).filter(|connection| filter.means(connection))
        })
    }

    /// How many connections and templates are meant, by real server, and these by virtual server and address.
    pub fn totals(&self, filter: &Filter) -> Vec<Totals> {
        let is_meant = self.servers_meant(filter);
        let mut totals: Vec<Option<Totals>> = self.servers.iter().map(|server| server.map(Totals::new)).collect();
        for (number, slot) in self.tables.slots().enumerate() {
            let meta = slot.meta();
            if !filter.may_mean(meta, &is_meant) {
                continue;
            }
            let place = usize::from(meta.real_server());
            let Some(server) = self.servers.get(place).copied().flatten() else { continue };
            let is_meant = match filter.asks_for_tuple(&server) {
                false => meta.generation() == server.generation,
                true => self.connection(slot, number).is_some_and(|connection| filter.means(&connection)),
            };
            if let Some(Some(totals)) = totals.get_mut(place).filter(|_| is_meant) {
                totals.add(meta.state());
            }
        }
        let mut totals: Vec<Totals> =
            totals.into_iter().flatten().filter(|totals| totals.states != [0; STATES.len()]).collect();
        totals.sort_by_key(|totals| {
            let ServiceKey { vip, port, reserved: _, protocol } = totals.service;
            (IpAddr::from(vip), port, protocol, totals.real_server)
        });
        totals
    }

    fn servers_meant(&self, filter: &Filter) -> Vec<bool> {
        let is_meant = |server: &Option<Server>| server.is_some_and(|server| filter.may_mean_server(&server));
        self.servers.iter().map(is_meant).collect()
    }

    fn connection(&self, slot: SlotWords<'_>, number: usize) -> Option<Connection> {
        let (key, meta, tuple) = slot.read_with(|_, _| self.tables.tuple(number))?;
        let server = self.servers.get(usize::from(meta.real_server())).copied().flatten()?;
        (meta.generation() == server.generation).then_some(())?;
        let tuple = if server.is_wide { tuple? } else { exact_tuple(key, &server) };
        let idle = age(meta.last_seen(), self.now);
        let is_template = State::is_template(meta.state());
        let of_state = self.timeouts.of(meta.state());
        let timeout = if is_template { of_state.min(server.template_timeout) } else { of_state };
        let virtual_port = if is_template { server.service.port } else { tuple.vip_port }.number();
        let mut real_server = server.address;
        if real_server.port() == 0 {
            real_server.set_port(virtual_port);
        }
        Some(Connection {
            protocol: server.service.protocol,
            client: Client::new(&tuple, is_template.then_some(server.template_prefix))?,
            virtual_address: SocketAddr::new(server.service.vip.into(), virtual_port),
            real_server,
            state: meta.state(),
            idle,
            left: timeout.saturating_sub(idle),
        })
    }
}

impl Server {
    fn read(tables: &Tables<'_>, index: u16) -> Option<Self> {
        let entry = tables.real_server(index).filter(|entry| entry.generation() != 0)?;
        let service = tables.service(entry.virtual_server())?;
        let address = entry.socket_address();
        Some(Self {
            generation: entry.generation_octet(),
            address,
            service: service.key()?,
            is_wide: service.is_wide(),
            template_timeout: u16::try_from(service.persistence_timeout()).unwrap_or(u16::MAX),
            template_prefix: prefix(service.persistence_mask(), address.is_ipv4()),
        })
    }
}

/// The bits set in a mask of that family, at most 32 or 128.
fn prefix(mask: Address, is_ipv4: bool) -> u8 {
    let [_, _, _, last] = mask.words();
    let ones = if is_ipv4 { last.count_ones() } else { mask.words().iter().map(|word| word.count_ones()).sum() };
    u8::try_from(ones).unwrap_or(u8::MAX)
}

/// What the key of an IPv4 connection to a fixed port holds.
fn exact_tuple(key: u64, server: &Server) -> Tuple {
    let [_, _, _, _, low, high, _, _] = key.to_le_bytes();
    Tuple {
        client: Address::from_ipv4_word(exact_client(key)),
        client_port: lb_common::net::Port::new(u16::from_le_bytes([low, high])),
        vip_port: server.service.port,
    }
}

impl Client {
    /// The client of a connection; with a prefix length, the network of a template.
    fn new(tuple: &Tuple, prefix: Option<u8>) -> Option<Self> {
        let ip = IpAddr::from(tuple.client);
        match prefix {
            None => Some(Self::Socket(SocketAddr::new(ip, tuple.client_port.number()))),
            Some(prefix) => IpNet::new(ip, prefix).ok().map(Self::Network),
        }
    }

    fn is_in(&self, network: &IpNet) -> bool {
        match self {
            Self::Socket(socket) => network.contains(&socket.ip()),
            Self::Network(clients) => network.contains(clients),
        }
    }
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(socket) => socket.fmt(f),
            Self::Network(network) => network.fmt(f),
        }
    }
}

impl Endpoint {
    fn is(&self, address: SocketAddr) -> bool {
        self.ip == address.ip() && self.port.is_none_or(|port| port == address.port())
    }
}

impl Filter {
    /// Whether `connection` is meant.
    pub fn means(&self, connection: &Connection) -> bool {
        let Self { protocol, virtual_server, real_server, client, state } = self;
        protocol.is_none_or(|protocol| protocol == connection.protocol)
            && virtual_server.is_none_or(|endpoint| endpoint.is(connection.virtual_address))
            && real_server.is_none_or(|endpoint| endpoint.is(connection.real_server))
            && client.is_none_or(|network| connection.client.is_in(&network))
            && state.is_none_or(|wanted| covers(wanted, connection.state))
    }

    /// Whether a slot may be meant, from what costs nothing to know.
    fn may_mean(&self, meta: Meta, servers: &[bool]) -> bool {
        let is_connection = State::name(meta.state()).is_some();
        is_connection
            && self.state.is_none_or(|wanted| covers(wanted, meta.state()))
            && servers.get(usize::from(meta.real_server())).copied().unwrap_or(false)
    }

    fn may_mean_server(&self, server: &Server) -> bool {
        let may_be = |endpoint: Endpoint, ip: IpAddr, port: u16| {
            endpoint.ip == ip && endpoint.port.is_none_or(|wanted| port == 0 || wanted == port)
        };
        let ServiceKey { vip, port, reserved: _, protocol } = server.service;
        self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.virtual_server.is_none_or(|endpoint| may_be(endpoint, vip.into(), port.number()))
            && self.real_server.is_none_or(|endpoint| may_be(endpoint, server.address.ip(), server.address.port()))
    }

    /// Whether the slot's state and real server do not decide.
    fn asks_for_tuple(&self, server: &Server) -> bool {
        let has_port = |endpoint: Option<Endpoint>| endpoint.is_some_and(|endpoint| endpoint.port.is_some());
        let all_ports = server.service.port.number() == 0;
        self.client.is_some() || all_ports && (has_port(self.virtual_server) || has_port(self.real_server))
    }
}

impl Totals {
    fn new(server: Server) -> Self {
        Self { service: server.service, real_server: server.address, states: [0; STATES.len()] }
    }

    fn add(&mut self, state: u8) {
        let place = STATES.iter().position(|other| *other == state);
        if let Some(number) = place.and_then(|place| self.states.get_mut(place)) {
            *number += 1;
        }
    }

    /// Connections, without templates.
    pub fn connections(&self) -> u64 {
        self.sum(|state| !State::is_template(state))
    }

    /// Connections that count as active.
    pub fn active(&self) -> u64 {
        self.sum(State::is_active)
    }

    fn sum(&self, is_counted: impl Fn(u8) -> bool) -> u64 {
        STATES.iter().zip(self.states).filter(|(state, _)| is_counted(**state)).map(|(_, number)| number).sum()
    }
}

/// Whether one who asks for `wanted` means connections in `state` too: whoever looks for established ones does not care by
/// how many packets.
const fn covers(wanted: u8, state: u8) -> bool {
    matches!(
        (wanted, state),
        (State::ESTABLISHED, State::SETTLING)
            | (State::UDP, State::UDP_NEW | State::UDP_DIRECT)
            | (State::TEMPLATE, State::TEMPLATE_NEW)
    ) || wanted == state
}
