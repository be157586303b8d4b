//! What is wrong with a configuration and where, as the operator reads it.

use std::fmt;

/// One error: where it is, what was found and what is allowed, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Line of the file, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What was found and what is allowed: lower case, no full stop.
    pub message: String,
    /// The way out.
    pub help: Option<String>,
    excerpt: Option<Excerpt>,
}

/// The line of the file that a diagnostic is about, and how many of its characters are marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Excerpt {
    line: String,
    marked: usize,
}

impl Excerpt {
    /// `marked` characters of `line` from `column` on, at least one, at most what there is.
    pub(super) fn new(line: &str, column: usize, marked: usize) -> Self {
        let line: String = line.trim_end().chars().map(printable).collect();
        let rest = (line.chars().count() + 1).saturating_sub(column);
        Self { line, marked: marked.min(rest).max(1) }
    }
}

/// A tab is one column here, and nothing in the file may steer the terminal.
fn printable(character: char) -> char {
    match character {
        '\t' => ' ',
        control if control.is_control() => char::REPLACEMENT_CHARACTER,
        other => other,
    }
}

impl Diagnostic {
    pub(super) fn new(line: usize, column: usize, message: String, help: Option<String>) -> Self {
        Self { line, column, message, help, excerpt: None }
    }

    pub(super) fn with_excerpt(self, excerpt: Excerpt) -> Self {
        Self { excerpt: Some(excerpt), ..self }
    }
}

/// Every error of a configuration, in the order of the file; never empty.
///
/// Displayed as compilers do it: position and message, the line itself, the way out; a count at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    file: String,
    errors: Vec<Diagnostic>,
}

impl Diagnostics {
    /// The errors of the file called `file`.
    pub(super) fn new(file: &str, mut errors: Vec<Diagnostic>) -> Self {
        errors.sort_by_key(|error| (error.line, error.column));
        Self { file: file.to_owned(), errors }
    }

    /// The errors, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.errors.iter()
    }
}

impl<'d> IntoIterator for &'d Diagnostics {
    type Item = &'d Diagnostic;
    type IntoIter = std::slice::Iter<'d, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl std::error::Error for Diagnostics {}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, errors } = self;
        for error in errors {
            write_error(f, file, error)?;
        }
        let plural = if errors.len() == 1 { "" } else { "s" };
        write!(f, "{file}: {} error{plural}", errors.len())
    }
}

fn write_error(f: &mut fmt::Formatter<'_>, file: &str, error: &Diagnostic) -> fmt::Result {
    let Diagnostic { line, column, message, help, excerpt } = error;
    writeln!(f, "{file}:{line}:{column}: error: {message}")?;
    let gutter = " ".repeat(line.to_string().len());
    if let Some(Excerpt { line: text, marked }) = excerpt {
        let (indent, carets) = (" ".repeat(column.saturating_sub(1)), "^".repeat(*marked));
        writeln!(f, "{gutter} |\n{line} | {text}\n{gutter} | {indent}{carets}")?;
    }
    match help {
        Some(help) => write_help(f, &gutter, help),
        None => Ok(()),
    }
}

/// The lines below the first are an example: they stand at the left, to be copied.
fn write_help(f: &mut fmt::Formatter<'_>, gutter: &str, help: &str) -> fmt::Result {
    let mut lines = help.split('\n');
    writeln!(f, "{gutter} = help: {}", lines.next().unwrap_or_default())?;
    lines.try_for_each(|line| writeln!(f, "{line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_its_line_and_the_way_out() {
        let error = Diagnostic::new(
            14,
            13,
            "virtual_server.scheduler is \"rrr\", must be \"rr\"".into(),
            Some("did you mean \"rr\"?".into()),
        )
        .with_excerpt(Excerpt::new("scheduler = \"rrr\"", 13, 5));
        let expected = r#"demo.toml:14:13: error: virtual_server.scheduler is "rrr", must be "rr"
   |
14 | scheduler = "rrr"
   |             ^^^^^
   = help: did you mean "rr"?
demo.toml: 1 error"#;
        assert_eq!(Diagnostics::new("demo.toml", vec![error]).to_string(), expected);
    }

    #[test]
    fn errors_come_in_the_order_of_the_file() {
        let at = |line, column| Diagnostic::new(line, column, String::new(), None);
        let errors = Diagnostics::new("x", vec![at(2, 1), at(1, 9), at(1, 3)]);
        let order: Vec<_> = errors.iter().map(|error| (error.line, error.column)).collect();
        assert_eq!(order, [(1, 3), (1, 9), (2, 1)]);
    }

    #[test]
    fn the_file_cannot_steer_the_terminal() {
        assert_eq!(Excerpt::new("\tname\u{1b}[2J\r", 2, 99), Excerpt { line: " name\u{fffd}[2J".into(), marked: 8 });
    }
}
