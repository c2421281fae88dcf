//! Compares reports with golden files, byte for byte. After an intended change, update them with
//! `UPDATE_EXPECT=1 cargo test --workspace --test report`.
#![allow(clippy::unwrap_used)]

mod fixtures;

use expect_test::expect_file;
use inheritune_domain::report_data::ReportData;

/// The file `name` of a report, the same in every version of this program.
fn file(data: &ReportData, name: &str) -> String {
    let file = inheritune_report::render(data).into_iter().find(|file| file.name == name).unwrap();
    file.text.replace(concat!("inheritune ", env!("CARGO_PKG_VERSION")), "inheritune VERSION")
}

#[test]
fn the_full_data_report_is_as_agreed() {
    let data = fixtures::full_data();
    expect_file!["golden/full-data.md"].assert_eq(&file(&data, "report.md"));
    expect_file!["golden/full-data.html"].assert_eq(&file(&data, "index.html"));
    expect_file!["golden/loss-curves.svg"].assert_eq(&file(&data, "loss-curves.svg"));
}

#[test]
fn the_low_data_report_is_as_agreed() {
    let data = fixtures::low_data();
    expect_file!["golden/low-data.md"].assert_eq(&file(&data, "report.md"));
    expect_file!["golden/low-data.html"].assert_eq(&file(&data, "index.html"));
}

#[test]
fn a_failed_run_has_a_report_too() {
    let data = fixtures::failed();
    expect_file!["golden/failed.md"].assert_eq(&file(&data, "report.md"));
    assert!(inheritune_report::render(&data).iter().all(|file| !file.name.ends_with(".svg")));
}

#[test]
fn nothing_from_the_recipe_becomes_markup() {
    let mut data = fixtures::full_data();
    let bad = "<script>alert(1)</script>\"'&";
    data.run.spec.name = bad.to_owned();
    data.run.spec.controls[0].name = bad.to_owned();
    data.notes[0].1 = bad.to_owned();
    data.jobs[0].label = bad.to_owned();
    data.origins[0].name = bad.to_owned();
    for file in inheritune_report::render(&data) {
        if file.name != "report.md" {
            assert!(!file.text.contains("<script"), "{} contains a script", file.name);
        }
    }
}

#[test]
fn the_page_needs_nothing_else() {
    let page = file(&fixtures::full_data(), "index.html");
    for needle in ["src=", "href=", "@import", "url(http", "<script", "<link"] {
        assert!(!page.contains(needle), "the page refers to something outside: {needle}");
    }
}

#[test]
fn ids_are_unique_in_the_page() {
    for data in [fixtures::full_data(), fixtures::low_data()] {
        let page = file(&data, "index.html");
        let mut ids: Vec<&str> = page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(all, ids.len(), "an id is used twice: {ids:?}");
    }
}

#[test]
fn the_recipe_in_the_report_is_a_recipe() {
    for data in [fixtures::full_data(), fixtures::low_data()] {
        let markdown = file(&data, "report.md");
        let toml = markdown.rsplit("```toml\n").next().unwrap().trim_end().trim_end_matches('`');
        let spec: inheritune_domain::spec::RunSpec = toml::from_str(toml).unwrap();
        assert_eq!(spec, data.run.spec);
    }
}

#[test]
fn files_are_written_whole() {
    let dir = tempfile::tempdir().unwrap();
    let data = fixtures::full_data();
    let out = dir.path().join("report");
    let paths = inheritune_report::write(&data, &out).unwrap();
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), paths.len());
    for (path, file) in paths.iter().zip(inheritune_report::render(&data)) {
        assert_eq!(std::fs::read_to_string(path).unwrap(), file.text);
    }
}
