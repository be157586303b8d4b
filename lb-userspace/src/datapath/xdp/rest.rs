//! Places that were given up a moment ago, and must not be given away before every packet that may still use them is through.
//! Pure.

use std::time::{Duration, Instant};

/// Longer than a packet is under way in the program; a CPU is not preempted there.
pub const REST: Duration = Duration::from_millis(10);

/// Places at rest, each until its time.
#[derive(Debug)]
pub struct Resting<T>(Vec<(T, Instant)>);

impl<T> Default for Resting<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + PartialEq> Resting<T> {
    /// `place` was given up at `now`.
    pub fn push(&mut self, place: T, now: Instant) {
        self.0.push((place, now + REST));
    }

    /// Those whose time is over at `now`; they are forgotten here.
    pub fn rested(&mut self, now: Instant) -> Vec<T> {
        let is_over = |entry: &mut (T, Instant)| entry.1 <= now;
        self.0.extract_if(.., is_over).map(|(place, _)| place).collect()
    }

    /// Whether `place` is at rest at `now`.
    pub fn holds(&self, place: T, now: Instant) -> bool {
        self.0.iter().any(|(resting, until)| *resting == place && *until > now)
    }

    /// When the last of them has rested.
    pub fn until(&self) -> Option<Instant> {
        self.0.iter().map(|(_, until)| *until).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_rests_for_ten_milliseconds() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut resting = Resting::default();
        resting.push('a', at(0));
        resting.push('b', at(5));
        assert!(resting.holds('a', at(9)) && !resting.holds('a', at(10)) && !resting.holds('c', at(0)));
        assert_eq!(resting.until(), Some(at(15)));
        assert_eq!(resting.rested(at(9)), []);
        assert_eq!(resting.rested(at(12)), ['a']);
        assert_eq!(resting.rested(at(20)), ['b']);
        assert_eq!(resting.until(), None);
    }
}
