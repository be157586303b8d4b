//! What slots read as, and which of them are meant.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};

use lb_common::connection::{Meta, State, Timeouts};
use lb_common::net::Protocol;
use lb_common::service::service_flag;

use super::connection::{Client, Connection, Endpoint, Filter, Reader, STATES};
use super::memory::{Memory, Real, Virtual, key};
use super::packet_path::Cpu;

const TIMEOUTS: Timeouts = Timeouts::new(10, 100, 20, 5, 50);
const NOW: u16 = 20;

/// tcp 10.0.0.100:80 over real server 3, udp [fd00::100]:53 over 4, and all TCP ports of 10.0.0.101 over 5.
fn memory() -> Memory {
    let memory = Memory::new(16, 8);
    memory.put_virtual(0, Virtual { persistence_timeout: 30, mask: "255.255.255.0", ..Virtual::PLAIN });
    let v6 =
        Virtual { vip: "fd00::100", port: 53, protocol: Protocol::Udp, flags: service_flag::WIDE, ..Virtual::PLAIN };
    memory.put_virtual(1, v6);
    let flags = service_flag::WIDE | service_flag::ALL_PORTS;
    memory.put_virtual(2, Virtual { vip: "10.0.0.101", port: 0, flags, ..Virtual::PLAIN });
    memory.put_real(3, Real { port: 8080, ..Real::PLAIN });
    memory.put_real(4, Real { virtual_server: 1, address: "fd00::11", port: 53, ..Real::PLAIN });
    memory.put_real(5, Real { virtual_server: 2, address: "10.0.1.12", port: 0, ..Real::PLAIN });
    memory
}

/// One connection to each, and a template.
fn filled() -> Memory {
    let memory = memory();
    memory.put(0, key("192.0.2.7", 40_000), Meta::new(3, State::ESTABLISHED, 1, 5, 9));
    memory.put(77, 1, Meta::new(4, State::UDP, 1, 20, 0));
    memory.put_tuple(77, "2001:db8::7", 1024, 53);
    memory.put(127, 2, Meta::new(5, State::OPENING, 1, 8, 0));
    memory.put_tuple(127, "198.51.100.9", 5555, 2222);
    memory.put(8, key("192.0.2.0", 0), Meta::new(3, State::TEMPLATE, 1, 19, 0));
    memory
}

fn socket(text: &str) -> Client {
    Client::Socket(text.parse().unwrap())
}

fn listed(memory: &Memory, filter: &Filter) -> Vec<Connection> {
    Reader::new(memory.tables(), &TIMEOUTS, NOW).connections(filter).collect()
}

/// The slots' clients, which tell the connections of [`filled`] apart.
fn clients(filter: Filter) -> Vec<String> {
    listed(&filled(), &filter).iter().map(|connection| connection.client.to_string()).collect()
}

#[test]
fn connections_read_in_full() {
    let expected = [
        Connection {
            protocol: Protocol::Tcp,
            client: socket("192.0.2.7:40000"),
            virtual_address: "10.0.0.100:80".parse().unwrap(),
            real_server: "10.0.1.11:8080".parse().unwrap(),
            state: State::ESTABLISHED,
            idle: 15,
            left: 85,
        },
        Connection {
            protocol: Protocol::Tcp,
            client: Client::Network("192.0.2.0/24".parse().unwrap()),
            virtual_address: "10.0.0.100:80".parse().unwrap(),
            real_server: "10.0.1.11:8080".parse().unwrap(),
            state: State::TEMPLATE,
            idle: 1,
            left: 29,
        },
        Connection {
            protocol: Protocol::Udp,
            client: socket("[2001:db8::7]:1024"),
            virtual_address: "[fd00::100]:53".parse().unwrap(),
            real_server: "[fd00::11]:53".parse().unwrap(),
            state: State::UDP,
            idle: 0,
            left: 50,
        },
        // All ports: the one that the client addressed, on both sides. Two ticks past its time.
        Connection {
            protocol: Protocol::Tcp,
            client: socket("198.51.100.9:5555"),
            virtual_address: "10.0.0.101:2222".parse().unwrap(),
            real_server: "10.0.1.12:2222".parse().unwrap(),
            state: State::OPENING,
            idle: 12,
            left: 0,
        },
    ];
    assert_eq!(listed(&filled(), &Filter::default()), expected);
}

#[test]
fn what_is_no_connection_is_not_listed() {
    let memory = filled();
    // Of an earlier generation, of a free place, and in the middle of a change.
    memory.put(20, 1, Meta::new(3, State::ESTABLISHED, 2, 5, 0));
    memory.put(21, 1, Meta::new(6, State::ESTABLISHED, 1, 5, 0));
    memory.put(22, 1, Meta::LOCKED);
    assert_eq!(listed(&memory, &Filter::default()).len(), 4);
    let totals = Reader::new(memory.tables(), &TIMEOUTS, NOW).totals(&Filter::default());
    assert_eq!(totals.iter().map(|totals| totals.connections()).sum::<u64>(), 3);
}

#[test]
fn an_ipv6_connection_without_room_for_its_tuple_is_not_listed() {
    let memory = filled();
    let mut tables = memory.tables();
    tables.tuples = &[];
    assert_eq!(Reader::new(tables, &TIMEOUTS, NOW).connections(&Filter::default()).count(), 2);
}

fn endpoint(ip: &str, port: impl Into<Option<u16>>) -> Option<Endpoint> {
    Some(Endpoint { ip: ip.parse().unwrap(), port: port.into() })
}

#[test]
fn filters_mean_what_is_all_of_what_they_say() {
    const V4: &str = "192.0.2.7:40000";
    const V6: &str = "[2001:db8::7]:1024";
    const ALL_PORTS: &str = "198.51.100.9:5555";
    const TEMPLATE: &str = "192.0.2.0/24";
    let all = Filter::default();
    assert_eq!(clients(Filter { protocol: Some(Protocol::Tcp), ..all }), [V4, TEMPLATE, ALL_PORTS]);
    assert_eq!(clients(Filter { protocol: Some(Protocol::Udp), ..all }), [V6]);
    assert_eq!(clients(Filter { state: Some(State::ESTABLISHED), ..all }), [V4]);
    assert_eq!(clients(Filter { virtual_server: endpoint("10.0.0.100", 80), ..all }), [V4, TEMPLATE]);
    assert_eq!(clients(Filter { virtual_server: endpoint("10.0.0.100", 81), ..all }), [""; 0]);
    assert_eq!(clients(Filter { virtual_server: endpoint("10.0.0.101", None), ..all }), [ALL_PORTS]);
    assert_eq!(clients(Filter { virtual_server: endpoint("10.0.0.101", 2222), ..all }), [ALL_PORTS]);
    assert_eq!(clients(Filter { virtual_server: endpoint("10.0.0.101", 2223), ..all }), [""; 0]);
    assert_eq!(clients(Filter { real_server: endpoint("fd00::11", None), ..all }), [V6]);
    assert_eq!(clients(Filter { real_server: endpoint("10.0.1.11", 80), ..all }), [""; 0]);
    assert_eq!(clients(Filter { real_server: endpoint("10.0.1.12", 2222), ..all }), [ALL_PORTS]);
    let from = |network: &str| Filter { client: Some(network.parse().unwrap()), ..all };
    assert_eq!(clients(from("192.0.2.7/32")), [V4]);
    assert_eq!(clients(from("192.0.0.0/16")), [V4, TEMPLATE]);
    assert_eq!(clients(from("2001:db8::/32")), [V6]);
    assert_eq!(clients(from("0.0.0.0/0")), [V4, TEMPLATE, ALL_PORTS]);
    assert_eq!(clients(Filter { state: Some(State::TEMPLATE), ..from("192.0.2.7/32") }), [""; 0]);
}

#[test]
fn totals_agree_with_the_list_whatever_is_meant() {
    let memory = filled();
    memory.put(30, key("192.0.2.8", 1), Meta::new(3, State::SETTLING, 1, 5, 0));
    memory.put(31, 7, Meta::new(5, State::SETTLING, 1, 5, 0));
    memory.put_tuple(31, "198.51.100.9", 5556, 2223);
    let reader = Reader::new(memory.tables(), &TIMEOUTS, NOW);
    let all = Filter::default();
    let filters = [
        all,
        Filter { state: Some(State::SETTLING), ..all },
        Filter { client: Some("192.0.2.7/32".parse().unwrap()), ..all },
        Filter { virtual_server: endpoint("10.0.0.101", 2223), ..all },
        Filter { real_server: endpoint("10.0.1.12", 2222), ..all },
        Filter { real_server: endpoint("10.0.1.11", 8080), ..all },
    ];
    for filter in filters {
        let listed: Vec<Connection> = reader.connections(&filter).collect();
        let mut counted = 0;
        for totals in reader.totals(&filter) {
            for (state, number) in STATES.into_iter().zip(totals.states) {
                let is_its = |connection: &&Connection| {
                    let same_port = [0, connection.real_server.port()].contains(&totals.real_server.port());
                    connection.state == state && connection.real_server.ip() == totals.real_server.ip() && same_port
                };
                assert_eq!(listed.iter().filter(is_its).count() as u64, number, "{filter:?}");
                counted += number;
            }
        }
        assert_eq!(listed.len() as u64, counted, "{filter:?}");
    }
}

#[test]
fn totals_are_in_the_order_of_addresses_and_leave_templates_out_of_the_connections() {
    let memory = filled();
    let totals = Reader::new(memory.tables(), &TIMEOUTS, NOW).totals(&Filter::default());
    let rows: Vec<_> = totals.iter().map(|t| (t.real_server.to_string(), t.connections(), t.active())).collect();
    let row = |address: &str, connections, active| (address.to_owned(), connections, active);
    assert_eq!(rows, [row("10.0.1.11:8080", 1, 1), row("10.0.1.12:0", 1, 1), row("[fd00::11]:53", 1, 0)]);
}

#[test]
fn nothing_is_listed_half_written() {
    // The key says the real server, which a torn slot would show with another one.
    let memory = Memory::new(2, 8);
    memory.put_virtual(0, Virtual::PLAIN);
    (0..8).for_each(|index| memory.put_real(index, Real { port: 1000 + index, ..Real::PLAIN }));
    let (stop, turns) = (AtomicBool::new(false), AtomicU64::new(0));
    let random = |client: u64| client * 8 + client % 8;
    let mut seen = 0_u64;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut cpu = Cpu::new(memory.tables(), &turns, 1);
            for client in (1..60_000).cycle().take_while(|_| !stop.load(SeqCst)) {
                cpu.packet(client << 32 | 7, random(client));
            }
        });
        while seen < 200_000 {
            for connection in listed(&memory, &Filter::default()) {
                let Client::Socket(client) = connection.client else { panic!("no template") };
                if connection.real_server.port() != 1000 + client.port() % 8 {
                    stop.store(true, SeqCst);
                    panic!("{connection:?}");
                }
                seen += 1;
            }
        }
        stop.store(true, SeqCst);
    });
}
