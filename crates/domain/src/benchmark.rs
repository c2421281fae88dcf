//! The benchmarks: tasks of lm-evaluation-harness 0.4.13 under their original names, the data sets
//! they use, and their groups. The evaluator builds the prompts.

mod document;
mod mmlu;

pub use document::{AskedDocument, Question};

use crate::benchmark::mmlu::Category;
use crate::id::Sha256Digest;

/// The release of lm-evaluation-harness that the tasks are taken from.
pub const HARNESS_VERSION: &str = "0.4.13";

/// A task of lm-evaluation-harness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Benchmark {
    /// Its name in the harness: `piqa`.
    pub name: &'static str,
    /// The version of the task in the harness: `1.0`.
    pub version: &'static str,
    /// How rows become requests.
    pub prompt: Prompt,
    /// The data set it reads.
    pub dataset: Dataset,
    /// Number of rows of the whole split.
    pub rows: u32,
}

impl Benchmark {
    /// Returns the digest of all requests of the whole split, or `None` if the rows were never
    /// compared with the originals. The digest covers the context and continuation of every
    /// request, each preceded by its length in bytes (8 bytes, little-endian).
    pub fn sha256(&self) -> Option<Sha256Digest> {
        let mut lines = DIGESTS.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(name, _)| *name == self.name)?.1.parse().ok()
    }
}

/// One benchmark name and digest per line.
const DIGESTS: &str = include_str!("benchmark/digests.txt");

/// Where the rows of a benchmark are stored: `FOLDER/SPLIT.jsonl`, or the same as Parquet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dataset {
    /// The folder, relative to the folder that the user specifies.
    pub folder: &'static str,
    /// The split that is scored.
    pub split: &'static str,
    /// The Hugging Face data set that contains these rows: path and configuration.
    pub hub: &'static str,
}

/// The type of a benchmark: how its rows become requests, and how answers become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt {
    /// Winograd schemas: each reading of the pronoun, followed by the same continuation.
    Wsc273,
    /// SuperGLUE's Winograd schemas, answered with yes or no. The poster calls this task
    /// "Winograd".
    Wsc,
    /// PIQA: which of two solutions.
    Piqa,
    /// BoolQ: yes or no.
    Boolq,
    /// WinoGrande: each option, followed by the text after the blank.
    Winogrande,
    /// LogiQA: which of four.
    Logiqa,
    /// MMLU: the letter of the answer, after five examples.
    Mmlu {
        /// The subject as it appears in the prompt: `abstract algebra`.
        subject: &'static str,
    },
    /// WNLI: true or false.
    Wnli,
    /// QNLI: yes or no.
    Qnli,
    /// MNLI: true, neither or false.
    Mnli,
    /// TruthfulQA with one true answer.
    TruthfulqaMc1,
    /// TruthfulQA with several true answers: the probability assigned to the true ones.
    TruthfulqaMc2,
    /// WikiText: the perplexity of whole pages.
    Wikitext,
    /// LAMBADA: the last word.
    Lambada,
    /// ARC: which answer.
    Arc,
    /// SciQ: which of four, after a text.
    Sciq,
    /// HellaSwag: which ending.
    Hellaswag,
}

impl Prompt {
    /// Returns the names of its metrics, the main one first.
    pub fn metrics(self) -> &'static [&'static str] {
        match self {
            Self::Wsc273
            | Self::Wsc
            | Self::Boolq
            | Self::Winogrande
            | Self::Mmlu { .. }
            | Self::Wnli
            | Self::Qnli
            | Self::Mnli
            | Self::TruthfulqaMc1
            | Self::TruthfulqaMc2 => &["acc"],
            Self::Piqa | Self::Logiqa | Self::Arc | Self::Sciq | Self::Hellaswag => &["acc", "acc_norm"],
            Self::Wikitext => &["word_perplexity", "byte_perplexity", "bits_per_byte"],
            Self::Lambada => &["acc", "perplexity"],
        }
    }

    /// Returns the number of examples shown before a question. They are the first rows of the `dev`
    /// split of the data set.
    pub fn shots(self) -> usize {
        if matches!(self, Self::Mmlu { .. }) { 5 } else { 0 }
    }

    /// Returns a description of what it measures, for people.
    pub fn description(self) -> &'static str {
        match self {
            Self::Wsc273 => "Winograd schemas (273): which of two readings of a pronoun makes the rest more likely",
            Self::Wsc => "SuperGLUE WSC, the poster's \"Winograd\": does a pronoun refer to a noun, yes or no",
            Self::Piqa => "PIQA: which of two ways to reach a goal works",
            Self::Boolq => "BoolQ: a yes or no question about a passage",
            Self::Winogrande => "WinoGrande XL: which of two options fills the blank",
            Self::Logiqa => "LogiQA: a logic question about a passage, four answers",
            Self::Mmlu { .. } => "MMLU, five shots: a question on one subject, four answers",
            Self::Wnli => "GLUE WNLI: does a sentence follow from another, true or false",
            Self::Qnli => "GLUE QNLI: does a sentence answer a question, yes or no",
            Self::Mnli => "GLUE MNLI, matched: does a sentence follow from another, true, neither or false",
            Self::TruthfulqaMc1 => "TruthfulQA: the true answer among false ones",
            Self::TruthfulqaMc2 => "TruthfulQA: the probability on all true answers",
            Self::Wikitext => "WikiText-2: perplexity per word of whole pages",
            Self::Lambada => "LAMBADA: the last word of a passage, and the perplexity of that word",
            Self::Arc => "ARC: a science question, up to five answers",
            Self::Sciq => "SciQ: a science question after a supporting text, four answers",
            Self::Hellaswag => "HellaSwag: which ending continues the text best",
        }
    }
}

const fn task(
    (name, version): (&'static str, &'static str),
    prompt: Prompt,
    (folder, split, hub): (&'static str, &'static str, &'static str),
    rows: u32,
) -> Benchmark {
    Benchmark { name, version, prompt, dataset: Dataset { folder, split, hub }, rows }
}

/// Every benchmark except the subjects of MMLU.
const SINGLE: [Benchmark; 17] = [
    task(("arc_easy", "1.0"), Prompt::Arc, ("arc_easy", "test", "allenai/ai2_arc ARC-Easy"), 2376),
    task(("boolq", "2.0"), Prompt::Boolq, ("boolq", "validation", "aps/super_glue boolq"), 3270),
    task(("hellaswag", "1.0"), Prompt::Hellaswag, ("hellaswag", "validation", "Rowan/hellaswag"), 10_042),
    task(
        ("lambada_openai", "1.0"),
        Prompt::Lambada,
        ("lambada_openai", "test", "EleutherAI/lambada_openai default"),
        5153,
    ),
    task(("lambada_standard", "1.0"), Prompt::Lambada, ("lambada_standard", "test", "cimec/lambada"), 5153),
    task(("logiqa", "1.0"), Prompt::Logiqa, ("logiqa", "test", "EleutherAI/logiqa logiqa"), 651),
    task(("mnli", "1.0"), Prompt::Mnli, ("mnli", "validation_matched", "nyu-mll/glue mnli"), 9815),
    task(("piqa", "1.0"), Prompt::Piqa, ("piqa", "validation", "baber/piqa"), 1838),
    task(("qnli", "1.0"), Prompt::Qnli, ("qnli", "validation", "nyu-mll/glue qnli"), 5463),
    task(("sciq", "1.0"), Prompt::Sciq, ("sciq", "test", "allenai/sciq"), 1000),
    task(
        ("truthfulqa_mc1", "2.0"),
        Prompt::TruthfulqaMc1,
        ("truthfulqa_mc", "validation", "truthfulqa/truthful_qa multiple_choice"),
        817,
    ),
    task(
        ("truthfulqa_mc2", "3.0"),
        Prompt::TruthfulqaMc2,
        ("truthfulqa_mc", "validation", "truthfulqa/truthful_qa multiple_choice"),
        817,
    ),
    task(
        ("wikitext", "2.0"),
        Prompt::Wikitext,
        ("wikitext", "test", "EleutherAI/wikitext_document_level wikitext-2-raw-v1"),
        62,
    ),
    task(
        ("winogrande", "1.0"),
        Prompt::Winogrande,
        ("winogrande", "validation", "allenai/winogrande winogrande_xl"),
        1267,
    ),
    task(("wnli", "2.0"), Prompt::Wnli, ("wnli", "validation", "nyu-mll/glue wnli"), 71),
    task(("wsc", "1.0"), Prompt::Wsc, ("wsc", "validation", "aps/super_glue wsc.fixed"), 104),
    task(("wsc273", "1.0"), Prompt::Wsc273, ("wsc273", "test", "lighteval/winograd_wsc wsc273"), 273),
];

/// Returns every benchmark, sorted by name. Each subject of MMLU is a benchmark.
pub fn all() -> impl Iterator<Item = Benchmark> {
    let (before, after) = SINGLE.split_at(SINGLE.partition_point(|benchmark| benchmark.name < "mmlu_"));
    before.iter().copied().chain(mmlu::SUBJECTS.iter().map(mmlu::Subject::benchmark)).chain(after.iter().copied())
}

/// Returns the benchmark called `name`.
pub fn find(name: &str) -> Option<Benchmark> {
    all().find(|benchmark| benchmark.name == name)
}

/// Several benchmarks under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// A description of its members, for people.
    pub description: &'static str,
    members: Members,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Members {
    Mmlu(Option<Category>),
    Named(&'static [&'static str]),
}

/// The groups. The MMLU groups have their own score, as in the harness (version 2). The other
/// groups are only shorthands for their members.
pub const GROUPS: [Group; 7] = [
    Group {
        name: "mmlu",
        description: "MMLU, all 57 subjects, each question counted once",
        members: Members::Mmlu(None),
    },
    Group {
        name: "mmlu_humanities",
        description: "MMLU, 13 subjects",
        members: Members::Mmlu(Some(Category::Humanities)),
    },
    Group { name: "mmlu_other", description: "MMLU, 13 subjects", members: Members::Mmlu(Some(Category::Other)) },
    Group {
        name: "mmlu_social_sciences",
        description: "MMLU, 12 subjects",
        members: Members::Mmlu(Some(Category::SocialSciences)),
    },
    Group { name: "mmlu_stem", description: "MMLU, 19 subjects", members: Members::Mmlu(Some(Category::Stem)) },
    Group {
        name: "paper",
        description: "the tasks that the later version of the paper measures without further training",
        members: Members::Named(&[
            "arc_easy",
            "boolq",
            "hellaswag",
            "lambada_openai",
            "piqa",
            "sciq",
            "wikitext",
            "winogrande",
        ]),
    },
    Group {
        name: "poster",
        description: "the tasks of the poster: the nine of its Table 2, MMLU, WikiText and LAMBADA",
        members: Members::Named(&[
            "wsc",
            "piqa",
            "boolq",
            "winogrande",
            "logiqa",
            "truthfulqa_mc2",
            "mnli",
            "qnli",
            "wnli",
            "mmlu",
            "wikitext",
            "lambada_openai",
        ]),
    },
];

/// The nine tasks of the poster's Table 2, for which it reports the unweighted average.
pub const POSTER_NINE: [&str; 9] =
    ["wsc", "piqa", "boolq", "winogrande", "logiqa", "truthfulqa_mc2", "mnli", "qnli", "wnli"];

impl Group {
    /// Returns whether the group has its own score: the mean over all its questions.
    pub fn has_score(&self) -> bool {
        matches!(self.members, Members::Mmlu(_))
    }

    /// Returns its benchmarks.
    pub fn members(&self) -> Vec<Benchmark> {
        match self.members {
            Members::Mmlu(category) => mmlu::SUBJECTS
                .iter()
                .filter(|subject| category.is_none_or(|category| subject.category == category))
                .map(mmlu::Subject::benchmark)
                .collect(),
            Members::Named(names) => names.iter().flat_map(|name| select(name).unwrap_or_default()).collect(),
        }
    }
}

/// Returns the benchmark called `name`, or the members of the group called `name`.
///
/// # Errors
/// The name is unknown. The message suggests the most similar name, if there is one.
pub fn select(name: &str) -> Result<Vec<Benchmark>, String> {
    if let Some(benchmark) = find(name) {
        return Ok(vec![benchmark]);
    }
    if let Some(group) = GROUPS.iter().find(|group| group.name == name) {
        return Ok(group.members());
    }
    let names = all().map(|benchmark| benchmark.name).chain(GROUPS.iter().map(|group| group.name));
    let nearest = names.map(|known| (strsim::damerau_levenshtein(known, name), known)).min();
    Err(match nearest {
        Some((distance, known)) if distance <= 1 + name.len() / 4 => {
            format!("there is no benchmark `{name}`; did you mean `{known}`?")
        }
        _ => format!("there is no benchmark `{name}`; `inheritune eval tasks` lists them"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_in_order_and_found() {
        let names: Vec<_> = all().map(|benchmark| benchmark.name).collect();
        let digests = all().filter(|benchmark| benchmark.sha256().is_some());
        assert_eq!(digests.count(), DIGESTS.lines().count());
        assert!(names.is_sorted() && names.len() == 17 + 57, "{names:?}");
        assert!(names.iter().all(|name| find(name).unwrap().name == *name));
        assert_eq!(
            find("mmlu_high_school_us_history").unwrap().prompt,
            Prompt::Mmlu { subject: "high school us history" }
        );
    }

    #[test]
    fn groups_hold_what_the_harness_s_hold() {
        let sizes: Vec<_> = GROUPS.iter().map(|group| (group.name, group.members().len())).collect();
        let expected = [
            ("mmlu", 57),
            ("mmlu_humanities", 13),
            ("mmlu_other", 13),
            ("mmlu_social_sciences", 12),
            ("mmlu_stem", 19),
            ("paper", 8),
            ("poster", 68),
        ];
        assert_eq!(sizes, expected);
        assert_eq!(select("mmlu").unwrap().iter().map(|subject| subject.rows).sum::<u32>(), 14_042);
        let poster = select("poster").unwrap();
        assert!(POSTER_NINE.iter().all(|name| poster.iter().any(|benchmark| benchmark.name == *name)));
    }

    #[test]
    fn a_slip_is_answered_with_what_is_meant() {
        assert_eq!(select("pika").unwrap_err(), "there is no benchmark `pika`; did you mean `piqa`?");
        assert!(select("mmlu_anatomie").unwrap_err().ends_with("did you mean `mmlu_anatomy`?"));
        assert!(select("quality").unwrap_err().ends_with("lists them"));
    }
}
