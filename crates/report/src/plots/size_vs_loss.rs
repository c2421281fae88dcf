//! Validation loss over model size, which shows how deep a target has to be.

use super::Plot;
use super::svg::{Anchor, Axis, Frame, Svg, fit};
use crate::numbers;
use crate::view::{Measured, Role, Row, View};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 380.0;
const X: (f64, f64) = (70.0, 930.0);
const Y: (f64, f64) = (322.0, 24.0);
const LABEL_GAP: f64 = 16.0;

/// One dot per model; `None` unless sizes and losses of at least two models are known.
pub fn plot(view: &View) -> Option<Plot> {
    let models: Vec<(&Row, f64, Measured)> =
        view.rows.iter().filter_map(|row| Some((row, row.parameters? as f64, row.validation?))).collect();
    if models.len() < 2 {
        return None;
    }
    let mut x = bounds(models.iter().map(|(_, size, _)| (*size, 0.0)));
    x = (x.0 - (x.1 - x.0) * 0.08, x.1 + (x.1 - x.0) * 0.08);
    let mut y = bounds(models.iter().map(|(_, _, m)| (m.value, m.stderr.unwrap_or(0.0))));
    y = (y.0 - (y.1 - y.0) * 0.08, y.1 + (y.1 - y.0) * 0.08);
    let frame = Frame { x: Axis::new(x, X), y: Axis::new(y, Y) };
    let mut svg = Svg::new(WIDTH, HEIGHT);
    frame.draw_y(&mut svg, 9);
    frame.draw_x(&mut svg, 9, |tick, _| numbers::short(tick));
    svg.label("quiet small", ((X.0 + X.1) / 2.0, Y.0 + 36.0), Anchor::Middle, "parameters, tied ones counted once");
    svg.label_upwards((20.0, (Y.0 + Y.1) / 2.0), "validation loss (nats per token)");
    if let Some((_, _, reference)) = models.iter().find(|(row, _, _)| row.role == Role::Reference) {
        let error = reference.stderr.unwrap_or(0.0);
        let (top, bottom) = (frame.y.at(reference.value + error), frame.y.at(reference.value - error));
        svg.rect("band", (X.0, top), (X.1 - X.0, bottom - top));
        svg.line("axis dash", (X.0, frame.y.at(reference.value)), (X.1, frame.y.at(reference.value)));
    }
    let growth: Vec<(f64, f64)> = models
        .iter()
        .filter(|(row, _, _)| matches!(row.role, Role::Round | Role::Winner))
        .map(|(_, size, m)| frame.at(*size, m.value))
        .collect();
    svg.path("line thin s-win", &growth);
    for (row, size, m) in &models {
        let centre = frame.at(*size, m.value);
        if let Some(error) = m.stderr {
            let class = format!("line whisker {}", row.class);
            svg.line(&class, (centre.0, frame.y.at(m.value - error)), (centre.0, frame.y.at(m.value + error)));
        }
        svg.dot(&row.class, centre, 6.0, &format!("{}: {}", row.name, m.text()));
    }
    draw_labels(&mut svg, &frame, &models);
    Some(Plot {
        file: "size-vs-loss.svg",
        title: "Validation loss over size",
        caption: "Whiskers: ±1 standard error. Dashed line and grey band: the reference's loss, ±1 standard error. \
                  Connected dots: the rounds of growth."
            .to_owned(),
        drawing: svg,
    })
}

fn bounds(values: impl Iterator<Item = (f64, f64)>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (value, error)| {
        (low.min(value - error), high.max(value + error))
    })
}

/// Draws names beside their dots, moved down to avoid overlaps.
fn draw_labels(svg: &mut Svg, frame: &Frame, models: &[(&Row, f64, Measured)]) {
    let middle = (X.0 + X.1) / 2.0;
    let mut labels: Vec<(f64, f64, &Row)> =
        models.iter().map(|(row, size, m)| (frame.x.at(*size), frame.y.at(m.value), *row)).collect();
    labels.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut placed: Vec<(bool, f64)> = Vec::new();
    for (x, y, row) in labels {
        let on_right = x < middle;
        // The line of growth reaches a dot from the upper left, so labels avoid that side.
        let mut y = if on_right { y - 6.0 } else { y + 16.0 };
        while let Some((_, other)) =
            placed.iter().find(|(side, other)| *side == on_right && (y - other).abs() < LABEL_GAP)
        {
            y = other + LABEL_GAP + 0.01;
        }
        placed.push((on_right, y));
        let (at, anchor) = if on_right { (x + 12.0, Anchor::Start) } else { (x - 12.0, Anchor::End) };
        svg.label(&row.class, (at, y), anchor, &fit(&row.name, 380.0));
    }
}
