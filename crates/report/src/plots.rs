//! The report's pictures, as hand-written SVG: no fonts are rasterised, no script is needed.

mod loss_curves;
mod losses;
mod parameters;
mod size_vs_loss;
pub(super) mod svg;

use super::view::View;
use svg::Svg;

/// One picture.
#[derive(Debug)]
pub struct Plot {
    /// Name of its file.
    pub file: &'static str,
    /// Its title.
    pub title: &'static str,
    /// How to read it.
    pub caption: String,
    drawing: Svg,
}

impl Plot {
    /// For a page that has [`svg::style`] in its head.
    pub fn inline(&self) -> String {
        self.drawing.text(self.title, "")
    }

    /// A file of its own.
    pub fn standalone(&self) -> String {
        let style = format!("<style>{}</style>", svg::style());
        let text = self.drawing.text(self.title, &style);
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{text}\n")
    }
}

/// Every picture that there is data for.
pub fn all(view: &View) -> Vec<Plot> {
    [loss_curves::plot(view), losses::plot(view), size_vs_loss::plot(view), parameters::plot(view)]
        .into_iter()
        .flatten()
        .collect()
}
