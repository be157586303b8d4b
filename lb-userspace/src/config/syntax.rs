//! Reads TOML that has syntax errors: reports each of them and still yields a table for the other checks.
//!
//! `toml` recovers from an error, but often swallows what follows it. So the first error is noted, its line is blanked
//! (a broken header is mended instead: the keys below it belong to it), and the text is read again until nothing
//! new turns up.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Excerpt};
use super::lines::Lines;

/// More than this is no configuration with slips in it, but a file of another kind.
const ERRORS_MAX: usize = 100;

/// A text without syntax errors.
pub struct Repaired {
    /// The text: every line where it was, but some of them blank.
    pub text: String,
    /// The syntax errors of the original.
    pub errors: Vec<Diagnostic>,
    /// What stood on the lines that are blank now.
    pub lost: Vec<String>,
    /// Whether the text can be checked further; otherwise only the syntax errors are worth telling.
    pub readable: bool,
}

/// Repairs `written`.
pub fn repair(written: &str) -> Repaired {
    let mut repair =
        Repair { written: Lines::new(written), lines: split(written), errors: vec![], lost: vec![], kept: vec![] };
    let readable = loop {
        let text = repair.lines.join("\n");
        match repair.step(&text) {
            Step::Clean => break true,
            Step::Repaired if repair.errors.len() < ERRORS_MAX => {}
            Step::Repaired | Step::Stuck => break false,
        }
    };
    Repaired { text: repair.lines.join("\n"), errors: repair.errors, lost: repair.lost, readable }
}

fn split(text: &str) -> Vec<String> {
    text.split('\n').map(str::to_owned).collect()
}

struct Repair<'w> {
    written: Lines<'w>,
    lines: Vec<String>,
    errors: Vec<Diagnostic>,
    lost: Vec<String>,
    /// Lines that stay as they are in spite of an error: headers of tables that exist already.
    kept: Vec<usize>,
}

enum Step {
    Clean,
    Repaired,
    Stuck,
}

impl Repair<'_> {
    fn step(&mut self, text: &str) -> Step {
        let lines = Lines::new(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        let fresh = errors
            .iter()
            .map(|error| (error.span().unwrap_or_default(), error.message()))
            .filter(|(span, _)| !self.kept.contains(&lines.line(span.start)))
            .min_by_key(|(span, _)| span.start);
        let Some((span, message)) = fresh else { return Step::Clean };
        if let Some(value) = value_across_lines(table.get_ref(), &span, &lines) {
            return self.lose_value(&span, message, &value, &lines);
        }
        let number = lines.line(span.start);
        let line = lines.text(number);
        self.report(&span, message, &lines);
        if line.trim_start().starts_with('[') { self.mend_header(number, line) } else { self.lose(number..=number) }
    }

    /// A value of several lines: either it is never closed, then the lines below are none of it, or it is broken inside.
    fn lose_value(&mut self, error: &Range<usize>, message: &str, value: &Range<usize>, lines: &Lines<'_>) -> Step {
        let (first, last) =
            (lines.line(value.start), lines.line(value.end.saturating_sub(1)).max(lines.line(value.start)));
        let unclosed = errors_without(&self.lines, first..=first) <= errors_without(&self.lines, first..=last);
        if !unclosed {
            self.report(error, message, lines);
            return self.lose(first..=last);
        }
        self.report(&(value.start..value.start + 1), "the value that starts here does not end", lines);
        self.lose(first..=first)
    }

    fn mend_header(&mut self, number: usize, line: &str) -> Step {
        let mended = mended_header(line);
        match self.lines.get_mut(number.saturating_sub(1)) {
            Some(old) if *old != mended => *old = mended,
            _ => self.kept.push(number),
        }
        Step::Repaired
    }

    fn lose(&mut self, numbers: std::ops::RangeInclusive<usize>) -> Step {
        let mut step = Step::Stuck;
        for number in numbers {
            let Some(line) = self.lines.get_mut(number.saturating_sub(1)) else { continue };
            if !line.trim().is_empty() {
                self.lost.push(std::mem::take(line));
                step = Step::Repaired;
            }
        }
        step
    }

    fn report(&mut self, span: &Range<usize>, message: &str, lines: &Lines<'_>) {
        let (number, column) = (lines.line(span.start), lines.column(span.start));
        if self.errors.iter().any(|error| error.line == number) {
            return;
        }
        let marked = span.len().max(1);
        let line = self.written.text(number);
        let diagnostic = Diagnostic::new(number, column, message.to_owned(), self.way_out(number));
        self.errors.push(diagnostic.with_excerpt(Excerpt::new(line, column, marked)));
    }

    fn way_out(&self, number: usize) -> Option<String> {
        let line = self.written.text(number).trim();
        if line.starts_with('[') {
            return header_way_out(line, self.first_like(number, |earlier| earlier == line));
        }
        if line.ends_with('{') || line == "}" {
            return Some(
                "this is TOML, not keepalived.conf: a table starts with [[virtual_server]] on a line of its own".into(),
            );
        }
        let Some((key, value)) = line.split_once('=') else {
            return Some("write it as: key = value".into());
        };
        let (key, value) = (key.trim(), value.trim());
        let same_key = |earlier: &str| earlier.split_once('=').is_some_and(|(other, _)| other.trim() == key);
        if let Some(first) = self.first_like(number, same_key) {
            return Some(format!("it is on line {first} already; keep one of the two"));
        }
        value_way_out(key, value)
    }

    /// The nearest line above `number` that `matches`; for a key, only in the same table.
    fn first_like(&self, number: usize, matches: impl Fn(&str) -> bool) -> Option<usize> {
        let header = self.written.text(number).trim().starts_with('[');
        let above = (1..number).rev().map(|above| (above, self.written.text(above).trim()));
        let mut same_table = above.take_while(|(_, line)| header || !line.starts_with('['));
        same_table.find(|(_, line)| matches(line)).map(|(above, _)| above)
    }
}

fn header_way_out(line: &str, first: Option<usize>) -> Option<String> {
    let mended = mended_header(line);
    match first {
        _ if mended != line => Some(format!("did you mean {mended}?")),
        Some(first) => Some(format!("it is on line {first} already; put the keys of both under one")),
        None => None,
    }
}

fn value_way_out(key: &str, value: &str) -> Option<String> {
    if value.is_empty() {
        return Some(format!("write the value of {key} after the \"=\", or remove the line"));
    }
    let bare = value.split('#').next().unwrap_or_default().trim();
    let quoted = value.starts_with(['"', '\'', '[', '{']);
    (!quoted && !bare.contains(['"', '\'', '='])).then(|| format!("did you mean {key} = \"{bare}\"?"))
}

/// `[[virtual_server] # web` becomes `[[virtual_server]]`.
fn mended_header(line: &str) -> String {
    let word = |character: &char| character.is_alphanumeric() || matches!(character, '_' | '-' | '.' | '"' | '\'');
    let name = line.trim_start().trim_start_matches(['[', ' ']);
    let name: String = name.chars().take_while(word).collect();
    let array = line.trim_start().starts_with("[[") || name.starts_with("virtual_server");
    if array { format!("[[{name}]]") } else { format!("[{name}]") }
}

fn errors_without(lines: &[String], numbers: std::ops::RangeInclusive<usize>) -> usize {
    let kept = lines.iter().zip(1..).map(|(line, number)| if numbers.contains(&number) { "" } else { line.as_str() });
    DeTable::parse_recoverable(&kept.collect::<Vec<_>>().join("\n")).1.len()
}

/// The outermost value that holds `error` and starts on a line above it.
fn value_across_lines(table: &DeTable<'_>, error: &Range<usize>, lines: &Lines<'_>) -> Option<Range<usize>> {
    for (_, value) in table.iter() {
        let span = value.span();
        let holds = span.start < error.start && error.start <= span.end;
        let found = match value.get_ref() {
            _ if is_header(value.get_ref(), &span, lines) => within_tables(value.get_ref(), error, lines),
            _ if holds && lines.line(span.start) < lines.line(error.start) => Some(span),
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Whether the value was made by headers: its span is then that of a header, not of what it holds.
fn is_header(value: &DeValue<'_>, span: &Range<usize>, lines: &Lines<'_>) -> bool {
    let line = lines.line(span.start);
    let starts_line = lines.text(line).trim_start().starts_with('[');
    starts_line && matches!(value, DeValue::Table(_) | DeValue::Array(_))
}

fn within_tables(value: &DeValue<'_>, error: &Range<usize>, lines: &Lines<'_>) -> Option<Range<usize>> {
    match value {
        DeValue::Table(table) => value_across_lines(table, error, lines),
        DeValue::Array(array) => array.iter().find_map(|element| within_tables(element.get_ref(), error, lines)),
        _ => None,
    }
}
