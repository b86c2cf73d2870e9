//! Plain tables: aligned columns, two spaces between them, nothing else.
//!
//! Cells hold what agents, nodes and the control plane said: whatever it is, it stays in its cell.

use crate::output::printable;

/// Rows under a heading, or names beside values.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    empty: Option<&'static str>,
}

impl Table {
    /// A table with a heading; prints `empty` in place of itself when it has no rows.
    pub(crate) fn new(heading: &[&str], empty: &'static str) -> Self {
        Self { rows: vec![heading.iter().map(ToString::to_string).collect()], empty: Some(empty) }
    }

    /// Names beside values.
    pub(crate) fn pairs() -> Self {
        Self::default()
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) -> &mut Self {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell).into_owned()).collect());
        self
    }

    /// Adds a name and its value.
    pub(crate) fn pair(&mut self, name: &str, value: impl ToString) -> &mut Self {
        self.row([format!("{name}:"), value.to_string()])
    }

    /// The whole text, each row ended by a newline.
    pub(crate) fn render(&self) -> String {
        if let (Some(empty), 1) = (self.empty, self.rows.len()) {
            return format!("{empty}\n");
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_where_they_end() {
        let mut table = Table::new(&["NAME", "STATE"], "nothing");
        table.row(["web".to_owned(), "protected".to_owned()]);
        table.row(["größer".to_owned(), String::new()]);
        assert_eq!(table.render(), "NAME    STATE\nweb     protected\ngrößer\n");
    }

    #[test]
    fn a_cell_cannot_leave_its_place() {
        let mut table = Table::new(&["NAME", "STATE"], "nothing");
        table.row(["ok\u{1b}[2K\u{1b}[1A".to_owned(), "a\nb".to_owned()]);
        assert_eq!(table.render(), "NAME                  STATE\nok\\u{1b}[2K\\u{1b}[1A  a\\nb\n");
        let mut table = Table::pairs();
        table.pair("detail\r", "x\u{9b}2J");
        assert_eq!(table.render(), "detail\\r:  x\\u{9b}2J\n");
    }

    #[test]
    fn an_empty_table_says_so() {
        assert_eq!(Table::new(&["NAME"], "no machines").render(), "no machines\n");
    }

    #[test]
    fn pairs_stand_beside_each_other() {
        let mut table = Table::pairs();
        table.pair("state", "protected").pair("rpo", "1.0 s");
        assert_eq!(table.render(), "state:  protected\nrpo:    1.0 s\n");
    }
}
