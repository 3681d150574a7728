//! Tables for a terminal: aligned columns, bars, and a little colour, which goes away where nobody sees it.

use std::io::Write;

use anstream::adapter::strip_str;

/// What matters.
pub(super) fn strong(text: &str) -> String {
    style("1", text)
}

/// What helps to find it.
pub(super) fn faint(text: &str) -> String {
    style("2", text)
}

/// What is as it should be.
pub(super) fn good(text: &str) -> String {
    style("32", text)
}

/// What is not.
pub(super) fn bad(text: &str) -> String {
    style("31", text)
}

fn style(code: &str, text: &str) -> String {
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// A bar of so many characters for 1, and fewer for a smaller share, to an eighth of one.
pub(super) fn bar(share: f64, characters: usize) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * 8.0 * characters as f64).round() as usize;
    style("36", &format!("{}{}", "█".repeat(eighths / 8), PARTS[eighths % 8]))
}

/// How many characters are seen of `cell`.
pub(super) fn width(cell: &str) -> usize {
    strip_str(cell).to_string().chars().count()
}

/// Prints rows in aligned columns; those in `right` are aligned to the right.
pub(crate) fn print_table(rows: &[Vec<String>], right: &[usize]) {
    let widest = |column: usize| rows.iter().map(|row| width(&row[column])).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(widest).collect();
    let mut out = anstream::stdout().lock();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, &widest)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(widest - width(cell));
            match right.contains(&column) {
                true => line.extend(["  ", &padding, cell]),
                false => line.extend(["  ", cell, &padding]),
            }
        }
        // A reader that has gone wants no more.
        writeln!(out, "{}", line.trim_end()).ok();
    }
}
