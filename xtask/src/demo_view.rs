//! What the demo shows: which real server answered how often, live and as a table at the end.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// How often the picture changes: redrawn on a terminal, one more line elsewhere.
const REDRAW: Duration = Duration::from_millis(200);
const NEXT_LINE: Duration = Duration::from_secs(2);
/// The longest that one line may be.
const LINE: usize = 100;
/// The width of the longest bar.
const BAR: u64 = 40;

/// A number and what is counted, which takes an `s` unless it is one.
pub(crate) fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What was counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    by_real_server: BTreeMap<String, u64>,
    errors: u64,
    last_error: String,
}

impl Tally {
    /// Real servers are shown from the start, those without an answer with 0.
    pub(crate) fn new(real_servers: impl IntoIterator<Item = String>) -> Self {
        let by_real_server = real_servers.into_iter().map(|name| (name, 0)).collect();
        Self { by_real_server, ..Self::default() }
    }

    /// Counts one request: who answered it, or why nobody did.
    pub(crate) fn count(&mut self, outcome: Result<String, String>) {
        match outcome {
            Ok(real_server) => *self.by_real_server.entry(real_server).or_default() += 1,
            Err(error) => {
                self.errors += 1;
                self.last_error = error;
            }
        }
    }

    /// Whether there were requests and all were answered.
    pub(crate) fn is_good(&self) -> bool {
        self.errors == 0 && self.answered() > 0
    }

    pub(crate) fn errors(&self) -> u64 {
        self.errors
    }

    pub(crate) fn requests(&self) -> u64 {
        self.answered() + self.errors
    }

    fn answered(&self) -> u64 {
        self.by_real_server.values().sum()
    }

    /// The real servers in the order of their numbers: `real2` before `real10`.
    fn rows(&self) -> Vec<(&str, u64)> {
        let mut rows: Vec<_> = self.by_real_server.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        rows.sort_by_key(|(name, _)| (name.len(), *name));
        rows
    }

    /// One line for a log; with many real servers only the range of their counts.
    fn line(&self) -> String {
        let counts: Vec<String> = self.rows().iter().map(|(name, count)| format!("{name} {count}")).collect();
        let requests = counted(self.requests(), "request");
        let line = format!("{requests}: {}, errors {}", counts.join(", "), self.errors);
        if line.len() <= LINE {
            return line;
        }
        let least = self.by_real_server.values().min().unwrap_or(&0);
        let most = self.by_real_server.values().max().unwrap_or(&0);
        format!("{requests}: {least} to {most} for each of {} real servers, errors {}", counts.len(), self.errors)
    }

    /// Several lines with bars, for a terminal.
    fn picture(&self) -> Vec<String> {
        let most = self.by_real_server.values().copied().max().unwrap_or(0).max(1);
        let row = |(name, count): (&str, u64)| {
            let bar = usize::try_from(count * BAR / most).unwrap_or(0);
            format!("  {name:<8} {count:>7}  {}", "#".repeat(bar))
        };
        let mut lines: Vec<String> = self.rows().into_iter().map(row).collect();
        let why = if self.errors == 0 { String::new() } else { format!("  last: {}", self.last_error) };
        lines.push(format!("  {:<8} {:>7}{why}", "errors", self.errors));
        lines
    }

    /// The table at the end, with shares in per cent of all answers.
    pub(crate) fn summary(&self) -> String {
        let answered = self.answered().max(1);
        let mut lines = vec![format!("{:<12} {:>9} {:>7}", "real server", "requests", "share")];
        for (name, count) in self.rows() {
            let tenths = (count * 1000 + answered / 2) / answered;
            lines.push(format!("{name:<12} {count:>9} {:>5}.{}%", tenths / 10, tenths % 10));
        }
        lines.push(format!("{:<12} {:>9}", "errors", self.errors));
        lines.push(format!("{:<12} {:>9}", "all", self.requests()));
        if self.errors > 0 {
            lines.push(format!("last error: {}", self.last_error));
        }
        lines.join("\n")
    }
}

/// Shows a tally on standard output as time goes by.
#[derive(Debug)]
pub(crate) struct View {
    terminal: bool,
    drawn: usize,
    next: Instant,
}

impl View {
    pub(crate) fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), drawn: 0, next: Instant::now() }
    }

    /// Shows the tally if it is time to.
    pub(crate) fn show(&mut self, tally: &Tally) -> io::Result<()> {
        let now = Instant::now();
        if now < self.next {
            return Ok(());
        }
        self.next = now + if self.terminal { REDRAW } else { NEXT_LINE };
        let mut out = io::stdout().lock();
        if !self.terminal {
            return writeln!(out, "{}", tally.line());
        }
        if self.drawn > 0 {
            // Back to the first line of the picture, and clear from there on.
            write!(out, "\x1b[{}A\x1b[J", self.drawn)?;
        }
        let lines = tally.picture();
        self.drawn = lines.len();
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_shares_and_errors() {
        let mut tally = Tally::new(["real10".to_owned(), "real2".to_owned()]);
        assert!(!tally.is_good(), "no request is no success");
        for _ in 0..2 {
            tally.count(Ok("real2".to_owned()));
        }
        tally.count(Ok("real10".to_owned()));
        assert!(tally.is_good());
        tally.count(Err("refused".to_owned()));
        assert!(!tally.is_good());
        let expected = "real server   requests   share\nreal2                2    66.7%\nreal10               1    33.3%\n\
                        errors               1\nall                  4\nlast error: refused";
        assert_eq!(tally.summary(), expected);
        assert_eq!(tally.line(), "4 requests: real2 2, real10 1, errors 1");
    }

    #[test]
    fn one_is_singular_and_lines_stay_short() {
        let mut tally = Tally::new((1..=16).map(|number| format!("real{number}")));
        tally.count(Ok("real1".to_owned()));
        assert_eq!(tally.line(), "1 request: 0 to 1 for each of 16 real servers, errors 0");
    }
}
