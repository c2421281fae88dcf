//! One line of progress that fits the width of the terminal.
//!
//! Parts are added by priority as long as they fit: percentage and time left, then the position
//! (`step 120/400`), then the label, then the rest of the message (`loss 4.31`), then long forms,
//! the speed and a bar.

use std::fmt::Write as _;

use unicode_width::UnicodeWidthStr as _;

use crate::table::shortened;
use inheritune_report::numbers;

/// Maximum width of a label, in columns.
const LABEL: usize = 38;
/// Width that keeps a label meaningful.
const SHORT_LABEL: usize = 12;
/// Minimum width of a label, reserved if there is any room.
const LEAST_LABEL: usize = 4;
/// Width of a full bar.
const BAR: usize = 20;
/// Minimum width of a bar; a shorter one is useless.
const SHORT_BAR: usize = 8;
/// Columns between two parts.
const GAP: usize = 2;

/// The state of an operation in progress.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// Name of the operation.
    pub label: String,
    /// Completed share, 0 to 1.
    pub share: Option<f64>,
    /// Remaining time in seconds.
    pub left_s: Option<f64>,
    /// Details, the most important ones first: `step 120/400 loss 4.31`.
    pub message: String,
    /// Speed, such as `12.3 K tokens/s`; may be empty.
    pub speed: String,
}

/// The parts of a line, in display order; absent parts are empty.
#[derive(Debug, Default)]
struct Parts {
    label: String,
    bar: usize,
    percent: String,
    left: String,
    message: String,
    speed: String,
}

impl Parts {
    fn columns(&self) -> usize {
        let texts = [&self.label, &self.percent, &self.left, &self.message, &self.speed];
        let widths = texts.iter().map(|text| text.width()).chain([self.bar]).filter(|width| *width > 0);
        let (sum, count) = widths.fold((0, 0), |(sum, count), width| (sum + width, count + 1));
        sum + GAP * usize::max(count, 1) - GAP
    }

    /// Columns left for one more part.
    fn room(&self, limit: usize) -> usize {
        limit.saturating_sub(self.columns() + if self.columns() > 0 { GAP } else { 0 })
    }

    fn try_to(&mut self, limit: usize, change: impl FnOnce(&mut Self)) {
        let before = Self {
            label: self.label.clone(),
            percent: self.percent.clone(),
            left: self.left.clone(),
            message: self.message.clone(),
            speed: self.speed.clone(),
            bar: self.bar,
        };
        change(self);
        if self.columns() > limit {
            *self = before;
        }
    }
}

/// Renders `standing` in at most `limit` columns.
pub fn line(standing: &Standing, limit: usize) -> String {
    let percent = standing.share.map(|share| (100.0 * share.clamp(0.0, 1.0)).floor());
    let left_s = standing.left_s.filter(|left| left.is_finite() && *left >= 0.0);
    let mut parts = Parts::default();
    parts.try_to(limit, |p| p.percent = percent.map_or_else(String::new, |percent| format!("{percent}%")));
    parts.try_to(limit, |p| p.left = left_s.map_or_else(String::new, brief));
    parts.try_to(limit.saturating_sub(LEAST_LABEL + GAP), |p| p.message = place(&standing.message).to_owned());
    if parts.message.is_empty() {
        // The position does not fit. Show as much of it as fits beside a short label.
        parts.message = cut_words(&standing.message, parts.room(limit).saturating_sub(SHORT_LABEL + GAP));
    }
    let label_room = parts.room(limit).min(SHORT_LABEL);
    parts.try_to(limit, |p| p.label = shortened(&standing.label, label_room));
    let message_room = parts.room(limit) + parts.message.width() + if parts.message.is_empty() { 0 } else { GAP };
    parts.try_to(limit, |p| p.message = cut_words(&standing.message, message_room));
    parts.try_to(limit, |p| p.left = left_s.map_or_else(String::new, |left| format!("{} left", brief(left))));
    let label_room = parts.label.width() + GAP + parts.room(limit);
    parts.try_to(limit, |p| p.label = shortened(&standing.label, label_room.min(LABEL)));
    parts.try_to(limit, |p| p.speed = standing.speed.clone());
    parts.try_to(limit, |p| {
        p.left = left_s.map_or_else(String::new, |left| format!("{} left", numbers::duration(left)))
    });
    if percent.is_some() && parts.room(limit) >= SHORT_BAR {
        parts.bar = parts.room(limit).min(BAR);
    }
    // A long label gets the remaining columns.
    let label_room = parts.label.width() + limit.saturating_sub(parts.columns());
    parts.try_to(limit, |p| p.label = shortened(&standing.label, label_room));
    // Align the bars of several jobs if there is room.
    let padding = LABEL.saturating_sub(parts.label.width()).min(limit.saturating_sub(parts.columns()));
    if parts.bar == BAR && parts.columns() + padding <= limit {
        let _infallible = write!(parts.label, "{:padding$}", "");
    }
    let bar = drawn(parts.bar, standing.share.unwrap_or(0.0));
    let texts = [parts.label, bar, parts.percent, parts.left, parts.message, parts.speed];
    texts
        .iter()
        .filter(|text| !text.is_empty())
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("  ")
        .trim_end()
        .to_owned()
}

/// The position: the words of a message up to the first one with a digit, such as `step 120/400` or
/// `writing model-00001-of-00002.safetensors`.
fn place(message: &str) -> &str {
    let mut end = 0;
    for word in message.split_inclusive(' ') {
        end += word.trim_end().len();
        if word.contains(|c: char| c.is_ascii_digit()) {
            return &message[..end];
        }
        end += word.len() - word.trim_end().len();
    }
    message
}

/// The first words of `message` that fit. It never ends with a name without its number.
fn cut_words(message: &str, room: usize) -> String {
    if message.width() <= room {
        return message.to_owned();
    }
    let words: Vec<&str> = message.split(' ').collect();
    let has_number = |word: &&str| word.contains(|c: char| c.is_ascii_digit());
    let whole = (1..words.len()).rev().map(|n| &words[..n]).find(|words| {
        words.join(" ").width() < room && (!words.iter().any(has_number) || words.last().is_some_and(has_number))
    });
    match whole {
        Some(words) => words.join(" ") + "…",
        None if room > 3 => shortened(message, room),
        None => String::new(),
    }
}

/// A short form of a duration: `48s`, `3m12s`, `2h05m`, `3d04h`.
fn brief(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        // Capped at 9999 days to bound the width.
        _ => format!("{}d{:02}h", (s / 86_400).min(9999), s % 86_400 / 3600),
    }
}

fn drawn(columns: usize, share: f64) -> String {
    let filled = ((columns as f64) * share.clamp(0.0, 1.0)) as usize;
    let rest = columns - filled;
    let (tip, rest) = if rest > 0 && filled > 0 { ("╸", rest - 1) } else { ("", rest) };
    format!("{}{tip}{}", "━".repeat(filled), " ".repeat(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training() -> Standing {
        Standing {
            label: "round 2: 12 layers inherited: train".to_owned(),
            share: Some(0.2512),
            left_s: Some(43_530.0),
            message: "step 25120/100000 loss 10.831".to_owned(),
            speed: "12.3\u{202f}K tokens/s".to_owned(),
        }
    }

    fn all_kinds() -> Vec<Standing> {
        let long = "モデル名がとても長い実験のレポートのための名前: random initialisation, same depth and steps: train";
        let with = |message: &str, share: Option<f64>, left_s: Option<f64>| Standing {
            message: message.to_owned(),
            share,
            left_s,
            speed: "1.23\u{202f}G bytes/s".to_owned(),
            label: long.to_owned(),
        };
        vec![
            training(),
            Standing { label: long.to_owned(), ..training() },
            with("1102907 tokens", Some(0.5), Some(12.0)),
            with("training the tokenizer", Some(0.01), Some(100.0)),
            with("reading headers", None, None),
            with("writing model-00001-of-00002.safetensors", Some(0.999), Some(0.2)),
            with(
                "mmlu_high_school_government_and_politics: 120 of 14042 documents of all tasks",
                Some(0.0),
                Some(1e12),
            ),
            with("12.3 MiB/200.0 MiB", Some(1.0), None),
            with("waiting for a worker", None, None),
            with("", Some(f64::NAN), Some(f64::INFINITY)),
            with("ein_sehr_langes_wort_ohne_leerzeichen_das_nie_aufhoert_und_weiter_geht", Some(0.3), Some(61.0)),
        ]
    }

    #[test]
    fn u1_no_line_is_wider_than_the_terminal_and_none_loses_what_matters() {
        for standing in all_kinds() {
            for limit in [10, 20, 39, 40, 60, 79, 80, 120, 200] {
                let line = line(&standing, limit);
                assert!(line.width() <= limit, "{limit}: {} of {line}", line.width());
                if limit < 39 {
                    continue;
                }
                if let Some(share) = standing.share {
                    assert!(line.contains(&format!("{}%", (100.0 * share.clamp(0.0, 1.0)).floor())), "{limit}: {line}");
                }
                if let Some(left) = standing.left_s.filter(|left| left.is_finite()) {
                    let forms = [brief(left), numbers::duration(left)];
                    assert!(forms.iter().any(|form| line.contains(form.as_str())), "{limit}: {line}");
                }
                let label: String = standing.label.chars().take(1).collect();
                assert!(line.starts_with(&label), "{limit}: {line}");
            }
        }
    }

    #[test]
    fn u1_label_step_loss_and_time_left_fit_into_80_columns() {
        for (limit, expected) in [
            (40, "round 2…  25%  12h05m  step 25120/100000"),
            (60, "round 2: 12 lay…  25%  12h05m  step 25120/100000 loss 10.831"),
            (80, "round 2: 12 layers inherited:…  25%  12h05m left  step 25120/100000 loss 10.831"),
            (
                120,
                "round 2: 12 layers inherited: train  ━━━╸          25%  12 h 05 min left  step 25120/100000 loss 10.831  12.3\u{202f}K tokens/s",
            ),
            (
                200,
                "round 2: 12 layers inherited: train     ━━━━━╸                25%  12 h 05 min left  step 25120/100000 loss \
                 10.831  12.3\u{202f}K tokens/s",
            ),
        ] {
            assert_eq!(line(&training(), limit), expected, "{limit}");
        }
    }

    #[test]
    fn u1_a_small_training_on_40_columns() {
        let standing = Standing {
            label: "round 2: train".to_owned(),
            share: Some(0.3),
            left_s: Some(124.0),
            message: "step 120/400 loss 4.31".to_owned(),
            speed: String::new(),
        };
        assert_eq!(line(&standing, 40), "round 2: tra…  30%  2m04s  step 120/400…");
    }

    #[test]
    fn a_name_never_stands_without_its_number() {
        assert_eq!(cut_words("step 120/400 loss 4.31", 19), "step 120/400…");
        assert_eq!(cut_words("step 120/400 loss 4.31", 22), "step 120/400 loss 4.31");
        assert_eq!(place("writing model.safetensors"), "writing model.safetensors");
        assert_eq!(place("step 3/4 loss 1.0"), "step 3/4");
    }
}
