//! Putting back what the journal holds.

use std::io;
use std::thread;

use super::journal::{HostChange, Journal};
use super::{link, offload};
use crate::instance::Undone;
use crate::nexthop;

/// Undoes `changes`, newest first, and strikes them from the journal; what fails stays there, for another try.
pub fn changes(journal: &mut Journal, changes: &[HostChange], undone: &mut Undone) {
    let neighbours = changes.iter().any(|change| matches!(change, HostChange::NeighbourManaged { .. }));
    let neighbours = if neighbours { release_neighbours(changes) } else { Ok(()) };
    let mut struck = Vec::new();
    for change in changes.iter().rev() {
        let result = match change {
            HostChange::OffloadDisabled { interface, feature } => enable(interface, feature),
            HostChange::NeighbourManaged { .. } => match &neighbours {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            },
        };
        match result {
            Ok(()) => {
                undone.done.push(describe(change));
                struck.push(change.clone());
            }
            Err(error) => undone.failed.push(format!("{}: {error}", describe(change))),
        }
    }
    if let Err(error) = journal.forget(&struck) {
        undone.failed.push(format!("journal not updated: {error}"));
    }
}

/// What undoing a change means, in words.
pub fn describe(change: &HostChange) -> String {
    match change {
        HostChange::OffloadDisabled { interface, feature } => format!("{feature} of {interface} on again"),
        HostChange::NeighbourManaged { ifindex: _, address } => format!("neighbour {address} no longer kept resolved"),
    }
}

/// Switches a feature on again; an interface that is gone has nothing to be put back.
fn enable(interface: &str, feature: &str) -> io::Result<()> {
    match offload::set(interface, feature, true) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Blocks until the neighbours are the kernel's again. On a thread of its own, because the caller may be in an async task that unwinds.
fn release_neighbours(changes: &[HostChange]) -> io::Result<()> {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let handle = link::connect()?;
            nexthop::release(&handle, changes).await.map_err(io::Error::other)
        })
    };
    let panicked = || Err(io::Error::other("the clean-up thread panicked"));
    thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|_| panicked()))
}
