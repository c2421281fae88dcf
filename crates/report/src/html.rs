//! The report as one self-contained HTML page, without scripts.

use std::fmt::Write as _;

use super::escape::markup;
use super::numbers;
use super::plots::{Plot, svg};
use super::tables::{self, Align, Table};
use super::verdict::Verdict;
use super::view::{Role, View};

const STYLE: &str = include_str!("html/style.css");

/// The complete page.
pub fn page(view: &View, plots: &[Plot]) -> String {
    let mut body = String::new();
    header(&mut body, view);
    section(&mut body, "models", "The models", |out| {
        let table = tables::models(view);
        if table.rows.is_empty() {
            out.push_str("<p>No models yet.</p>");
        } else {
            table_html(out, &table);
            let _ = write!(out, "<p class=\"caption\">{}</p>", markup(tables::MODELS_CAPTION));
        }
    });
    for plot in plots {
        section(&mut body, plot.file.trim_end_matches(".svg"), plot.title, |out| {
            let _ = write!(out, "<figure>{}<figcaption>{}</figcaption></figure>", plot.inline(), markup(&plot.caption));
        });
    }
    if let Some(table) = tables::repetition(view) {
        section(&mut body, "repetition", "Repeated passes against fresh data", |out| {
            table_html(out, &table);
            let _ = write!(out, "<p class=\"caption\">{}</p>", markup(tables::REPETITION_CAPTION));
        });
    }
    if let Some(table) = tables::benchmarks(view) {
        section(&mut body, "benchmarks", "Benchmarks", |out| {
            table_html(out, &table);
            let _ = write!(out, "<p class=\"caption\">{}</p>", markup(tables::BENCHMARKS_CAPTION));
        });
    }
    let caveats = view.caveats();
    if !caveats.is_empty() {
        section(&mut body, "caveats", "What these numbers do not show", |out| list(out, "ul", &caveats));
    }
    section(&mut body, "decisions", "Decisions", |out| decisions(out, view));
    section(&mut body, "origins", "Origin of the target's tensors", |out| origins(out, view));
    section(&mut body, "jobs", "Jobs", |out| jobs(out, view));
    section(&mut body, "next", "Next steps", |out| {
        for command in view.commands() {
            let _ = write!(out, "<p>{}</p><pre>{}</pre>", markup(command.purpose), markup(&command.code));
        }
    });
    section(&mut body, "recipe", "The recipe", |out| {
        let _ = write!(out, "<details><summary>Show</summary><pre>{}</pre></details>", markup(&recipe_toml(view)));
    });
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light \
         dark\">\n<title>{} · Inheritune</title>\n<style>{STYLE}{}{}</style>\n</head>\n<body>\n<main>\n{body}<footer>Run \
         {} · inheritune {}</footer>\n</main>\n</body>\n</html>\n",
        markup(&view.data.run.spec.name),
        svg::style(),
        svg::chip_style(),
        view.data.id,
        env!("CARGO_PKG_VERSION"),
    )
}

/// The recipe as TOML that `recipe check` accepts.
pub(super) fn recipe_toml(view: &View) -> String {
    toml::to_string_pretty(&view.data.run.spec).unwrap_or_else(|e| format!("# cannot be written as TOML: {e}"))
}

fn header(out: &mut String, view: &View) {
    let mood = match view.mood() {
        Verdict::Good => "good",
        Verdict::Neutral => "neutral",
        Verdict::Bad => "bad",
    };
    let data = view.data;
    let ended = data.finished_at.map(|at| {
        let took = numbers::duration((at - data.created_at).as_seconds_f64());
        format!(", finished after {took}")
    });
    let _ = writeln!(
        out,
        "<header class=\"{mood}\"><p class=\"kicker\">Inheritune · {} recipe · {}</p><h1>{}</h1><p \
         class=\"lead\">{}</p><p class=\"quiet\">Created {}{}</p></header>",
        match data.run.spec.recipe {
            inheritune_domain::spec::Recipe::FullData => "full-data",
            inheritune_domain::spec::Recipe::LowData => "low-data",
        },
        markup(&data.run.spec.name),
        markup(&view.headline()),
        markup(&view.summary()),
        numbers::moment(data.created_at),
        ended.unwrap_or_default(),
    );
    let cards = cards(view);
    if !cards.is_empty() {
        out.push_str("<dl class=\"cards\">");
        for (name, value, small) in cards {
            let _ = write!(
                out,
                "<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>",
                markup(name),
                markup(&value),
                markup(&small)
            );
        }
        out.push_str("</dl>\n");
    }
}

/// The cards below the headline: name, value and context.
fn cards(view: &View) -> Vec<(&'static str, String, String)> {
    let Some(winner) = view.winner() else { return Vec::new() };
    let mut cards = Vec::new();
    if let Some(layers) = winner.layers {
        let of = view.reference_layers().map(|of| format!("of the reference's {of}")).unwrap_or_default();
        cards.push(("Layers", layers.to_string(), of));
    }
    if let Some(parameters) = winner.parameters {
        let share = view.parameter_share().map(|s| format!("{} of the reference's", numbers::percent(s)));
        cards.push(("Parameters", numbers::short(parameters as f64), share.unwrap_or_default()));
    }
    if let Some(validation) = winner.validation {
        let error = validation.stderr.map(|e| format!("± {e:.4} nats")).unwrap_or_default();
        cards.push(("Validation loss", numbers::loss(validation.value), error));
    }
    if let Some(difference) = winner.difference {
        let note = if difference.is_noise() { "nats, within the noise" } else { "nats" };
        cards.push(("vs. reference", numbers::signed(difference.value), note.to_owned()));
    }
    if let Some(tokens) = winner.tokens {
        let epochs = winner.epochs.map(|e| format!("{e:.2} epochs")).unwrap_or_default();
        cards.push(("Tokens", numbers::short(tokens as f64), epochs));
    }
    cards
}

fn section(out: &mut String, id: &str, title: &str, fill: impl FnOnce(&mut String)) {
    let _ = writeln!(out, "<section id=\"{id}\"><h2>{}</h2>", markup(title));
    fill(out);
    out.push_str("\n</section>\n");
}

fn list(out: &mut String, tag: &str, items: &[String]) {
    let _ = write!(out, "<{tag}>");
    for item in items {
        let _ = write!(out, "<li>{}</li>", code_spans(&markup(item)));
    }
    let _ = write!(out, "</{tag}>");
}

/// Converts `` `x` `` to a `<code>` element in text that is already escaped.
fn code_spans(escaped: &str) -> String {
    let mut out = String::with_capacity(escaped.len());
    let mut parts = escaped.split('`').peekable();
    let mut inside = false;
    while let Some(part) = parts.next() {
        let closed = parts.peek().is_some();
        match (inside, closed) {
            (true, true) => {
                let _ = write!(out, "<code>{part}</code>");
            }
            (true, false) => {
                let _ = write!(out, "`{part}");
            }
            (false, _) => out.push_str(part),
        }
        inside = !inside;
    }
    out
}

fn table_html(out: &mut String, table: &Table) {
    out.push_str("<div class=\"scroll\"><table><thead><tr>");
    let class = |align: Align| match align {
        Align::Left => "",
        Align::Right => " class=\"num\"",
    };
    for column in &table.columns {
        let _ = write!(out, "<th{}>{}</th>", class(column.align), markup(column.head));
    }
    out.push_str("</tr></thead><tbody>");
    for row in &table.rows {
        out.push_str(match row.role {
            Some(Role::Winner) => "<tr class=\"winner\">",
            Some(Role::Reference | Role::Round | Role::Control | Role::Arm) | None => "<tr>",
        });
        for (i, (cell, column)) in row.cells.iter().zip(&table.columns).enumerate() {
            let _ = write!(out, "<td{}>", class(column.align));
            if i == 0 && !row.class.is_empty() {
                let _ = write!(out, "<span class=\"chip {}\"></span>", row.class);
            }
            let _ = write!(out, "{}</td>", markup(cell));
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
}

fn decisions(out: &mut String, view: &View) {
    if view.data.notes.is_empty() {
        out.push_str("<p>Nothing yet.</p>");
        return;
    }
    out.push_str("<ol class=\"log\">");
    for (at, note) in &view.data.notes {
        let _ = write!(out, "<li><time>{}</time> {}</li>", numbers::clock(*at), markup(note));
    }
    out.push_str("</ol>");
}

fn origins(out: &mut String, view: &View) {
    if view.data.origins.is_empty() {
        out.push_str("<p>There is no target yet.</p>");
        return;
    }
    let _ = write!(out, "<p>{} tensors: {}.</p>", view.data.origins.len(), markup(&tables::origin_counts(view)));
    if let Some(table) = tables::first_losses(view) {
        let _ = write!(out, "<p>{}</p>", markup(&view.first_loss_note()));
        table_html(out, &table);
    }
    out.push_str("<details><summary>Every tensor</summary>");
    table_html(out, &tables::origins(view));
    out.push_str("</details>");
}

/// The table of jobs, with a bar for each on a common timeline.
fn jobs(out: &mut String, view: &View) {
    let data = view.data;
    if data.jobs.is_empty() {
        out.push_str("<p>None yet.</p>");
        return;
    }
    let seconds = |at: time::OffsetDateTime| (at - data.created_at).as_seconds_f64().max(0.0);
    let end = data.jobs.iter().filter_map(|job| job.finished_at.or(job.started_at)).map(seconds).fold(1.0, f64::max);
    let table = tables::jobs(view);
    out.push_str("<div class=\"scroll\"><table><thead><tr>");
    for column in &table.columns {
        let class = if column.align == Align::Right { " class=\"num\"" } else { "" };
        let _ = write!(out, "<th{class}>{}</th>", markup(column.head));
    }
    out.push_str("<th class=\"lane\"></th></tr></thead><tbody>");
    for (job, row) in data.jobs.iter().zip(&table.rows) {
        out.push_str("<tr>");
        for (cell, column) in row.cells.iter().zip(&table.columns) {
            let class = if column.align == Align::Right { " class=\"num\"" } else { "" };
            let _ = write!(out, "<td{class}>{}</td>", markup(cell));
        }
        out.push_str("<td class=\"lane\">");
        if let Some(start) = job.started_at {
            let from = seconds(start) / end * 100.0;
            let to = job.finished_at.map_or(100.0, |at| seconds(at) / end * 100.0);
            let _ = write!(out, "<i style=\"left:{from:.2}%;width:{:.2}%\"></i>", (to - from).max(0.4));
        }
        out.push_str("</td></tr>");
    }
    out.push_str("</tbody></table></div>");
    if data.jobs.iter().any(|job| job.attempts > 1) {
        out.push_str(
            "<p class=\"caption\">More than one attempt means that the worker was stopped, paused or lost, and the job \
             resumed from its last checkpoint.</p>",
        );
    }
}
