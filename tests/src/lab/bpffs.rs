//! A private bpf filesystem: pins in it vanish when it is unmounted. The host's /sys/fs/bpf is never used.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mounted bpf filesystem; dropping it unmounts it.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    /// Mounts one at `path`, a folder that it makes.
    pub(super) fn mount(path: PathBuf) -> Result<Self> {
        std::fs::create_dir(&path).with_context(|| format!("can't make the folder {}", path.display()))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), &path, Some("bpf"), flags, Some("mode=0700"))
            .with_context(|| format!("can't mount a bpf filesystem at {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // Detached, so that a shell someone left standing in it can't keep the mount.
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("lab: can't unmount {}: {error}", self.path.display());
        }
    }
}
