//! The scan in a thread of its own, so that it never delays the control loop and is never delayed by it.

use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tracing::{error, info, warn};

use super::audit::CountRepair;
use super::clock::{Clock, ClockError};
use super::loads::LoadRepair;
use super::memory_maps::MappedTables;
use super::scanner::{Constants, PAUSE, Report, Scanner};
use super::sweep::{Sweep, Swept, Time};
use super::words::Tables;
use crate::datapath::DatapathError;
use crate::datapath::xdp::XdpDatapath;
use crate::datapath::xdp::object::LoadError;
use crate::datapath::xdp::rest::REST;
use crate::error::chain;

/// Why the scan could not start.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The clock could not be loaded.
    #[error(transparent)]
    Clock(#[from] LoadError),
    /// The tables could not be mapped.
    #[error(transparent)]
    Tables(#[from] DatapathError),
    /// The time could not be told.
    #[error(transparent)]
    Time(#[from] ClockError),
    /// There is no thread for it.
    #[error("cannot start the thread that scans the connection table")]
    Thread(#[source] io::Error),
}

/// The running scan. Dropping it waits for the slice or audit that is under way: some milliseconds.
pub struct Scan {
    report: Arc<Mutex<Report>>,
    /// Both are there until the drop.
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Scan {
    /// Starts it over the tables of `datapath`.
    ///
    /// # Errors
    ///
    /// As [`ScanError`] tells.
    pub fn start(datapath: &XdpDatapath, constants: Constants) -> Result<Self, ScanError> {
        let (tables, clock) = (MappedTables::of(datapath)?, Clock::load()?);
        let (stop, stopped) = mpsc::channel();
        let report = Arc::new(Mutex::new(Report::default()));
        let shared = Arc::clone(&report);
        let run = move || run(&tables, &clock, Scanner::new(constants), &stopped, &shared);
        let thread = thread::Builder::new().name("table-scan".to_owned()).spawn(run).map_err(ScanError::Thread)?;
        Ok(Self { report, thread: Some((stop, thread)) })
    }

    /// What it has found and done until now.
    pub fn report(&self) -> Report {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Scan {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            if thread.join().is_err() {
                error!("the scan of the connection table had ended by a panic");
            }
        }
    }
}

/// Goes over the whole table once, before a scan begins: what is over ends, and above all what connections of real servers
/// that are gone from their places are left, so that none follows the next one there. Returns how many have ended.
///
/// # Errors
///
/// As [`ScanError`] tells, and where the time cannot be told.
pub fn sweep_once(datapath: &XdpDatapath, constants: &Constants) -> Result<u64, ScanError> {
    let (mapped, clock) = (MappedTables::of(datapath)?, Clock::load()?);
    let (tables, now) = (mapped.tables(), clock.tick()?);
    let time = Time { now, round: 0, round_ticks: 1 };
    let mut swept = Swept::default();
    Sweep::new(tables, &constants.timeouts, &constants.secret, time).run(0, tables.bucket_count(), &mut swept);
    Ok(swept.expired)
}

/// One slice after another until the sender of `stopped` is gone.
fn run(tables: &MappedTables, clock: &Clock, mut scanner: Scanner, stopped: &Receiver<()>, report: &Mutex<Report>) {
    let tables = tables.tables();
    let mut is_failing = false;
    while stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
        match clock.tick() {
            Ok(now) => {
                if is_failing {
                    info!("the connection table is scanned again");
                    is_failing = false;
                }
                scanner.slice(&tables, now).iter().for_each(|repair| log_load(&tables, repair));
                if scanner.is_audit_due() {
                    let repairs = scanner.audit(&tables, || thread::sleep(REST));
                    repairs.iter().for_each(|repair| log_count(&tables, repair));
                }
                *report.lock().unwrap_or_else(PoisonError::into_inner) = scanner.report();
            }
            Err(error) if !is_failing => {
                error!(error = chain(&error), "the connection table is not scanned, idle connections stay counted");
                is_failing = true;
            }
            Err(_) => {}
        }
    }
}

fn log_count(tables: &Tables<'_>, repair: &CountRepair) {
    let CountRepair { real_server, excess } = *repair;
    let (address, virtual_server) = names(tables, real_server);
    warn!(
        real_server = address,
        virtual_server,
        active_excess = excess.active,
        inactive_excess = excess.inactive,
        "connections of a real server were counted wrong, put right by the connection table"
    );
}

fn log_load(tables: &Tables<'_>, repair: &LoadRepair) {
    let LoadRepair { real_server, from, to } = *repair;
    let (address, virtual_server) = names(tables, real_server);
    warn!(
        real_server = address,
        virtual_server, from, to, "load of a real server was wrong, put right by its connections"
    );
}

/// The real server at `index` and its virtual server, as operators name them.
fn names(tables: &Tables<'_>, index: u16) -> (String, String) {
    let entry = tables.real_server(index).filter(|entry| entry.generation() != 0);
    let service = entry.and_then(|entry| tables.service(entry.virtual_server())).and_then(|service| service.key());
    let address = entry.map_or_else(|| format!("removed, index {index}"), |entry| entry.socket_address().to_string());
    let virtual_server = service.map_or_else(String::new, |key| {
        format!("{} {}", key.protocol.name(), super::words::socket_address(key.vip, key.port))
    });
    (address, virtual_server)
}
