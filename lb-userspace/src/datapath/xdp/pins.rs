//! The instance's folder on the BPF file system: what is pinned there, and its removal.
//!
//! A pinned link keeps the program attached when the daemon dies; removing the pins is what detaches it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use aya::Ebpf;
use aya::pin::PinError;
use nix::sys::statfs::{FsType, statfs};
use tracing::warn;

use super::detach::detach;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Maps that are pinned: all that an operator may want to look at.
const PINNED_MAPS: [&str; 10] = [
    "abi_version",
    "connections",
    "drops",
    "interfaces",
    "real_servers",
    "rr_cursors",
    "rs_counters",
    "scheduler_rings",
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

    /// Whether the folder is there.
    pub fn exist(&self) -> bool {
        self.directory.exists()
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

    /// Makes the folder and pins the maps of `ebpf` in it.
    ///
    /// # Errors
    ///
    /// [`PinsError`]; what was pinned until then stays, for [`Pins::remove`].
    pub fn pin_maps(&self, ebpf: &Ebpf) -> Result<(), PinsError> {
        fs::create_dir_all(&self.directory).map_err(self.io("create"))?;
        for (name, map) in ebpf.maps().filter(|(name, _)| PINNED_MAPS.contains(name)) {
            let path = self.directory.join(name);
            map.pin(&path).map_err(|source| PinsError::Pin { path, source })?;
        }
        Ok(())
    }

    /// Where the link of the interface with index `ifindex` is pinned; by index, since a BPF file system takes no dots.
    pub fn link(&self, ifindex: u32) -> PathBuf {
        self.directory.join(format!("link_{ifindex}"))
    }

    /// Removes every pin, which detaches the program, and then the folder; one that is not there is no error.
    ///
    /// Its parent goes too where it is empty and not itself the root of the file system.
    ///
    /// # Errors
    ///
    /// [`PinsError::Io`] where a pin cannot be removed.
    pub fn remove(&self) -> Result<(), PinsError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.io("read")(error)),
        };
        // Links first: a program that still runs must not lose its maps' names to a half-finished removal.
        let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
        paths.sort_by_key(|path| !is_link(path));
        for path in paths {
            if is_link(&path)
                && let Err(error) = detach(&path)
            {
                // Without its pin it goes all the same, only later.
                warn!(path = %path.display(), %error, "link not detached at once");
            }
            fs::remove_file(&path).map_err(|source| PinsError::Io { action: "remove", path, source })?;
        }
        fs::remove_dir(&self.directory).map_err(self.io("remove"))?;
        if let Some(parent) = self.directory.parent() {
            // Fails while another instance has a folder there, or on the mount point itself; both are as they should be.
            drop(fs::remove_dir(parent));
        }
        Ok(())
    }

    fn io(&self, action: &'static str) -> impl Fn(io::Error) -> PinsError {
        let path = self.directory.clone();
        move |source| PinsError::Io { action, path: path.clone(), source }
    }
}

/// Whether a pin is a link's, by the name that [`Pins::link`] gives.
fn is_link(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("link_"))
}
