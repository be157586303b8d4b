//! Map `prefixes`: which of its lines hold whose list of clients, and their writing.
//!
//! Virtual servers with the same list share it. A list is written beside those that packets read, and one that is given up
//! rests before its lines are written again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use lb_common::prefix::PrefixLine;
use lb_common::service::{RING_CHUNK, Run};

use super::mapped::Mapped;
use super::prefix_tree::PrefixTree;
use super::runs::Runs;
use super::tables::sleep_until;
use crate::datapath::{Clients, DatapathError};
use crate::model::Service;

/// The map, and who has what in it.
pub struct Prefixes {
    lines: Mapped<PrefixLine>,
    runs: Runs,
    lists: BTreeMap<u64, Shared>,
    /// Lists of an earlier daemon, which packets go by until each virtual server has its own again.
    found: Vec<Shared>,
}

/// A list in the map.
struct Shared {
    run: Run,
    users: BTreeSet<Service>,
}

/// Where a list is, and what tells it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its lines.
    pub run: Run,
    /// [`crate::model::AccessList::digest`]; zero where there is no list.
    pub digest: u64,
}

#[expect(clippy::cast_possible_truncation, reason = "it is 32")]
const ELEMENTS: u32 = RING_CHUNK as u32;

impl Prefixes {
    /// The map, empty.
    pub fn new(lines: Mapped<PrefixLine>) -> Self {
        let runs = Runs::new(lines.length());
        Self { lines, runs, lists: BTreeMap::new(), found: Vec::new() }
    }

    /// Notes that `service` has gone by the list in `run` since before this process. What is in it is not trusted: the list is
    /// written anew. False, and nothing is noted, where it is not in the map, or in part another list's.
    pub fn found(&mut self, service: Service, run: Run) -> bool {
        if let Some(shared) = self.found.iter_mut().find(|shared| shared.run == run) {
            shared.users.insert(service);
            return true;
        }
        let elements = |lines: u32| lines.checked_mul(ELEMENTS);
        let (Some(start), Some(length)) = (elements(run.start), elements(run.length)) else { return false };
        if !self.runs.found(Run { start, length }) {
            return false;
        }
        if run != Run::EMPTY {
            self.found.push(Shared { run, users: BTreeSet::from([service]) });
        }
        true
    }

    /// Makes sure that the list of `service` is in the map, beside the one that it had.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Full`] where there is no room, [`DatapathError::UnknownClients`] where nobody knows the list.
    pub fn take(&mut self, service: Service, clients: Option<&Clients>) -> Result<Named, DatapathError> {
        let Some(Clients { digest, list }) = clients else { return Ok(Named { run: Run::EMPTY, digest: 0 }) };
        if let Some(shared) = self.lists.get_mut(digest) {
            shared.users.insert(service);
            return Ok(Named { run: shared.run, digest: *digest });
        }
        let list = list.as_ref().ok_or(DatapathError::UnknownClients { service })?;
        let run = self.write(&PrefixTree::new(list))?;
        self.lists.insert(*digest, Shared { run, users: BTreeSet::from([service]) });
        Ok(Named { run, digest: *digest })
    }

    /// Gives up the lists that `service` had but for the one with this digest: no packet comes to them by it any more.
    pub fn keep_only(&mut self, service: Service, digest: u64) {
        let now = Instant::now();
        let runs = &mut self.runs;
        let mut is_used = |shared: &Shared| {
            if shared.users.is_empty() {
                let Run { start, length } = shared.run;
                runs.release(Run { start: start * ELEMENTS, length: length * ELEMENTS }, now);
            }
            !shared.users.is_empty()
        };
        self.found.retain_mut(|shared| {
            shared.users.remove(&service);
            is_used(shared)
        });
        self.lists.retain(|present, shared| {
            if *present != digest {
                shared.users.remove(&service);
            }
            is_used(shared)
        });
    }

    /// Gives up the list that `service` had.
    pub fn release(&mut self, service: Service) {
        // No list has a digest of zero but by a chance of 1 in 2^64, and that one would stay in the map.
        self.keep_only(service, 0);
    }

    fn write(&mut self, tree: &PrefixTree) -> Result<Run, DatapathError> {
        let length = u32::try_from(tree.lines().len()).unwrap_or(u32::MAX);
        // The runs are counted in elements of a ring, of which a line has 32.
        let elements = length.saturating_mul(ELEMENTS);
        let run = loop {
            match (self.runs.take(elements, Instant::now()), self.runs.rests_until()) {
                (Some(run), _) => break run,
                (None, Some(until)) => sleep_until(until),
                (None, None) => {
                    return Err(DatapathError::Full {
                        table: "prefixes",
                        capacity: self.runs.capacity(),
                        remedy: "restart with the configuration that allows and denies so much".into(),
                    });
                }
            }
        };
        let start = run.start / ELEMENTS;
        for (line, value) in (start..).zip(tree.lines()) {
            self.lines.set(line, value)?;
        }
        Ok(Run { start, length })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lb_common::net::Protocol;

    use super::*;
    use crate::datapath::xdp::mapped::tests::file_of;
    use crate::model::{Access, AccessList};

    fn service(port: u16) -> Service {
        Service { address: ([10, 0, 0, 1], port).into(), protocol: Protocol::Tcp }
    }

    /// A list of one prefix.
    fn clients(prefix: &str) -> Clients {
        let list = AccessList::new([(prefix.parse().unwrap(), Access::Denied)].into());
        Clients { digest: list.digest(), list: Some(Arc::new(list)) }
    }

    #[test]
    fn a_list_that_is_found_keeps_its_lines_until_everybody_has_another() {
        let (_file, lines) = file_of(9);
        let mut prefixes = Prefixes::new(lines);
        let run = |start, length| Run { start, length };
        assert!(prefixes.found(service(1), run(3, 3)) && prefixes.found(service(2), run(3, 3)));
        assert!(prefixes.found(service(3), Run::EMPTY));
        assert!(!prefixes.found(service(3), run(5, 2)) && !prefixes.found(service(3), run(7, 3)));
        assert!(!prefixes.found(service(3), run(u32::MAX, 1)));
        let one = clients("10.0.0.0/8");
        let first = prefixes.take(service(1), Some(&one)).unwrap();
        assert_eq!(first.run, run(0, 3));
        prefixes.keep_only(service(1), first.digest);
        assert_eq!(prefixes.take(service(4), Some(&clients("11.0.0.0/8"))).unwrap().run, run(6, 3));
        prefixes.release(service(2));
        assert_eq!(prefixes.take(service(5), Some(&clients("12.0.0.0/8"))).unwrap().run, run(3, 3));
    }

    #[test]
    fn a_list_is_shared_and_stays_while_anybody_has_it() {
        // Three lines each: the header and a leaf for either half of all numbers.
        let (_file, lines) = file_of(6);
        let mut prefixes = Prefixes::new(lines);
        let (one, other) = (clients("10.0.0.0/8"), clients("11.0.0.0/8"));
        let first = prefixes.take(service(1), Some(&one)).unwrap();
        assert_eq!(first, Named { run: Run { start: 0, length: 3 }, digest: one.digest });
        assert_eq!(prefixes.take(service(2), Some(&one)).unwrap(), first);
        let second = prefixes.take(service(1), Some(&other)).unwrap();
        assert_eq!(second.run, Run { start: 3, length: 3 });
        prefixes.keep_only(service(1), second.digest);
        // What was read back has no prefixes, and needs none while the list is there.
        let read_back = Clients { digest: one.digest, list: None };
        assert_eq!(prefixes.take(service(2), Some(&read_back)).unwrap(), first);
        assert!(matches!(prefixes.take(service(3), Some(&clients("12.0.0.0/8"))), Err(DatapathError::Full { .. })));
        prefixes.release(service(2));
        let third = prefixes.take(service(3), Some(&clients("12.0.0.0/8"))).unwrap();
        assert_eq!(third.run, Run { start: 0, length: 3 });
        assert!(matches!(prefixes.take(service(2), Some(&read_back)), Err(DatapathError::UnknownClients { .. })));
        assert_eq!(prefixes.take(service(2), None).unwrap(), Named { run: Run::EMPTY, digest: 0 });
    }
}
