//! From what should be served to what is: the desired table, and the changes that lead there.

pub mod desired;
pub mod exchange;
mod plan;

use tracing::{debug, info};

use crate::datapath::{Change, Datapath, DatapathError, ServiceTable};

pub use plan::plan;

/// Makes `datapath` serve `desired`; returns how many changes were applied.
///
/// A change that fails never stops the others.
///
/// # Errors
///
/// When the installed state cannot be read, or with the first failure of a change once all have been tried.
pub fn reconcile(datapath: &mut impl Datapath, desired: &ServiceTable) -> Result<usize, DatapathError> {
    let mut applied = 0;
    let mut first_failure = None;
    for change in plan(desired, &datapath.installed()?) {
        match datapath.apply(&change) {
            Ok(()) => {
                applied += 1;
                match &change {
                    Change::Put(service, servers) => {
                        info!(%service, real_servers = servers.real_servers.len(), "virtual server installed");
                    }
                    Change::Remove(service) => info!(%service, "virtual server removed"),
                }
            }
            Err(failure) => {
                debug!(service = %change.service(), error = %failure, "virtual server could not be changed");
                first_failure.get_or_insert(failure);
            }
        }
    }
    first_failure.map_or(Ok(applied), Err)
}
