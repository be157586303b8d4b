//! Reads a span of time as people write it, `"300s"` or `"5m"`, and knows what was meant by one without its unit.

use std::fmt;
use std::time::Duration;

use humantime::{format_duration, parse_duration};

/// How a duration is written.
pub const UNITS: &str = r#"units are ms, s, m and h, as in "300s" or "5m""#;

/// More digits than any span here has. Without a limit humantime 2.4 panics on "18446744073709551615s 1000ms".
const DIGITS_MAX: usize = 10;

/// The spans that a key allows, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    least: Duration,
    most: Duration,
}

impl Bounds {
    /// From `least` to `most` seconds.
    pub const fn seconds(least: u64, most: u64) -> Self {
        Self { least: Duration::from_secs(least), most: Duration::from_secs(most) }
    }

    /// Whether `span` is allowed.
    pub fn contains(&self, span: Duration) -> bool {
        (self.least..=self.most).contains(&span)
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, most } = self;
        write!(f, "{}..={}", format_duration(*least), format_duration(*most))
    }
}

/// The span that `text` says, `None` when it is no number with a unit; humantime knows 0 without one.
pub fn parse(text: &str) -> Option<Duration> {
    let digits = text.chars().filter(char::is_ascii_digit).count();
    if digits > DIGITS_MAX || !text.contains(char::is_alphabetic) {
        return None;
    }
    parse_duration(text).ok()
}

/// The duration within `bounds` that was probably meant by `text`: a number alone counts seconds, as in keepalived.
pub fn meant(text: &str, bounds: &Bounds) -> Option<String> {
    let text = text.trim();
    let number = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let candidates = [text.to_owned(), if number { format!("{text}s") } else { text.to_lowercase() }];
    candidates.into_iter().find(|candidate| parse(candidate).is_some_and(|span| bounds.contains(span)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP_TO_FOUR_HOURS: Bounds = Bounds::seconds(1, 4 * 3600);

    #[test]
    fn a_number_with_a_unit_is_a_span() {
        assert_eq!(parse("10ms"), Some(Duration::from_millis(10)));
        assert_eq!(parse("300s"), Some(Duration::from_secs(300)));
        assert_eq!(parse("5m"), Some(Duration::from_secs(300)));
        assert_eq!(parse("1h 30m"), Some(Duration::from_secs(5400)));
        for wrong in ["", "300", "0", "s", "-1s", "5 parsecs"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_span_beyond_all_bounds_is_none_and_no_panic() {
        assert_eq!(parse("18446744073709551615s 1000ms"), None);
        assert_eq!(parse("9999999999y").map(|span| span.as_secs()), Some(9_999_999_999 * 31_557_600));
    }

    #[test]
    fn both_ends_are_allowed_and_print_with_their_units() {
        assert!(UP_TO_FOUR_HOURS.contains(Duration::from_secs(1)));
        assert!(UP_TO_FOUR_HOURS.contains(Duration::from_secs(14_400)));
        assert!(!UP_TO_FOUR_HOURS.contains(Duration::from_millis(999)));
        assert!(!UP_TO_FOUR_HOURS.contains(Duration::from_secs(14_401)));
        assert_eq!(UP_TO_FOUR_HOURS.to_string(), "1s..=4h");
        assert_eq!(Bounds::seconds(0, 3600).to_string(), "0s..=1h");
    }

    #[test]
    fn what_was_meant_is_within_the_bounds_or_unknown() {
        let meant = |text| meant(text, &UP_TO_FOUR_HOURS);
        assert_eq!(meant("300").as_deref(), Some("300s"));
        assert_eq!(meant("5M").as_deref(), Some("5m"));
        assert_eq!(meant("300 SEC").as_deref(), Some("300 sec"));
        assert_eq!(meant("2m").as_deref(), Some("2m"));
        for unknown in ["", "0", "86400", "1d", "forever"] {
            assert_eq!(meant(unknown), None, "{unknown}");
        }
    }
}
