//! Lists of allowed words, and the one that was probably meant.

/// Longer words are nobody's slip of the finger, and the distance is quadratic.
const LENGTH_MAX: usize = 64;

/// Fewer letters abbreviate too many words.
const SHORT_FORM_MIN: usize = 4;

/// The candidate that `word` is most likely a misspelling of, `None` when none is near.
pub fn closest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    if word.len() > LENGTH_MAX {
        return None;
    }
    let word = word.to_lowercase().replace(['-', ' '], "_");
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= slips_allowed(candidate) || is_short_for(&word, candidate))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `warning` for `warn`, `runtime_dir` for `runtime_directory`.
fn is_short_for(word: &str, candidate: &str) -> bool {
    let (shorter, longer) = if word.len() < candidate.len() { (word, candidate) } else { (candidate, word) };
    shorter.len() >= SHORT_FORM_MIN && longer.starts_with(shorter)
}

/// A third of the letters, and at least one.
fn slips_allowed(candidate: &str) -> usize {
    (candidate.len() / 3).max(1)
}

/// `did you mean "rr"?`
pub fn did_you_mean(word: &str) -> String {
    format!("did you mean \"{word}\"?")
}

/// `"a", "b" or "c"`
pub fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slip_is_forgiven_and_another_word_is_not() {
        assert_eq!(closest("tpc", ["tcp", "udp"]), Some("tcp"));
        assert_eq!(closest("TCP", ["tcp", "udp"]), Some("tcp"));
        assert_eq!(closest("connections-max", ["connections_max", "mode"]), Some("connections_max"));
        assert_eq!(closest("runtime_dir", ["instance", "runtime_directory"]), Some("runtime_directory"));
        assert_eq!(closest("warning", ["warn", "info"]), Some("warn"));
        assert_eq!(closest("sctp2", ["tcp", "udp"]), None);
        assert_eq!(closest(&"t".repeat(100_000), ["tcp"]), None);
    }

    #[test]
    fn lists_read_as_prose() {
        assert_eq!(one_of(&["rr"]), r#""rr""#);
        assert_eq!(one_of(&["nat", "dr", "tun"]), r#""nat", "dr" or "tun""#);
    }
}
