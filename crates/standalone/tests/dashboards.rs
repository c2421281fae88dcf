//! Runs every query of every dashboard, as the dashboards' role, on the database of a real run.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use inheritune_runtime::telemetry::metric::METRICS;
use serde_json::Value;
use support::{Server, root, show, write_recipe};

/// Panels that stay empty after a run without benchmarks, failures and waiting jobs.
const MAY_BE_EMPTY: [&str; 12] = [
    "failures/How attempts end",
    "failures/Failed runs",
    "failures/Failed jobs",
    "failures/Failed attempts and expired leases",
    "failures/Released attempts",
    "failures/Evaluation units that cannot be measured",
    "queue/The queue now",
    "queue/Running jobs",
    "scores/Evaluations in units",
    "scores/variable run",
    "workers/Shares of evaluations",
    "training/Model FLOPs utilization",
];

struct Query {
    /// `dashboard/panel`.
    place: String,
    sql: String,
    is_time_series: bool,
}

fn dashboards() -> Vec<(String, Value)> {
    let files = std::fs::read_dir(root().join("deploy/grafana/dashboards")).unwrap();
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())).collect()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for (name, dashboard) in dashboards() {
        for variable in array(&dashboard["templating"]["list"]) {
            let place = format!("{name}/variable {}", variable["name"].as_str().unwrap());
            let sql = variable["query"]["rawSql"].as_str().or(variable["query"].as_str()).unwrap();
            queries.push(Query { place, sql: sql.to_owned(), is_time_series: false });
        }
        for panel in array(&dashboard["panels"]) {
            for target in array(&panel["targets"]) {
                if let Some(sql) = target["rawSql"].as_str() {
                    let place = format!("{name}/{}", panel["title"].as_str().unwrap());
                    queries.push(Query {
                        place,
                        sql: sql.to_owned(),
                        is_time_series: target["format"] == "time_series",
                    });
                }
            }
        }
    }
    queries
}

/// Expands the macros like Grafana, for the last and the next day, with every variable set to
/// "all".
fn expand(sql: &str) -> String {
    let mut sql = sql
        .replace("${run:sqlstring}", "'*'")
        .replace("${task:sqlstring}", "'*'")
        .replace("$__timeFrom()", "(now() - interval '1 day')")
        .replace("$__timeTo()", "(now() + interval '1 day')");
    for (opening, make) in [
        (
            "$__timeFilter(",
            (|column| format!("{column} BETWEEN now() - interval '1 day' AND now() + interval '1 day'"))
                as fn(&str) -> String,
        ),
        ("$__timeGroup(", |arguments| {
            format!("floor(extract(epoch FROM {}) / 60) * 60", arguments.split(',').next().unwrap())
        }),
    ] {
        while let Some(start) = sql.find(opening) {
            let inside = start + opening.len();
            let end = inside + sql[inside..].find(')').unwrap();
            sql = format!("{}{}{}", &sql[..start], make(&sql[inside..end]), &sql[end + 1..]);
        }
    }
    assert!(!sql.contains("$__") && !sql.contains("${"), "unknown macro: {sql}");
    sql
}

#[test]
fn every_query_works_on_a_real_run() {
    if Command::new("psql").arg("--version").output().is_err() {
        return println!("skipped: psql is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let recipe = write_recipe(dir.path(), "dashboards");
    let server = Server::start(dir.path());
    server.ok(&["run", "create", recipe.to_str().unwrap(), "--watch"]);
    let log = std::fs::read_to_string(dir.path().join("server.log")).unwrap();
    let url = log.split("postgres://").nth(1).unwrap().split(['"', ' ', '\n']).next().unwrap();
    let url = format!("postgres://{url}");

    let queries = queries();
    assert!(queries.len() > 50, "only {} queries were found", queries.len());
    let mut empty = Vec::new();
    for query in &queries {
        assert!(!query.sql.contains("public."), "{}: reads a table", query.place);
        let output = Command::new("psql")
            .args(["-X", "-q", "--csv", "-v", "ON_ERROR_STOP=1", &url, "-c", "SET ROLE inheritune_dashboard", "-c"])
            .arg(expand(&query.sql))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {}\n{}", query.place, show(&output), query.sql);
        let table = String::from_utf8(output.stdout).unwrap();
        let mut lines = table.lines();
        let columns: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
        assert!(!query.is_time_series || columns.contains(&"time"), "{}: no column `time` in {columns:?}", query.place);
        if lines.next().is_none() && !MAY_BE_EMPTY.contains(&query.place.as_str()) {
            empty.push(&query.place);
        }
    }
    assert!(empty.is_empty(), "no rows after a real run: {empty:#?}");
}

#[test]
fn expressions_and_alerts_name_metrics_that_there_are() {
    let alerts = std::fs::read_to_string(root().join("deploy/prometheus/alerts.yml")).unwrap();
    let boards = dashboards();
    let expressions =
        boards.iter().flat_map(|(_, dashboard)| array(&dashboard["panels"])).flat_map(|panel| array(&panel["targets"]));
    let mut texts: Vec<&str> = expressions.filter_map(|target| target["expr"].as_str()).collect();
    assert!(texts.len() > 10, "only {} expressions were found", texts.len());
    texts.extend(alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")));
    for text in texts {
        for name in text
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .filter(|name| name.starts_with("inheritune_"))
        {
            let bare = name.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count");
            assert!(
                METRICS.iter().any(|(known, _)| *known == name || *known == bare),
                "{name} is not a known metric: {text}"
            );
        }
    }
    // Every alert has an existing runbook.
    let operations = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let headings: Vec<String> = operations
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .collect();
    for runbook in alerts.lines().filter_map(|line| line.trim().strip_prefix("runbook: docs/operations.md#")) {
        assert!(headings.iter().any(|heading| heading == runbook), "no section {runbook} in docs/operations.md");
    }
    assert_eq!(alerts.matches("alert: ").count(), alerts.matches("runbook: docs/operations.md#").count());
}

#[test]
fn alerts_fire_when_they_must() {
    if Command::new("promtool").arg("--version").output().is_err() {
        return println!("skipped: promtool is not installed (Debian's package prometheus)");
    }
    let folder = root().join("deploy/prometheus");
    for arguments in [["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]] {
        let output = Command::new("promtool").args(arguments).current_dir(&folder).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", show(&output));
    }
}
