//! Collects errors while the table is read, and knows where in the file each one is.

use std::ops::Range;

use super::diagnostic::{Diagnostic, Diagnostics, Excerpt};
use super::lines::Lines;
use super::syntax::Repaired;

/// The errors so far.
pub struct Report<'t> {
    text: &'t str,
    lines: Lines<'t>,
    written: Lines<'t>,
    lost: Vec<String>,
    errors: Vec<Diagnostic>,
}

impl<'t> Report<'t> {
    /// Starts with the syntax errors of `written`; spans are those of `repaired`.
    pub fn new(written: &'t str, repaired: &'t Repaired) -> Self {
        let Repaired { text, errors, lost, readable: _ } = repaired;
        Self { text, lines: Lines::new(text), written: Lines::new(written), lost: lost.clone(), errors: errors.clone() }
    }

    /// Adds an error about `span`.
    pub fn error(&mut self, span: &Range<usize>, message: String, help: Option<String>) {
        let (line, column) = (self.line(span), self.lines.column(span.start));
        let marked = self.text.get(span.clone()).map_or(1, |text| text.chars().take_while(|c| *c != '\n').count());
        let excerpt = Excerpt::new(self.written.text(line), column, marked);
        self.errors.push(Diagnostic::new(line, column, message, help).with_excerpt(excerpt));
    }

    /// Adds an error about what is nowhere in the file.
    pub fn error_in_file(&mut self, message: String, help: Option<String>) {
        self.errors.push(Diagnostic::new(1, 1, message, help));
    }

    /// The line of the file on which `span` starts, from 1.
    pub fn line(&self, span: &Range<usize>) -> usize {
        self.lines.line(span.start)
    }

    /// What is written at `span`: its first line.
    pub fn quote(&self, span: &Range<usize>) -> String {
        let text = self.text.get(span.clone()).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    }

    /// Whether `word` may have been on a line that was blanked for its syntax, so that it cannot be called missing.
    pub fn is_lost(&self, word: &str) -> bool {
        self.lost.iter().any(|line| line.contains(word))
    }

    /// From here on `word` cannot be called missing: it is in the wrong place.
    pub fn lose(&mut self, word: &str) {
        self.lost.push(word.to_owned());
    }

    /// Whether nothing is wrong so far.
    pub fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// Everything that is wrong with the file called `file`.
    pub fn finish(self, file: &str) -> Diagnostics {
        Diagnostics::new(file, self.errors)
    }
}
