//! What a tokenize job read, so that people can see whether it is what they meant.

use serde::{Deserialize, Serialize};

/// What a corpus was read as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct CorpusFacts {
    /// Its files by kind.
    pub files: Vec<FilesOfKind>,
    /// Files of its folders that were left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<FilesLeftOut>,
    /// Rows whose text is null or empty.
    #[serde(default)]
    pub rows_without_text: u64,
    /// Rows that could not be used and were left out, at most `max_bad_rows`.
    #[serde(default)]
    pub bad_rows: u64,
    /// Where the first of them is, and what is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_bad_row: Option<String>,
    /// Places where a text without any boundary of tokens was cut all the same: ids there may be others than the whole
    /// text's.
    #[serde(default)]
    pub forced_cuts: u64,
}

/// Files of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesOfKind {
    /// `JSON lines in gzip`.
    pub kind: String,
    /// How many.
    pub files: u64,
    /// The first ones' names.
    pub names: Vec<String>,
}

/// Files that were left out for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesLeftOut {
    /// `documentation`.
    pub reason: String,
    /// How many.
    pub files: u64,
    /// The first ones' names.
    pub names: Vec<String>,
}

impl CorpusFacts {
    /// `1234 documents from 3 files (2 JSON lines in gzip, 1 Parquet); left out: 1 documentation (README.md)`
    pub fn summary(&self, documents: u64) -> String {
        let total: u64 = self.files.iter().map(|kind| kind.files).sum();
        let kinds: Vec<String> = self.files.iter().map(|kind| format!("{} {}", kind.files, kind.kind)).collect();
        let mut text = format!("{} from {} ({})", count(documents, "document"), count(total, "file"), kinds.join(", "));
        if !self.left_out.is_empty() {
            let left_out = self.left_out.iter().map(|files| {
                let more = if files.files > files.names.len() as u64 { ", ..." } else { "" };
                format!("{} {} ({}{more})", files.files, files.reason, files.names.join(", "))
            });
            text.push_str(&format!("; files left out: {}", left_out.collect::<Vec<_>>().join(", ")));
        }
        if self.rows_without_text > 0 {
            text.push_str(&format!("; {} without text", count(self.rows_without_text, "row")));
        }
        if let Some(first) = &self.first_bad_row {
            text.push_str(&format!("; {} left out, the first: {first}", count(self.bad_rows, "bad row")));
        }
        if self.forced_cuts > 0 {
            text.push_str(&format!(
                "; {} without a boundary of words cut, where ids may differ from the whole text's",
                count(self.forced_cuts, "stretch")
            ));
        }
        text
    }
}

fn count(n: u64, what: &str) -> String {
    let plural = match (n, what.ends_with("ch")) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{n} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d1_a_corpus_is_summed_up() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let files = |kind: &str, files, of: &[&str]| FilesOfKind { kind: kind.to_owned(), files, names: names(of) };
        let mut facts = CorpusFacts { files: vec![files("text", 1, &["a.txt"])], ..CorpusFacts::default() };
        assert_eq!(facts.summary(1), "1 document from 1 file (1 text)");
        facts.files.push(files("JSON lines in gzip", 2, &["a.json.gz", "b.json.gz"]));
        let hidden = FilesLeftOut { reason: "hidden".to_owned(), files: 4, names: names(&[".a", ".b", ".c"]) };
        facts.left_out.push(hidden);
        facts.rows_without_text = 1;
        (facts.bad_rows, facts.first_bad_row, facts.forced_cuts) =
            (2, Some("a.json.gz: line 3: is no object".to_owned()), 2);
        assert_eq!(
            facts.summary(70),
            "70 documents from 3 files (1 text, 2 JSON lines in gzip); files left out: 4 hidden (.a, .b, .c, ...); 1 row \
             without text; 2 bad rows left out, the first: a.json.gz: line 3: is no object; 2 stretches without a boundary of \
             words cut, where ids may differ from the whole text's"
        );
    }
}
