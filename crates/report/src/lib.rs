//! The report of a run, rendered from [`ReportData`] alone.
//!
//! Owns: the content of a report ([`view`]), its tables, plots and number formats ([`tables`],
//! [`plots`], [`numbers`]), and its pages ([`html`], [`markdown`]). Everything except [`write`] is
//! a pure function of the data.
//!
//! Entry point: [`render`].
//!
//! Must never: talk to a server.

pub mod escape;
pub mod html;
pub mod markdown;
pub mod numbers;
pub mod plots;
pub mod tables;
pub mod caveats;
pub mod commands;
pub mod verdict;
pub mod view;

use std::path::{Path, PathBuf};

use inheritune_domain::report_data::ReportData;

use view::View;

/// One file of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportFile {
    /// Name of the file in the report's folder.
    pub name: &'static str,
    /// Content of the file.
    pub text: String,
}

/// Renders the files of the report. `index.html` does not need the other files.
pub fn render(data: &ReportData) -> Vec<ReportFile> {
    let view = View::new(data);
    let plots = plots::all(&view);
    let mut files = vec![
        ReportFile { name: "index.html", text: html::page(&view, &plots) },
        ReportFile { name: "report.md", text: markdown::page(&view, &plots) },
    ];
    files.extend(plots.into_iter().map(|plot| ReportFile { name: plot.file, text: plot.standalone() }));
    files
}

/// Writes the report into `dir`, which is created if missing, and returns the paths. Each file is
/// replaced atomically.
///
/// # Errors
/// A file or folder cannot be written.
pub fn write(data: &ReportData, dir: &Path) -> Result<Vec<PathBuf>, WriteError> {
    std::fs::create_dir_all(dir).map_err(|source| WriteError { path: dir.to_owned(), source })?;
    render(data)
        .into_iter()
        .map(|file| {
            let path = dir.join(file.name);
            let part = dir.join(format!(".{}.part", file.name));
            std::fs::write(&part, file.text)
                .and_then(|()| std::fs::rename(&part, &path))
                .map_err(|source| WriteError { path: path.clone(), source })?;
            Ok(path)
        })
        .collect()
}

/// A file of the report could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct WriteError {
    /// Path of the file or folder.
    pub path: PathBuf,
    /// The error of the file system.
    pub source: std::io::Error,
}
