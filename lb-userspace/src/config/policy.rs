//! How a virtual server treats new and lost connections, and that its keys do not contradict each other.
//!
//! A key that only some schedulers or one protocol can use may still be written with its default. Not `removed_real_server`
//! for UDP: there the default would be as untrue as the other.

use std::net::IpAddr;

use lb_common::net::Protocol;
use lb_common::service::{Refusal, Scheduler};

use super::persistence;
use super::reader::{Reader, Words};
use super::report::Report;
use crate::model::{Policy, Removal};

const DESTINATIONS: &str = "keeps a real server for each destination address, for caches in front of many of them, and a \
                            virtual server here has one; use \"dh\" or \"mh\", or later backend \"ipvs\"";
const ONE_PACKET_HELP: &str = "it is for protocol \"udp\": each datagram is scheduled for itself";
const SLOPPY_HELP: &str = "remove it, it is for protocol \"tcp\"";
const UNKNOWN_HELP: &str =
    "remove it, it is for protocol \"tcp\" and \"sctp\": a datagram of an unknown connection is always scheduled";
const HASH_HELP: &str = "remove it: \"sh\", \"dh\" and \"mh\" schedule a segment of an unknown connection in any case, as they \
                         choose what they chose before";
const REMOVAL_HELP: &str =
    "remove it, it is for protocol \"tcp\" and \"sctp\": datagrams for a removed real server go to another one at once";
const SLOW_START_HELP: &str = "it is how long a real server takes to reach its full weight; \"0s\" is at once";

/// The words of `scheduler`.
pub static SCHEDULERS: Words<Scheduler> = Words {
    now: &[
        (Scheduler::Rr.name(), Scheduler::Rr),
        (Scheduler::Wrr.name(), Scheduler::Wrr),
        (Scheduler::Lc.name(), Scheduler::Lc),
        (Scheduler::Wlc.name(), Scheduler::Wlc),
        (Scheduler::Sh.name(), Scheduler::Sh),
        (Scheduler::Dh.name(), Scheduler::Dh),
        (Scheduler::Mh.name(), Scheduler::Mh),
        (Scheduler::Sed.name(), Scheduler::Sed),
        (Scheduler::Nq.name(), Scheduler::Nq),
        (Scheduler::Fo.name(), Scheduler::Fo),
        (Scheduler::Ovf.name(), Scheduler::Ovf),
        (Scheduler::Twos.name(), Scheduler::Twos),
    ],
    later: &[],
    never: &[("lblc", DESTINATIONS), ("lblcr", DESTINATIONS)],
};

/// The words of `no_real_server` and `unknown_connection`.
pub static REFUSALS: Words<Refusal> =
    Words { now: &[("reject", Refusal::Reject), ("drop", Refusal::Drop)], later: &[], never: &[] };

/// The words of `removed_real_server`.
pub static REMOVALS: Words<Removal> =
    Words { now: &[("keep", Removal::Keep), ("expire", Removal::Expire)], later: &[], never: &[] };

/// Reads the policy of the virtual server in `table`, of which `vip` and `protocol` are `None` when they are wrong or
/// missing; each value that is missing or wrong has its default.
pub fn read(table: &Reader<'_>, vip: Option<IpAddr>, protocol: Option<Protocol>, report: &mut Report<'_>) -> Policy {
    let scheduler = table.word("scheduler", &SCHEDULERS, report);
    let known = if table.has("scheduler") { scheduler } else { Some(DEFAULT.scheduler) };
    let policy = Policy {
        scheduler: scheduler.unwrap_or(DEFAULT.scheduler),
        hash_port: hash_flag(table, &HASH_PORT, known, report),
        hash_fallback: hash_flag(table, &HASH_FALLBACK, known, report),
        persistence: persistence::read(table, vip, report),
        one_packet: table.boolean("one_packet", report).unwrap_or(DEFAULT.one_packet),
        sloppy_tcp: table.boolean("sloppy_tcp", report).unwrap_or(DEFAULT.sloppy_tcp),
        stateless_replies: table.boolean("stateless_replies", report).unwrap_or(DEFAULT.stateless_replies),
        slow_start: table.duration("slow_start", SLOW_START_HELP, report).unwrap_or(DEFAULT.slow_start),
        no_real_server: table.word("no_real_server", &REFUSALS, report).unwrap_or(DEFAULT.no_real_server),
        unknown_connection: table.word("unknown_connection", &REFUSALS, report).unwrap_or(DEFAULT.unknown_connection),
        removed_real_server: table
            .word("removed_real_server", &REMOVALS, report)
            .unwrap_or(DEFAULT.removed_real_server),
    };
    if let Some(protocol) = protocol {
        check_protocol(table, &policy, protocol, report);
    }
    if let Some(scheduler) = known {
        check_scheduler(table, &policy, (scheduler, protocol), report);
    }
    if policy.one_packet && table.has("persistence_timeout") {
        let help =
            "nothing is remembered of a client; scheduler \"sh\" or \"mh\" holds it to a real server all the same";
        let with = stated(table, "persistence_timeout", None, report);
        Contradiction { key: "one_packet", must: "false", with, help }.report(table, report);
    }
    policy
}

/// Reports `one_packet` for a virtual server of which the server on `line` is reached by `nat`.
pub fn report_one_packet_nat(table: &Reader<'_>, line: usize, report: &mut Report<'_>) {
    let with = format!("forwarding \"nat\", as of the server on line {line}");
    let help =
        "no connection is remembered that a reply could find its client by; write forwarding = \"dr\" or \"tun\"";
    Contradiction { key: "one_packet", must: "false", with, help }.report(table, report);
}

/// Reports `one_packet` for a virtual server of which a real server has a threshold on `line`.
pub fn report_one_packet_threshold(table: &Reader<'_>, line: usize, report: &mut Report<'_>) {
    let with = format!("upper_threshold on line {line}");
    let help = "no connection is counted that could reach it; remove it, or one_packet";
    Contradiction { key: "one_packet", must: "false", with, help }.report(table, report);
}

/// Reports `stateless_replies` for a virtual server of which no server is reached by `nat`.
pub fn report_stateless_without_nat(table: &Reader<'_>, report: &mut Report<'_>) {
    let help = "with \"dr\" and \"tun\" real servers answer clients from the VIP themselves; remove it".to_owned();
    let span = table.place("stateless_replies").unwrap_or_else(|| table.span.clone());
    let message = format!("{} is true, must be false without a real server by nat", table.path("stateless_replies"));
    report.error(&span, message, Some(help));
}

/// Real servers that `fo` and `ovf` compare.
const COMPARED_MAX: usize = lb_common::service::CHUNKS_COMPARED_MAX as usize * lb_common::real::LANES;

/// Reports more real servers than the scheduler can compare: those that have no window must look at all of them.
pub fn check_number(table: &Reader<'_>, scheduler: Scheduler, real_servers: usize, report: &mut Report<'_>) {
    if matches!(scheduler, Scheduler::Fo | Scheduler::Ovf) && real_servers > COMPARED_MAX {
        let name = scheduler.name();
        let message = format!(
            "virtual_server has {real_servers} real servers and scheduler \"{name}\", which compares all of them: must be at \
             most {COMPARED_MAX}"
        );
        let help = "give the rest to another virtual server, or take another scheduler".to_owned();
        report.error(&table.span, message, Some(help));
    }
}

/// What holds where a virtual server says nothing.
const DEFAULT: Policy = Policy::new(Scheduler::Rr);

/// A flag that goes with some schedulers only.
struct HashFlag {
    key: &'static str,
    schedulers: &'static [Scheduler],
    help: &'static str,
}

const HASH_PORT: HashFlag = HashFlag {
    key: "hash_port",
    schedulers: &[Scheduler::Sh, Scheduler::Mh],
    help: "it is for scheduler \"sh\" and \"mh\": by the client's port too",
};

const HASH_FALLBACK: HashFlag = HashFlag {
    key: "hash_fallback",
    schedulers: &[Scheduler::Sh, Scheduler::Dh, Scheduler::Mh],
    help: "it is for scheduler \"sh\", \"dh\" and \"mh\"; the others never choose a real server that takes no new connection",
};

/// Reads `flag`; `scheduler` is `None` when it is unreadable.
fn hash_flag(table: &Reader<'_>, flag: &HashFlag, scheduler: Option<Scheduler>, report: &mut Report<'_>) -> bool {
    let HashFlag { key, schedulers, help } = *flag;
    let set = table.boolean(key, report).unwrap_or(false);
    if let Some(scheduler) = scheduler.filter(|scheduler| set && !schedulers.contains(scheduler)) {
        let with = stated(table, "scheduler", Some(scheduler.name()), report);
        Contradiction { key, must: "false", with, help }.report(table, report);
    }
    set
}

/// `protocol` is `None` when it is wrong or missing.
fn check_scheduler(
    table: &Reader<'_>,
    policy: &Policy,
    (scheduler, protocol): (Scheduler, Option<Protocol>),
    report: &mut Report<'_>,
) {
    // Where the protocol alone contradicts them, they are reported for that.
    let is_sloppy = policy.sloppy_tcp && matches!(protocol, None | Some(Protocol::Tcp));
    let is_drop = policy.unknown_connection == Refusal::Drop && protocol != Some(Protocol::Udp);
    let overflows = policy.one_packet && scheduler == Scheduler::Ovf;
    let ovf_help = "no connection is counted that could overflow; take \"fo\" or \"wrr\"";
    let possible = [
        (scheduler.is_hash() && is_sloppy, "sloppy_tcp", "false", HASH_HELP),
        (scheduler.is_hash() && is_drop, "unknown_connection", "\"reject\"", HASH_HELP),
        (overflows, "one_packet", "false", ovf_help),
    ];
    for (_, key, must, help) in possible.into_iter().filter(|(is_so, ..)| *is_so) {
        let with = stated(table, "scheduler", Some(scheduler.name()), report);
        Contradiction { key, must, with, help }.report(table, report);
    }
}

fn check_protocol(table: &Reader<'_>, policy: &Policy, protocol: Protocol, report: &mut Report<'_>) {
    let possible = match protocol {
        Protocol::Tcp => vec![(policy.one_packet, "one_packet", "false", ONE_PACKET_HELP)],
        Protocol::Udp => vec![
            (policy.sloppy_tcp, "sloppy_tcp", "false", SLOPPY_HELP),
            (policy.unknown_connection == Refusal::Drop, "unknown_connection", "\"reject\"", UNKNOWN_HELP),
            (table.has("removed_real_server"), "removed_real_server", "left out", REMOVAL_HELP),
        ],
        Protocol::Sctp => vec![
            (policy.one_packet, "one_packet", "false", ONE_PACKET_HELP),
            (policy.sloppy_tcp, "sloppy_tcp", "false", SLOPPY_HELP),
        ],
    };
    for (_, key, must, help) in possible.into_iter().filter(|(is_so, ..)| *is_so) {
        let with = stated(table, "protocol", Some(protocol.name()), report);
        Contradiction { key, must, with, help }.report(table, report);
    }
}

/// A value that contradicts another one.
struct Contradiction {
    key: &'static str,
    /// What it must be.
    must: &'static str,
    /// With what.
    with: String,
    /// The way out.
    help: &'static str,
}

impl Contradiction {
    fn report(self, table: &Reader<'_>, report: &mut Report<'_>) {
        let Self { key, must, with, help } = self;
        let span = table.place(key).unwrap_or_else(|| table.span.clone());
        let message = format!("{} is {}, must be {must} with {with}", table.path(key), report.quote(&span));
        report.error(&span, message, Some(help.to_owned()));
    }
}

/// `scheduler "rr" on line 12`, or `scheduler "rr", the default`.
fn stated(table: &Reader<'_>, key: &'static str, value: Option<&str>, report: &Report<'_>) -> String {
    let value = value.map(|value| format!(" \"{value}\"")).unwrap_or_default();
    match table.place(key) {
        Some(span) => format!("{key}{value} on line {}", report.line(&span)),
        None => format!("{key}{value}, the default"),
    }
}
