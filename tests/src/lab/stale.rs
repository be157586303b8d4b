//! Names of labs, and the removal of what a killed process left: namespaces, bpf mounts, folders.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::mount::{MntFlags, umount2};

use super::namespace::{self, NAMES};

/// The labs of this process, by number.
static LIVE: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// The name of a lab, which no other living lab on this machine has.
#[derive(Debug)]
pub(super) struct Identity {
    number: u32,
    name: String,
}

impl Identity {
    pub(super) fn take() -> Self {
        let mut live = live();
        let number = live.last().map_or(0, |last| last + 1);
        live.insert(number);
        Self { number, name: format!("ek{}x{number}", std::process::id()) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        live().remove(&self.number);
    }
}

/// Removes what labs of processes that are gone have left on this machine. Every new lab does this first.
///
/// Their processes need no care: they died with the process that started them.
pub fn remove_stale() {
    let mut labs = BTreeSet::new();
    for name in entries(Path::new(NAMES)).iter().filter(|name| is_stale(name)) {
        labs.extend(lab_of(name));
        namespace::delete(&name.to_string_lossy());
    }
    let mut folders: BTreeSet<PathBuf> = stale_folders(&std::env::temp_dir());
    for mount in stale_mounts() {
        match umount2(&mount, MntFlags::MNT_DETACH) {
            Ok(()) => folders.extend(mount.parent().map(Path::to_owned)),
            Err(error) => eprintln!("lab: can't unmount {}: {error}", mount.display()),
        }
    }
    for folder in folders {
        labs.extend(folder.file_name().and_then(lab_of));
        if let Err(error) = fs::remove_dir_all(&folder)
            && folder.exists()
        {
            eprintln!("lab: can't remove {}: {error}", folder.display());
        }
    }
    if !labs.is_empty() {
        let labs: Vec<String> = labs.into_iter().collect();
        eprintln!("lab: removed what killed labs had left: {}", labs.join(", "));
    }
}

fn live() -> MutexGuard<'static, BTreeSet<u32>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a name is one of a lab whose process is gone; `false` for any other name.
fn is_stale(name: &OsStr) -> bool {
    let Some((pid, number)) = name.to_str().and_then(parse) else { return false };
    if pid == std::process::id() {
        // A number that is not in use here is from a process that had our pid before us.
        return !live().contains(&number);
    }
    let process = Path::new("/proc").join(pid.to_string());
    match fs::read_to_string(process.join("stat")) {
        Ok(stat) => is_dead(&stat),
        Err(_) => !process.exists(),
    }
}

/// Whether a line of /proc/PID/stat (proc(5)) is of a process that has ended and only waits for its parent to ask.
fn is_dead(stat: &str) -> bool {
    // The second field is the program's name in parentheses, which may have any character itself.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, Some('Z' | 'X' | 'x'))
}

/// The lab in the name of something that it made: `ek<pid>x<n>`.
fn lab_of(name: &OsStr) -> Option<String> {
    name.to_str().and_then(parse).map(|(pid, number)| format!("ek{pid}x{number}"))
}

/// `ek<pid>x<n>-<anything>` to pid and n.
fn parse(name: &str) -> Option<(u32, u32)> {
    let (identity, _) = name.strip_prefix("ek")?.split_once('-')?;
    let (pid, number) = identity.split_once('x')?;
    Some((pid.parse().ok()?, number.parse().ok()?))
}

fn entries(folder: &Path) -> Vec<std::ffi::OsString> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name()).collect()
}

/// Folders of stale labs that belong to this user: anyone may put a name into a temporary folder.
fn stale_folders(temporary: &Path) -> BTreeSet<PathBuf> {
    let mine =
        |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|found| found.uid() == nix::unistd::geteuid().as_raw());
    entries(temporary).iter().filter(|name| is_stale(name)).map(|name| temporary.join(name)).filter(mine).collect()
}

/// Mount points of bpf filesystems in folders of stale labs.
fn stale_mounts() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(bpf_mount_point).filter(|path| path.iter().any(is_stale)).collect()
}

/// The mount point in a line of mountinfo (proc(5)), if it is of a bpf filesystem.
fn bpf_mount_point(line: &str) -> Option<PathBuf> {
    let (mount, filesystem) = line.split_once(" - ")?;
    filesystem.starts_with("bpf ").then_some(())?;
    mount.split(' ').nth(4).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_labs_are_told_from_others() {
        assert_eq!(parse("ek123x4-client"), Some((123, 4)));
        assert_eq!(parse("ek123x4-abcDEF"), Some((123, 4)));
        for other in ["ek", "ekx-", "ek12-client", "ek12x-a", "ekax1-a", "weekend12x1-a", "ek12x1", "client"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn only_labs_of_the_dead_are_stale() {
        assert!(!is_stale(OsStr::new("ek1x0-client")), "process 1 always lives");
        assert!(is_stale(OsStr::new("ek4194305x0-client")), "above the largest possible pid");
        assert!(!is_stale(OsStr::new("eksperiment")));
        let identity = Identity::take();
        assert!(!is_stale(OsStr::new(&format!("{}-client", identity.name()))));
        assert!(is_stale(OsStr::new(&format!("ek{}x999999-client", std::process::id()))));
    }

    #[test]
    fn zombies_are_dead_whatever_their_name_is() {
        assert!(is_dead("7 (xtask) Z 1 7 7 0 -1 4227084"));
        assert!(is_dead("7 (a) S (b) Z 1 7 7"));
        assert!(!is_dead("7 (a) Z 1 (b) S 1 7 7"));
        assert!(!is_dead("7 (xtask) R 1 7 7"));
        assert!(!is_dead(""));
    }

    /// A child that nobody has waited for is a zombie.
    #[test]
    fn labs_of_zombies_are_stale() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let name = format!("ek{}x0-client", child.id());
        assert!(!is_stale(OsStr::new(&name)));
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !is_stale(OsStr::new(&name)) {
            assert!(std::time::Instant::now() < deadline, "still not stale");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        child.wait().unwrap();
    }

    #[test]
    fn bpf_mounts_are_told_from_others() {
        let bpf = "91 26 0:45 / /tmp/ek7x0-AbC/bpffs rw,nosuid shared:9 - bpf bpf rw,mode=700";
        assert_eq!(bpf_mount_point(bpf), Some(PathBuf::from("/tmp/ek7x0-AbC/bpffs")));
        assert_eq!(bpf_mount_point("91 26 0:45 / /tmp rw - tmpfs bpf rw"), None);
    }
}
