//! The final validation loss of every model with its error, which shows which models differ.

use super::Plot;
use super::svg::{Anchor, Axis, Frame, Svg, fit};
use crate::view::{Measured, Role, Row, View};

const WIDTH: f64 = 960.0;
const X: (f64, f64) = (320.0, 800.0);
const TOP: f64 = 16.0;
const ROW: f64 = 30.0;

/// One line per model; `None` as long as nothing is measured.
pub fn plot(view: &View) -> Option<Plot> {
    let measured: Vec<(&Row, Measured)> = view.rows.iter().filter_map(|row| Some((row, row.validation?))).collect();
    if measured.is_empty() {
        return None;
    }
    let low = measured.iter().map(|(_, m)| m.value - 2.0 * m.stderr.unwrap_or(0.0)).fold(f64::INFINITY, f64::min);
    let high = measured.iter().map(|(_, m)| m.value + 2.0 * m.stderr.unwrap_or(0.0)).fold(f64::NEG_INFINITY, f64::max);
    let pad = ((high - low) * 0.06).max(1e-3);
    let foot = TOP + ROW * measured.len() as f64;
    let frame = Frame { x: Axis::new((low - pad, high + pad), X), y: Axis::new((0.0, 1.0), (foot, TOP)) };
    let mut svg = Svg::new(WIDTH, foot + 48.0);
    for tick in frame.x.ticks(8).0 {
        svg.line("grid", (frame.x.at(tick), TOP), (frame.x.at(tick), foot));
    }
    if let Some((_, reference)) = measured.iter().find(|(row, _)| row.role == Role::Reference) {
        let error = reference.stderr.unwrap_or(0.0);
        let (left, right) = (frame.x.at(reference.value - error), frame.x.at(reference.value + error));
        svg.rect("band", (left, TOP), (right - left, foot - TOP));
        svg.line("axis dash", (frame.x.at(reference.value), TOP), (frame.x.at(reference.value), foot));
    }
    for (i, (row, m)) in measured.iter().enumerate() {
        let y = TOP + ROW * (i as f64 + 0.5);
        svg.label(
            if row.role == Role::Winner { "head" } else { "" },
            (X.0 - 14.0, y + 4.0),
            Anchor::End,
            &fit(&row.name, 296.0),
        );
        if let Some(error) = m.stderr {
            let whisker = |n: f64| ((frame.x.at(m.value - n * error), y), (frame.x.at(m.value + n * error), y));
            let (from, to) = whisker(2.0);
            svg.line(&format!("line thin {}", row.class), from, to);
            let (from, to) = whisker(1.0);
            svg.line(&format!("line {}", row.class), from, to);
        }
        svg.dot(&row.class, (frame.x.at(m.value), y), 5.0, &format!("{}: {}", row.name, m.text()));
        svg.label("quiet small", (X.1 + 14.0, y + 4.0), Anchor::Start, &m.text());
    }
    svg.line("axis", (X.0, foot), (X.1, foot));
    frame.draw_x(&mut svg, 8, |tick, decimals| format!("{tick:.decimals$}"));
    svg.label(
        "quiet small",
        ((X.0 + X.1) / 2.0, foot + 36.0),
        Anchor::Middle,
        "validation loss (nats per token); lower is better",
    );
    Some(Plot {
        file: "losses.svg",
        title: "Final validation loss with its error",
        caption: "Bold whiskers: ±1 standard error over the validation sequences. Thin whiskers: ±2. Grey band: the \
                  reference, ±1."
            .to_owned(),
        drawing: svg,
    })
}
