//! How this process was started, so that another one can be, of whatever executable has the name by then.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// This process's executable and arguments, as they were given.
#[derive(Clone, Debug)]
pub struct CommandLine {
    /// By the name that it was started by: where that is a symbolic link, an upgrade may lead it elsewhere.
    pub executable: PathBuf,
    /// All but the first, which is the name.
    pub arguments: Vec<OsString>,
}

impl CommandLine {
    /// Asks for them now: an executable that is replaced later has the same name.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell.
    pub fn of_this() -> io::Result<Self> {
        let mut arguments = env::args_os();
        let name = arguments.next().unwrap_or_default();
        let search = env::var_os("PATH").unwrap_or_default();
        // A name is whatever the parent has said, so it counts only where this process runs what has it.
        let running = fs::metadata("/proc/self/exe")?;
        let is_this = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|named| (named.dev(), named.ino()) == (running.dev(), running.ino()))
        };
        let executable = match meant(&name, &search).into_iter().find(is_this) {
            Some(named) => named,
            None => env::current_exe()?,
        };
        Ok(Self { executable, arguments: arguments.collect() })
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.executable.display().fmt(f)
    }
}

/// What may be meant by the name of a program, where `search` lists folders as `PATH` does; symbolic links stay.
fn meant(name: &OsStr, search: &OsStr) -> Vec<PathBuf> {
    let path = Path::new(name);
    let candidates = match path.parent() {
        None => Vec::new(),
        Some(folder) if folder.as_os_str().is_empty() => {
            env::split_paths(search).map(|folder| folder.join(path)).collect()
        }
        Some(_) => vec![path.to_owned()],
    };
    // Another working directory would make another file of a relative one.
    candidates.iter().filter_map(|path| std::path::absolute(path).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_folder_is_looked_for_in_path() {
        let meant = |name: &str, search: &str| meant(OsStr::new(name), OsStr::new(search));
        assert_eq!(meant("evenkeel", "/a:/b/c"), [Path::new("/a/evenkeel"), Path::new("/b/c/evenkeel")]);
        assert_eq!(meant("/opt/evenkeel", "/a"), [Path::new("/opt/evenkeel")]);
        assert_eq!(meant("../x/evenkeel", "/a"), [env::current_dir().unwrap().join("../x/evenkeel")]);
        assert_eq!(meant("", "/a"), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_name_that_is_not_this_process_does_not_count() {
        // Tests are started by their full name.
        let line = CommandLine::of_this().unwrap();
        assert!(line.executable.is_absolute());
        assert_eq!(line.executable.canonicalize().unwrap(), env::current_exe().unwrap());
    }
}
