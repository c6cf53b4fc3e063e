//! How answers look: kubectl's tables, ages, and glyphs that say good, bad and unknown (never by colour alone).

use std::time::Duration;

use clap::ValueEnum;
use unicode_width::UnicodeWidthStr;

/// What the `-o` flag takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns for people.
    #[default]
    Text,
    /// The same answer for programs.
    Json,
}

/// How a command ends (`reference`: the conventions in docs/cli.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Good = 0,
    FoundBad = 1,
    /// Also what clap exits with.
    Usage = 2,
    CouldNotFindOut = 3,
    Refused = 4,
}

impl From<Outcome> for std::process::ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(outcome as u8)
    }
}

/// A verdict's glyph, first on its line; ASCII where the terminal is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Glyph {
    Good,
    Warning,
    Bad,
    Unknown,
}

impl Glyph {
    pub fn text(self) -> &'static str {
        let unicode = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
            .is_none_or(|locale| {
                let locale = locale.to_ascii_lowercase();
                locale.contains("utf-8") || locale.contains("utf8")
            });
        match (self, unicode) {
            (Self::Good, true) => "✓",
            (Self::Good, false) => "+",
            (Self::Bad, true) => "✗",
            (Self::Bad, false) => "x",
            (Self::Warning, _) => "!",
            (Self::Unknown, _) => "?",
        }
    }
}

/// An age as kubectl writes it: `0.3s`, `9s`, `5m`, `3h`, `12d`.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=1 => format!("{:.1}s", duration.as_secs_f64()),
        2..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The same for seconds, as reports carry them.
pub fn seconds(seconds: f64) -> String {
    age(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// A table without borders: upper-case headers, columns as wide as they need, two spaces between.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.width() + 2));
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
    fn columns_align_by_display_width() {
        let mut table = Table::new(&["PEER", "STATE"]);
        table.row(["birch", "✓ Up"]);
        table.row(["日本", "Down"]);
        assert_eq!(table.render(), "PEER   STATE\nbirch  ✓ Up\n日本   Down\n");
    }

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        let shown: Vec<String> =
            [0.3, 9.0, 119.0, 300.0, 7300.0, 200_000.0].iter().map(|s| age(Duration::from_secs_f64(*s))).collect();
        assert_eq!(shown, ["0.3s", "9s", "119s", "5m", "2h", "2d"]);
    }
}
