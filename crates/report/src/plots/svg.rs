//! Shapes, axes and the colours of all plots.

use std::fmt::Write as _;

use crate::escape;

/// Colours that most colour-blind readers can distinguish: class, on light, on dark.
const SERIES: [(&str, &str, &str); 13] = [
    ("s-ref", "#3f4854", "#d4dae3"),
    ("s-win", "#0b61d8", "#5aa2ff"),
    ("s-round-0", "#7cb4e8", "#3f6fa8"),
    ("s-round-1", "#4f9db8", "#3d8ea6"),
    ("s-round-2", "#8f8fd8", "#7f7fd0"),
    ("s-round-3", "#5f7fa8", "#6f8fb8"),
    ("s-ctl-0", "#d9650a", "#ff9142"),
    ("s-ctl-1", "#b8338a", "#ee79c4"),
    ("s-ctl-2", "#a87400", "#e0b03c"),
    ("s-arm-0", "#0f8a6d", "#3ecfa8"),
    ("s-arm-1", "#6b8f14", "#a9cc4f"),
    ("s-arm-2", "#8a5a2b", "#cf9a63"),
    ("s-arm-3", "#5d3fb0", "#a68cf0"),
];

/// Colours of everything else: selector, declaration with `$` for the colour, on light, on dark.
const INKS: [(&str, &str, &str, &str); 6] = [
    (".plot .paper", "fill:$", "#ffffff", "#14181f"),
    (".plot text", "fill:$", "#1c232d", "#e4e9f0"),
    (".plot text.quiet", "fill:$", "#5c6773", "#97a3b2"),
    (".plot .grid", "stroke:$", "#e6e9ee", "#29303b"),
    (".plot .axis", "stroke:$", "#98a2ae", "#596575"),
    (".plot .band", "fill:$", "#3f4854", "#d4dae3"),
];

const SHAPES: &str = "\
.plot text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}\
.plot text.head{font-size:13px;font-weight:600}\
.plot text.small{font-size:11px}\
.plot .grid,.plot .axis{stroke-width:1;fill:none}\
.plot .axis.dash{stroke-dasharray:4 3}\
.plot .band{fill-opacity:.10}\
.plot .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}\
.plot .line.s-win{stroke-width:2.6}\
.plot .line.faint{stroke-width:1;stroke-opacity:.28}\
.plot .line.whisker{stroke-width:1.6}\
.plot .line.thin{stroke-width:1;stroke-opacity:.55}\
";

/// The style sheet of all plots. It only uses plain colours, which every SVG reader supports.
pub fn style() -> String {
    let mut css = SHAPES.to_owned();
    let mut dark = String::new();
    for (selector, rule, light, on_dark) in INKS {
        let _ = write!(css, "{selector}{{{}}}", rule.replace('$', light));
        let _ = write!(dark, "{selector}{{{}}}", rule.replace('$', on_dark));
    }
    for (class, light, on_dark) in SERIES {
        for (css, colour) in [(&mut css, light), (&mut dark, on_dark)] {
            let _ = write!(
                css,
                ".plot .line.{class}{{stroke:{colour}}}.plot .fill.{class},.plot text.{class}{{fill:{colour}}}"
            );
        }
    }
    format!("{css}@media (prefers-color-scheme:dark){{{dark}}}")
}

/// The style of the coloured marks before model names in the page's tables.
pub fn chip_style() -> String {
    let mut css = String::new();
    let mut dark = String::new();
    for (class, light, on_dark) in SERIES {
        let _ = write!(css, ".chip.{class}{{background:{light}}}");
        let _ = write!(dark, ".chip.{class}{{background:{on_dark}}}");
    }
    format!("{css}@media (prefers-color-scheme:dark){{{dark}}}")
}

/// A drawing of a fixed size, in pixels at scale 1.
#[derive(Debug)]
pub struct Svg {
    width: f64,
    height: f64,
    body: String,
}

/// Position of text relative to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// Right of the point.
    Start,
    /// Centred on the point.
    Middle,
    /// Left of the point.
    End,
}

impl Svg {
    /// An empty drawing.
    pub fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    /// The SVG element, with `head` after its title.
    pub fn text(&self, title: &str, head: &str) -> String {
        let (w, h) = (self.width, self.height);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" \
             height=\"{h}\" role=\"img\">\n<title>{}</title>{head}\n<rect class=\"paper\" width=\"{w}\" height=\"{h}\" \
             rx=\"8\"/>\n{}</svg>",
            escape::markup(title),
            self.body
        )
    }

    /// Draws a straight line.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let _ = writeln!(
            self.body,
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    /// Draws a line through points.
    pub fn path(&mut self, class: &str, points: &[(f64, f64)]) {
        if points.len() < 2 {
            return;
        }
        let mut d = String::with_capacity(points.len() * 12);
        for (i, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" });
        }
        let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{d}\"/>");
    }

    /// Draws a dot. Browsers show `title` as a tooltip.
    pub fn dot(&mut self, class: &str, at: (f64, f64), radius: f64, title: &str) {
        let _ = writeln!(
            self.body,
            "<circle class=\"fill {class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\"><title>{}</title></circle>",
            at.0,
            at.1,
            escape::markup(title)
        );
    }

    /// Draws a rectangle with its upper left corner at `at`.
    pub fn rect(&mut self, class: &str, at: (f64, f64), size: (f64, f64)) {
        let _ = writeln!(
            self.body,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"/>",
            at.0,
            at.1,
            size.0.max(0.0),
            size.1.max(0.0)
        );
    }

    /// Draws one line of text on its baseline.
    pub fn label(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = writeln!(
            self.body,
            "<text class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            at.0,
            at.1,
            escape::markup(text)
        );
    }

    /// Draws one line of text that reads upwards, centred on its point.
    pub fn label_upwards(&mut self, at: (f64, f64), text: &str) {
        let _ = writeln!(
            self.body,
            "<text class=\"quiet\" transform=\"translate({:.1} {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            at.0,
            at.1,
            escape::markup(text)
        );
    }

    /// Clips everything that `draw` draws to the frame. `id` must be unique in the page.
    pub fn clipped(&mut self, id: &str, frame: &Frame, draw: impl FnOnce(&mut Self)) {
        let _ = writeln!(
            self.body,
            "<clipPath id=\"{id}\"><rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/></clipPath>\n<g \
             clip-path=\"url(#{id})\">",
            frame.x.pixels.0,
            frame.y.pixels.1,
            frame.x.pixels.1 - frame.x.pixels.0,
            frame.y.pixels.0 - frame.y.pixels.1
        );
        draw(self);
        self.body.push_str("</g>\n");
    }
}

/// A linear axis, which maps values to pixels.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    /// First and last value.
    pub values: (f64, f64),
    /// Pixels of the first and last value.
    pub pixels: (f64, f64),
}

impl Axis {
    /// An axis over `values`, widened if they are all equal.
    pub fn new(values: (f64, f64), pixels: (f64, f64)) -> Self {
        let (low, high) = values;
        let values = if high > low { values } else { (low - 0.5, low + 0.5) };
        Self { values, pixels }
    }

    /// The pixel of a value.
    pub fn at(&self, value: f64) -> f64 {
        let share = (value - self.values.0) / (self.values.1 - self.values.0);
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    /// About `n` round values, and the number of decimals they need.
    pub fn ticks(&self, n: usize) -> (Vec<f64>, usize) {
        let (low, high) = self.values;
        let raw = (high - low) / n.max(1) as f64;
        let magnitude = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * magnitude).into_iter().find(|s| *s >= raw * 0.999).unwrap_or(raw);
        let first = (low / step - 1e-9).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        let decimals = (-(step.log10() + 1e-9).floor()).max(0.0) as usize;
        ((first..=last).map(|i| i as f64 * step).collect(), decimals)
    }
}

/// A pair of axes.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// The horizontal axis, left to right.
    pub x: Axis,
    /// The vertical axis, bottom to top.
    pub y: Axis,
}

impl Frame {
    /// The pixels of a point.
    pub fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (self.x.at(x), self.y.at(y))
    }

    /// Draws grid lines and tick labels of the y axis, and the line at its foot.
    pub fn draw_y(&self, svg: &mut Svg, n: usize) {
        let (left, right) = self.x.pixels;
        let (ticks, decimals) = self.y.ticks(n);
        for tick in ticks {
            let y = self.y.at(tick);
            svg.line("grid", (left, y), (right, y));
            svg.label("quiet small", (left - 6.0, y + 4.0), Anchor::End, &format!("{tick:.decimals$}"));
        }
        svg.line("axis", (left, self.y.pixels.0), (right, self.y.pixels.0));
    }

    /// Draws ticks and their labels under the x axis.
    pub fn draw_x(&self, svg: &mut Svg, n: usize, name: impl Fn(f64, usize) -> String) {
        let foot = self.y.pixels.0;
        let (ticks, decimals) = self.x.ticks(n);
        for tick in ticks {
            let x = self.x.at(tick);
            svg.line("axis", (x, foot), (x, foot + 4.0));
            svg.label("quiet small", (x, foot + 17.0), Anchor::Middle, &name(tick, decimals));
        }
    }
}

/// Cuts `text` to about `pixels` at the plots' font size.
pub fn fit(text: &str, pixels: f64) -> String {
    let most = (pixels / GLYPH) as usize;
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(most.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// Generous estimate of the average glyph width at 12 px.
pub const GLYPH: f64 = 6.6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis::new((0.0, 400.0), (0.0, 100.0));
        assert_eq!(axis.ticks(5), (vec![0.0, 100.0, 200.0, 300.0, 400.0], 0));
        let axis = Axis::new((4.113, 4.391), (100.0, 0.0));
        let (ticks, decimals) = axis.ticks(5);
        assert_eq!(decimals, 1);
        assert!(ticks.iter().all(|t| (4.113..=4.391).contains(t)), "{ticks:?}");
        let axis = Axis::new((2.0, 2.0), (0.0, 10.0));
        assert_eq!(axis.at(2.0), 5.0);
        assert!(axis.ticks(4).0.len() >= 3);
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(fit("short", 100.0), "short");
        assert_eq!(fit("a rather long name", 66.0), "a rather …");
    }
}
