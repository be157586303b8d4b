//! Which real servers behind `nat` share address, port and protocol, so that a reply may be any of theirs: pure bookkeeping.
//!
//! Each chain is in the order of the indexes. The packet path enters it by `reply_index` and follows `next_same`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::net::Protocol;

/// What a reply shows of its real server; port 0 where the virtual server serves all ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Address and port of the real server.
    pub address: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
}

/// All chains.
#[derive(Debug, Default)]
pub struct Chains(BTreeMap<Source, BTreeSet<u16>>);

/// What an entry of `reply_index` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replying {
    /// The chain of the real servers that a reply shows.
    Source(Source),
    /// The address that has some: what of its packets has no ports is told from others' by that.
    Address(IpAddr),
}

/// A place's neighbours in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbours {
    /// The one that leads here; `None` at the head.
    pub before: Option<u16>,
    /// The next; `None` at the end.
    pub after: Option<u16>,
}

impl Chains {
    /// Whether `index` is in the chain of `source`.
    pub fn holds(&self, source: &Source, index: u16) -> bool {
        self.0.get(source).is_some_and(|chain| chain.contains(&index))
    }

    /// The neighbours that `index` has, or would have, in the chain of `source`.
    pub fn neighbours(&self, source: &Source, index: u16) -> Neighbours {
        let Some(chain) = self.0.get(source) else { return Neighbours { before: None, after: None } };
        let (before, after) = (chain.range(..index).next_back(), chain.range(index.saturating_add(1)..).next());
        Neighbours { before: before.copied(), after: after.copied() }
    }

    /// Any place in a chain of this address.
    pub fn any_of(&self, address: IpAddr) -> Option<u16> {
        let first = Source { address: SocketAddr::new(address, 0), protocol: Protocol::Tcp };
        let of_it = self.0.range(first..).take_while(|(source, _)| source.address.ip() == address);
        of_it.flat_map(|(_, chain)| chain).next().copied()
    }

    /// Puts `index` into the chain of `source`.
    pub fn insert(&mut self, source: Source, index: u16) {
        self.0.entry(source).or_default().insert(index);
    }

    /// Takes `index` out of the chain of `source`.
    pub fn remove(&mut self, source: &Source, index: u16) {
        if let Some(chain) = self.0.get_mut(source) {
            chain.remove(&index);
            if chain.is_empty() {
                self.0.remove(source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_in_the_order_of_the_indexes() {
        let source = |port| Source { address: ([10, 0, 0, 1], port).into(), protocol: Protocol::Tcp };
        let neighbours = |before, after| Neighbours { before, after };
        let mut chains = Chains::default();
        assert_eq!(chains.neighbours(&source(1), 5), neighbours(None, None));
        for index in [9, 5, 17] {
            chains.insert(source(1), index);
        }
        chains.insert(source(2), 6);
        assert!(chains.holds(&source(1), 9) && !chains.holds(&source(2), 9));
        assert_eq!(chains.neighbours(&source(1), 5), neighbours(None, Some(9)));
        assert_eq!(chains.neighbours(&source(1), 8), neighbours(Some(5), Some(9)));
        assert_eq!(chains.neighbours(&source(1), 17), neighbours(Some(9), None));
        chains.remove(&source(1), 9);
        assert_eq!(chains.neighbours(&source(1), 17), neighbours(Some(5), None));
        chains.remove(&source(2), 6);
        assert_eq!(chains.neighbours(&source(2), 7), neighbours(None, None));
    }

    #[test]
    fn an_address_has_the_places_of_all_its_ports_and_protocols() {
        let address = |last| SocketAddr::from(([10, 0, 0, last], 53));
        let mut chains = Chains::default();
        for (last, index) in [(1, 5), (3, 7)] {
            chains.insert(Source { address: address(last), protocol: Protocol::Udp }, index);
        }
        assert_eq!([0, 1, 2, 3].map(|last| chains.any_of(address(last).ip())), [None, Some(5), None, Some(7)]);
    }
}
