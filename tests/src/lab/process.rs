//! A long-running program in a namespace: the daemon under test. Short commands are in `command`.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::child;
use super::command::POLL;
use super::namespace::Namespace;
use super::patience::patience;

/// How long a program may take to end after SIGTERM when it is dropped, before SIGKILL.
const DROP_LIMIT: Duration = Duration::from_secs(3);

/// When a program's log is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShowLog {
    /// Whenever it is dropped: the harness keeps the output of a test to itself unless the test fails, be it by a panic
    /// or by returning an error, which a drop can't see.
    Always,
    /// Only while a panic unwinds.
    OnPanic,
}

/// A running program; dropping it ends it and shows its log, which a test harness prints only if the test fails.
#[derive(Debug)]
pub struct Process {
    show: ShowLog,
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    log: PathBuf,
}

impl Process {
    /// Starts `program`, called `name` in messages, in `namespace` with both outputs in a new file `NAME-<k>.log` in `folder`.
    pub(super) fn start(
        namespace: &Namespace,
        (name, show): (&str, ShowLog),
        folder: &Path,
        mut program: Command,
    ) -> Result<Self> {
        let (log, file) = new_log(folder, name)?;
        let errors = file.try_clone().with_context(|| format!("can't duplicate {}", log.display()))?;
        program.stdin(Stdio::null()).stdout(file).stderr(errors);
        child::confine(&mut program, Some(namespace.descriptor()?));
        let child = program
            .spawn()
            .with_context(|| format!("can't start {} in {}", program.get_program().display(), namespace.name()))?;
        Ok(Self { show, name: name.to_owned(), child, ended: None, log })
    }

    /// The process id on the host.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file with its standard output and standard error.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_else(|error| format!("(can't read the log: {error})").into_bytes());
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("can't wait for {}", self.name))?;
        }
        Ok(self.ended)
    }

    /// Waits until it ends by itself; an error, with its log, if it doesn't within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let limit = patience(limit);
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} has not ended within {limit:?}; its log:\n{}", self.name, self.log());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until `words` are in its log; an error, with the log, if it ends or `limit` runs out before.
    pub fn wait_for_log(&mut self, words: &str, limit: Duration) -> Result<()> {
        let limit = patience(limit);
        let deadline = Instant::now() + limit;
        loop {
            // Looked at in this order, so that words printed just before the end are seen.
            let ended = self.ended()?;
            if self.log().contains(words) {
                return Ok(());
            }
            if let Some(status) = ended {
                bail!("{} ended ({status}) before it said {words:?}; its log:\n{}", self.name, self.log());
            }
            if Instant::now() >= deadline {
                bail!("{} has not said {words:?} within {limit:?}; its log:\n{}", self.name, self.log());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Sends a signal (SIGHUP to reload); no error if it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none() {
            let pid = Pid::from_raw(i32::try_from(self.child.id())?);
            kill(pid, signal).with_context(|| format!("can't send {signal} to {} ({pid})", self.name))?;
        }
        Ok(())
    }

    /// SIGTERM, and its exit status; after `limit` SIGKILL, which is an error with its log.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let waited = self.wait(limit);
        if waited.is_err() {
            self.kill9()?;
        }
        waited
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        if self.ended.is_none() {
            self.ended = Some(self.child.wait().with_context(|| format!("can't wait for {}", self.name))?);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let before = self.ended().ok().flatten();
        if before.is_none()
            && let Err(error) = self.terminate(DROP_LIMIT)
        {
            eprintln!("lab: {error:#}");
        }
        if self.show == ShowLog::Always || std::thread::panicking() {
            let state = match before.map(|status| (status.signal(), status)) {
                None => "was running".to_owned(),
                Some((Some(signal), _)) => format!("had been ended by signal {signal}"),
                Some((None, status)) => format!("had ended ({status})"),
            };
            eprintln!("--- {} (pid {}) {state}; its log:\n{}--- end of the log", self.name, self.pid(), self.log());
        }
    }
}

/// A new file for a log; a program that is started again gets the next number.
fn new_log(folder: &Path, name: &str) -> Result<(PathBuf, File)> {
    for number in 1_u32.. {
        let path = folder.join(format!("{name}-{number}.log"));
        match File::create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("can't make the log {}", path.display())),
        }
    }
    bail!("{} is full of logs of {name}", folder.display())
}
