//! Another configuration in place of the one that is installed, or none of it. Unlike [`super::reconcile`], which installs
//! what it can.

use std::fmt;

use tracing::error;

use super::plan;
use crate::datapath::{Change, Datapath, DatapathError, ServiceTable};
use crate::error::chain;
use crate::model::Service;

/// Why another configuration was not installed.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// What is installed cannot be read; nothing was changed.
    #[error("what is installed cannot be read, so nothing was changed")]
    Installed(#[source] DatapathError),
    /// A change failed.
    #[error("the new configuration could not be installed, and {put_back}")]
    Change {
        /// What became of the old configuration.
        put_back: PutBack,
        /// Why it failed.
        #[source]
        source: DatapathError,
    },
}

/// What became of the old configuration after a change had failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutBack {
    /// Virtual servers that had been withdrawn for a moment, and have lost their connections by that.
    pub interrupted: Vec<Service>,
    /// Virtual servers that are not as they were.
    pub lost: Vec<Service>,
}

impl fmt::Display for PutBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { interrupted, lost } = self;
        let list = |services: &[Service]| services.iter().map(Service::to_string).collect::<Vec<_>>().join(", ");
        match lost.as_slice() {
            [] => f.write_str("the old one was put back")?,
            lost => write!(f, "the old one was put back but for {}, which is tried again every 10 s", list(lost))?,
        }
        match interrupted.as_slice() {
            [] => Ok(()),
            interrupted => write!(f, "; these had been withdrawn and lost their connections: {}", list(interrupted)),
        }
    }
}

/// Makes `datapath` serve `desired` and nothing else, instead of `before`; returns how many virtual servers changed.
///
/// What is removed goes last, as it cannot be put back with its connections; only what finds no room waits until something was
/// removed, and then until as many virtual servers were as wait.
///
/// # Errors
///
/// As [`ExchangeError`] tells; `before` is put back then.
pub fn exchange(
    datapath: &mut impl Datapath,
    before: &ServiceTable,
    desired: &ServiceTable,
) -> Result<usize, ExchangeError> {
    let installed = datapath.installed().map_err(ExchangeError::Installed)?;
    let mut steps = Steps { datapath, tried: Vec::new(), removed: Vec::new() };
    match steps.take(plan(desired, &installed)) {
        Ok(()) => Ok(steps.tried.len()),
        Err(source) => Err(ExchangeError::Change { put_back: steps.put_back(before), source }),
    }
}

struct Steps<'a, D> {
    datapath: &'a mut D,
    /// What was changed, or may have been changed in part.
    tried: Vec<Service>,
    /// What was withdrawn.
    removed: Vec<Service>,
}

impl<D: Datapath> Steps<'_, D> {
    fn take(&mut self, changes: Vec<Change>) -> Result<(), DatapathError> {
        let (mut removals, mut puts): (Vec<Change>, Vec<Change>) =
            changes.into_iter().partition(|change| matches!(change, Change::Remove(_)));
        while !puts.is_empty() {
            let (waiting, want) = self.put(&puts)?;
            // One that has become smaller may have made room for another one.
            if let Some(want) = want.filter(|_| waiting.len() == puts.len()) {
                if removals.is_empty() {
                    return Err(want);
                }
                for removal in removals.drain(..waiting.len().min(removals.len())) {
                    self.remove(&removal)?;
                }
            }
            puts = waiting;
        }
        removals.iter().try_for_each(|removal| self.remove(removal))
    }

    /// Puts what there is room for; returns the rest, and the last reason that there was none.
    fn put(&mut self, puts: &[Change]) -> Result<(Vec<Change>, Option<DatapathError>), DatapathError> {
        let (mut waiting, mut want) = (Vec::new(), None);
        for put in puts {
            let service = put.service();
            if !self.tried.contains(&service) {
                self.tried.push(service);
            }
            match self.datapath.apply(put) {
                Ok(()) => {}
                Err(error) if error.is_want_of_room() => {
                    waiting.push(put.clone());
                    want = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((waiting, want))
    }

    fn remove(&mut self, removal: &Change) -> Result<(), DatapathError> {
        let service = removal.service();
        self.tried.push(service);
        self.removed.push(service);
        self.datapath.apply(removal)
    }

    /// Installs again what stood there before. Not by comparison: a change that has failed half-way may look like none.
    fn put_back(&mut self, before: &ServiceTable) -> PutBack {
        let tried = std::mem::take(&mut self.tried);
        // What is new goes first, so that there is room as before.
        let (old, new): (Vec<Service>, Vec<Service>) =
            tried.into_iter().partition(|service| before.contains_key(service));
        let mut back = PutBack { interrupted: std::mem::take(&mut self.removed), lost: Vec::new() };
        let removals = new.into_iter().map(Change::Remove);
        let puts = old.into_iter().filter_map(|service| Some(Change::Put(service, before.get(&service)?.clone())));
        for undo in removals.chain(puts) {
            let service = undo.service();
            if let Err(failure) = self.datapath.apply(&undo) {
                error!(%service, error = chain(&failure), "the old configuration could not be put back whole");
                back.lost.push(service);
            }
        }
        back
    }
}

#[cfg(test)]
mod tests;
