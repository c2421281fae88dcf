//! Facts about the corpus that a tokenize job read, so that users can check that it is the one they
//! meant.

use serde::{Deserialize, Serialize};

/// How the files of a corpus were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct CorpusFacts {
    /// Its files by kind.
    pub files: Vec<FilesOfKind>,
    /// Files in its folders that were skipped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<FilesLeftOut>,
    /// Rows whose text is null or empty.
    #[serde(default)]
    pub rows_without_text: u64,
    /// Rows that could not be used and were skipped, at most `max_bad_rows`.
    #[serde(default)]
    pub bad_rows: u64,
    /// Where the first bad row is, and what is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_bad_row: Option<String>,
    /// Places where a text had to be cut without a token boundary. Token ids there may differ from
    /// those of the whole text.
    #[serde(default)]
    pub forced_cuts: u64,
}

/// Files of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesOfKind {
    /// The kind: `JSON lines in gzip`.
    pub kind: String,
    /// Number of files.
    pub files: u64,
    /// Names of the first files.
    pub names: Vec<String>,
}

/// Files that were skipped for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesLeftOut {
    /// The reason: `documentation`.
    pub reason: String,
    /// Number of files.
    pub files: u64,
    /// Names of the first files.
    pub names: Vec<String>,
}

impl CorpusFacts {
    /// Returns a one-line summary: `1234 documents from 3 files (2 JSON lines in gzip, 1 Parquet);
    /// files left out: 1 documentation (README.md)`.
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
            text.push_str(&format!("; {} left out, first: {first}", count(self.bad_rows, "bad row")));
        }
        if self.forced_cuts > 0 {
            text.push_str(&format!(
                "; cut {} without a word boundary, where token ids may differ from those of the whole text",
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
            (2, Some("a.json.gz: line 3: is not an object".to_owned()), 2);
        assert_eq!(
            facts.summary(70),
            "70 documents from 3 files (1 text, 2 JSON lines in gzip); files left out: 4 hidden (.a, .b, .c, ...); 1 row \
             without text; 2 bad rows left out, first: a.json.gz: line 3: is not an object; cut 2 stretches without a word \
             boundary, where token ids may differ from those of the whole text"
        );
    }
}
