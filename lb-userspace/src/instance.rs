//! One daemon's belongings on the host: locks, socket, journal and pins, and their removal.
//!
//! Dropping an [`Instance`] puts the host back as it was, whether the daemon stops, fails to start or panics. What a killed
//! daemon left goes on working until [`Instance::take_over`]; a start that fails before then leaves it as it is. So does one
//! that a running daemon has handed its instance to, until [`Instance::settle`]: the other goes on with it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use crate::config::Config;
use crate::datapath::xdp::pins::{Keep, Pins, PinsError};
use crate::error::chain;
use crate::host::journal::{HostChange, Journal};
use crate::host::{offload, undo};

/// Why an instance could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Its daemon runs.
    #[error(
        "instance {instance} is running already (pid {pid}); stop it first, or give this one another global.instance"
    )]
    Running {
        /// The instance's name.
        instance: String,
        /// Its process id, as far as the lock file tells.
        pid: String,
    },
    /// Another daemon, with another runtime directory, uses its pins.
    #[error(
        "the pins in {} belong to a running daemon with another global.runtime_directory; \
         stop it first, or give this one another global.instance or xdp.pin_directory", .0.display()
    )]
    PinsInUse(PathBuf),
    /// What a running daemon lends is not what the configuration names.
    #[error(
        "{} is not the running daemon's; another instance, runtime or pin directory needs a stop and a start", .0.display()
    )]
    Another(PathBuf),
    /// A file of its own could not be used.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The pin folder is unfit, or pins could not be removed from it.
    #[error(transparent)]
    Pins(#[from] PinsError),
}

/// Where an instance keeps its files.
#[derive(Clone, Debug)]
pub struct Paths {
    instance: String,
    directory: PathBuf,
}

/// Stands in a runtime directory that a daemon made, so that the last one to leave removes it, but never an operator's own.
const MARKER: &str = ".made-by-evenkeel";

impl Paths {
    /// The files of `instance` in `directory`; makes nothing.
    pub fn new(directory: &Path, instance: &str) -> Self {
        Self { instance: instance.to_owned(), directory: directory.to_owned() }
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.file("sock")
    }

    fn lock(&self) -> PathBuf {
        self.file("lock")
    }

    fn journal(&self) -> PathBuf {
        self.file("journal")
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.directory.join(format!("{}.{extension}", self.instance))
    }

    fn make_directory(&self) -> io::Result<()> {
        if self.directory.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&self.directory)?;
        File::create(self.directory.join(MARKER)).map(drop)
    }

    /// Removes the directory if a daemon made it and nothing but its marker is left there.
    fn remove_directory(&self) -> io::Result<()> {
        let names = fs::read_dir(&self.directory)?.collect::<Result<Vec<_>, _>>()?;
        if names.len() == 1 && names.iter().all(|entry| entry.file_name() == MARKER) {
            fs::remove_file(self.directory.join(MARKER))?;
            fs::remove_dir(&self.directory)?;
        }
        Ok(())
    }
}

/// What a clean-up did, a line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Undone {
    /// What is as before.
    pub done: Vec<String>,
    /// What could not be put back, and why.
    pub failed: Vec<String>,
}

/// A locked instance.
pub struct Instance {
    paths: Paths,
    pins: Pins,
    journal: Arc<Mutex<Journal>>,
    /// The journal's changes that an earlier daemon made, while what it left still stands.
    inherited: Option<Vec<HostChange>>,
    /// What an unreadable journal held, as far as it can be said.
    lost: Vec<String>,
    is_disposed: bool,
    /// Whether it is still another daemon's, that goes on with it should we not.
    is_lent: bool,
    locks: Locks,
}

/// An instance's locks: of its runtime directory and of its pins. They hold as long as any process has these files open.
#[derive(Debug)]
pub struct Locks {
    /// The lock file.
    pub runtime: File,
    /// The pin folder.
    pub pins: File,
}

impl Instance {
    /// Locks the instance that `config` names. What an earlier daemon of that name has left stays as it is.
    ///
    /// # Errors
    ///
    /// As [`InstanceError`] tells; nothing of another daemon's is touched then.
    pub fn acquire(config: &Config) -> Result<Self, InstanceError> {
        let paths = Paths::new(&config.global.runtime_directory, &config.global.instance);
        let pins = Pins::new(&config.xdp.pin_directory, &config.global.instance);
        pins.check()?;
        paths.make_directory().map_err(io_error(&paths.directory))?;
        let runtime = lock(&paths)?;
        let (pins_lock, journal, lost) = match prepare(&paths, &pins) {
            Ok(prepared) => prepared,
            Err(error) => {
                release(&paths);
                return Err(error);
            }
        };
        let left = pins.exist() || paths.socket().exists() || !journal.changes().is_empty();
        let inherited = left.then(|| journal.changes().to_vec());
        let journal = Arc::new(Mutex::new(journal));
        let locks = Locks { runtime, pins: pins_lock };
        Ok(Self { paths, pins, journal, inherited, lost, is_disposed: false, is_lent: false, locks })
    }

    /// The instance that `config` names, which a running daemon lends with its `locks`. Nothing is read or changed.
    ///
    /// # Errors
    ///
    /// [`InstanceError::Another`] where the locks are another instance's, or other folders'.
    pub fn borrow(config: &Config, locks: Locks) -> Result<Self, InstanceError> {
        let paths = Paths::new(&config.global.runtime_directory, &config.global.instance);
        let pins = Pins::new(&config.xdp.pin_directory, &config.global.instance);
        for (path, lock) in [(&paths.lock(), &locks.runtime), (&pins.directory().to_owned(), &locks.pins)] {
            if !is_named(path, lock)? {
                return Err(InstanceError::Another(path.clone()));
            }
        }
        let journal = Arc::new(Mutex::new(Journal::nowhere().map_err(io_error(&paths.journal()))?));
        let inherited = Some(Vec::new());
        Ok(Self { paths, pins, journal, inherited, lost: Vec::new(), is_disposed: false, is_lent: true, locks })
    }

    /// The daemon that has lent the instance changes nothing any more, and has written down all that it had changed.
    ///
    /// # Errors
    ///
    /// When the journal cannot be read.
    pub fn read_journal(&mut self) -> Result<(), InstanceError> {
        let path = self.paths.journal();
        let journal = Journal::open(&path).map_err(io_error(&path))?;
        if self.is_lent {
            self.inherited = Some(journal.changes().to_vec());
        }
        *self.journal_now() = journal;
        Ok(())
    }

    /// Copies of the locks, to be lent.
    ///
    /// # Errors
    ///
    /// When there are too many open files.
    pub fn locks(&self) -> io::Result<Locks> {
        Ok(Locks { runtime: self.locks.runtime.try_clone()?, pins: self.locks.pins.try_clone()? })
    }

    /// What was lent is ours now: the lock file names this process.
    ///
    /// # Errors
    ///
    /// When that cannot be written.
    pub fn settle(&mut self) -> Result<(), InstanceError> {
        sign(&self.locks.runtime).map_err(io_error(&self.paths.lock()))?;
        self.inherited = None;
        self.is_lent = false;
        Ok(())
    }

    /// Leaves everything as it is, to a daemon that it was lent to or to one that is to come.
    pub fn leave(mut self) {
        self.is_lent = true;
        let changes = self.journal_now().changes().to_vec();
        self.inherited = Some(changes);
    }

    /// Where the control socket belongs.
    pub fn socket(&self) -> PathBuf {
        self.paths.socket()
    }

    /// Where the maps and links belong.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Where changes on the host are written down.
    pub fn journal(&self) -> Arc<Mutex<Journal>> {
        Arc::clone(&self.journal)
    }

    /// Makes what an earlier daemon has left ours: its pins go now, but for what `keep` says, and its socket, unless it is lent;
    /// its changes on the host go with ours, but for those that `still_wanted` denies, which are undone now.
    ///
    /// # Errors
    ///
    /// When a pin or the socket cannot be removed.
    pub fn take_over(
        &mut self,
        keep: Keep,
        still_wanted: impl Fn(&HostChange) -> bool,
    ) -> Result<Undone, InstanceError> {
        let Some(inherited) = self.inherited.clone() else { return Ok(Undone::default()) };
        let mut undone = if self.is_lent {
            self.pins.clear(keep)?;
            Undone::default()
        } else {
            self.inherited = None;
            self.remove_files(keep)?
        };
        let stale: Vec<HostChange> = inherited.into_iter().filter(|change| !still_wanted(change)).collect();
        undo::changes(&mut self.journal_now(), &stale, &mut undone);
        Ok(undone)
    }

    /// Switches a receive offload off until the instance is dropped.
    ///
    /// # Errors
    ///
    /// When the change cannot be written down or the driver refuses it.
    pub fn disable_offload(&self, interface: &str, feature: &str) -> io::Result<()> {
        let change = HostChange::OffloadDisabled { interface: interface.to_owned(), feature: feature.to_owned() };
        let mut journal = self.journal_now();
        journal.record(change.clone())?;
        if let Err(error) = offload::set(interface, feature, false) {
            journal.forget(&[change])?;
            return Err(error);
        }
        info!(interface, feature, "receive offload switched off while XDP is attached");
        Ok(())
    }

    /// Switches on again what was switched off at `interface`, perhaps by an earlier daemon, but for `still_needed`.
    pub fn restore_offloads(&self, interface: &str, still_needed: &[&str]) {
        let is_stale = |change: &&HostChange| match change {
            HostChange::OffloadDisabled { interface: at, feature } => {
                at == interface && !still_needed.contains(&feature.as_str())
            }
            HostChange::NeighbourManaged { .. } => false,
        };
        let mut journal = self.journal_now();
        let stale: Vec<HostChange> = journal.changes().iter().filter(is_stale).cloned().collect();
        let mut undone = Undone::default();
        undo::changes(&mut journal, &stale, &mut undone);
        undone.done.iter().for_each(|line| info!("{line}"));
        undone.failed.iter().for_each(|line| warn!("not undone: {line}"));
    }

    /// Removes everything that this or an earlier daemon of the instance has made, as far as that can be done from here.
    ///
    /// # Errors
    ///
    /// When a pin or the socket cannot be removed.
    pub fn dispose(&mut self) -> Result<Undone, InstanceError> {
        self.inherited = None;
        self.is_disposed = true;
        let mut undone = self.remove_files(Keep::default())?;
        undone.failed.append(&mut self.lost);
        let mut journal = self.journal_now();
        let changes = journal.changes().to_vec();
        undo::changes(&mut journal, &changes, &mut undone);
        let elsewhere = journal.elsewhere().iter().map(|change| {
            format!(
                "{}: made in another network namespace; run this there, by nsenter --net=FILE",
                undo::describe(change)
            )
        });
        undone.failed.extend(elsewhere);
        drop(journal);
        Ok(undone)
    }

    /// Takes back what this process has changed while an earlier daemon's belongings still stand.
    fn step_back(&self, inherited: &[HostChange]) -> Undone {
        let mut journal = self.journal_now();
        let ours: Vec<HostChange> =
            journal.changes().iter().filter(|change| !inherited.contains(change)).cloned().collect();
        let mut undone = Undone::default();
        undo::changes(&mut journal, &ours, &mut undone);
        undone
    }

    fn remove_files(&self, keep: Keep) -> Result<Undone, InstanceError> {
        let mut undone = Undone::default();
        if self.pins.exist() {
            self.pins.clear(keep)?;
            let program = if keep.links { "XDP program to be replaced in its place" } else { "XDP program detached" };
            let maps = if keep.maps { "kept" } else { "removed" };
            undone.done.push(format!("{program}, pins in {} {maps}", self.pins.directory().display()));
        }
        let socket = self.paths.socket();
        match fs::remove_file(&socket) {
            Ok(()) => undone.done.push(format!("socket {} removed", socket.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(&socket)(error)),
        }
        Ok(undone)
    }

    fn journal_now(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let undone = match self.inherited.take() {
            Some(inherited) => Ok(self.step_back(&inherited)),
            None if self.is_disposed => Ok(Undone::default()),
            None => self.dispose(),
        };
        match undone {
            Ok(undone) => {
                for line in undone.failed {
                    warn!("not undone: {line}");
                }
            }
            Err(error) => warn!(error = chain(&error), "could not clean up; run `evenkeel cleanup`"),
        }
        if self.is_lent {
            return;
        }
        if !self.pins.exist()
            && let Err(error) = self.pins.remove_folder()
        {
            warn!(error = chain(&error), "pin folder not removed");
        }
        // While it is locked, so that nobody waits for a lock on a name that is gone.
        release(&self.paths);
    }
}

/// What comes after the lock and can fail: the lock on the pins, and the journal with a word on what it has lost.
fn prepare(paths: &Paths, pins: &Pins) -> Result<(File, Journal, Vec<String>), InstanceError> {
    let path = paths.journal();
    let (journal, lost) = match Journal::open(&path) {
        Ok(journal) => (journal, Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            let aside = path.with_extension("journal.broken");
            warn!(%error, kept = %aside.display(), "the journal of changes is broken; what it held is not undone");
            fs::rename(&path, &aside).map_err(io_error(&path))?;
            let lost = format!("what the broken journal held, now {}", aside.display());
            (Journal::open(&path).map_err(io_error(&path))?, vec![lost])
        }
        Err(error) => return Err(io_error(&path)(error)),
    };
    for change in journal.elsewhere() {
        warn!("{}: made by an earlier daemon in another network namespace, not undone", undo::describe(change));
    }
    let Some(pins_lock) = try_lock(pins.directory(), || pins.open())? else {
        return Err(InstanceError::PinsInUse(pins.directory().to_owned()));
    };
    Ok((pins_lock, journal, lost))
}

/// Takes the lock file, and writes our process id into it.
fn lock(paths: &Paths) -> Result<File, InstanceError> {
    let path = paths.lock();
    let failed = io_error(&path);
    let open = || OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(&failed);
    let Some(lock) = try_lock(&path, open)? else {
        let pid = fs::read_to_string(&path).map_err(&failed)?.trim().to_owned();
        return Err(InstanceError::Running { instance: paths.instance.clone(), pid });
    };
    sign(&lock).map_err(&failed)?;
    Ok(lock)
}

/// Writes our process id into the lock file.
fn sign(lock: &File) -> io::Result<()> {
    lock.set_len(0)?;
    // At its start, wherever the last one who wrote has left off.
    lock.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)
}

/// Locks what `open` opens at `path`; `None` where somebody else has the lock. A file that its last owner removed after we
/// had opened it is opened again: a lock on it would exclude nobody.
fn try_lock<E: Into<InstanceError>>(
    path: &Path,
    open: impl Fn() -> Result<File, E>,
) -> Result<Option<File>, InstanceError> {
    loop {
        let lock = open().map_err(Into::into)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(io_error(path)(error)),
        }
        if is_named(path, &lock)? {
            return Ok(Some(lock));
        }
    }
}

/// Whether `file` is what has the name `path` now.
fn is_named(path: &Path, file: &File) -> Result<bool, InstanceError> {
    let ours = file.metadata().map_err(io_error(path))?;
    Ok(fs::metadata(path).is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())))
}

/// Removes the lock file, and the runtime directory where that was ours alone.
fn release(paths: &Paths) {
    if let Err(error) = fs::remove_file(paths.lock()) {
        warn!(%error, path = %paths.lock().display(), "lock file not removed");
    }
    if let Err(error) = paths.remove_directory() {
        warn!(%error, path = %paths.directory.display(), "runtime directory not removed");
    }
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> InstanceError {
    let path = path.to_owned();
    move |source| InstanceError::Io { path: path.clone(), source }
}
