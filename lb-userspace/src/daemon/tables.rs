//! The tables that a daemon begins with: new ones, or those of an earlier daemon.

use std::time::{Duration, Instant};

use aya::Ebpf;
use lb_common::connection::{State, Timeouts};
use lb_common::hash::Secret;
use tracing::{info, warn};

use super::StartError;
use crate::config::{self, Config};
use crate::datapath::xdp::adoptable::{self, Fit, Pinned, Unfit};
use crate::datapath::xdp::capacity::Capacity;
use crate::datapath::xdp::object::{self, LoadOptions};
use crate::datapath::xdp::pins::Pins;
use crate::datapath::xdp::table::scanner::Constants;
use crate::datapath::xdp::table::task::sweep_once;
use crate::datapath::xdp::{XdpDatapath, attach, origin, pins};
use crate::datapath::{Datapath, DatapathError, ServiceTable, ticks};
use crate::error::chain;
use crate::host::jiffies_per_second;
use crate::reconcile::desired::Desired;
use crate::reconcile::reconcile;

/// The loaded program, before anything that others use is changed.
pub enum Loaded {
    /// On tables of its own.
    Apart(Box<XdpDatapath>, Made),
    /// On those of an earlier daemon, as they are.
    Onto(Ebpf, Made),
}

/// What was made of the tables.
#[derive(Clone, Debug)]
pub struct Made {
    /// What the program was loaded with.
    pub options: LoadOptions,
    /// What the tables have room for.
    pub capacity: Capacity,
    /// When the tables were made, in the time since the machine started.
    pub made_at: Duration,
    /// Whether an earlier daemon has made them.
    pub are_adopted: bool,
    /// The earlier tables that were given up, where there were any.
    pub given_up: Option<Unfit>,
}

impl Made {
    /// What the scan of the connection table must know.
    pub fn constants(&self) -> Constants {
        let LoadOptions { timeouts, secret, .. } = self.options;
        Constants { timeouts, secret, jiffies_per_second: jiffies_per_second() }
    }
}

/// Loads the program for `config`: onto the tables that an earlier daemon has pinned, if they fit.
///
/// # Errors
///
/// When the kernel refuses the program or its maps.
pub fn load(config: &Config, pins: &Pins, desired: &Desired) -> Result<Loaded, StartError> {
    let table = desired.largest_table();
    let capacity = Capacity::of(&table);
    let secret = object::random_secret().map_err(StartError::Random)?;
    let options = options(config, capacity, secret);
    let given_up = match adoptable::examine(pins, &options, &table)? {
        Pinned::Fit(fit) => {
            let Fit { options, capacity, made_at } = *fit;
            let ebpf = object::load_onto(pins.directory(), attach::PROGRAM, &pins::MAPS, &options)?;
            let made_at = Duration::from_secs(made_at);
            return Ok(Loaded::Onto(ebpf, Made { options, capacity, made_at, are_adopted: true, given_up: None }));
        }
        Pinned::Nothing => None,
        Pinned::Unfit(unfit) => Some(unfit),
    };
    apart(options, capacity, given_up)
}

fn apart(options: LoadOptions, capacity: Capacity, given_up: Option<Unfit>) -> Result<Loaded, StartError> {
    let datapath = XdpDatapath::new(object::load(attach::PROGRAM, &pins::MAPS, &options)?)?;
    let made = Made { options, capacity, made_at: origin::since_boot(), are_adopted: false, given_up };
    Ok(Loaded::Apart(Box::new(datapath), made))
}

impl Loaded {
    /// Serves what is `desired`; `set_ways` tells the ways to real servers before. In tables of an earlier daemon, real servers
    /// that these lack rise slowly, as after a reload. Where the tables of an earlier daemon turn out to be
    /// of no use, new ones are made after all.
    ///
    /// # Errors
    ///
    /// When a map cannot be written.
    pub fn serve(
        self,
        desired: &mut Desired,
        set_ways: impl Fn(&mut XdpDatapath) -> Result<(), DatapathError>,
    ) -> Result<(XdpDatapath, Made), StartError> {
        let (mut datapath, made) = match self {
            Self::Apart(datapath, made) => (*datapath, made),
            Self::Onto(ebpf, made) => {
                let error = match adopt(ebpf, &made, desired, &set_ways) {
                    Ok(datapath) => return Ok((datapath, made)),
                    Err(StartError::Datapath(error @ (DatapathError::Foreign { .. } | DatapathError::Full { .. }))) => {
                        error
                    }
                    Err(error) => return Err(error),
                };
                let unfit = Unfit { differences: vec![chain(&error)], connections: None };
                let secret = object::random_secret().map_err(StartError::Random)?;
                let capacity = Capacity { nat: true, ..Capacity::of(&desired.largest_table()) };
                match apart(LoadOptions { secret, ..resized(made.options, capacity) }, capacity, Some(unfit))? {
                    Self::Apart(datapath, made) => (*datapath, made),
                    Self::Onto(..) => unreachable!("it was not looked for"),
                }
            }
        };
        set_ways(&mut datapath)?;
        reconcile(&mut datapath, &desired.table(Instant::now()))?;
        Ok((datapath, made))
    }
}

/// Goes on with the maps of `ebpf`, which nobody else changes any more, and serves what is `desired`.
///
/// # Errors
///
/// As [`XdpDatapath::adopt`] and [`XdpDatapath::settle`] tell.
fn adopt(
    ebpf: Ebpf,
    made: &Made,
    desired: &mut Desired,
    set_ways: impl Fn(&mut XdpDatapath) -> Result<(), DatapathError>,
) -> Result<XdpDatapath, StartError> {
    let mut datapath = XdpDatapath::adopt(ebpf, made.options.timeouts)?;
    desired.go_on_from(&datapath.weighted()?, Instant::now());
    go_on(&mut datapath, made, &desired.table(Instant::now()), set_ways)?;
    Ok(datapath)
}

/// Serves `table` in tables that have just been read back.
///
/// # Errors
///
/// As [`XdpDatapath::settle`] tells.
pub fn go_on(
    datapath: &mut XdpDatapath,
    made: &Made,
    table: &ServiceTable,
    set_ways: impl Fn(&mut XdpDatapath) -> Result<(), DatapathError>,
) -> Result<(), StartError> {
    let expired = sweep_once(datapath, &made.constants())?;
    set_ways(datapath)?;
    datapath.routes_changed()?;
    let removed = datapath.settle(table)?;
    let statistics = datapath.statistics()?;
    let counts = statistics.iter().flat_map(|server| &server.real_servers).map(|real| real.connections);
    let connections: u64 = counts.map(|counts| u64::from(counts.active) + u64::from(counts.inactive)).sum();
    let virtual_servers = datapath.installed()?.len();
    info!(connections, expired, virtual_servers, removed, "tables of the earlier daemon adopted");
    Ok(())
}

/// Tells loudly what is lost with the tables that are given up.
pub fn mourn(unfit: &Unfit) {
    for difference in &unfit.differences {
        warn!(difference, "the tables of the earlier daemon do not fit");
    }
    match unfit.connections {
        Some(connections) => warn!(connections, "the connection table begins empty, and these connections are lost"),
        None => warn!("the connection table begins empty; how many connections are lost cannot be told"),
    }
}

fn options(config: &Config, capacity: Capacity, secret: Secret) -> LoadOptions {
    let options = LoadOptions {
        connections_max: config.xdp.connections_max,
        reject_rate: config.xdp.reject_rate,
        packet_log: config.xdp.packet_log,
        timeouts: timeouts(&config.timeouts),
        secret,
        ..LoadOptions::SMALLEST
    };
    resized(options, capacity)
}

fn resized(options: LoadOptions, capacity: Capacity) -> LoadOptions {
    let Capacity { real_servers_max, ring_chunks, prefix_lines, nat, wide_tuples } = capacity;
    LoadOptions { real_servers_max, ring_chunks, prefix_lines, nat, wide_tuples, ..options }
}

/// The timeouts of the packet path; those that IPVS has no setting for are its own.
fn timeouts(configured: &config::Timeouts) -> Timeouts {
    let config::Timeouts { tcp, tcp_fin, udp } = *configured;
    let hz = jiffies_per_second();
    let defaults = Timeouts::ipvs_defaults(hz);
    Timeouts::new(
        defaults.of(State::OPENING),
        ticks(tcp, hz),
        ticks(tcp_fin, hz),
        defaults.of(State::CLOSED),
        ticks(udp, hz),
    )
}
