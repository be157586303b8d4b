//! What `evenkeel status --drops` prints: each reason in words, and what to do. Pure.

use std::collections::BTreeMap;

use lb_common::drop_reason::{DropReason, Explanation};
use serde::Serialize;

/// A reason, and how many packets were dropped for it.
#[derive(Serialize)]
pub struct Line<'s> {
    /// Its name, as in `evenkeel status`.
    reason: &'s str,
    /// Its key in map `drops`; none where a daemon of another version counts what this one does not know.
    number: Option<u32>,
    /// Packets since the daemon started.
    count: u64,
    /// What is so of the packets.
    meaning: &'static str,
    /// What to look at or to change.
    remedy: &'static str,
}

const UNKNOWN: Explanation = Explanation {
    meaning: "not known to this version of evenkeel",
    remedy: "ask with the version that the daemon has",
};

/// A line for each of `drops` that was counted, with `all` for each, in the order of their numbers.
pub fn lines(drops: &BTreeMap<String, u64>, all: bool) -> Vec<Line<'_>> {
    let counted = drops.iter().filter(|(_, count)| all || **count != 0);
    let mut lines: Vec<Line<'_>> = counted.map(|(name, count)| line(name, *count)).collect();
    lines.sort_by_key(|line| line.number.unwrap_or(u32::MAX));
    lines
}

fn line(name: &str, count: u64) -> Line<'_> {
    let reason = DropReason::ALL.into_iter().find(|reason| reason.name() == name);
    let Explanation { meaning, remedy } = reason.map_or(UNKNOWN, DropReason::explanation);
    Line { reason: name, number: reason.map(|reason| reason as u32), count, meaning, remedy }
}

/// As text for a terminal.
pub fn text(lines: &[Line<'_>]) -> String {
    if lines.is_empty() {
        return "dropped packets: none\n".to_owned();
    }
    let paragraph = |line: &Line<'_>| {
        let Line { reason, number: _, count, meaning, remedy } = line;
        let plural = if *count == 1 { "" } else { "s" };
        format!("{reason}: {count} packet{plural}\n    {meaning}\n    to do: {remedy}\n")
    };
    lines.iter().map(paragraph).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drops(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn what_was_counted_is_explained_in_the_order_of_the_map() {
        let drops = drops(&[("no_route", 1), ("malformed", 0), ("no_real_server", 12), ("of_tomorrow", 3)]);
        insta::assert_snapshot!(text(&lines(&drops, false)));
        let names: Vec<&str> = lines(&drops, true).iter().map(|line| line.reason).collect();
        assert_eq!(names, ["malformed", "no_real_server", "no_route", "of_tomorrow"]);
    }

    #[test]
    fn nothing_dropped_is_said_in_words() {
        let drops = drops(&[("malformed", 0)]);
        assert_eq!(text(&lines(&drops, false)), "dropped packets: none\n");
        assert_eq!(serde_json::to_string(&lines(&drops, false)).unwrap(), "[]");
    }

    #[test]
    fn every_reason_has_a_text_and_a_row_in_the_readme() {
        let readme = include_str!("../../../README.md");
        for reason in DropReason::ALL {
            let Explanation { meaning, remedy } = reason.explanation();
            for text in [meaning, remedy] {
                let is_phrase = text.len() > 10 && !text.ends_with('.') && text.starts_with(char::is_lowercase);
                assert!(is_phrase, "{reason:?}: {text:?}");
            }
            let row = format!("\n| {} | `{}` | ", reason as u32, reason.name());
            assert!(readme.contains(&row), "README.md has no row that begins with {row:?}");
        }
        let first = format!("\n| {} | `", DropReason::ALL.len());
        assert!(!readme.contains(&first), "README.md has a row for a reason that there is not: {first:?}");
    }
}
