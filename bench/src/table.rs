//! A table as Markdown.

/// Rows of cells, all of the same length; the first row is the head.
pub(crate) fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let pad = widths[column] - cell.chars().count();
            // Names to the left, numbers to the right.
            let (left, right) = if column == 0 { (0, pad) } else { (pad, 0) };
            text += &format!("| {}{cell}{} ", " ".repeat(left), " ".repeat(right));
        }
        text += "|\n";
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(*width);
                text += &if column == 0 {
                    format!("| {dashes} ")
                } else {
                    format!("| {}: ", &dashes[1..])
                };
            }
            text += "|\n";
        }
    }
    text
}

/// Bytes in MiB.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let text = markdown(&[row("name", "x"), row("a", "12.5")]);
        assert_eq!(text, "| name |    x |\n| ---- | ---: |\n| a    | 12.5 |\n");
    }
}
