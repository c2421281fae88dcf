//! The report's plots as hand-written SVG, without rasterised fonts or scripts.

mod loss_curves;
mod losses;
mod parameters;
mod size_vs_loss;
pub(super) mod svg;

use super::view::View;
use svg::Svg;

/// A plot.
#[derive(Debug)]
pub struct Plot {
    /// File name.
    pub file: &'static str,
    /// Title.
    pub title: &'static str,
    /// Caption that explains how to read the plot.
    pub caption: String,
    drawing: Svg,
}

impl Plot {
    /// The SVG element, for a page that has [`svg::style`] in its head.
    pub fn inline(&self) -> String {
        self.drawing.text(self.title, "")
    }

    /// A standalone SVG file.
    pub fn standalone(&self) -> String {
        let style = format!("<style>{}</style>", svg::style());
        let text = self.drawing.text(self.title, &style);
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{text}\n")
    }
}

/// All plots for which there is data.
pub fn all(view: &View) -> Vec<Plot> {
    [loss_curves::plot(view), losses::plot(view), size_vs_loss::plot(view), parameters::plot(view)]
        .into_iter()
        .flatten()
        .collect()
}
