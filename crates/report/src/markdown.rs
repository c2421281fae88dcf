//! The report as Markdown, for pull requests and terminals.

use std::fmt::Write as _;

use super::escape::markdown_cell;
use super::html::recipe_toml;
use super::numbers;
use super::plots::Plot;
use super::tables::{self, Align, Table};
use super::view::View;

/// The complete file.
pub fn page(view: &View, plots: &[Plot]) -> String {
    let data = view.data;
    let mut out = format!(
        "# {}\n\n{}\n\nRun `{}` of recipe {}, created {}.\n\n## The models\n\n",
        markdown_cell(&view.headline()),
        markdown_cell(&view.summary()),
        data.id,
        markdown_cell(&data.run.spec.name),
        numbers::moment(data.created_at),
    );
    table(&mut out, &tables::models(view));
    if !view.rows.is_empty() {
        let _ = write!(out, "{}\n\n", tables::MODELS_CAPTION);
    }
    for plot in plots {
        let _ = write!(out, "## {}\n\n![{}]({})\n\n{}\n\n", plot.title, plot.title, plot.file, plot.caption);
    }
    if let Some(repetition) = tables::repetition(view) {
        out.push_str("## Repeated passes against fresh data\n\n");
        table(&mut out, &repetition);
        let _ = write!(out, "{}\n\n", tables::REPETITION_CAPTION);
    }
    if let Some(benchmarks) = tables::benchmarks(view) {
        out.push_str("## Benchmarks\n\n");
        table(&mut out, &benchmarks);
        let _ = write!(out, "{}\n\n", tables::BENCHMARKS_CAPTION);
    }
    let caveats = view.caveats();
    if !caveats.is_empty() {
        out.push_str("## What these numbers do not show\n\n");
        for note in caveats {
            let _ = writeln!(out, "- {note}");
        }
        out.push('\n');
    }
    out.push_str("## Decisions\n\n");
    for (at, note) in &data.notes {
        let _ = writeln!(out, "- {} {}", numbers::clock(*at), markdown_cell(note));
    }
    out.push_str("\n## Origin of the target's tensors\n\n");
    if data.origins.is_empty() {
        out.push_str("There is no target yet.\n\n");
    }
    if let Some(losses) = tables::first_losses(view) {
        let _ = write!(out, "{}\n\n", view.first_loss_note());
        table(&mut out, &losses);
    }
    if !data.origins.is_empty() {
        let _ = write!(out, "<details><summary>{}</summary>\n\n", tables::origin_counts(view));
        table(&mut out, &tables::origins(view));
        out.push_str("</details>\n\n");
    }
    out.push_str("## Jobs\n\n");
    table(&mut out, &tables::jobs(view));
    out.push_str("## Next steps\n\n");
    for command in view.commands() {
        let _ = write!(out, "{}:\n\n```\n{}\n```\n\n", command.purpose, command.code);
    }
    let toml = recipe_toml(view);
    let fence = fence_around(&toml);
    let _ = write!(out, "## The recipe\n\n{fence}toml\n{toml}{fence}\n");
    out
}

fn table(out: &mut String, table: &Table) {
    if table.rows.is_empty() {
        out.push_str("Nothing yet.\n\n");
        return;
    }
    let line = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
    out.push_str(&line(&mut table.columns.iter().map(|column| column.head.to_owned())));
    out.push_str(&line(&mut table.columns.iter().map(|column| {
        match column.align {
            Align::Left => ":--",
            Align::Right => "--:",
        }
        .to_owned()
    })));
    for row in &table.rows {
        out.push_str(&line(&mut row.cells.iter().map(|cell| markdown_cell(cell))));
    }
    out.push('\n');
}

/// A code fence that is longer than any run of backticks in `text`.
fn fence_around(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(longest.max(2) + 1)
}
