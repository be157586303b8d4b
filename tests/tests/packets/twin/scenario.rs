//! Virtual servers, real servers and what happens to them, drawn at random for the comparison.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use lb_common::net::Protocol;
use lb_common::service::{ForwardingMethod, Refusal, Scheduler};
use lb_userspace::model::{
    Access, AccessList, Persistence, Policy, RealServer, Removal, Service, Thresholds, VirtualServer, Weight,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::super::frame::{ACK, FIN, Frame, PSH, RST, SYN, Transport};
use super::super::icmp;
use super::super::pieces::cut;
use super::super::scene::{FAMILIES, Family, NAT_PORT, OUR_MAC, PORT, real_mac};
use super::super::sctp_frame::saying;

/// Real servers of each virtual server have numbers of its own, but for those of `nat`, which share some.
const REALS: u8 = 5;

/// This host's own addresses.
const OWN_V4: [u8; 4] = [192, 0, 2, 12];
const OWN_V6: [u16; 8] = [0x2001, 0xdb8, 0xc, 1, 0, 0, 0x77, 3];

/// This host's own addresses, of which one client sends.
pub fn own_addresses() -> BTreeSet<IpAddr> {
    [OWN_V4.into(), OWN_V6.into()].into()
}

/// What a virtual server is to be, by numbers.
#[derive(Clone, Debug)]
pub struct Spec {
    pub family: Family,
    pub protocol: Protocol,
    pub all_ports: bool,
    pub scheduler: Scheduler,
    pub methods: Methods,
    pub policy: Extras,
    pub reals: Vec<RealSpec>,
    pub has_sorry: bool,
    pub access: Vec<Entry>,
}

/// A prefix of a list by number, and whether its clients are denied.
pub type Entry = (u8, bool);

/// Prefixes that the clients are in, or beside.
const PREFIXES_V4: [&str; 8] = [
    "0.0.0.0/0",
    "192.0.2.0/24",
    "192.0.2.0/23",
    "192.0.2.10/32",
    "192.0.2.11/32",
    "192.0.3.10/31",
    "10.0.0.0/8",
    "128.0.0.0/1",
];
const PREFIXES_V6: [&str; 8] = [
    "::/0",
    "2001:db8:c::/48",
    "2001:db8:c:1::/64",
    "2001:db8:c:1:0:0:77:1/128",
    "2001:db8:c:1:0:0:77:2/127",
    "2001:db8:c:2:0:0:77:0/112",
    "2001:db8:c:8000::/49",
    "2001:db8:c:ffff::/65",
];

/// How the real servers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Methods {
    Nat,
    Dr,
    Tun,
    /// `dr` and `tun` in turn.
    Mixed,
}

#[derive(Clone, Debug)]
pub struct Extras {
    pub hash_port: bool,
    pub hash_fallback: bool,
    pub one_packet: bool,
    pub sloppy_tcp: bool,
    pub stateless_replies: bool,
    /// Seconds and the bits of the mask that are left out.
    pub persistence: Option<(u64, u8)>,
    pub no_real_server: Refusal,
    pub unknown_connection: Refusal,
    pub keeps_removed: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct RealSpec {
    pub weight: u16,
    pub limits: (u32, u32),
    pub is_present: bool,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A packet of a client.
    Packet(Which, Look),
    /// SYN, ACK and another ACK, or two datagrams: a connection that is in use.
    Conversation(Which),
    /// A packet of a real server to a client.
    Answer(Which, u8, Look),
    /// An ICMP error about a packet of a VIP or of a client, with so many bytes of its segment.
    Error(Which, u8, Look, usize),
    /// A packet of a client to a real server's own address.
    Direct(Which, u8, Look),
    /// A packet of a client, or of a real server, in fragments, of which some come.
    Fragments(Which, Option<u8>, Look, Cut),
    /// So many ticks pass.
    Wait(u16),
    /// A real server gets another weight.
    Weight(u8, u8, u16),
    /// A real server goes, or comes back.
    Toggle(u8, u8),
    /// A real server gets other thresholds.
    Limit(u8, u8, (u32, u32)),
    /// A virtual server gets another scheduler.
    Scheduler(u8, Scheduler),
    /// A virtual server serves other clients.
    Access(u8, Vec<Entry>),
    /// A virtual server goes, and comes back.
    Withdraw(u8),
}

/// Which virtual server, client, client's port, and of all ports which.
#[derive(Clone, Copy, Debug)]
pub struct Which {
    pub server: u8,
    pub client: u8,
    pub port: u8,
    pub vip_port: u8,
}

/// Which fragments of a packet come.
#[derive(Clone, Debug)]
pub struct Cut {
    /// One of a few, so that packets have the same.
    pub identification: u32,
    /// Their numbers as they come, 0..=3.
    pub order: Vec<usize>,
}

impl Cut {
    /// The fragments of `frame` that come.
    pub fn pieces(&self, frame: &Frame) -> Vec<Vec<u8>> {
        let payload: Vec<u8> = (0..=255).cycle().take(600).collect();
        let frame = Frame { dont_fragment: false, ..frame.clone().payload(&payload) };
        let pieces = cut(&frame.bytes(), self.identification, &[24, 264, 64]);
        self.order.iter().map(|number| pieces[*number].clone()).collect()
    }
}

/// The rest of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub flags: u8,
    pub payload: u16,
    pub ttl: u8,
    pub class: u8,
    /// What stands between the IP header and the rest: mostly nothing.
    pub between: Between,
}

/// IPv4 options or IPv6 extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    Nothing,
    Harmless,
    /// Source routes, with their end reached in IPv6 only.
    Routed(u8),
    /// IPv6 only.
    Authenticated,
    /// IPv6 only.
    OneFragment,
}

pub fn specs() -> impl Strategy<Value = Vec<Spec>> {
    vec(spec(), 1..=4)
}

/// Virtual servers of one family whose real servers are reached by `nat`, and are partly the same.
pub fn sharing_specs() -> impl Strategy<Value = Vec<Spec>> {
    (select(FAMILIES.as_slice()), vec(spec(), 3..=4)).prop_map(|(family, specs)| {
        let share = |spec: Spec| {
            let reals = spec.reals.into_iter().take(2).collect();
            let (protocol, all_ports, methods) = (Protocol::Tcp, false, Methods::Nat);
            Spec { family, protocol, all_ports, methods, reals, ..spec }
        };
        specs.into_iter().map(share).collect()
    })
}

fn spec() -> impl Strategy<Value = Spec> {
    let kind = (select(FAMILIES.as_slice()), protocol());
    let methods = select(vec![Methods::Nat, Methods::Nat, Methods::Dr, Methods::Tun, Methods::Mixed]);
    let scheduler = select(Scheduler::ALL.as_slice());
    let reals = prop_oneof![1 => Just(Vec::new()), 12 => vec(real(), 1..=usize::from(REALS))];
    let who = (prop::bool::weighted(0.3), access());
    (kind, prop::bool::weighted(0.15), scheduler, methods, extras(), reals, who).prop_map(
        |((family, protocol), all_ports, scheduler, methods, policy, reals, (has_sorry, access))| {
            // SCTP cannot be translated.
            let is_possible = protocol != Protocol::Sctp || methods != Methods::Nat;
            let methods = if is_possible { methods } else { Methods::Mixed };
            Spec { family, protocol, all_ports, scheduler, methods, policy, reals, has_sorry, access }
        },
    )
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![4 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

/// Mostly nobody is kept out.
fn access() -> impl Strategy<Value = Vec<Entry>> {
    prop_oneof![3 => Just(Vec::new()), 1 => vec((0..8_u8, prop::bool::weighted(0.7)), 1..5)]
}

fn real() -> impl Strategy<Value = RealSpec> {
    let weight = prop_oneof![1 => Just(0), 9 => select(vec![1_u16, 1, 2, 3, 10])];
    let present = prop::bool::weighted(0.9);
    (weight, limits(), present).prop_map(|(weight, limits, is_present)| RealSpec { weight, limits, is_present })
}

/// Upper and lower threshold.
fn limits() -> impl Strategy<Value = (u32, u32)> {
    // Below three quarters of 4 is the least that differs from at most three quarters.
    let some = select(vec![(1, 0), (2, 0), (2, 1), (3, 3), (4, 0), (4, 0), (5, 2)]);
    prop_oneof![2 => Just((0, 0)), 1 => some]
}

fn extras() -> impl Strategy<Value = Extras> {
    let rare = || prop::bool::weighted(0.2);
    let refusal = || prop_oneof![2 => Just(Refusal::Reject), 1 => Just(Refusal::Drop)];
    let persistence = option::weighted(0.3, (select(vec![5_u64, 20, 60]), select(vec![0_u8, 8, 30])));
    let replies = (rare(), rare());
    (any::<bool>(), any::<bool>(), rare(), replies, persistence, refusal(), refusal(), any::<bool>()).prop_map(
        |(hash_port, hash_fallback, one_packet, replies, persistence, no_real_server, unknown_connection, keeps)| {
            let (sloppy_tcp, stateless_replies) = replies;
            Extras {
                hash_port,
                hash_fallback,
                one_packet,
                sloppy_tcp,
                stateless_replies,
                persistence,
                no_real_server,
                unknown_connection,
                keeps_removed: keeps,
            }
        },
    )
}

/// Most are packets; `ports` says from how many a client sends.
pub fn events(ports: u8, length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Event>> {
    let which = move || {
        (any::<u8>(), 0..5_u8, 0..ports, 0..3_u8).prop_map(|(server, client, port, vip_port)| Which {
            server,
            client,
            port,
            vip_port,
        })
    };
    let scheduler = select(Scheduler::ALL.as_slice());
    let event = prop_oneof![
        48 => (which(), look()).prop_map(|(which, look)| Event::Packet(which, look)),
        16 => which().prop_map(Event::Conversation),
        20 => (which(), any::<u8>(), look()).prop_map(|(which, real, look)| Event::Answer(which, real, look)),
        12 => (which(), any::<u8>(), look(), 6..30_usize).prop_map(|(which, real, look, length)| {
            Event::Error(which, real, look, length)
        }),
        6 => (which(), any::<u8>(), look()).prop_map(|(which, real, look)| Event::Direct(which, real, look)),
        8 => (which(), option::weighted(0.4, any::<u8>()), look(), cuts())
            .prop_map(|(which, real, look, cut)| Event::Fragments(which, real, look, cut)),
        4 => select(vec![1_u16, 2, 6, 12, 25, 50, 100]).prop_map(Event::Wait),
        2 => (any::<u8>(), 0..REALS, select(vec![0_u16, 1, 2, 10])).prop_map(|(s, r, w)| Event::Weight(s, r, w)),
        2 => (any::<u8>(), 0..REALS).prop_map(|(server, real)| Event::Toggle(server, real)),
        1 => (any::<u8>(), 0..REALS, limits()).prop_map(|(server, real, limits)| Event::Limit(server, real, limits)),
        1 => (any::<u8>(), scheduler).prop_map(|(server, scheduler)| Event::Scheduler(server, scheduler)),
        1 => (any::<u8>(), access()).prop_map(|(server, access)| Event::Access(server, access)),
        1 => any::<u8>().prop_map(Event::Withdraw),
    ];
    vec(event, length)
}

fn cuts() -> impl Strategy<Value = Cut> {
    let whole = Just(vec![0, 1, 2, 3]);
    let order = prop_oneof![2 => whole, 1 => vec(0..4_usize, 1..6)];
    (0..3_u32, order).prop_map(|(identification, order)| Cut { identification, order })
}

fn between() -> impl Strategy<Value = Between> {
    let rare = select(vec![
        Between::Harmless,
        Between::Harmless,
        Between::Routed(0),
        Between::Routed(1),
        Between::Authenticated,
        Between::OneFragment,
    ]);
    prop_oneof![12 => Just(Between::Nothing), 1 => rare]
}

fn look() -> impl Strategy<Value = Look> {
    let common = select(vec![SYN, SYN, SYN, ACK, ACK, ACK | PSH, FIN | ACK, RST, RST | ACK, SYN | ACK]);
    let odd = select(vec![0, PSH, FIN, SYN | FIN, SYN | RST, FIN | RST, SYN | 0xc0, 0xff]);
    let flags = prop_oneof![8 => common, 1 => odd];
    let payload = prop_oneof![6 => 0..4_u16, 1 => select(vec![1400_u16, 1432, 1452, 1460])];
    let ttl = prop_oneof![20 => 2..=255_u8, 1 => 0..2_u8];
    (flags, payload, ttl, any::<u8>(), between()).prop_map(|(flags, payload, ttl, class, between)| Look {
        flags,
        payload,
        ttl,
        class,
        between,
    })
}

impl Spec {
    /// What is to be installed for the virtual server number `n`.
    pub fn virtual_server(&self, n: u8) -> VirtualServer {
        let real_servers = (0..).zip(&self.reals).filter(|(_, real)| real.is_present);
        VirtualServer {
            name: None,
            service: self.service(n),
            policy: self.policy(),
            access: self.access(),
            real_servers: real_servers.map(|(which, real)| self.real_server(n, which, *real)).collect(),
            sorry_server: self.has_sorry.then(|| {
                let real = RealSpec { weight: 1, limits: (0, 0), is_present: true };
                self.real_server(n, REALS, real)
            }),
        }
    }

    pub fn service(&self, n: u8) -> Service {
        let port = if self.all_ports { 0 } else { PORT };
        Service { address: SocketAddr::new(self.family.vip(n), port), protocol: self.protocol }
    }

    fn access(&self) -> Option<Arc<AccessList>> {
        let all = if self.family == Family::V4 { PREFIXES_V4 } else { PREFIXES_V6 };
        let prefix = |(number, is_denied): &Entry| {
            let prefix: IpNet = all[usize::from(*number)].parse().expect("a prefix");
            (prefix.trunc(), if *is_denied { Access::Denied } else { Access::Permitted })
        };
        (!self.access.is_empty()).then(|| Arc::new(AccessList::new(self.access.iter().map(prefix).collect())))
    }

    fn policy(&self) -> Policy {
        let Extras { hash_port, hash_fallback, one_packet, sloppy_tcp, stateless_replies, .. } = self.policy;
        let bits = if self.family == Family::V4 { 32 } else { 128 };
        Policy {
            hash_port: hash_port && matches!(self.scheduler, Scheduler::Sh | Scheduler::Mh),
            hash_fallback: hash_fallback && self.scheduler.is_hash(),
            one_packet: one_packet && self.protocol == Protocol::Udp,
            sloppy_tcp: sloppy_tcp && self.protocol == Protocol::Tcp,
            stateless_replies,
            persistence: self.policy.persistence.map(|(seconds, left_out)| Persistence {
                timeout: Duration::from_secs(seconds),
                prefix_length: bits - left_out,
            }),
            no_real_server: self.policy.no_real_server,
            unknown_connection: self.policy.unknown_connection,
            removed_real_server: if self.policy.keeps_removed { Removal::Keep } else { Removal::Expire },
            ..Policy::new(self.scheduler)
        }
    }

    fn real_server(&self, n: u8, which: u8, spec: RealSpec) -> RealServer {
        RealServer {
            address: self.real_address(n, which),
            weight: Weight::new(spec.weight),
            forwarding: self.method(which),
            thresholds: Thresholds { upper: spec.limits.0, lower: spec.limits.1 },
        }
    }

    fn method(&self, which: u8) -> ForwardingMethod {
        match self.methods {
            Methods::Nat => ForwardingMethod::Nat,
            Methods::Dr => ForwardingMethod::Dr,
            Methods::Tun => ForwardingMethod::Tun,
            Methods::Mixed if which.is_multiple_of(2) => ForwardingMethod::Dr,
            Methods::Mixed => ForwardingMethod::Tun,
        }
    }

    /// The number of a real server in [`super::super::scene`]: behind `nat`, the first two are everybody's.
    pub fn number(&self, n: u8, which: u8) -> u8 {
        if self.methods == Methods::Nat && !self.all_ports && which < 2 { which + 1 } else { 10 + n * 10 + which }
    }

    pub fn real_address(&self, n: u8, which: u8) -> SocketAddr {
        let port = match (self.all_ports, self.methods) {
            (true, _) => 0,
            (false, Methods::Nat) => NAT_PORT,
            (false, _) => PORT,
        };
        SocketAddr::new(self.family_of(which).real(self.number(n, which)), port)
    }

    /// The real server's address, or where that is of the other family the one beside it: no packet has both.
    fn address_in_packets(&self, n: u8, which: u8) -> SocketAddr {
        let port = self.real_address(n, which).port();
        SocketAddr::new(self.family.real(self.number(n, which)), port)
    }

    /// Only tunnels lead to real servers of the other family: to every second.
    fn family_of(&self, which: u8) -> Family {
        match (self.method(which), which % 4, self.family) {
            (ForwardingMethod::Tun, 1 | 2, Family::V4) => Family::V6,
            (ForwardingMethod::Tun, 1 | 2, Family::V6) => Family::V4,
            (_, _, family) => family,
        }
    }

    /// Which of its real servers has this address.
    pub fn which_real(&self, n: u8, address: SocketAddr) -> Option<u8> {
        (0..=REALS).find(|which| self.real_address(n, *which) == address)
    }

    pub fn client(&self, which: Which) -> SocketAddr {
        // Two in one network, one beside it, one far off, and this host, of which nobody but a liar sends from elsewhere.
        let ip: IpAddr = match self.family {
            Family::V4 => [[192, 0, 2, 10], [192, 0, 2, 11], [192, 0, 3, 10], [10, 1, 2, 3], OWN_V4]
                [usize::from(which.client)]
            .into(),
            Family::V6 => {
                let (net, host) = [(1, 1), (1, 2), (2, 1), (0xffff, 9), (1, 3)][usize::from(which.client)];
                Ipv6Addr::new(0x2001, 0xdb8, 0xc, net, 0, 0, 0x77, host).into()
            }
        };
        // Port 0 is a client's, too, and looks like its template.
        SocketAddr::new(ip, u16::from(which.port) * 7)
    }

    pub fn vip_port(&self, which: Which) -> u16 {
        if self.all_ports { [PORT, 443, 8443][usize::from(which.vip_port)] } else { PORT }
    }

    /// A packet of a client.
    pub fn packet(&self, n: u8, which: Which, look: Look) -> Frame {
        let to = SocketAddr::new(self.family.vip(n), self.vip_port(which));
        self.dressed(Frame::new(self.client(which), to, self.transport(look)), look)
    }

    /// A packet of real server `real` to a client.
    pub fn answer(&self, n: u8, real: u8, which: Which, look: Look) -> Frame {
        let mut from = self.address_in_packets(n, real);
        if from.port() == 0 {
            from.set_port(self.vip_port(which));
        }
        let frame = Frame::new(from, self.client(which), self.transport(look));
        self.dressed(frame.macs(real_mac(self.number(n, real)), OUR_MAC), look)
    }

    /// An ICMP error of which kind `look` tells, with `length` bytes of the segment: about a packet of the VIP to a client, or
    /// else one of the client to real server `real`.
    pub fn error(&self, n: u8, real: Option<u8>, which: Which, (look, length): (Look, usize)) -> Frame {
        let quoted = match real {
            None => {
                let from = SocketAddr::new(self.family.vip(n), self.vip_port(which));
                self.dressed(Frame::new(from, self.client(which), self.transport(look)), look)
            }
            Some(real) => {
                let mut to = self.address_in_packets(n, real);
                if to.port() == 0 {
                    to.set_port(self.vip_port(which));
                }
                self.dressed(Frame::new(self.client(which), to, self.transport(look)), look)
            }
        };
        let kinds: &[u8] = if self.family == Family::V4 { &[3, 3, 11, 12, 4, 5] } else { &[1, 2, 3, 4, 128, 0] };
        let kind = (kinds[usize::from(look.class) % kinds.len()], look.flags & 7, u32::from(look.payload));
        let padded = quoted.clone().payload(&[look.class; 64]);
        let error = icmp::error(self.family.director(), quoted.source.ip(), kind, &icmp::quote(&padded, length));
        Frame { ttl: look.ttl, class: look.class, ..error }
    }

    /// A packet of a client to real server `real`.
    pub fn direct(&self, n: u8, real: u8, which: Which, look: Look) -> Frame {
        let mut to = self.address_in_packets(n, real);
        if to.port() == 0 {
            to.set_port(self.vip_port(which));
        }
        self.dressed(Frame::new(self.client(which), to, self.transport(look)), look)
    }

    fn transport(&self, look: Look) -> Transport {
        match self.protocol {
            Protocol::Tcp => Transport::Tcp { flags: look.flags },
            Protocol::Udp => Transport::Udp { has_checksum: self.family == Family::V6 || look.flags != RST },
            Protocol::Sctp => Transport::Sctp { chunks: saying(look.flags) },
        }
    }

    fn dressed(&self, frame: Frame, look: Look) -> Frame {
        let payload = vec![look.class; usize::from(look.payload)];
        let identification = u16::from(look.class) << 8 | u16::from(look.ttl);
        let (options, extensions) = match self.family {
            Family::V4 => (look.between.options(), Vec::new()),
            Family::V6 => (Vec::new(), look.between.extensions()),
        };
        let flow_label = u32::from(look.class) * 17;
        Frame { ttl: look.ttl, class: look.class, identification, flow_label, options, extensions, ..frame }
            .payload(&payload)
    }
}

impl Between {
    fn options(self) -> Vec<u8> {
        match self {
            Self::Nothing | Self::Authenticated | Self::OneFragment => Vec::new(),
            Self::Harmless => vec![0x94, 4, 0, 0, 1, 1, 1, 0],
            Self::Routed(left) => vec![131, 7, 4 + 4 * left, 10, 0, 0, 1, 0],
        }
    }

    fn extensions(self) -> Vec<(u8, Vec<u8>)> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Harmless => vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0]), (60, vec![0, 0, 1, 4, 0, 0, 0, 0])],
            Self::Routed(left) => vec![(43, vec![0, 0, 4, left, 0, 0, 0, 0])],
            Self::Authenticated => vec![(51, [vec![0, 4], vec![9; 22]].concat())],
            Self::OneFragment => vec![(44, vec![0, 0, 0, 0, 0, 0, 0, 7])],
        }
    }
}

impl Look {
    /// A packet like most, with these flags.
    pub const fn plain(flags: u8) -> Self {
        Self { flags, payload: 0, ttl: 64, class: 0, between: Between::Nothing }
    }
}
