//! A real server's share of new connections.

use std::fmt;

/// The share of new connections, relative to the other real servers of a virtual server.
///
/// Range 0..=65535, as in IPVS; 0 drains: established connections go on, new ones go elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u16);

impl Weight {
    /// Takes no new connection.
    pub const ZERO: Self = Self(0);

    /// The weight of a real server that states none.
    pub const ONE: Self = Self(1);

    /// The weight `raw`.
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The weight as a number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::ONE
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_server_without_a_weight_counts_once() {
        assert_eq!(Weight::default().get(), 1);
        assert_eq!(Weight::ZERO.get(), 0);
        assert_eq!(Weight::new(65535).get(), 65535);
    }
}
