//! The sizes of the reference and the candidates.

use super::Plot;
use super::svg::{Anchor, Svg, fit};
use crate::numbers;
use crate::tables::is_a_size;
use crate::view::{Role, Row, View};

const WIDTH: f64 = 960.0;
const X: (f64, f64) = (320.0, 760.0);
const TOP: f64 = 14.0;
const ROW: f64 = 34.0;

/// One bar per size; `None` as long as fewer than two are known.
pub fn plot(view: &View) -> Option<Plot> {
    let sizes: Vec<(&Row, u64)> = view
        .rows
        .iter()
        .filter(|row| is_a_size(row.model))
        .filter_map(|row| Some((row, row.parameters.filter(|n| *n > 0)?)))
        .collect();
    let largest = sizes.iter().map(|(_, n)| *n).max()?;
    if sizes.len() < 2 {
        return None;
    }
    let reference = sizes.iter().find(|(row, _)| row.role == Role::Reference).map(|(_, n)| *n);
    let foot = TOP + ROW * sizes.len() as f64;
    let mut svg = Svg::new(WIDTH, foot + 12.0);
    for (i, (row, n)) in sizes.iter().enumerate() {
        let y = TOP + ROW * i as f64;
        let class = if row.role == Role::Winner { "head" } else { "" };
        svg.label(class, (X.0 - 14.0, y + 21.0), Anchor::End, &fit(&row.name, 296.0));
        let width = (X.1 - X.0) * *n as f64 / largest as f64;
        svg.rect(&format!("fill {}", row.class), (X.0, y + 6.0), (width, ROW - 12.0));
        let share = reference.map(|of| format!(" ({} of the reference)", numbers::percent(*n as f64 / of as f64)));
        let share = if row.role == Role::Reference { None } else { share };
        let text = format!("{}{}", numbers::short(*n as f64), share.unwrap_or_default());
        svg.label("quiet small", (X.0 + width + 8.0, y + 21.0), Anchor::Start, &text);
    }
    svg.line("axis", (X.0, TOP), (X.0, foot));
    Some(Plot {
        file: "parameters.svg",
        title: "Parameters",
        caption: "All trainable parameters, including embeddings. Tied parameters are counted once.".to_owned(),
        drawing: svg,
    })
}
