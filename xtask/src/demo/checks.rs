//! What was promised and what was seen, as a table.

/// One check.
#[derive(Debug)]
pub(crate) struct Finding {
    /// What is looked at.
    pub(crate) check: &'static str,
    /// What was promised.
    pub(crate) expected: String,
    /// What is.
    pub(crate) seen: String,
    /// Whether the promise held.
    pub(crate) holds: bool,
}

/// Every check of a run.
#[derive(Debug, Default)]
pub(crate) struct Checks(Vec<Finding>);

impl Checks {
    /// Adds one.
    pub(crate) fn add(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    /// Whether all hold.
    pub(crate) fn hold(&self) -> bool {
        self.0.iter().all(|finding| finding.holds)
    }

    /// The table, one line each.
    pub(crate) fn table(&self) -> String {
        let head = ["check", "expected", "seen", "ok"].map(str::to_owned);
        let rows = self.0.iter().map(|finding| {
            let ok = if finding.holds { "yes" } else { "NO" };
            [
                finding.check.to_owned(),
                finding.expected.clone(),
                finding.seen.clone(),
                ok.to_owned(),
            ]
        });
        let rows: Vec<[String; 4]> = std::iter::once(head).chain(rows).collect();
        let width = |column: usize| {
            rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
        };
        let widths = [width(0), width(1), width(2), width(3)];
        let line = |row: &[String; 4]| {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            format!("| {} |", cells.join(" | "))
        };
        let rule = widths.map(|width| "-".repeat(width));
        let mut lines: Vec<String> = rows.iter().map(line).collect();
        lines.insert(1, line(&rule));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_fails_all_and_the_table_says_which() {
        let finding =
            |check, holds| Finding { check, expected: "0".into(), seen: "1".into(), holds };
        let mut checks = Checks::default();
        checks.add(finding("first", true));
        assert!(checks.hold());
        checks.add(finding("second", false));
        assert!(!checks.hold());
        let table = checks.table();
        assert_eq!(table.lines().count(), 4);
        assert!(table.lines().last().is_some_and(|line| line.ends_with("| NO  |")), "{table}");
    }
}
