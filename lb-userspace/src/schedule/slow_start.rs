//! Slow start: a real server that is new or has come back gets its weight little by little, so that nobody floods it.

use std::time::Duration;

/// A weight rises in no more than so many steps, however large it is: each is written to the kernel.
const STEPS: u32 = 100;

/// A real server's rise to its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    /// The configured weight.
    pub weight: u16,
    /// How long the rise takes; zero: none.
    pub duration: Duration,
}

impl Ramp {
    /// The weight when `elapsed` has passed since the start: in proportion, and at least 1 unless it is configured as 0.
    pub fn weight_after(&self, elapsed: Duration) -> u16 {
        let Self { weight, duration } = *self;
        if elapsed >= duration {
            return weight;
        }
        let risen = u128::from(weight) * elapsed.as_nanos() / duration.as_nanos().max(1);
        u16::try_from(risen).unwrap_or(weight).max(weight.min(1))
    }

    /// When, after the start, [`Ramp::weight_after`] is to be asked again; `None` when the rise is over at `elapsed`.
    ///
    /// At the next change of its value, but no sooner than a hundredth of the rise from now.
    pub fn next_after(&self, elapsed: Duration) -> Option<Duration> {
        let Self { weight, duration } = *self;
        let present = self.weight_after(elapsed);
        if elapsed >= duration || present == weight {
            return None;
        }
        let nanoseconds = (u128::from(present) + 1) * duration.as_nanos();
        let change = u64::try_from(nanoseconds.div_ceil(u128::from(weight.max(1)))).unwrap_or(u64::MAX);
        Some(Duration::from_nanos(change).max(elapsed.saturating_add(duration / STEPS)).min(duration))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_weight_of_six_rises_every_ten_seconds_of_a_minute() {
        let ramp = Ramp { weight: 6, duration: MINUTE };
        let weights = [0, 9, 10, 20, 29, 30, 59, 60, 61].map(|elapsed| ramp.weight_after(seconds(elapsed)));
        assert_eq!(weights, [1, 1, 1, 2, 2, 3, 5, 6, 6]);
        assert_eq!(ramp.next_after(seconds(0)), Some(seconds(20)));
        assert_eq!(ramp.next_after(seconds(20)), Some(seconds(30)));
        assert_eq!(ramp.next_after(seconds(59)), Some(seconds(60)));
        assert_eq!(ramp.next_after(seconds(60)), None);
    }

    #[test]
    fn weights_of_nought_and_one_have_nothing_to_rise_to() {
        for weight in [0, 1] {
            let ramp = Ramp { weight, duration: MINUTE };
            assert_eq!(ramp.weight_after(seconds(0)), weight);
            assert_eq!(ramp.next_after(seconds(0)), None);
        }
    }

    #[test]
    fn without_duration_the_weight_is_there_at_once() {
        let ramp = Ramp { weight: 65535, duration: Duration::ZERO };
        assert_eq!(ramp.weight_after(Duration::ZERO), 65535);
        assert_eq!(ramp.next_after(Duration::ZERO), None);
    }

    #[test]
    fn a_large_weight_rises_in_a_hundred_steps() {
        let ramp = Ramp { weight: 65535, duration: MINUTE };
        assert_eq!(ramp.next_after(Duration::ZERO), Some(Duration::from_millis(600)));
        assert_eq!(ramp.weight_after(Duration::from_millis(600)), 655);
    }

    proptest! {
        #[test]
        fn it_rises_to_the_weight_and_never_falls(weight: u16, milliseconds in 1_u64..1_000_000) {
            let ramp = Ramp { weight, duration: Duration::from_millis(milliseconds) };
            let (mut elapsed, mut present, mut steps) = (Duration::ZERO, ramp.weight_after(Duration::ZERO), 0);
            while let Some(next) = ramp.next_after(elapsed) {
                prop_assert!(next > elapsed);
                prop_assert!(ramp.weight_after(next) > present);
                (elapsed, present, steps) = (next, ramp.weight_after(next), steps + 1);
            }
            prop_assert_eq!(present, weight);
            prop_assert!(steps <= STEPS);
        }
    }
}
