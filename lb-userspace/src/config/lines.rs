//! Where a byte of a text lies: line and column, as editors count.

use std::ops::Range;

/// A text and where its lines start.
pub struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    /// The lines of `text`.
    pub fn new(text: &'t str) -> Self {
        let after_newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// The line that holds byte `offset`, from 1.
    pub fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    /// The column of byte `offset` in its line, in characters from 1.
    pub fn column(&self, offset: usize) -> usize {
        let start = self.range(self.line(offset)).start;
        self.text.get(start..offset).map_or(1, |before| before.chars().count() + 1)
    }

    /// Where line `number` lies, without its newline; empty past the end.
    pub fn range(&self, number: usize) -> Range<usize> {
        let end = self.text.len();
        let start = number.checked_sub(1).and_then(|index| self.starts.get(index)).copied().unwrap_or(end);
        let end = self.starts.get(number).map_or(end, |next| next - 1);
        start..end
    }

    /// The text of line `number`.
    pub fn text(&self, number: usize) -> &'t str {
        self.text.get(self.range(number)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let lines = Lines::new("a\nüé = 1\n");
        assert_eq!((lines.line(0), lines.column(0)), (1, 1));
        assert_eq!((lines.line(1), lines.column(1)), (1, 2));
        assert_eq!((lines.line(7), lines.column(7)), (2, 4));
        assert_eq!(lines.text(2), "üé = 1");
        assert_eq!((lines.text(3), lines.text(4)), ("", ""));
    }
}
