//! The daemon's state as text for a terminal. Pure.

use comfy_table::{CellAlignment, Table, presets};

use crate::control::protocol::{ConnectionTable, Counters, NextHop, RealServer, Status, VirtualServer};

/// The state as a head line, a table in the manner of `ipvsadm -Ln`, and the drops that happened.
pub fn status(status: &Status) -> String {
    let interfaces: Vec<String> = status.interfaces.iter().map(|i| format!("{} ({})", i.name, i.mode)).collect();
    let adopted = match status.adopted {
        true => format!(", tables adopted, counting for {}", span(status.tables_seconds)),
        false => String::new(),
    };
    let head = format!(
        "instance {}, backend {} on {}, up {}, pid {}{}\n\n",
        status.instance,
        status.backend,
        interfaces.join(", "),
        span(status.uptime_seconds),
        status.pid,
        adopted,
    );
    let drops: Vec<(&str, u64)> = status.drops.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
    format!(
        "{head}{}\n\n{}dropped packets: {}\n",
        table(&status.virtual_servers),
        connection_table(&status.connection_table),
        listed(&drops)
    )
}

/// What is not nought of `counts`.
fn listed(counts: &[(&str, u64)]) -> String {
    let counts: Vec<String> =
        counts.iter().filter(|(_, count)| *count != 0).map(|(what, count)| format!("{what} {count}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

/// How full the table is, and then only what an operator may have to act on.
fn connection_table(table: &ConnectionTable) -> String {
    let ConnectionTable {
        connections,
        connections_max,
        half_open,
        closing,
        established,
        templates,
        inserted: _,
        expired: _,
        reclaimed: _,
        evicted_half_open,
        evicted_closing,
        evicted_established,
        refused,
        lost_races,
        repaired,
    } = *table;
    let percent = connections * 100 / u64::from(connections_max.max(1));
    let kinds = [
        ("established", established),
        ("half-open", half_open),
        ("closing", closing),
        ("persistence templates", templates),
    ];
    let displaced = [
        ("half-open", evicted_half_open),
        ("closing", evicted_closing),
        ("established by one packet", evicted_established),
    ];
    let without = [("table full", refused), ("lost races", lost_races)];
    let repaired = if repaired == 0 { String::new() } else { format!("wrong counts put right: {repaired}\n") };
    format!(
        "connections: {connections} of {connections_max} ({percent} %); at the last scan: {}\n\
         displaced by newcomers: {}\nnewcomers without a place: {}\n{repaired}",
        listed(&kinds),
        listed(&displaced),
        listed(&without)
    )
}

const HEADER: [&str; 12] = [
    "virtual server / real server",
    "sched",
    "forward",
    "weight",
    "active",
    "inactive",
    "conns",
    "packets in",
    "packets out",
    "bytes in",
    "bytes out",
    "next hop",
];

fn table(virtual_servers: &[VirtualServer]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(HEADER);
    for server in virtual_servers {
        table.add_row(virtual_server_row(server));
        for real in &server.real_servers {
            table.add_row(real_server_row(real));
        }
    }
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    for index in 3..=10 {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

fn virtual_server_row(server: &VirtualServer) -> Vec<String> {
    let name = server.name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
    let denied = server.denied.map_or_else(String::new, |packets| format!(", {packets} denied"));
    let title = format!("{} {}{name}{denied}", server.protocol, server.address);
    let sum =
        |count: fn(&RealServer) -> u32| server.real_servers.iter().map(|real| u64::from(count(real))).sum::<u64>();
    let (active, inactive) = (sum(|real| real.active), sum(|real| real.inactive));
    let mut row = vec![title, server.scheduler.clone(), String::new(), String::new()];
    row.extend([active.to_string(), inactive.to_string()]);
    row.extend(counters(&server.counters));
    row.push(String::new());
    row
}

fn real_server_row(real: &RealServer) -> Vec<String> {
    let role = if real.role == "serving" { String::new() } else { format!(" ({})", real.role) };
    let drained = match (real.drained, real.drained_for_seconds) {
        (false, _) => String::new(),
        (true, None) => " (drained)".to_owned(),
        (true, Some(seconds)) => format!(" (drained for {})", span(seconds)),
    };
    let rising = if real.rising { " (rising)" } else { "" };
    let title = format!("  -> {}{role}{drained}{rising}", real.address);
    let mut row = vec![title, String::new(), real.forwarding.clone(), real.weight.to_string()];
    row.extend([real.active.to_string(), real.inactive.to_string()]);
    row.extend(counters(&real.counters));
    row.push(next_hop(&real.next_hop));
    row
}

fn counters(counters: &Counters) -> [String; 5] {
    let Counters { connections, packets_in, packets_out, bytes_in, bytes_out } = counters;
    [connections, packets_in, packets_out, bytes_in, bytes_out].map(ToString::to_string)
}

fn next_hop(hop: &NextHop) -> String {
    match hop {
        NextHop::Resolved { interface, mac, gateway, mtu: _ } => match gateway {
            Some(gateway) => format!("{interface} {mac} via {gateway}"),
            None => format!("{interface} {mac}"),
        },
        NextHop::Local => "this host".to_owned(),
        NextHop::Unresolved { reason } => format!("unresolved: {reason}"),
    }
}

/// Days, hours, minutes and seconds, the largest two of them that are not zero.
pub fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::control::protocol::Interface;

    #[test]
    fn a_span_is_as_coarse_as_it_is_long() {
        assert_eq!(span(7), "7s");
        assert_eq!(span(125), "2m 5s");
        assert_eq!(span(7_322), "2h 2m");
        assert_eq!(span(90_061), "1d 1h");
    }

    /// A web server's virtual server: one real server, one drained, and the sorry server.
    fn virtual_server() -> VirtualServer {
        let counters = Counters { connections: 3, packets_in: 12, packets_out: 9, bytes_in: 720, bytes_out: 48_000 };
        let hop = NextHop::Resolved {
            interface: "eth0".to_owned(),
            mac: "02:00:00:00:00:0b".to_owned(),
            gateway: None,
            mtu: 1500,
        };
        let real = RealServer {
            address: "10.77.1.11:80".parse().unwrap(),
            forwarding: "nat".to_owned(),
            weight: 1,
            rising: true,
            drained: false,
            drained_for_seconds: None,
            role: "serving".to_owned(),
            active: 2,
            inactive: 1,
            counters,
            next_hop: hop,
        };
        let silent = RealServer {
            address: "10.77.1.12:80".parse().unwrap(),
            weight: 0,
            rising: false,
            drained: true,
            drained_for_seconds: Some(90),
            active: 0,
            inactive: 7,
            counters: Counters::default(),
            next_hop: NextHop::Unresolved { reason: "no route".to_owned() },
            ..real.clone()
        };
        let sorry = RealServer {
            address: "10.77.1.13:80".parse().unwrap(),
            role: "sorry".to_owned(),
            drained: false,
            ..silent.clone()
        };
        VirtualServer {
            name: Some("web".to_owned()),
            protocol: "tcp".to_owned(),
            address: "10.77.0.100:80".parse().unwrap(),
            scheduler: "rr".to_owned(),
            counters,
            denied: Some(14),
            real_servers: vec![real, silent, sorry],
        }
    }

    #[test]
    fn the_table_reads_like_ipvsadm() {
        let connection_table = ConnectionTable {
            connections: 17,
            connections_max: 1000,
            half_open: 10,
            established: 2,
            closing: 5,
            inserted: 99,
            expired: 80,
            evicted_half_open: 4,
            lost_races: 1,
            repaired: 2,
            ..ConnectionTable::default()
        };
        let state = Status {
            version: "0.1.0".to_owned(),
            instance: "demo".to_owned(),
            pid: 42,
            uptime_seconds: 7,
            adopted: true,
            tables_seconds: 90,
            backend: "xdp".to_owned(),
            pin_directory: "/sys/fs/bpf/evenkeel/demo".to_owned(),
            interfaces: vec![Interface { name: "eth0".to_owned(), mode: "native".to_owned() }],
            connection_table,
            virtual_servers: vec![virtual_server()],
            drops: BTreeMap::from([("malformed".to_owned(), 0), ("no_connection".to_owned(), 2)]),
        };
        insta::assert_snapshot!(status(&state));
    }
}
