//! Tables for a terminal: aligned columns, bars, and a little colour, which goes away where nobody sees it.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::os::fd::AsFd;

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
    if text.is_empty() {
        return String::new();
    }
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

/// How many characters a line may have: what COLUMNS says, or the terminal, or else 80.
pub(super) fn columns() -> usize {
    let said = std::env::var("COLUMNS").ok().and_then(|said| said.parse().ok());
    let terminal = || {
        let (out, err) = (stdout(), stderr());
        let terminals = [(out.is_terminal(), out.as_fd()), (err.is_terminal(), err.as_fd())];
        let (_, terminal) = terminals.into_iter().find(|(is_one, _)| *is_one)?;
        Some(usize::from(rustix::termios::tcgetwinsize(terminal).ok()?.ws_col))
    };
    said.or_else(terminal).filter(|&columns| columns > 0).unwrap_or(80)
}

/// `text`, or so many characters of it and a sign that it was cut.
pub(super) fn cut(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        None => text.to_owned(),
        Some(_) => text.chars().take(longest.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// `text` in lines of so many characters, broken between words; one line at least.
pub(super) fn wrap(text: &str, longest: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("one at least");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > longest {
            lines.push(word.to_owned());
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines
}

/// Prints rows in aligned columns; those in `right` are aligned to the right.
pub(crate) fn print_table(rows: &[Vec<String>], right: &[usize]) {
    print(&lay_out(rows, right));
}

/// Prints `head` with as many of the `columns` beside it as there is room for, and so on below with the
/// others.
pub(super) fn print_blocks(head: &[String], columns: &[Vec<String>], room: usize) {
    print(&lay_out_blocks(head, columns, room));
}

fn print(lines: &[String]) {
    let mut out = anstream::stdout().lock();
    for line in lines {
        // A reader that has gone wants no more.
        writeln!(out, "{line}").ok();
    }
}

fn widest<'a>(cells: impl IntoIterator<Item = &'a String>) -> usize {
    cells.into_iter().map(|cell| width(cell)).max().unwrap_or(0)
}

/// The lines of a table, how many characters the widest of them has included.
pub(super) fn lay_out(rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    let columns = 0..rows[0].len();
    let widths: Vec<usize> = columns.map(|at| widest(rows.iter().map(|row| &row[at]))).collect();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (column, (cell, &widest)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(widest - width(cell));
            match right.contains(&column) {
                true => line.extend(["  ", &padding, cell]),
                false => line.extend(["  ", cell, &padding]),
            }
        }
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn lay_out_blocks(head: &[String], columns: &[Vec<String>], room: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut left = columns;
    while !left.is_empty() {
        let mut taken = 2 + widest(head);
        let fits = left.iter().take_while(|column| {
            taken += 2 + widest(*column);
            taken <= room
        });
        let (block, rest) = left.split_at(fits.count().max(1));
        let rows = head.iter().enumerate().map(|(at, name)| {
            let cells = block.iter().map(|column| column[at].clone());
            [name.clone()].into_iter().chain(cells).collect()
        });
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.extend(lay_out(&rows.collect::<Vec<_>>(), &[]));
        left = rest;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|&cell| cell.to_owned()).collect()
    }

    #[test]
    fn columns_are_aligned_whatever_their_colours() {
        let rows = [
            cells(&["a", "b", "c"]).iter().map(|cell| strong(cell)).collect(),
            cells(&["längst", "1", &bar(1.0, 2)]),
            cells(&["x", "1000", &bar(0.5, 2)]),
        ];
        let lines = lay_out(&rows, &[1]).into_iter().map(|line| strip_str(&line).to_string());
        let expected = ["  a          b  c", "  längst     1  ██", "  x       1000  █"];
        assert_eq!(lines.map(|line| line.trim_end().to_owned()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn bars_are_as_long_as_their_share_to_an_eighth() {
        let cases = [
            (0.0, ""),
            (0.01, ""),
            (0.1, "▍"),
            (0.5, "██"),
            (0.97, "███▉"),
            (1.0, "████"),
            (7.0, "████"),
        ];
        for (share, expected) in cases {
            assert_eq!(strip_str(&bar(share, 4)).to_string(), expected, "{share}");
        }
        assert!(bar(f64::NAN, 4).is_empty());
    }

    #[test]
    fn what_is_too_wide_goes_on_below() {
        let head = cells(&["", "size"]);
        let columns =
            [["one", "1"], ["two", "22"], ["three", "3"], ["four", "4"]].map(|it| cells(&it));
        let wide = ["        one  two  three  four", "  size  1    22   3      4"];
        let narrow = [
            "        one  two",
            "  size  1    22",
            "",
            "        three",
            "  size  3",
            "",
            "        four",
            "  size  4",
        ];
        assert_eq!(lay_out_blocks(&head, &columns, 80), wide);
        assert_eq!(lay_out_blocks(&head, &columns, 29), wide);
        assert_eq!(lay_out_blocks(&head, &columns, 17), narrow);
        // A terminal that is too narrow for anything has a column a block.
        assert_eq!(lay_out_blocks(&head, &columns, 1).len(), 4 * 3 - 1);
    }

    #[test]
    fn long_words_are_cut_and_long_sentences_broken() {
        assert_eq!((cut("four", 4), cut("fünf!", 4)), ("four".to_owned(), "fün…".to_owned()));
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("one", 1), ["one"]);
        assert_eq!(wrap("", 1), [""]);
    }
}
