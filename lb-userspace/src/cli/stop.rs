//! `evenkeel restart` and `evenkeel stop`: the end of a daemon, with and without another in its place.

use std::io::{self, Write};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};

use super::instance::{Target, socket};
use crate::control::client::ask;
use crate::control::protocol::{Request, Response};
use crate::handover::{Arrival, Lost};

/// Has another process, of the executable that is on disk now, take the daemon's place.
///
/// # Errors
///
/// When the daemon cannot be asked, or goes on because the other process cannot.
pub fn restart(target: &Target) -> anyhow::Result<ExitCode> {
    let socket = match socket(target)? {
        Ok(socket) => socket,
        Err(code) => return Ok(code),
    };
    let Response::Restarted { pid, arrival } = ask(&socket, &Request::Restart)? else {
        bail!("the daemon answered another question");
    };
    let Arrival { lost, gaps, version, executable } = arrival;
    let what = match &lost {
        Some(_) => "with new tables",
        None if gaps.is_empty() => "connections and counters go on",
        None => "with the tables as they were",
    };
    let told = format!("restarted: pid {pid}, version {version} of {}, {what}", executable.display());
    super::ignore_closed_pipe(writeln!(io::stdout(), "{told}"))?;
    if let Some(Lost { differences, connections }) = lost {
        for difference in &differences {
            eprintln!("the tables of the earlier daemon did not fit: {difference}");
        }
        match connections {
            Some(connections) => eprintln!("warning: {connections} connections are lost"),
            None => eprintln!("warning: all connections are lost; how many cannot be told"),
        }
    }
    for interface in &gaps {
        eprintln!(
            "warning: XDP has changed its mode on {interface}; for a moment packets passed to the host, which may have \
             reset connections"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What becomes of the program and its maps when a daemon stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Legacy {
    /// They go.
    Withdraw,
    /// They stay, forwarding, for the next daemon.
    Keep,
    /// They stay if systemd is about to start this unit again.
    AsUnit(String),
}

/// Stops the daemon, and waits until it has ended.
///
/// # Errors
///
/// When the daemon cannot be asked.
pub fn stop(target: &Target, legacy: &Legacy) -> anyhow::Result<ExitCode> {
    let keep = match legacy {
        Legacy::Withdraw => false,
        Legacy::Keep => true,
        Legacy::AsUnit(unit) => is_restarting(unit),
    };
    let socket = match socket(target)? {
        Ok(socket) => socket,
        Err(code) => return Ok(code),
    };
    let Response::Stopping { pid } = ask(&socket, &Request::Stop { keep })? else {
        bail!("the daemon answered another question");
    };
    while is_running(pid).context("cannot tell whether the daemon has ended")? {
        thread::sleep(POLL);
    }
    let text = if keep { "stopped; the program forwards on, for the next daemon" } else { "stopped" };
    super::ignore_closed_pipe(writeln!(io::stdout(), "{text}"))?;
    Ok(ExitCode::SUCCESS)
}

const POLL: Duration = Duration::from_millis(10);

/// Whether the process with this id is there and has not ended.
fn is_running(pid: u32) -> io::Result<bool> {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // After the name, which is in parentheses: the state.
        Ok(stat) => Ok(!stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether systemd stops the unit only to start it again: its job is `restart` until the unit has stopped.
///
/// Where systemd cannot be asked, it is a plain stop.
fn is_restarting(unit: &str) -> bool {
    let asked = Command::new("systemctl").args(["list-jobs", "--no-legend", "--plain", "--full"]).output();
    match asked {
        Ok(output) if output.status.success() => has_restart(&String::from_utf8_lossy(&output.stdout), unit),
        Ok(output) => {
            eprintln!("evenkeel: systemctl list-jobs failed ({}); stopping for good", output.status);
            false
        }
        Err(error) => {
            eprintln!("evenkeel: cannot run systemctl ({error}); stopping for good");
            false
        }
    }
}

/// Whether a list of jobs, a line each with number, unit, type and state, has one that restarts `unit`.
fn has_restart(jobs: &str, unit: &str) -> bool {
    jobs.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(unit)
            && matches!(words.next(), Some("restart" | "try-restart" | "reload-or-start" | "start"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_known_by_its_job() {
        let jobs = "1234 evenkeel.service restart running\n1235 other.service start waiting\n77 evenkeel@a.service stop running\n";
        assert!(has_restart(jobs, "evenkeel.service"));
        assert!(has_restart(jobs, "other.service"));
        assert!(!has_restart(jobs, "evenkeel@a.service"));
        assert!(!has_restart(jobs, "evenkeel"));
        assert!(!has_restart("", "evenkeel.service"));
    }

    #[test]
    fn a_process_that_is_there_runs() {
        assert!(is_running(std::process::id()).unwrap());
        assert!(!is_running(u32::MAX).unwrap());
    }
}
