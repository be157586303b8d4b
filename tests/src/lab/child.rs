//! What happens in a child between fork and exec: it enters a namespace and ties its life to ours.
#![expect(unsafe_code, reason = "pre_exec is the only place for setns and prctl in a child")]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

/// Has `command` start in the network namespace (if any), in a process group of its own, and be killed when the thread
/// that starts it ends.
///
/// Its own group, because Ctrl-C in a terminal goes to a whole group: the lab decides when its processes end.
pub(super) fn confine(command: &mut Command, namespace: Option<OwnedFd>) {
    let parent = std::process::id();
    command.process_group(0);
    let before_exec = move || {
        die_with_parent(parent)?;
        if let Some(namespace) = &namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls (prctl, getppid, setns): it allocates nothing and takes no lock, so it is
    // safe in the child of a process with several threads.
    unsafe { command.pre_exec(before_exec) };
}

fn die_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer and touches no memory of ours.
    let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    // The parent may have died before the signal was asked for.
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}
