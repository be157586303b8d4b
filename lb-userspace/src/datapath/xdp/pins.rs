//! The instance's folder on the BPF file system: what is pinned there, and its removal.
//!
//! A pinned link keeps the program attached when the daemon dies; removing the pins is what detaches it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::Map;
use aya::pin::PinError;
use aya::programs::links::{FdLink, PinnedLink};
use nix::sys::statfs::{FsType, statfs};
use tracing::{info, warn};

use super::detach::detach;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The load balancer's maps, which are pinned: an operator may want to look at any of them.
pub const MAPS: [&str; 26] = [
    "abi_version",
    "client_hops",
    "connections",
    "drops",
    "fragments",
    "interfaces",
    "lookups",
    "own_addresses",
    "prefixes",
    "real_servers",
    "reject_budget",
    "reply_index",
    "rr_cursors",
    "rs_counters",
    "scheduler_rings",
    "server_counts",
    "server_loads",
    "service_index",
    "services",
    "stages",
    "table_counters",
    "table_origin",
    "timeouts",
    "tuples",
    "virtual_servers",
    "vs_counters",
];

/// Why pinning failed.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// The folder is on another file system.
    #[error(
        "xdp.pin_directory {} is not on a BPF file system; mount one with \
         `mount -t bpf bpf /sys/fs/bpf` or name a folder that is on one", .0.display()
    )]
    NotBpf(PathBuf),
    /// The folder holds what somebody else has pinned.
    #[error(
        "{} holds {}, which is not Evenkeel's and stays; choose another xdp.pin_directory or global.instance",
        directory.display(), path.display()
    )]
    Foreign {
        /// The folder.
        directory: PathBuf,
        /// What is there.
        path: PathBuf,
    },
    /// The folder could not be made, read or removed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// An object could not be pinned.
    #[error("cannot pin {}", path.display())]
    Pin {
        /// Where to.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: PinError,
    },
}

/// What of the pins stays when a daemon takes another's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Whether the links stay.
    pub links: bool,
    /// Whether the maps stay.
    pub maps: bool,
}

/// The instance's folder: `<pin_directory>/<instance>`.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// The folder of `instance` below `pin_directory`; makes nothing.
    pub fn new(pin_directory: &Path, instance: &str) -> Self {
        Self { directory: pin_directory.join(instance) }
    }

    /// The folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether something of ours is pinned.
    pub fn exist(&self) -> bool {
        self.entries().is_ok_and(|entries| !entries.is_empty())
    }

    /// Makes the folder where it is missing, and opens it, to be locked.
    ///
    /// # Errors
    ///
    /// [`PinsError::Foreign`] where it holds what is not ours, [`PinsError::Io`] from the kernel.
    pub fn open(&self) -> Result<File, PinsError> {
        fs::create_dir_all(&self.directory).map_err(self.io("create"))?;
        match self.entries()?.into_iter().find(|path| !is_ours(path)) {
            Some(path) => Err(PinsError::Foreign { directory: self.directory.clone(), path }),
            None => File::open(&self.directory).map_err(self.io("open")),
        }
    }

    /// Ids of the programs behind our pinned links.
    pub fn programs(&self) -> Vec<u32> {
        let links = self.entries().unwrap_or_default().into_iter().filter(|path| is_link(path));
        let program = |path: PathBuf| {
            let link = FdLink::from(PinnedLink::from_pin(path).ok()?);
            link.info().ok().map(|info| info.program_id())
        };
        links.filter_map(program).collect()
    }

    /// Checks that the folder is or would be on a BPF file system; makes nothing.
    ///
    /// # Errors
    ///
    /// [`PinsError::NotBpf`] where it is not.
    pub fn check(&self) -> Result<(), PinsError> {
        let existing = self.directory.ancestors().find(|path| path.exists());
        match existing.map(statfs) {
            Some(Ok(stat)) if stat.filesystem_type() == FsType(BPF_FS_MAGIC) => Ok(()),
            _ => Err(PinsError::NotBpf(self.directory.parent().unwrap_or(&self.directory).to_owned())),
        }
    }

    /// Pins the maps of `ebpf` in the folder, in the place of others that may be there; where `are_adopted`, those that were
    /// loaded from there stay as they are.
    ///
    /// # Errors
    ///
    /// [`PinsError`]; what was pinned until then stays, for [`Pins::clear`].
    pub fn pin_maps(&self, ebpf: &Ebpf, are_adopted: bool) -> Result<(), PinsError> {
        // A program array is each program's own, and empty once the last one who holds it is gone.
        let is_there = |map: &Map| are_adopted && !matches!(map, Map::ProgramArray(_));
        for (name, map) in ebpf.maps().filter(|(name, map)| MAPS.contains(name) && !is_there(map)) {
            let path = self.directory.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(PinsError::Io { action: "remove", path, source });
                }
                _ => {}
            }
            map.pin(&path).map_err(|source| PinsError::Pin { path, source })?;
        }
        Ok(())
    }

    /// Where the link of the interface with index `ifindex` is pinned; by index, since a BPF file system takes no dots.
    pub fn link(&self, ifindex: u32) -> PathBuf {
        self.directory.join(format!("link_{ifindex}"))
    }

    /// Removes our pins, which detaches the program, but for what is in `keep`; the folder stays, for its lock.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`] where a pin cannot be removed.
    pub fn clear(&self, keep: Keep) -> Result<(), PinsError> {
        let mut paths = self.entries()?;
        paths.retain(|path| is_ours(path) && !if is_link(path) { keep.links } else { keep.maps });
        // Links first: a program that still runs must not lose its maps' names to a half-finished removal.
        paths.sort_by_key(|path| !is_link(path));
        paths.into_iter().try_for_each(remove)
    }

    /// Detaches the program from all interfaces but those with these indexes.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`] where a pin cannot be removed.
    pub fn keep_links(&self, ifindexes: &[u32]) -> Result<(), PinsError> {
        let kept: Vec<PathBuf> = ifindexes.iter().map(|ifindex| self.link(*ifindex)).collect();
        let paths = self.entries()?.into_iter().filter(|path| is_link(path) && !kept.contains(path));
        paths.inspect(|path| info!(pin = %path.display(), "XDP program detached")).try_for_each(remove)
    }

    /// Detaches the program from the interface with index `ifindex`, where it is attached by a pinned link.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`] where the pin cannot be removed.
    pub fn remove_link(&self, ifindex: u32) -> Result<(), PinsError> {
        let path = self.link(ifindex);
        if path.exists() { remove(path) } else { Ok(()) }
    }

    /// Removes the empty folder; its parent goes too where it is empty and not the root of the file system.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`] where the folder cannot be removed.
    pub fn remove_folder(&self) -> Result<(), PinsError> {
        remove_empty(&self.directory).map_err(self.io("remove"))?;
        self.directory.parent().map_or(Ok(()), remove_empty).map_err(self.io("remove the parent of"))
    }

    fn entries(&self) -> Result<Vec<PathBuf>, PinsError> {
        match fs::read_dir(&self.directory) {
            Ok(entries) => Ok(entries.filter_map(Result::ok).map(|entry| entry.path()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(self.io("read")(error)),
        }
    }

    fn io(&self, action: &'static str) -> impl Fn(io::Error) -> PinsError {
        let path = self.directory.clone();
        move |source| PinsError::Io { action, path: path.clone(), source }
    }
}

/// Removes a pin, and detaches what it is a link of.
fn remove(path: PathBuf) -> Result<(), PinsError> {
    if is_link(&path)
        && let Err(error) = detach(&path)
    {
        // Without its pin it goes all the same, only later.
        warn!(path = %path.display(), %error, "link not detached at once");
    }
    fs::remove_file(&path).map_err(|source| PinsError::Io { action: "remove", path, source })
}

/// Whether a pin is a link's, by the name that [`Pins::link`] gives.
fn is_link(path: &Path) -> bool {
    let index = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("link_"));
    index.is_some_and(|index| index.parse::<u32>().is_ok())
}

/// Whether a pin has a name that this module gives.
fn is_ours(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| MAPS.contains(&name)) || is_link(path)
}

/// Removes a folder unless something is in it, it is in use (a mount point), or it is gone.
fn remove_empty(folder: &Path) -> io::Result<()> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
    match fs::remove_dir(folder) {
        Err(error) if [DirectoryNotEmpty, NotFound, ResourceBusy].contains(&error.kind()) => Ok(()),
        other => other,
    }
}
