//! Durations as they are typed: `500ms`, `20s`, `1m`, `2h`.

use std::time::Duration;

/// A positive whole number and a unit.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is not a duration; write a number and a unit, as in 500ms, 20s, 1m or 2h");
    let unit_at = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(error)?;
    let (number, unit) = text.split_at(unit_at);
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(error()),
    };
    let number: u64 = number.parse().map_err(|_| error())?;
    if number == 0 {
        return Err("a duration must be more than 0".to_owned());
    }
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(parse("1m"), Ok(Duration::from_secs(60)));
        assert_eq!(parse("2h"), Ok(Duration::from_secs(7200)));
        for wrong in ["", "20", "s", "0s", "-1s", "1.5s", "1d", "99999999999999999999s"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse("0ms"), Err("a duration must be more than 0".to_owned()));
    }
}
