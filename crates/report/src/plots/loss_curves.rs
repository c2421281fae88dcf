//! The loss of all models during training: the whole training, and its end enlarged.

use super::Plot;
use super::svg::{Anchor, Axis, Frame, GLYPH, Svg};
use crate::numbers;
use crate::view::{Row, View};

const WIDTH: f64 = 960.0;
const TOP: f64 = 58.0;
const PANEL_HEIGHT: f64 = 300.0;
const LEFT: (f64, f64) = (62.0, 456.0);
const RIGHT: (f64, f64) = (546.0, 936.0);
const LEGEND_ROW: f64 = 22.0;
/// Maximum number of points per faint line.
const MAX_POINTS: usize = 400;
/// The right panel starts at this share of the shortest training.
const END_FROM: f64 = 0.4;
/// Extends the x axis to make room for the last dots.
const RIGHT_MARGIN: f64 = 1.03;

/// The quantity on the x axis.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Horizontal {
    /// Steps. All models see the same number of tokens per step, so a second scale shows tokens.
    Steps { tokens_per_step: f64 },
    /// Tokens, because models differ in tokens per step.
    Tokens,
}

impl Horizontal {
    fn of(view: &View) -> Self {
        let mut ratios = view
            .data
            .curves
            .iter()
            .flat_map(|curve| &curve.points)
            .filter(|(step, _, _)| *step > 0)
            .map(|(step, tokens, _)| *tokens as f64 / *step as f64);
        match ratios.next() {
            Some(first) if first > 0.0 && ratios.all(|r| (r / first - 1.0).abs() < 1e-6) => {
                Self::Steps { tokens_per_step: first }
            }
            _ => Self::Tokens,
        }
    }

    fn of_point(self, point: &(u64, u64, f64)) -> f64 {
        match self {
            Self::Steps { .. } => point.0 as f64,
            Self::Tokens => point.1 as f64,
        }
    }

    fn end(self, row: &Row) -> Option<f64> {
        match self {
            Self::Steps { .. } => row.steps.map(|n| n as f64),
            Self::Tokens => row.tokens.map(|n| n as f64),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Steps { .. } => "optimizer step",
            Self::Tokens => "tokens seen",
        }
    }
}

struct Series<'a> {
    row: &'a Row,
    train: Vec<(f64, f64)>,
    validation: Vec<(f64, f64)>,
    end: Option<(f64, f64)>,
}

/// The loss curves; `None` as long as there are no points.
pub fn plot(view: &View) -> Option<Plot> {
    let horizontal = Horizontal::of(view);
    let series: Vec<Series> = view
        .rows
        .iter()
        .map(|row| Series {
            row,
            train: points(view.curve(row.model, "train_loss"), horizontal),
            validation: points(view.curve(row.model, "validation_loss"), horizontal),
            end: horizontal.end(row).zip(row.validation.map(|v| v.value)),
        })
        .filter(|series| series.train.len() + series.validation.len() > 1)
        .collect();
    if series.is_empty() {
        return None;
    }
    let legend = legend_rows(&series);
    let height = TOP + PANEL_HEIGHT + 60.0 + LEGEND_ROW * legend.len() as f64;
    let mut svg = Svg::new(WIDTH, height);
    let pixels_y = (TOP + PANEL_HEIGHT, TOP);
    let everything = extent(series.iter().flat_map(|s| s.train.iter().chain(&s.validation).chain(&s.end)).copied());
    let whole = Frame {
        x: Axis::new((0.0, everything.x.1 * RIGHT_MARGIN), LEFT),
        y: Axis::new(padded(everything.y, 0.04), pixels_y),
    };
    panel(&mut svg, &whole, "Whole training", horizontal);
    svg.clipped("loss-whole", &whole, |svg| draw(svg, &whole, &series));

    let shortest =
        series.iter().filter_map(|s| s.validation.last().or(s.train.last())).map(|p| p.0).fold(f64::INFINITY, f64::min);
    let from = shortest * END_FROM;
    let tail = |s: &Series| -> Vec<(f64, f64)> {
        s.validation.iter().chain(&s.end).filter(|p| p.0 >= from).copied().collect()
    };
    let near_end = extent(series.iter().flat_map(tail));
    if near_end.y.0.is_finite() {
        let end = Frame {
            x: Axis::new((from, from + (everything.x.1 - from) * RIGHT_MARGIN), RIGHT),
            y: Axis::new(padded(near_end.y, 0.12), pixels_y),
        };
        panel(&mut svg, &end, "End of training, enlarged", horizontal);
        svg.clipped("loss-end", &end, |svg| draw(svg, &end, &series));
    }
    draw_legend(&mut svg, &legend, TOP + PANEL_HEIGHT + 66.0);
    Some(Plot {
        file: "loss-curves.svg",
        title: "Loss of every model during training",
        caption: "Bold lines: validation loss during training, on a fixed part of the validation text. Faint lines: \
                  training loss. Dots: the final loss on the whole validation text with ±1 standard error, as in the \
                  table. A dot can lie slightly off its line, because it is measured on more text."
            .to_owned(),
        drawing: svg,
    })
}

fn points(curve: &[(u64, u64, f64)], horizontal: Horizontal) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> =
        curve.iter().filter(|p| p.2.is_finite()).map(|p| (horizontal.of_point(p), p.2)).collect();
    // Average neighbouring points: the plot has no room for more, and no point is dropped.
    let group = finite.len().div_ceil(MAX_POINTS).max(1);
    finite
        .chunks(group)
        .map(|chunk| {
            let n = chunk.len() as f64;
            (chunk.iter().map(|p| p.0).sum::<f64>() / n, chunk.iter().map(|p| p.1).sum::<f64>() / n)
        })
        .collect()
}

struct Extent {
    x: (f64, f64),
    y: (f64, f64),
}

fn extent(points: impl Iterator<Item = (f64, f64)>) -> Extent {
    let none = (f64::INFINITY, f64::NEG_INFINITY);
    points.fold(Extent { x: none, y: none }, |e, (x, y)| Extent {
        x: (e.x.0.min(x), e.x.1.max(x)),
        y: (e.y.0.min(y), e.y.1.max(y)),
    })
}

fn padded((low, high): (f64, f64), share: f64) -> (f64, f64) {
    let pad = ((high - low) * share).max(1e-3);
    (low - pad, high + pad)
}

fn panel(svg: &mut Svg, frame: &Frame, title: &str, horizontal: Horizontal) {
    let (left, right) = frame.x.pixels;
    svg.label("head", (left, 22.0), Anchor::Start, title);
    frame.draw_y(svg, 9);
    frame.draw_x(svg, 5, |tick, _| numbers::short(tick));
    let middle = (left + right) / 2.0;
    svg.label("quiet small", (middle, frame.y.pixels.0 + 34.0), Anchor::Middle, horizontal.name());
    svg.label_upwards((left - 44.0, TOP + PANEL_HEIGHT / 2.0), "loss (nats per token)");
    if let Horizontal::Steps { tokens_per_step } = horizontal {
        let tokens =
            Axis::new((frame.x.values.0 * tokens_per_step, frame.x.values.1 * tokens_per_step), frame.x.pixels);
        for tick in tokens.ticks(4).0 {
            let x = tokens.at(tick);
            svg.line("axis", (x, TOP - 4.0), (x, TOP));
            svg.label("quiet small", (x, TOP - 8.0), Anchor::Middle, &numbers::short(tick));
        }
        svg.line("axis", (left, TOP), (right, TOP));
        svg.label("quiet small", (right, 22.0), Anchor::End, "tokens seen (upper scale)");
    }
}

fn draw(svg: &mut Svg, frame: &Frame, series: &[Series]) {
    let at = |points: &[(f64, f64)]| -> Vec<(f64, f64)> { points.iter().map(|(x, y)| frame.at(*x, *y)).collect() };
    for s in series {
        svg.path(&format!("line faint {}", s.row.class), &at(&s.train));
    }
    for s in series {
        svg.path(&format!("line {}", s.row.class), &at(&s.validation));
    }
    for s in series {
        let (Some(end), Some(validation)) = (s.end, s.row.validation) else { continue };
        let centre = frame.at(end.0, end.1);
        if let Some(stderr) = validation.stderr {
            let (low, high) = (frame.y.at(end.1 - stderr), frame.y.at(end.1 + stderr));
            svg.line(&format!("line whisker {}", s.row.class), (centre.0, low), (centre.0, high));
        }
        svg.dot(&s.row.class, centre, 4.0, &format!("{}: {}", s.row.name, validation.text()));
    }
}

struct LegendItem {
    class: String,
    name: String,
    x: f64,
}

fn legend_rows(series: &[Series]) -> Vec<Vec<LegendItem>> {
    let mut rows: Vec<Vec<LegendItem>> = vec![Vec::new()];
    let mut x = LEFT.0;
    for s in series {
        let name = super::svg::fit(&s.row.name, 420.0);
        let width = 34.0 + name.chars().count() as f64 * GLYPH + 18.0;
        if x + width > WIDTH - 10.0 && x > LEFT.0 {
            rows.push(Vec::new());
            x = LEFT.0;
        }
        if let Some(row) = rows.last_mut() {
            row.push(LegendItem { class: s.row.class.clone(), name, x });
        }
        x += width;
    }
    rows
}

fn draw_legend(svg: &mut Svg, rows: &[Vec<LegendItem>], top: f64) {
    for (i, row) in rows.iter().enumerate() {
        let y = top + i as f64 * LEGEND_ROW;
        for item in row {
            svg.line(&format!("line {}", item.class), (item.x, y - 4.0), (item.x + 24.0, y - 4.0));
            svg.dot(&item.class, (item.x + 12.0, y - 4.0), 3.5, &item.name);
            svg.label("", (item.x + 32.0, y), Anchor::Start, &item.name);
        }
    }
}
