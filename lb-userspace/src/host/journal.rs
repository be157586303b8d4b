//! What an instance has changed on the host, written down before it is done, so that it can be put back after a crash.
//!
//! A file of JSON lines: where the changes were made, then a line for each. A change is appended, so that thousands cost no
//! more than their own lines.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

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

/// Where changes were made; anywhere else they mean other interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// The kernel's boot id: a reboot undoes everything.
    boot: String,
    /// The network namespace, by inode.
    network_namespace: u64,
}

/// The file with an instance's changes.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    here: Place,
    changes: Vec<HostChange>,
    elsewhere: Vec<HostChange>,
}

impl Journal {
    /// A journal without a file, for who changes nothing.
    ///
    /// # Errors
    ///
    /// When it cannot be told where this process is.
    pub fn nowhere() -> io::Result<Self> {
        Ok(Self { path: PathBuf::new(), here: Place::here()?, changes: Vec::new(), elsewhere: Vec::new() })
    }

    /// The journal at `path`, empty where there is none or it was written before the last boot.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is no journal (`InvalidData`).
    pub fn open(path: &Path) -> io::Result<Self> {
        let here = Place::here()?;
        let mut journal = Self { path: path.to_owned(), here, changes: Vec::new(), elsewhere: Vec::new() };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(journal),
            Err(error) => return Err(error),
        };
        // A line without its end was cut off by a crash, and what it tells of was not done.
        let end = text.rfind('\n').map_or(0, |last| last + 1);
        let (whole, cut_off) = text.split_at(end);
        if !cut_off.is_empty() {
            OpenOptions::new().write(true).open(path)?.set_len(whole.len() as u64)?;
        }
        let mut lines = whole.lines();
        let Some(first) = lines.next() else { return Ok(journal) };
        let place: Place = serde_json::from_str(first).map_err(invalid)?;
        let changes = lines.map(serde_json::from_str).collect::<Result<Vec<HostChange>, _>>().map_err(invalid)?;
        if place == journal.here {
            journal.changes = changes;
        } else if place.boot == journal.here.boot {
            journal.elsewhere = changes;
        }
        Ok(journal)
    }

    /// What has been changed, oldest first.
    pub fn changes(&self) -> &[HostChange] {
        &self.changes
    }

    /// What the file said of another network namespace, where it can be undone and this process cannot.
    pub fn elsewhere(&self) -> &[HostChange] {
        &self.elsewhere
    }

    /// Writes a change down; to be called before it is made.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; the change must not be made then.
    pub fn record(&mut self, change: HostChange) -> io::Result<()> {
        if self.changes.contains(&change) {
            return Ok(());
        }
        if self.changes.is_empty() {
            fs::write(&self.path, line(&self.here)?)?;
            self.elsewhere.clear();
        }
        let mut file = OpenOptions::new().append(true).open(&self.path)?;
        let end = file.metadata()?.len();
        if let Err(error) = file.write_all(&line(&change)?) {
            file.set_len(end)?;
            return Err(error);
        }
        self.changes.push(change);
        Ok(())
    }

    /// Strikes changes that have been undone; the file goes with the last one.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn forget(&mut self, undone: &[HostChange]) -> io::Result<()> {
        if undone.is_empty() {
            return Ok(());
        }
        self.changes.retain(|change| !undone.contains(change));
        if self.changes.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let mut text = line(&self.here)?;
        for change in &self.changes {
            text.extend(line(change)?);
        }
        let next = self.path.with_extension("journal.new");
        fs::write(&next, text)?;
        fs::rename(next, &self.path)
    }
}

impl Place {
    fn here() -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { boot, network_namespace: fs::metadata("/proc/thread-self/ns/net")?.ino() })
    }
}

fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}

fn invalid(error: serde_json::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(feature: &str) -> HostChange {
        HostChange::OffloadDisabled { interface: "eth0".to_owned(), feature: feature.to_owned() }
    }

    fn written(place: &Place) -> (tempfile::TempDir, Journal) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.journal");
        let mut text = line(place).unwrap();
        text.extend(line(&change("rx-gro")).unwrap());
        fs::write(&path, text).unwrap();
        let journal = Journal::open(&path).unwrap();
        (directory, journal)
    }

    #[test]
    fn a_recorded_change_survives_the_process_and_a_struck_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.journal");
        let mut journal = Journal::open(&path).unwrap();
        journal.record(change("rx-gro")).unwrap();
        journal.record(change("rx-lro")).unwrap();
        journal.record(change("rx-gro")).unwrap();
        journal.forget(&[change("rx-lro")]).unwrap();
        assert_eq!(Journal::open(&path).unwrap().changes(), [change("rx-gro")]);
    }

    #[test]
    fn an_empty_journal_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.journal");
        let mut journal = Journal::open(&path).unwrap();
        journal.record(change("rx-gro")).unwrap();
        assert!(path.exists());
        journal.forget(&[change("rx-gro")]).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn changes_of_another_network_namespace_are_named_and_not_ours_to_undo() {
        let place = Place { network_namespace: 1, ..Place::here().unwrap() };
        let (_directory, journal) = written(&place);
        assert_eq!(journal.changes(), []);
        assert_eq!(journal.elsewhere(), [change("rx-gro")]);
    }

    #[test]
    fn changes_from_before_the_last_boot_are_gone() {
        let place = Place { boot: "another".to_owned(), ..Place::here().unwrap() };
        let (_directory, journal) = written(&place);
        assert_eq!((journal.changes(), journal.elsewhere()), (&[][..], &[][..]));
    }

    #[test]
    fn a_file_that_is_no_journal_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.journal");
        fs::write(&path, "{}\n").unwrap();
        assert_eq!(Journal::open(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_line_that_a_crash_cut_off_costs_no_other() {
        let (_directory, mut journal) = written(&Place::here().unwrap());
        journal.record(change("rx-lro")).unwrap();
        let text = fs::read_to_string(&journal.path).unwrap();
        for cut in 1..text.len() {
            fs::write(&journal.path, &text[..cut]).unwrap();
            let mut opened = Journal::open(&journal.path).unwrap();
            let whole = text[..cut].matches('\n').count().saturating_sub(1);
            assert_eq!(opened.changes().len(), whole, "cut at {cut}");
            opened.record(change("rx-gro-hw")).unwrap();
            assert_eq!(Journal::open(&journal.path).unwrap().changes().len(), whole + 1, "cut at {cut}");
        }
    }
}
