//! The scan in a thread of its own, so that it never delays the control loop and is never delayed by it.

use std::any::Any;
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
    work: Arc<Work>,
    /// Both are there until the drop, or where the thread could not be started again.
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

/// What the thread does until the channel's sender is gone.
type Work = dyn Fn(&Receiver<()>, &Mutex<Report>) + Send + Sync;

impl Scan {
    /// Starts it over the tables of `datapath`.
    ///
    /// # Errors
    ///
    /// As [`ScanError`] tells.
    pub fn start(datapath: &XdpDatapath, constants: Constants) -> Result<Self, ScanError> {
        let (tables, clock) = (MappedTables::of(datapath)?, Clock::load()?);
        Self::of(move |stopped, report| run(&tables, &clock, constants, stopped, report))
    }

    fn of(work: impl Fn(&Receiver<()>, &Mutex<Report>) + Send + Sync + 'static) -> Result<Self, ScanError> {
        let mut scan = Self { report: Arc::default(), work: Arc::new(work), thread: None };
        scan.spawn()?;
        Ok(scan)
    }

    fn spawn(&mut self) -> Result<(), ScanError> {
        let (stop, stopped) = mpsc::channel();
        let (work, report) = (Arc::clone(&self.work), Arc::clone(&self.report));
        let run = move || work(&stopped, &report);
        let thread = thread::Builder::new().name("table-scan".to_owned()).spawn(run).map_err(ScanError::Thread)?;
        self.thread = Some((stop, thread));
        Ok(())
    }

    /// Starts the scan again if its thread has ended, which only a fault makes it do; says whether it did. Without it nothing
    /// expires, and nothing is repaired.
    ///
    /// # Errors
    ///
    /// [`ScanError::Thread`]; it is tried again at the next call.
    pub fn revive(&mut self) -> Result<bool, ScanError> {
        if self.thread.as_ref().is_some_and(|(_, thread)| !thread.is_finished()) {
            return Ok(false);
        }
        let ended = self.thread.take().and_then(|(_, thread)| thread.join().err());
        if let Some(panic) = ended {
            error!(panic = message(&*panic), "the scan of the connection table has ended by a panic; it begins anew");
        }
        self.spawn()?;
        Ok(true)
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

/// What a panic has said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("")
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
fn run(tables: &MappedTables, clock: &Clock, constants: Constants, stopped: &Receiver<()>, report: &Mutex<Report>) {
    let tables = tables.tables();
    let before = *report.lock().unwrap_or_else(PoisonError::into_inner);
    let mut scanner = Scanner::after(constants, before);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_scan_that_has_died_is_noticed_and_begins_anew_with_what_it_had_counted() {
        let runs = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&runs);
        let mut scan = Scan::of(move |stopped, report| {
            let run = counted.fetch_add(1, Ordering::SeqCst);
            // Held, as in the midst of a report.
            let mut held = report.lock().unwrap_or_else(PoisonError::into_inner);
            held.expired += 5;
            assert!(run != 0, "the first of them dies");
            drop(held);
            assert!(stopped.recv().is_err(), "nobody sends anything");
        })
        .expect("a thread can be started");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !scan.revive().expect("a thread can be started") {
            assert!(Instant::now() < deadline, "it was not noticed");
            thread::sleep(Duration::from_millis(1));
        }
        while scan.report().expired != 10 {
            assert!(Instant::now() < deadline, "{:?}", scan.report());
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!scan.revive().expect("nothing is to be started"), "it lives");
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn what_a_panic_says_is_told() {
        let panic = |text: &str| {
            thread::spawn({
                let text = text.to_owned();
                move || assert!(text.is_empty(), "{text} is not empty")
            })
        };
        assert_eq!(message(&*panic("one").join().unwrap_err()), "one is not empty");
        assert_eq!(message(&5_u8), "");
        assert_eq!(message(&"plain"), "plain");
    }
}
