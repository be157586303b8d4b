//! One daemon's belongings on the host: lock, socket, journal and pins, and their removal.
//!
//! Dropping an [`Instance`] puts the host back as it was, whether the daemon stops, fails to start or panics.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tracing::{info, warn};

use crate::config::Config;
use crate::datapath::xdp::pins::{Pins, PinsError};
use crate::error::chain;
use crate::host::journal::{HostChange, Journal};
use crate::host::{link, offload};
use crate::nexthop;

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
    /// A file of its own could not be used.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The pin folder is unfit, or leftovers could not be removed from it.
    #[error(transparent)]
    Pins(#[from] PinsError),
}

/// Where an instance keeps its files.
#[derive(Clone, Debug)]
pub struct Paths {
    instance: String,
    directory: PathBuf,
}

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
}

/// A locked instance.
pub struct Instance {
    paths: Paths,
    pins: Pins,
    journal: Arc<Mutex<Journal>>,
    lock: Option<Flock<File>>,
}

impl Instance {
    /// Locks the instance that `config` names and removes what an earlier daemon of that name has left.
    ///
    /// Returns it with a line for each thing that was left.
    ///
    /// # Errors
    ///
    /// As [`InstanceError`] tells; nothing of another daemon's is touched then.
    pub fn acquire(config: &Config) -> Result<(Self, Vec<String>), InstanceError> {
        let paths = Paths::new(&config.global.runtime_directory, &config.global.instance);
        let pins = Pins::new(&config.xdp.pin_directory, &config.global.instance);
        pins.check()?;
        fs::create_dir_all(&paths.directory).map_err(io_error(&paths.directory))?;
        let lock = lock(&paths)?;
        let journal = Journal::open(&paths.journal()).map_err(io_error(&paths.journal()))?;
        let instance = Self { paths, pins, journal: Arc::new(Mutex::new(journal)), lock: Some(lock) };
        let leftovers = instance.undo()?;
        Ok((instance, leftovers))
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

    /// Switches a receive offload off until the instance is dropped.
    ///
    /// # Errors
    ///
    /// When the change cannot be written down or the driver refuses it.
    pub fn disable_offload(&self, interface: &str, feature: &str) -> io::Result<()> {
        let change = HostChange::OffloadDisabled { interface: interface.to_owned(), feature: feature.to_owned() };
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.record(change.clone())?;
        if let Err(error) = offload::set(interface, feature, false) {
            journal.forget(&change)?;
            return Err(error);
        }
        info!(interface, feature, "receive offload switched off while XDP is attached");
        Ok(())
    }

    /// Detaches the program, removes pins and socket, and takes back the changes on the host.
    fn undo(&self) -> Result<Vec<String>, InstanceError> {
        let mut done = Vec::new();
        if self.pins.exist() {
            self.pins.remove()?;
            done.push(format!("XDP program detached, pins in {} removed", self.pins.directory().display()));
        }
        let socket = self.paths.socket();
        match fs::remove_file(&socket) {
            Ok(()) => done.push(format!("socket {} removed", socket.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(&socket)(error)),
        }
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        done.extend(take_back(&mut journal));
        Ok(done)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            warn!(error = chain(&error), "could not clean up; run `evenkeel cleanup`");
        }
        // The file goes while it is locked, so that nobody waits for a lock on a name that is gone.
        if let Err(error) = fs::remove_file(self.paths.lock()) {
            warn!(%error, path = %self.paths.lock().display(), "lock file not removed");
        }
        drop(self.lock.take());
        // Fails while another instance has files there.
        drop(fs::remove_dir(&self.paths.directory));
    }
}

/// Takes the lock; a file that was replaced while we waited for it is opened again.
fn lock(paths: &Paths) -> Result<Flock<File>, InstanceError> {
    let path = paths.lock();
    let failed = io_error(&path);
    loop {
        let file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(&failed)?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(&failed)?;
                return Err(InstanceError::Running { instance: paths.instance.clone(), pid: pid.trim().to_owned() });
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        let ours = lock.metadata().map_err(&failed)?.ino();
        if fs::metadata(&path).is_ok_and(|named| named.ino() == ours) {
            lock.set_len(0).map_err(&failed)?;
            writeln!(lock, "{}", std::process::id()).map_err(&failed)?;
            return Ok(lock);
        }
    }
}

/// Undoes what the journal holds, newest first; what cannot be undone is logged and struck, since it will not get better.
fn take_back(journal: &mut Journal) -> Vec<String> {
    let changes: Vec<HostChange> = journal.changes().iter().rev().cloned().collect();
    let mut done = Vec::new();
    for change in changes {
        let result = match &change {
            HostChange::OffloadDisabled { interface, feature } => {
                offload::set(interface, feature, true).map(|()| format!("{feature} of {interface} on again"))
            }
            HostChange::NeighbourManaged { ifindex, address } => {
                forget_neighbour(*ifindex, *address).map(|()| format!("neighbour {address} no longer kept resolved"))
            }
        };
        match result {
            Ok(line) => done.push(line),
            Err(error) => warn!(?change, %error, "could not be undone"),
        }
        if let Err(error) = journal.forget(&change) {
            warn!(%error, "journal not updated");
        }
    }
    done
}

/// Blocks until the neighbour is gone. On a thread of its own, because the caller may be in an async task that unwinds.
fn forget_neighbour(ifindex: u32, address: std::net::IpAddr) -> io::Result<()> {
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let handle = link::connect()?;
            nexthop::forget(&handle, ifindex, address).await.map_err(io::Error::other)
        })
    };
    thread::spawn(work).join().unwrap_or_else(|_| Err(io::Error::other("the clean-up thread panicked")))
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> InstanceError {
    let path = path.to_owned();
    move |source| InstanceError::Io { path: path.clone(), source }
}
