//! Warns of this host's firewall rules that mention a VIP: at the start of all, with each reload of those that are new.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tracing::warn;

use crate::config::Config;
use crate::host::firewall;

/// What has been warned of.
#[derive(Clone, Debug, Default)]
pub(super) struct FirewallWatch(Arc<Mutex<BTreeSet<String>>>);

impl FirewallWatch {
    /// Looks at the rules, in a thread of its own: a large ruleset takes its tools a while, and nobody waits for them.
    pub(super) fn look(&self, config: &Config) {
        let (told, config) = (Arc::clone(&self.0), config.clone());
        drop(thread::spawn(move || {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            let lines = firewall::warnings(&config);
            lines.iter().filter(|line| !told.contains(*line)).for_each(|line| warn!("{line}"));
            *told = lines.into_iter().collect();
        }));
    }
}
