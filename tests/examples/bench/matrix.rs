//! What is measured: every combination of packets, scheduler and size, and the limit for each. Pure.

use std::fmt;

use lb_common::service::{ForwardingMethod, Scheduler};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }
}

/// The forwarding method, and with `nat` the direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    NatRequest,
    NatReply,
    Dr,
    Tun,
}

impl Path {
    pub const ALL: [Self; 4] = [Self::NatRequest, Self::NatReply, Self::Dr, Self::Tun];

    pub const fn name(self) -> &'static str {
        match self {
            Self::NatRequest => "nat request",
            Self::NatReply => "nat reply",
            Self::Dr => "dr",
            Self::Tun => "tun",
        }
    }

    pub const fn method(self) -> ForwardingMethod {
        match self {
            Self::NatRequest | Self::NatReply => ForwardingMethod::Nat,
            Self::Dr => ForwardingMethod::Dr,
            Self::Tun => ForwardingMethod::Tun,
        }
    }
}

/// Which packets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data of established connections, in random order.
    Established,
    /// The SYN of each connection, into a table that is empty before.
    New,
    /// The ACK that establishes it.
    FirstAck,
    /// As [`Kind::Established`], of clients beside denied prefixes; above the same without these.
    EstablishedListed,
    /// As [`Kind::New`], likewise.
    NewListed,
    /// SYNs of clients in denied prefixes.
    Denied,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::New => "new",
            Self::FirstAck => "first ack",
            Self::EstablishedListed => "established beside denied",
            Self::NewListed => "new beside denied",
            Self::Denied => "denied",
        }
    }
}

/// Flows of the measurements with a table that stays in the cache: 60 % of 65,536 slots, which are 1 MB.
pub const HOT: u32 = 39_000;

/// Live flows of the curve.
const SIZES: [u32; 5] = [1, 65_536, 1_000_000, 4_000_000, 10_000_000];

/// One figure to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experiment {
    pub kind: Kind,
    pub family: Family,
    pub path: Path,
    pub scheduler: Scheduler,
    /// Real servers behind the virtual server.
    pub servers: u16,
    /// Live flows, for which the table is made.
    pub flows: u32,
    /// Prefixes that are denied.
    pub prefixes: u32,
}

/// Denied prefixes, and flows: each client is in one of its own, or beside it.
pub const PREFIXES: u32 = 10_000;

/// All of them in the order of the report; with `quick` only those that take no minute to set up.
pub fn experiments(quick: bool) -> Vec<Experiment> {
    let mut all = established();
    all.extend(new_flows());
    all.extend(listed());
    all.retain(|experiment| !quick || is_quick(experiment));
    all
}

fn established() -> Vec<Experiment> {
    let mut all = Vec::new();
    for family in Family::ALL {
        for path in Path::ALL {
            // Which real server answers a client is only plain where there is one.
            let servers = if path == Path::NatReply { 1 } else { 64 };
            all.extend(SIZES.map(|flows| Experiment {
                kind: Kind::Established,
                family,
                path,
                scheduler: Scheduler::Rr,
                servers,
                flows,
                prefixes: 0,
            }));
        }
    }
    all
}

fn new_flows() -> Vec<Experiment> {
    let dr = |scheduler, servers| Experiment {
        kind: Kind::New,
        family: Family::V4,
        path: Path::Dr,
        scheduler,
        servers,
        flows: HOT,
        prefixes: 0,
    };
    let wlc = dr(Scheduler::Wlc, 64);
    let rr = dr(Scheduler::Rr, 64);
    let mut all = vec![rr];
    let others = [Scheduler::Wrr, Scheduler::Sh, Scheduler::Dh, Scheduler::Mh, Scheduler::Sed, Scheduler::Nq];
    all.extend(others.map(|scheduler| dr(scheduler, 64)));
    all.extend([Scheduler::Fo, Scheduler::Ovf].map(|scheduler| dr(scheduler, 64)));
    all.extend([64, 1024].map(|servers| dr(Scheduler::Twos, servers)));
    all.extend([64, 256, 1024].map(|servers| dr(Scheduler::Lc, servers)));
    all.extend([64, 256, 1024].map(|servers| dr(Scheduler::Wlc, servers)));
    all.extend([Path::NatRequest, Path::Tun].map(|path| Experiment { path, ..wlc }));
    all.extend([Path::NatRequest, Path::Dr, Path::Tun].map(|path| Experiment { family: Family::V6, path, ..wlc }));
    all.extend([rr, wlc].map(|hot| Experiment { flows: 1_000_000, ..hot }));
    all.extend([HOT, 1_000_000].map(|flows| Experiment { kind: Kind::FirstAck, flows, ..wlc }));
    all
}

fn listed() -> Vec<Experiment> {
    let kinds = [Kind::EstablishedListed, Kind::NewListed, Kind::Denied];
    let listed = |family| {
        kinds.map(|kind| Experiment {
            kind,
            family,
            path: Path::Dr,
            scheduler: Scheduler::Rr,
            servers: 64,
            flows: PREFIXES,
            prefixes: PREFIXES,
        })
    };
    Family::ALL.into_iter().flat_map(listed).collect()
}

fn is_quick(experiment: &Experiment) -> bool {
    match experiment.kind {
        Kind::Established => experiment.flows <= 1_000_000,
        Kind::New | Kind::FirstAck => experiment.flows == HOT,
        Kind::EstablishedListed | Kind::NewListed | Kind::Denied => true,
    }
}

impl fmt::Display for Experiment {
    /// What `--filter` looks into.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, family, path, scheduler, servers, flows, prefixes: _ } = self;
        let (kind, family, path, flows) = (kind.name(), family.name(), path.name(), size(*flows));
        write!(out, "{kind} {family} {path} {}/{servers} {flows}", scheduler.name())
    }
}

/// A number of flows as people say it: 64k, 1M.
pub fn size(flows: u32) -> String {
    match flows {
        0 => "0".to_owned(),
        _ if flows.is_multiple_of(1_000_000) => format!("{}M", flows / 1_000_000),
        _ if flows.is_multiple_of(1024) => format!("{}k", flows / 1024),
        _ if flows.is_multiple_of(1000) => format!("{}k", flows / 1000),
        _ => flows.to_string(),
    }
}

impl Experiment {
    /// Nanoseconds above the empty program that it may take on the machine we develop on; `None` where nothing was said.
    pub fn limit(&self) -> Option<i64> {
        match self.kind {
            Kind::Established => self.limit_established(),
            Kind::New => self.limit_new(),
            Kind::FirstAck => None,
            // Above the same without a list.
            Kind::EstablishedListed | Kind::NewListed => Some(30),
            // What any hot packet of an established connection may take, and that.
            Kind::Denied => self.limit_hot().map(|hot| hot + 30),
        }
    }

    /// Percent of what the same program with an LRU_HASH takes that it may take.
    pub fn limit_of_lru(&self) -> Option<i64> {
        match (self.kind, self.flows) {
            (Kind::Established, 1_000_000) => Some(33),
            (Kind::Established, 4_000_000) => Some(45),
            (Kind::Established, 10_000_000) => Some(55),
            _ => None,
        }
    }

    fn limit_established(&self) -> Option<i64> {
        let limits = match (self.family, self.path) {
            (Family::V4, Path::NatRequest | Path::NatReply) => [28, 47, 85, 165, 205],
            (Family::V4, Path::Dr) => [25, 45, 80, 165, 205],
            (Family::V4, Path::Tun) => [40, 55, 90, 180, 215],
            (Family::V6, Path::NatRequest | Path::NatReply) => return None,
            (Family::V6, Path::Dr) => [35, 55, 90, 180, 215],
            (Family::V6, Path::Tun) => [50, 65, 100, 195, 225],
        };
        SIZES.into_iter().zip(limits).find(|(flows, _)| *flows == self.flows).map(|(_, limit)| limit)
    }

    /// The limit of established connections that stay in the cache.
    fn limit_hot(&self) -> Option<i64> {
        Self { flows: 1, ..*self }.limit_established()
    }

    fn limit_new(&self) -> Option<i64> {
        if self.family == Family::V6 {
            return None;
        }
        if self.flows != HOT {
            return Some(220);
        }
        match (self.scheduler, self.servers) {
            (Scheduler::Rr, _) => Some(50),
            (Scheduler::Wlc, 64) if self.path == Path::Tun => Some(100),
            (Scheduler::Wlc, 64) => Some(85),
            (Scheduler::Wlc, 256) => Some(150),
            (Scheduler::Wlc | Scheduler::Twos, 1024) => Some(110),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(name: &str) -> Experiment {
        let all = experiments(false);
        *all.iter().find(|experiment| experiment.to_string() == name).unwrap_or_else(|| panic!("no {name} in {all:?}"))
    }

    #[test]
    fn each_experiment_has_a_name_of_its_own() {
        let mut names: Vec<String> = experiments(false).iter().map(Experiment::to_string).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        // 2 families, 4 paths, 5 sizes; 22 of new flows when hot, 2 at a million; 2 of first ACKs; 3 with a list, 2 families
        assert_eq!((names.len(), all), (40 + 26 + 6, 40 + 26 + 6));
    }

    #[test]
    fn quick_leaves_out_what_is_large() {
        let quick = experiments(true);
        // three of the five sizes; neither those of new flows nor of first ACKs at a million; all with a list
        assert_eq!(quick.len(), 24 + 23 + 6);
        assert!(quick.iter().all(|experiment| experiment.flows <= 1_000_000));
    }

    #[test]
    fn limits_are_those_that_were_set() {
        assert_eq!(find("established v4 dr rr/64 1").limit(), Some(25));
        assert_eq!(find("established v4 nat reply rr/1 64k").limit(), Some(47));
        assert_eq!(find("established v6 tun rr/64 10M").limit(), Some(225));
        assert_eq!(find("established v6 nat request rr/64 1M").limit(), None);
        assert_eq!(find("new v4 tun wlc/64 39k").limit(), Some(100));
        assert_eq!(find("new v4 dr wlc/1024 39k").limit(), Some(110));
        assert_eq!(find("new v4 dr rr/64 1M").limit(), Some(220));
        assert_eq!(find("established v4 dr rr/64 4M").limit_of_lru(), Some(45));
        assert_eq!(find("new v4 dr rr/64 1M").limit_of_lru(), None);
        assert_eq!(find("new beside denied v4 dr rr/64 10k").limit(), Some(30));
        assert_eq!(find("denied v6 dr rr/64 10k").limit(), Some(35 + 30));
    }

    #[test]
    fn sizes_read_as_people_say_them() {
        assert_eq!([0, 1, 65_536, 39_000, 10_000_000].map(size), ["0", "1", "64k", "39k", "10M"]);
    }
}
