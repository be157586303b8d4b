//! Which clients a virtual server serves.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use ipnet::IpNet;

/// Whether clients are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// They are.
    Permitted,
    /// Their packets are dropped in silence.
    Denied,
}

/// What holds for the clients in some prefixes, the longest that a client is in, and for all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessList {
    prefixes: BTreeMap<IpNet, Access>,
    otherwise: Access,
    digest: u64,
}

impl AccessList {
    /// With these prefixes, all of one family and without host bits; all other clients are permitted unless some are to be
    /// allowed.
    pub fn new(prefixes: BTreeMap<IpNet, Access>) -> Self {
        let allows = prefixes.values().any(|access| *access == Access::Permitted);
        let otherwise = if allows { Access::Denied } else { Access::Permitted };
        let mut hasher = DefaultHasher::new();
        prefixes.hash(&mut hasher);
        Self { prefixes, otherwise, digest: hasher.finish() }
    }

    /// The prefixes in the order of their addresses, of equal ones the shorter first.
    pub fn prefixes(&self) -> impl ExactSizeIterator<Item = (IpNet, Access)> {
        self.prefixes.iter().map(|(prefix, access)| (*prefix, *access))
    }

    /// What holds for clients that are in none of them.
    pub fn otherwise(&self) -> Access {
        self.otherwise
    }

    /// The same for equal lists, and of two others only by a chance of 1 in 2^64.
    pub fn digest(&self) -> u64 {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(prefixes: &[(&str, Access)]) -> AccessList {
        AccessList::new(prefixes.iter().map(|(prefix, access)| (prefix.parse().unwrap(), *access)).collect())
    }

    #[test]
    fn an_allowed_prefix_denies_all_others() {
        assert_eq!(list(&[("10.0.0.0/8", Access::Denied)]).otherwise(), Access::Permitted);
        let both = list(&[("10.0.0.0/8", Access::Denied), ("10.1.0.0/16", Access::Permitted)]);
        assert_eq!(both.otherwise(), Access::Denied);
    }

    #[test]
    fn a_digest_tells_lists_apart() {
        let one = list(&[("10.0.0.0/8", Access::Denied)]);
        assert_eq!(one.digest(), list(&[("10.0.0.0/8", Access::Denied)]).digest());
        for other in [("10.0.0.0/8", Access::Permitted), ("10.0.0.0/9", Access::Denied), ("11.0.0.0/8", Access::Denied)]
        {
            assert_ne!(one.digest(), list(&[other]).digest());
        }
    }
}
