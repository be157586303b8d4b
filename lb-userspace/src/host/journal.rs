//! What an instance has changed on the host, written down before it is done, so that it can be put back after a crash.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// One change on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum HostChange {
    /// A receive offload was switched off.
    OffloadDisabled {
        /// The interface.
        interface: String,
        /// The feature's kernel name.
        feature: String,
    },
    /// The kernel was asked to keep a neighbour resolved (`NTF_EXT_MANAGED`).
    NeighbourManaged {
        /// Index of the interface.
        ifindex: u32,
        /// The neighbour.
        address: IpAddr,
    },
}

/// The file with an instance's changes.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    state: State,
}

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The network namespace that the changes were made in, by inode: elsewhere they mean other interfaces.
    network_namespace: u64,
    changes: Vec<HostChange>,
}

impl Journal {
    /// The journal at `path`, empty where there is no file or it was written in another network namespace or cannot be read.
    ///
    /// # Errors
    ///
    /// When the file is there but cannot be read or understood.
    pub fn open(path: &Path) -> io::Result<Self> {
        let here = network_namespace()?;
        let state = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error),
        };
        let state = if state.network_namespace == here {
            state
        } else {
            State { network_namespace: here, changes: Vec::new() }
        };
        Ok(Self { path: path.to_owned(), state })
    }

    /// What has been changed, oldest first.
    pub fn changes(&self) -> &[HostChange] {
        &self.state.changes
    }

    /// Writes a change down; to be called before it is made.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; the change must not be made then.
    pub fn record(&mut self, change: HostChange) -> io::Result<()> {
        if self.state.changes.contains(&change) {
            return Ok(());
        }
        self.state.changes.push(change);
        self.save()
    }

    /// Strikes a change that has been undone.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn forget(&mut self, change: &HostChange) -> io::Result<()> {
        self.state.changes.retain(|present| present != change);
        self.save()
    }

    /// Replaces the file as a whole; removes it when nothing is left.
    fn save(&self) -> io::Result<()> {
        if self.state.changes.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let next = self.path.with_extension("journal.new");
        fs::write(&next, serde_json::to_vec(&self.state).map_err(io::Error::other)?)?;
        fs::rename(next, &self.path)
    }
}

/// The inode that names this thread's network namespace.
fn network_namespace() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(feature: &str) -> HostChange {
        HostChange::OffloadDisabled { interface: "eth0".to_owned(), feature: feature.to_owned() }
    }

    #[test]
    fn a_recorded_change_survives_the_process_and_a_struck_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.journal");
        let mut journal = Journal::open(&path).unwrap();
        journal.record(change("rx-gro")).unwrap();
        journal.record(change("rx-lro")).unwrap();
        journal.record(change("rx-gro")).unwrap();
        journal.forget(&change("rx-lro")).unwrap();
        assert_eq!(Journal::open(&path).unwrap().changes(), [change("rx-gro")]);
    }

    #[test]
    fn an_empty_journal_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.journal");
        let mut journal = Journal::open(&path).unwrap();
        journal.record(change("rx-gro")).unwrap();
        assert!(path.exists());
        journal.forget(&change("rx-gro")).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn changes_of_another_network_namespace_are_not_ours_to_undo() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.journal");
        let state = State { network_namespace: 1, changes: vec![change("rx-gro")] };
        fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
        assert_eq!(Journal::open(&path).unwrap().changes(), []);
    }
}
