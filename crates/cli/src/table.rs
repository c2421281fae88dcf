//! Tables that fit the terminal.
//!
//! A table that is wider than the terminal is narrowed in these steps:
//!
//! 1. Cells wrap between words.
//! 2. Columns whose head ends with `?` are left out, the last one first, and named below the table.
//! 3. Long words are broken, except ids and digests.
//! 4. Every row becomes a block of lines, which leaves nothing out.
//!
//! In a pipe there is no limit and every row is one line: see [`crate::streams::out_columns`].

use std::sync::OnceLock;

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::show::one_line;

/// Spaces between two columns.
const GAP: usize = 2;
/// Minimum part of a broken word per line.
const BROKEN_WORD: usize = 16;
/// Columns up to this width are never wrapped. It fits a number with its error.
const WHOLE_CELL: usize = 15;
/// Minimum width of a wrapped column.
const LEAST_TEXT: usize = 12;
/// Minimum width of a table; narrower terminals are treated as this wide.
const LEAST_COLUMNS: usize = 20;
/// Maximum hanging indent of a folded line.
const MOST_INDENT: usize = 16;

static COLUMNS: OnceLock<Option<usize>> = OnceLock::new();

/// Sets the width of tables and texts in this process; `None` means no limit. Only the first call
/// has an effect.
pub fn fit_to(columns: Option<usize>) {
    // Only tests call this twice.
    let _first = COLUMNS.set(columns);
}

fn columns() -> Option<usize> {
    COLUMNS.get().copied().flatten()
}

/// A table with these heads. Columns whose head starts with `>` are right-aligned; columns whose
/// head ends with `?` may be left out.
pub fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    fitted(heads, rows, columns())
}

/// A [`table`] for a terminal of `limit` columns.
pub fn fitted(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>, limit: Option<usize>) -> String {
    let rows: Vec<Vec<String>> = rows.into_iter().map(|row| row.iter().map(|cell| one_line(cell)).collect()).collect();
    let columns: Vec<Column> = heads.iter().enumerate().map(|(place, head)| Column::new(head, place, &rows)).collect();
    let Some(limit) = limit.map(|limit| limit.max(LEAST_COLUMNS)) else {
        let natural: Vec<usize> = columns.iter().map(|column| column.natural).collect();
        return laid_out(&columns.iter().collect::<Vec<_>>(), &natural, &rows);
    };
    for words in [Words::Whole, Words::Broken] {
        let mut shown: Vec<&Column> = columns.iter().collect();
        loop {
            if let Some(widths) = widths(&shown, words, limit) {
                return with_left_out(laid_out(&shown, &widths, &rows), &columns, &shown, limit);
            }
            match shown.iter().rposition(|column| column.may_go) {
                Some(last) => drop(shown.remove(last)),
                None => break,
            }
        }
    }
    blocks(&columns, &rows, limit)
}

/// Appends the names of the columns that are not shown.
fn with_left_out(text: String, all: &[Column], shown: &[&Column], limit: usize) -> String {
    let absent = all.iter().filter(|column| !shown.iter().any(|other| other.place == column.place));
    let names: Vec<String> = absent.map(|column| column.title.to_lowercase()).collect();
    if names.is_empty() {
        return text;
    }
    let note = format!("({} left out: widen the terminal, or add --output json)", names.join(", "));
    format!("{text}\n{}", wrapped(&note, limit).join("\n"))
}

/// Whether long words in a cell may be broken.
#[derive(Debug, Clone, Copy)]
enum Words {
    Whole,
    Broken,
}

#[derive(Debug, Clone)]
struct Column {
    place: usize,
    title: String,
    is_right: bool,
    may_go: bool,
    /// Width of the widest cell.
    natural: usize,
    /// Minimum widths: with whole words, and with broken words.
    floors: [usize; 2],
}

impl Column {
    fn new(head: &str, place: usize, rows: &[Vec<String>]) -> Self {
        let is_right = head.starts_with('>');
        let may_go = head.ends_with('?');
        let title = head.trim_start_matches('>').trim_end_matches('?').to_uppercase();
        let cells =
            || std::iter::once(title.as_str()).chain(rows.iter().filter_map(|row| row.get(place)).map(String::as_str));
        let natural = cells().map(|cell| cell.width()).max().unwrap_or(0);
        let longest = |width: fn(&str) -> usize| cells().flat_map(|cell| cell.split(' ')).map(width).max().unwrap_or(0);
        let floor = |word: usize| word.max(LEAST_TEXT).min(natural);
        let floors = if is_right || natural <= WHOLE_CELL {
            [natural; 2]
        } else {
            [floor(longest(|word| word.width())), floor(longest(broken_width))]
        };
        Self { place, title, is_right, may_go, natural, floors }
    }

    fn floor(&self, words: Words) -> usize {
        match words {
            Words::Whole => self.floors[0],
            Words::Broken => self.floors[1],
        }
    }
}

/// The width that a word needs if it may be broken. Ids and digests are never broken.
fn broken_width(word: &str) -> usize {
    let is_id = word.len() >= 32 && word.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    if is_id { word.width() } else { word.width().min(BROKEN_WORD) }
}

/// The width of each column; `None` if the minimum widths do not fit. Spare width goes to the
/// narrowest columns first.
fn widths(columns: &[&Column], words: Words, limit: usize) -> Option<Vec<usize>> {
    let room = limit.checked_sub(GAP * columns.len().saturating_sub(1))?;
    let mut widths: Vec<usize> = columns.iter().map(|column| column.floor(words)).collect();
    let mut left = room.checked_sub(widths.iter().sum())?;
    while left > 0 {
        let narrowest = (0..columns.len()).filter(|&i| widths[i] < columns[i].natural).min_by_key(|&i| widths[i]);
        let Some(narrowest) = narrowest else { break };
        widths[narrowest] += 1;
        left -= 1;
    }
    Some(widths)
}

fn laid_out(columns: &[&Column], widths: &[usize], rows: &[Vec<String>]) -> String {
    let titles: Vec<&str> = columns.iter().map(|column| column.title.as_str()).collect();
    let cells =
        rows.iter().map(|row| columns.iter().map(|column| row.get(column.place).map_or("", String::as_str)).collect());
    let mut lines = Vec::new();
    for row in std::iter::once(titles).chain(cells) {
        let wrapped: Vec<Vec<String>> = row.iter().zip(widths).map(|(cell, width)| wrapped(cell, *width)).collect();
        for n in 0..wrapped.iter().map(Vec::len).max().unwrap_or(1) {
            let mut line = String::new();
            for ((column, width), cell) in columns.iter().zip(widths).zip(&wrapped) {
                let text = cell.get(n).map_or("", String::as_str);
                let padding = " ".repeat(width.saturating_sub(text.width()));
                let (before, after) = if column.is_right { (padding.as_str(), "") } else { ("", padding.as_str()) };
                line.push_str(&format!("{before}{text}{after}{:GAP$}", ""));
            }
            lines.push(line.trim_end().to_owned());
        }
    }
    lines.join("\n")
}

/// A block of lines for each row, with each cell beside its head, or below it if it does not fit.
fn blocks(columns: &[Column], rows: &[Vec<String>], limit: usize) -> String {
    let beside = columns.iter().map(|column| column.title.width()).max().unwrap_or(0) + GAP;
    let block = |row: &Vec<String>| {
        let mut lines = Vec::new();
        for column in columns {
            let cell = row.get(column.place).map_or("", String::as_str);
            let longest = cell.split(' ').map(|word| word.width()).max().unwrap_or(0);
            let title = &column.title;
            if cell.is_empty() {
                continue;
            }
            if beside + longest <= limit {
                for (n, text) in wrapped(cell, limit - beside).iter().enumerate() {
                    let title = if n == 0 { title.as_str() } else { "" };
                    lines.push(format!("{title}{}{text}", " ".repeat(beside - title.width())));
                }
            } else {
                lines.push(title.clone());
                lines.extend(wrapped(cell, limit - GAP).iter().map(|text| format!("{:GAP$}{text}", "")));
            }
        }
        lines.join("\n")
    };
    rows.iter().map(block).collect::<Vec<_>>().join("\n\n")
}

/// Wraps `text` to lines of at most `width` columns. Lines break between words, and within a word
/// only if the word is longer than a line.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let gap = usize::from(used > 0);
        if used + gap + word.width() <= width {
            if gap > 0 {
                push(&mut lines, " ");
            }
            push(&mut lines, word);
            used += gap + word.width();
            continue;
        }
        if used > 0 {
            lines.push(String::new());
            used = 0;
        }
        for c in word.chars() {
            let wide = c.width().unwrap_or(0);
            if used + wide > width && used > 0 {
                lines.push(String::new());
                used = 0;
            }
            push(&mut lines, c.encode_utf8(&mut [0; 4]));
            used += wide;
        }
    }
    lines
}

fn push(lines: &mut [String], text: &str) {
    if let Some(line) = lines.last_mut() {
        line.push_str(text);
    }
}

/// Folds the lines of `text` between words to the width of the terminal. Paths, ids and URLs stay
/// whole, so that they can be copied; the terminal wraps them itself.
pub fn folded(text: &str) -> String {
    match columns() {
        None => text.to_owned(),
        Some(limit) => {
            text.lines().map(|line| folded_line(line, limit.max(LEAST_COLUMNS))).collect::<Vec<_>>().join("\n")
        }
    }
}

fn folded_line(line: &str, limit: usize) -> String {
    if line.width() <= limit {
        return line.to_owned();
    }
    // Text after a word and two spaces is the value of that word. It continues below its own start.
    let indent = line.trim_start().find("  ").map(|gap| {
        let lead = line.len() - line.trim_start().len() + gap;
        lead + line[lead..].len() - line[lead..].trim_start().len()
    });
    let own = line.len() - line.trim_start().len() + GAP;
    let indent = indent.filter(|indent| *indent <= MOST_INDENT.min(limit / 2)).unwrap_or(own.min(limit / 2));
    let mut out = String::new();
    let mut used = 0;
    for (n, word) in line.split(' ').enumerate() {
        let gap = usize::from(n > 0);
        if used > indent && used + gap + word.width() > limit {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            used = indent;
        } else if gap > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += word.width();
    }
    out
}

/// Shortens `text` to at most `width` columns, replacing the end of a longer one with `…`.
pub fn shortened(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide + 1 > width {
            break;
        }
        out.push(c);
        used += wide;
    }
    if width > 0 {
        out.truncate(out.trim_end().len());
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        let row = |id: u8, name: &str, state: &str| {
            let id = format!("01900000-0000-7000-8000-0000000000{id:02}");
            vec![id, "RUNNING".to_owned(), name.to_owned(), state.to_owned(), "2026-11-30 18:12:35 UTC".to_owned()]
        };
        vec![
            row(1, "demo", "training the reference"),
            row(2, "名前がとても長い実験の名前がとても長い実験", "round 2: evaluating 6 layers that were inherited"),
        ]
    }

    const HEADS: [&str; 5] = ["id", "status", "name", "state", "created?"];

    #[test]
    fn u11_a_table_is_never_wider_than_the_terminal() {
        for limit in [20, 40, 60, 80, 100, 120, 200] {
            let text = fitted(&HEADS, rows(), Some(limit));
            for line in text.lines() {
                assert!(line.width() <= limit, "{limit}: {line}");
            }
            // From 40 columns on, ids stay whole, so that they can be copied.
            if limit >= 40 {
                assert!(text.contains("01900000-0000-7000-8000-000000000001"), "{limit}:\n{text}");
            }
            assert!(text.contains("RUNNING"), "{limit}:\n{text}");
        }
    }

    #[test]
    fn u11_cells_wrap_then_columns_go_then_rows_become_blocks() {
        assert_eq!(fitted(&HEADS, rows(), None).lines().count(), 3);
        let wide = fitted(&HEADS, rows(), Some(140));
        assert!(wide.contains("CREATED") && wide.lines().count() > 3, "{wide}");
        let narrower = fitted(&HEADS, rows(), Some(110));
        assert!(narrower.ends_with("(created left out: widen the terminal, or add --output json)"), "{narrower}");
        let narrow = fitted(&HEADS, rows(), Some(40));
        assert!(narrow.starts_with("ID\n  01900000-0000-7000-8000-000000000001\nSTATUS   RUNNING\n"), "{narrow}");
        // Blocks leave nothing out.
        assert!(narrow.contains("CREATED  2026-11-30 18:12:35 UTC"), "{narrow}");
    }

    #[test]
    fn long_lines_fold_below_their_value() {
        assert_eq!(folded_line("status   RUNNING", 20), "status   RUNNING");
        assert_eq!(
            folded_line("error    the disk is full and nothing can be written", 30),
            "error    the disk is full and\n         nothing can be\n         written"
        );
        let path = "/srv/a/very/long/path/that/has/no/spaces/at/all";
        assert_eq!(folded_line(path, 20), path);
    }

    #[test]
    fn texts_are_shortened_by_columns() {
        assert_eq!(shortened("round 1: train", 20), "round 1: train");
        assert_eq!(shortened("round 1: train", 8), "round 1…");
        assert_eq!(shortened("名前がとても", 6), "名前…");
        assert_eq!(shortened("abc", 0), "");
    }
}
