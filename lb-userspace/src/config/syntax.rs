//! Reads TOML that has syntax errors: reports each of them and still yields a table for the other checks.
//!
//! `toml` recovers from an error, but often swallows what follows it. So the first error is noted, its line is blanked
//! (a broken header is mended instead: the keys below it belong to it), and the text is read again until nothing
//! new turns up.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Excerpt};
use super::keepalived;
use super::lines::Lines;
use super::schema::{self, Kind};

/// More than this is no configuration with slips in it, but a file of another kind.
const ERRORS_MAX: usize = 20;

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
    if let Some(repaired) = repair.lose_keepalived(written) {
        return repaired;
    }
    let readable = loop {
        let text = repair.lines.join("\n");
        match repair.step(&text) {
            Step::Clean => break true,
            Step::Repaired if repair.errors.len() < ERRORS_MAX => {}
            Step::Repaired => {
                repair.give_up();
                break false;
            }
            Step::Stuck => break false,
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
    /// Blanks everything from the first block of keepalived.conf on; `Some` when nothing above it is TOML.
    fn lose_keepalived(&mut self, text: &str) -> Option<Repaired> {
        let last = self.lines.len();
        let number = keepalived::first_block(&self.written, last)?;
        if errors_without(&self.lines, 0..=0) == 0 {
            return None;
        }
        let (range, line) = (self.written.range(number), self.written.text(number));
        let indent = line.len() - line.trim_start().len();
        let message = "this is keepalived's syntax, must be TOML; the rest of the file is not checked";
        let span = range.start + indent..range.end;
        self.report(&span, message, Some(keepalived::block_way_out(line, text)), &Lines::new(text));
        self.lose(number..=last);
        let is_toml = self.lines.iter().any(|line| line.trim_start().starts_with('['));
        if is_toml {
            return None;
        }
        Some(Repaired { text: String::new(), errors: std::mem::take(&mut self.errors), lost: vec![], readable: false })
    }

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
        match own_words(line) {
            Some((found, message, help)) => {
                let start = lines.range(number).start;
                self.report(&(start + found.start..start + found.end), &message, Some(help), &lines);
            }
            None => self.report(&span, message, self.way_out(number), &lines),
        }
        if line.trim_start().starts_with('[') { self.mend_header(number, line) } else { self.lose(number..=number) }
    }

    /// A value of several lines: either it is never closed, then the lines below are none of it, or it is broken inside.
    fn lose_value(&mut self, error: &Range<usize>, message: &str, value: &Range<usize>, lines: &Lines<'_>) -> Step {
        let first = lines.line(value.start);
        let last = lines.line(value.end.saturating_sub(1)).max(first);
        if errors_without(&self.lines, first..=last) < errors_without(&self.lines, first..=first) {
            self.report(error, message, Some(format!("it is in the value that starts on line {first}")), lines);
            return self.lose(first..=last);
        }
        let help = closing(self.written.text(first)).map(|mark| format!("close it with {mark}"));
        self.report(&(value.start..value.start + 1), "the value that starts here does not end", help, lines);
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
                let first = line.split([' ', '\t', '=']).find(|word| !word.is_empty());
                self.lost.extend(first.and_then(schema::translated).map(str::to_owned));
                self.lost.push(std::mem::take(line));
                step = Step::Repaired;
            }
        }
        step
    }

    fn report(&mut self, span: &Range<usize>, message: &str, help: Option<String>, lines: &Lines<'_>) {
        let (number, column) = (lines.line(span.start), lines.column(span.start));
        if self.errors.iter().any(|error| error.line == number) {
            return;
        }
        let line = self.written.text(number);
        let diagnostic = Diagnostic::new(number, column, message.to_owned(), help);
        self.errors.push(diagnostic.with_excerpt(Excerpt::new(line, column, span.len())));
    }

    fn give_up(&mut self) {
        let last = self.errors.iter().map(|error| (error.line, error.column)).max();
        let (line, column) = last.unwrap_or((1, 1));
        let message = format!("{ERRORS_MAX} syntax errors so far, the rest of the file is not checked");
        self.errors.push(Diagnostic::new(line, column, message, Some("is this file meant to be TOML?".to_owned())));
    }

    fn way_out(&self, number: usize) -> Option<String> {
        let line = self.written.text(number).trim();
        if line.starts_with('[') {
            return header_way_out(line, self.first_like(number, |earlier| earlier == line));
        }
        if line.ends_with('{') || line == "}" {
            return Some(
                "this is TOML, not keepalived.conf: write [[virtual_server]], and its keys on the lines below".into(),
            );
        }
        if line.contains(|c: char| c.is_control() && c != '\t') {
            return Some("remove the control character, or write it as \\u and four hexadecimal digits".into());
        }
        let Some((key, value)) = line.split_once('=') else {
            return Some(equals_sign_way_out(line));
        };
        let key = key.trim();
        let same_key = |earlier: &str| earlier.split_once('=').is_some_and(|(other, _)| other.trim() == key);
        match self.first_like(number, same_key) {
            Some(first) => Some(format!("it is on line {first} already; keep one of the two")),
            None => closing(value).map(|mark| format!("close it with {mark}")).or_else(|| without_zeros(key, value)),
        }
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

/// The seconds that keepalived takes for its keyword without a number.
const KEEPALIVED_PERSISTENCE: &str = "360";

/// `lb_algo rr` was meant as `lb_algo = "rr"`.
fn equals_sign_way_out(line: &str) -> String {
    let words: Vec<&str> = keepalived::code(line).split_whitespace().collect();
    match words.as_slice() {
        [key, value] if !value.contains('"') => keepalived::way_out(key, value),
        ["interfaces", names @ ..] if keepalived::is_bare_list(&names.join(" ")) => {
            keepalived::way_out("interfaces", &names.join(" "))
        }
        [key @ ("virtual_server" | "real_server" | "sorry_server"), ip, port] => {
            keepalived::way_out(key, &format!("{ip} {port}"))
        }
        [key, ..] if schema::is_later(key) || schema::moved(key).is_some() => keepalived::way_out(key, ""),
        [flag] if schema::kind(flag) == Some(Kind::Boolean) => keepalived::way_out(flag, ""),
        ["persistence_timeout"] => keepalived::way_out("persistence_timeout", KEEPALIVED_PERSISTENCE),
        _ => "write it as: key = value".to_owned(),
    }
}

/// The two slips that `toml` words badly, a text without quotes and a key without a value: place in `line`, message
/// and way out.
fn own_words(line: &str) -> Option<(Range<usize>, String, String)> {
    let (before, after) = line.split_once('=')?;
    let value = after.split('#').next().unwrap_or_default();
    let start = before.len() + 1 + (value.len() - value.trim_start().len());
    let (key, value) = (before.trim(), value.trim());
    if key.is_empty() || key.starts_with('[') || key.contains(char::is_whitespace) {
        return None;
    }
    if value.is_empty() {
        let place = before.len()..before.len() + 1;
        return Some((
            place,
            format!("{key} has no value"),
            "write one after the \"=\", or remove the line".to_owned(),
        ));
    }
    let kind = schema::kind(key);
    let is_bare = is_bare_text(value) || kind == Some(Kind::List) && keepalived::is_bare_list(value);
    let must = match kind {
        Some(Kind::Number) => "must be a number",
        Some(Kind::Boolean) => "must be true or false",
        Some(Kind::List) => "must be in [ ], each name in quotes",
        Some(Kind::Table) => "must be a table",
        Some(Kind::Duration(_)) if !value.starts_with(|c: char| c.is_ascii_digit()) => {
            "must be a number and its unit in quotes"
        }
        Some(Kind::Text | Kind::Duration(_)) | None => "must be in quotes",
    };
    is_bare.then(|| (start..start + value.len(), format!("{key} is {value}, {must}"), keepalived::way_out(key, value)))
}

/// Whether `value` is neither quoted nor of any other type that TOML has.
fn is_bare_text(value: &str) -> bool {
    let is_word = value.chars().all(|c| c.is_ascii_alphanumeric() || "/.:_-".contains(c));
    let like_a_number = value.chars().all(|c| c.is_ascii_digit() || "_-".contains(c)) || value.parse::<f64>().is_ok();
    let prefixed = ["0x", "0o", "0b"].iter().any(|prefix| value.starts_with(prefix));
    is_word && !like_a_number && !prefixed && !matches!(value, "true" | "false")
}

/// `weight = 010` was meant as 10.
fn without_zeros(key: &str, value: &str) -> Option<String> {
    let digits = value.split('#').next().unwrap_or_default().trim().strip_prefix('0')?.trim_start_matches('0');
    digits.parse::<u64>().ok().map(|number| format!("did you mean {key} = {number}?"))
}

/// What ends the string, array or inline table that starts in `line` and does not end there.
fn closing(line: &str) -> Option<&'static str> {
    let value = line.split_once('=').map_or(line, |(_, value)| value).trim();
    let once = |mark: &str| value.matches(mark).count() == 1;
    match value {
        _ if value.starts_with("\"\"\"") && once("\"\"\"") => Some("\"\"\""),
        _ if value.starts_with("'''") && once("'''") => Some("'''"),
        _ if value.starts_with('"') && once("\"") => Some("\""),
        _ if value.starts_with('\'') && once("'") => Some("'"),
        _ if value.starts_with('[') && !value.ends_with(']') => Some("]"),
        _ if value.starts_with('{') && !value.ends_with('}') => Some("}"),
        _ => None,
    }
}

/// `[[virtual_server] # web` becomes `[[virtual_server]]`.
fn mended_header(line: &str) -> String {
    let word = |character: &char| character.is_alphanumeric() || matches!(character, '_' | '-' | '.' | '"' | '\'');
    let name = line.trim_start().trim_start_matches(['[', ' ']);
    let name: String = name.chars().take_while(word).collect();
    match schema::TABLES.iter().find(|table| table.path == name) {
        Some(table) if !name.is_empty() => table.header.to_owned(),
        Some(_) | None if line.trim_start().starts_with("[[") => format!("[[{name}]]"),
        Some(_) | None => format!("[{name}]"),
    }
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
