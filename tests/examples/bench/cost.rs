//! What a packet costs: nanoseconds in tenths, and the spread of some runs. Pure.

use std::fmt;
use std::ops::{Add, Sub};

/// Nanoseconds per packet, in tenths; negative where noise is all there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    tenths: i64,
}

impl Cost {
    /// `total` nanoseconds spread over `packets`, rounded; `None` without packets or beyond any real time.
    pub fn of(total: u64, packets: u64) -> Option<Self> {
        let tenths = total.checked_mul(10)?.checked_add(packets / 2)?.checked_div(packets)?;
        Some(Self { tenths: i64::try_from(tenths).ok()? })
    }

    /// A cost of so many tenths of a nanosecond.
    pub const fn from_tenths(tenths: i64) -> Self {
        Self { tenths }
    }

    /// Tenths of a nanosecond.
    pub const fn tenths(self) -> i64 {
        self.tenths
    }

    /// Whole nanoseconds, halves upwards.
    pub const fn rounded(self) -> i64 {
        (self.tenths + 5).div_euclid(10)
    }

    /// Half of it.
    pub const fn half(self) -> Self {
        Self { tenths: self.tenths / 2 }
    }

    /// The mean, rounded to tenths; `None` of nothing.
    pub fn mean(costs: &[Self]) -> Option<Self> {
        let count = i64::try_from(costs.len()).ok()?;
        let sum: i64 = costs.iter().map(|cost| cost.tenths).sum();
        Some(Self { tenths: (sum + count / 2).checked_div(count)? })
    }

    /// What share of `other` this is, in percent; `None` of nothing.
    pub fn percent_of(self, other: Self) -> Option<i64> {
        (other.tenths > 0).then(|| (self.tenths * 100 + other.tenths / 2).div_euclid(other.tenths))
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { tenths: self.tenths + other.tenths }
    }
}

impl Sub for Cost {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self { tenths: self.tenths - other.tenths }
    }
}

impl fmt::Display for Cost {
    /// Nanoseconds with one decimal.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.tenths < 0 { "-" } else { "" };
        let tenths = self.tenths.unsigned_abs();
        write!(out, "{sign}{}.{}", tenths / 10, tenths % 10)
    }
}

/// Median and extremes of some runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    pub median: Cost,
    pub lowest: Cost,
    pub highest: Cost,
}

impl Spread {
    /// That of `runs`, of two in the middle their mean; `None` without any.
    pub fn of(mut runs: Vec<Cost>) -> Option<Self> {
        runs.sort_unstable();
        let (&lowest, &highest) = (runs.first()?, runs.last()?);
        let upper = *runs.get(runs.len() / 2)?;
        let lower = *runs.get((runs.len() - 1) / 2)?;
        Some(Self { median: (lower + upper).half(), lowest, highest })
    }

    /// The same above what `control` costs.
    pub fn above(self, control: Cost) -> Self {
        let Self { median, lowest, highest } = self;
        Self { median: median - control, lowest: lowest - control, highest: highest - control }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(tenths: &[i64]) -> Vec<Cost> {
        tenths.iter().copied().map(Cost::from_tenths).collect()
    }

    #[test]
    fn a_cost_is_rounded_to_tenths_and_prints_one_decimal() {
        // 1000 ns over 3 packets are 333.33 each.
        assert_eq!(Cost::of(1000, 3).unwrap().to_string(), "333.3");
        assert_eq!(Cost::of(2, 3).unwrap().to_string(), "0.7");
        assert_eq!(Cost::from_tenths(-12).to_string(), "-1.2");
        assert_eq!(Cost::of(1, 0), None);
        assert_eq!(Cost::of(u64::MAX, 1), None);
    }

    #[test]
    fn halves_round_upwards() {
        assert_eq!(costs(&[124, 125, -5, -6]).into_iter().map(Cost::rounded).collect::<Vec<_>>(), [12, 13, 0, -1]);
    }

    #[test]
    fn a_third_is_33_percent() {
        assert_eq!(Cost::from_tenths(520).percent_of(Cost::from_tenths(1560)), Some(33));
        assert_eq!(Cost::from_tenths(520).percent_of(Cost::default()), None);
    }

    #[test]
    fn the_mean_is_rounded_to_tenths() {
        assert_eq!(Cost::mean(&costs(&[410, 420, 420])), Some(Cost::from_tenths(417)));
        assert_eq!(Cost::mean(&[]), None);
    }

    #[test]
    fn the_median_is_in_the_middle_or_between_two() {
        let odd = Spread::of(costs(&[30, 10, 500])).unwrap();
        assert_eq!((odd.median.tenths(), odd.lowest.tenths(), odd.highest.tenths()), (30, 10, 500));
        assert_eq!(Spread::of(costs(&[30, 10, 500, 40])).unwrap().median.tenths(), 35);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn what_the_control_costs_is_taken_off_all_three() {
        let above = Spread::of(costs(&[300, 320, 400])).unwrap().above(Cost::from_tenths(110));
        assert_eq!((above.median.tenths(), above.lowest.tenths(), above.highest.tenths()), (210, 190, 290));
    }
}
