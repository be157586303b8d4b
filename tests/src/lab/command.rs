//! A short command with a time limit, whose failure says what was run and what it said. Long-running programs are in `process`.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::child;
use super::patience::patience;

/// How often a waiting thread looks again; short beside everything the lab waits for.
pub(super) const POLL: Duration = Duration::from_millis(2);

/// A command in the making.
#[derive(Debug)]
pub struct Cmd {
    program: OsString,
    arguments: Vec<OsString>,
    namespace: Option<(String, OwnedFd)>,
    stdin: Vec<u8>,
    limit: Duration,
}

/// How a command ended and what it printed.
#[derive(Debug)]
pub struct Finished {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// Everything from standard output.
    pub stdout: Vec<u8>,
    /// Everything from standard error.
    pub stderr: String,
}

impl Cmd {
    /// A program to be looked up on PATH, without arguments, with a limit of 10 s.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            namespace: None,
            stdin: Vec::new(),
            limit: Duration::from_secs(10),
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// What the command reads; nothing by default.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// After this long the command is killed, and that is an error.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub(super) fn inside(mut self, name: &str, namespace: OwnedFd) -> Self {
        self.namespace = Some((name.to_owned(), namespace));
        self
    }

    /// Runs it; an exit code other than 0 is an error. Returns standard output.
    pub fn run(self) -> Result<String> {
        let line = self.line();
        let finished = self.finish()?;
        if !finished.status.success() {
            bail!("`{line}` failed ({}): {}", finished.status, finished.stderr.trim());
        }
        String::from_utf8(finished.stdout).with_context(|| format!("`{line}` printed something that is not text"))
    }

    /// Runs it; any exit code is good. Errors are a program that can't be started and a limit that ran out.
    pub fn finish(self) -> Result<Finished> {
        let line = self.line();
        let Self { program, arguments, namespace, stdin, limit } = self;
        let limit = patience(limit);
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        child::confine(&mut command, namespace.map(|(_, descriptor)| descriptor));
        let mut child = command.spawn().with_context(|| format!("can't start `{line}`"))?;
        let mut pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            let write = scope.spawn(move || {
                // A program that doesn't read all of its input says so by its exit code, if it minds.
                pipes.0.take().map(|mut pipe| pipe.write_all(&stdin))
            });
            let stdout = scope.spawn(move || read_all(pipes.1.take()));
            let stderr = scope.spawn(move || read_all(pipes.2.take()));
            let status = wait(&mut child, limit);
            drop(write.join());
            let stdout = stdout.join().unwrap_or_default();
            let stderr = String::from_utf8_lossy(&stderr.join().unwrap_or_default()).into_owned();
            match status.with_context(|| format!("can't wait for `{line}`"))? {
                Some(status) => Ok(Finished { status, stdout, stderr }),
                None => bail!("`{line}` took longer than {limit:?} and was killed: {}", stderr.trim()),
            }
        })
    }

    /// The command as a person would type it.
    fn line(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        if let Some((name, _)) = &self.namespace {
            words.push(format!("nsenter --net=/run/netns/{name} --"));
        }
        words.push(self.program.to_string_lossy().into_owned());
        words.extend(self.arguments.iter().map(|argument| argument.to_string_lossy().into_owned()));
        if !self.stdin.is_empty() && self.stdin.len() < 4096 {
            words.push(format!("<<< '{}'", String::from_utf8_lossy(&self.stdin).trim_end()));
        }
        words.join(" ")
    }
}

/// Waits until the child ends, or kills it after `limit` and returns `None`.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn read_all(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A broken pipe ends the output like an end of file: the exit code tells the rest.
    drop(pipe.map(|mut pipe| pipe.read_to_end(&mut bytes)));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_its_words() {
        let error = Cmd::new("sh").args(["-c", "echo broken >&2; exit 3"]).run().unwrap_err().to_string();
        assert_eq!(error, "`sh -c echo broken >&2; exit 3` failed (exit status: 3): broken");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = Cmd::new("no-such-program").run().unwrap_err().to_string();
        assert_eq!(error, "can't start `no-such-program`");
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed() {
        let started = Instant::now();
        let error = Cmd::new("sleep").arg("60").limit(Duration::from_millis(50)).run().unwrap_err().to_string();
        assert_eq!(error, "`sleep 60` took longer than 50ms and was killed: ");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
