//! How each benchmark turns a row into a question. Comments name the harness's file, whose
//! templates are Jinja or Python.

use inheritune_domain::benchmark::{Prompt, Question};
use serde_json::Value;

use super::Target;
use super::row::Row;
use crate::documents::wikitext;
use crate::metrics::{TextLength, is_python_space};

type Asked = (Question, Target);

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// Returns the text before every question, from the rows `shots`.
pub(super) fn preamble(prompt: Prompt, shots: &[Value]) -> Result<String, (usize, String)> {
    match prompt {
        Prompt::Mmlu { subject } => {
            let start = format!("The following are multiple choice questions (with answers) about {subject}.\n\n");
            shots.iter().enumerate().try_fold(start, |text, (number, shot)| {
                let example = || Ok(format!("{} {}\n\n", mmlu(Row(shot))?, LETTERS[Row(shot).label("answer", 4)?]));
                Ok(text + &example().map_err(|problem: String| (number, problem))?)
            })
        }
        Prompt::TruthfulqaMc1 | Prompt::TruthfulqaMc2 => {
            Ok(TRUTHFULQA.iter().map(|(question, answer)| format!("Q: {question}\nA: {answer}\n\n")).collect())
        }
        _ => Ok(String::new()),
    }
}

/// Returns a row after the harness's `process_docs`.
pub(super) fn document(prompt: Prompt, row: Value) -> Result<Value, String> {
    match prompt {
        Prompt::Wsc273 => wsc273_document(row),
        Prompt::Hellaswag => hellaswag_document(row),
        _ => Ok(row),
    }
}

/// Returns the question about a document and its target.
pub(super) fn asked(prompt: Prompt, preamble: &str, row: Row) -> Result<Asked, String> {
    match prompt {
        Prompt::Wsc273 => wsc273(row),
        Prompt::Wsc => Ok(labelled(wsc(row)?, &["no", "yes"], row.label("label", 2)?)),
        Prompt::Piqa => {
            let context = format!("Question: {}\nAnswer:", row.text("goal")?);
            Ok(by_length(context, &[row.text("sol1")?, row.text("sol2")?], row.label("label", 2)?))
        }
        Prompt::Boolq => {
            let context = format!("{}\nQuestion: {}?\nAnswer:", row.text("passage")?, row.text("question")?);
            // `google/boolq` has a boolean column `answer` instead.
            let label = if row.has("label") { "label" } else { "answer" };
            Ok(labelled(context, &["no", "yes"], row.label(label, 2)?))
        }
        Prompt::Winogrande => winogrande(row),
        Prompt::Logiqa => logiqa(row),
        Prompt::Mmlu { .. } => Ok(labelled(preamble.to_owned() + &mmlu(row)?, &LETTERS, row.label("answer", 4)?)),
        Prompt::Wnli => {
            let (first, second) = (row.text("sentence1")?, row.text("sentence2")?);
            let context = format!("{first}\nQuestion: {second} True or False?\nAnswer:");
            Ok(labelled(context, &["False", "True"], row.label("label", 2)?))
        }
        Prompt::Qnli => {
            let (question, sentence) = (row.text("question")?, row.text("sentence")?);
            let context = format!("{question}\n{sentence}\nQuestion: Does this response answer the question?\nAnswer:");
            Ok(labelled(context, &["yes", "no"], row.label("label", 2)?))
        }
        Prompt::Mnli => {
            let hypothesis = row.text("hypothesis")?.trim_matches(is_python_space);
            let stop = if hypothesis.ends_with('.') { "" } else { "." };
            let premise = row.text("premise")?;
            let context = format!("{premise}\nQuestion: {hypothesis}{stop} True, False or Neither?\nAnswer:");
            Ok(labelled(context, &["True", "Neither", "False"], row.label("label", 3)?))
        }
        Prompt::TruthfulqaMc1 => {
            let choices = row.inner("mc1_targets")?.texts("choices").map_err(within("mc1_targets"))?;
            Ok(labelled(truthfulqa(preamble, row)?, &choices, 0))
        }
        Prompt::TruthfulqaMc2 => truthfulqa_mc2(preamble, row),
        Prompt::Wikitext => {
            let page = row.text("page")?;
            let target = Target::Text(TextLength::of(page));
            Ok((Question::Text(wikitext::detokenize(page)), target))
        }
        Prompt::Lambada => lambada(row),
        Prompt::Arc => arc(row),
        Prompt::Sciq => sciq(row),
        Prompt::Hellaswag => hellaswag(row),
    }
}

/// Puts `target_delimiter` before each choice. The most likely choice is the answer.
fn labelled(context: String, choices: &[&str], gold: usize) -> Asked {
    let continuations = choices.iter().map(|choice| format!(" {choice}")).collect();
    let question = Question::Continuations { context, continuations };
    (question, Target::Choice { gold, choices: choices.len(), lengths: None })
}

/// Like [`labelled`], for benchmarks with `acc_norm`, which divides by Python's `len` of the choice
/// without the delimiter.
fn by_length(context: String, choices: &[&str], gold: usize) -> Asked {
    let lengths = Some(choices.iter().map(|choice| choice.chars().count()).collect());
    (labelled(context, choices, gold).0, Target::Choice { gold, choices: choices.len(), lengths })
}

fn within(column: &'static str) -> impl Fn(String) -> String {
    move |problem| format!("column `{column}`: {problem}")
}

/// Pronouns whose replacement gets `'s` (`tasks/wsc273/utils.py`).
const POSSESSIVE: [&str; 5] = ["my", "his", "her", "our", "their"];
/// First words of an option that are in lower case within a sentence.
const CAPITALISED: [&str; 11] = ["A", "An", "The", "She", "He", "It", "They", "My", "His", "Her", "Their"];

/// `process_doc` of `tasks/wsc273/utils.py`: adapts the options to the pronoun's place. Positions
/// count characters.
fn wsc273_document(mut row: Value) -> Result<Value, String> {
    let text = Row(&row).text("text")?.replace("  ", " ");
    let options = {
        let (pronoun, at) = wsc273_pronoun(Row(&row), &text)?;
        let characters: Vec<char> = text.chars().collect();
        // Python's index -2 or -1 counts from the end.
        let before = characters[if at >= 2 { at - 2 } else { (characters.len() + at).saturating_sub(2) }];
        let options = Row(&row).exactly("options", 2)?.into_iter().map(|option| {
            let mut option = option.to_owned();
            if POSSESSIVE.contains(&pronoun.to_lowercase().as_str()) {
                option.push_str("'s");
            }
            let first = option.split(is_python_space).find(|word| !word.is_empty()).unwrap_or_default().to_owned();
            if before != '.' && CAPITALISED.contains(&first.as_str()) {
                option = option.replace(&first, &first.to_lowercase());
            }
            option
        });
        options.collect::<Vec<_>>()
    };
    row["text"] = text.into();
    row["options"] = options.into();
    Ok(row)
}

/// Returns the pronoun and the position of its first character in `text`.
fn wsc273_pronoun<'a>(row: Row<'a>, text: &str) -> Result<(&'a str, usize), String> {
    let (pronoun, at) = (row.text("pronoun")?, row.number("pronoun_loc")?);
    let length = text.chars().count();
    if length == 0 || at.saturating_add(pronoun.chars().count()) > length {
        return Err(format!("column `pronoun_loc` is {at}, where `{pronoun}` does not fit into the text"));
    }
    Ok((pronoun, at))
}

/// `tasks/wsc273`. The continuation starts with two spaces: the delimiter, and its own.
fn wsc273(row: Row) -> Result<Asked, String> {
    let text = row.text("text")?;
    let (pronoun, at) = wsc273_pronoun(row, text)?;
    let before: String = text.chars().take(at).collect();
    let after: String = text.chars().skip(at + pronoun.chars().count()).collect();
    let contexts = row.exactly("options", 2)?.into_iter().map(|option| before.clone() + option).collect();
    let target = Target::Choice { gold: row.label("label", 2)?, choices: 2, lengths: None };
    Ok((Question::Contexts { contexts, continuation: format!(" {after}") }, target))
}

/// `tasks/super_glue/wsc/preprocess_wsc.py`.
fn wsc(row: Row) -> Result<String, String> {
    let (text, pronoun, noun) = (row.text("text")?, row.text("span2_text")?, row.text("span1_text")?);
    let words = text.split(is_python_space).filter(|word| !word.is_empty()).take(row.number("span2_index")?);
    let before = words.collect::<Vec<_>>().join(" ");
    let skipped = before.chars().count() + pronoun.chars().count() + 1;
    let after: String = text.chars().skip(skipped).collect();
    let passage = undo_tokenization(format!("{before} *{pronoun}*{after}"));
    Ok(format!(
        "Passage: {passage}\nQuestion: In the passage above, does the pronoun \"*{pronoun}*\" refer to \"*{noun}*\"?\nAnswer:"
    ))
}

/// `general_detokenize` of `lm_eval/utils.py`.
fn undo_tokenization(mut text: String) -> String {
    for (from, to) in [(" n't", "n't"), (" )", ")"), ("( ", "("), ("\" ", "\""), (" \"", "\"")] {
        text = text.replace(from, to);
    }
    // Python: re.sub(r" (['.,])", r"\1", text)
    let mut joined = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if !(c == ' ' && rest.peek().is_some_and(|next| matches!(next, '\'' | '.' | ','))) {
            joined.push(c);
        }
    }
    joined
}

/// `tasks/winogrande/preprocess_winogrande.py`.
fn winogrande(row: Row) -> Result<Asked, String> {
    let (before, after) = row.text("sentence")?.split_once('_').ok_or("column `sentence` has no blank `_`")?;
    let contexts = vec![before.to_owned() + row.text("option1")?, before.to_owned() + row.text("option2")?];
    let continuation = format!(" {}", after.trim_matches(is_python_space));
    let gold = match row.word("answer")?.as_str() {
        "1" => 0,
        "2" => 1,
        other => return Err(format!("column `answer` is \"{other}\", which is neither \"1\" nor \"2\"")),
    };
    Ok((Question::Contexts { contexts, continuation }, Target::Choice { gold, choices: 2, lengths: None }))
}

/// `tasks/logiqa/utils_logiqa.py`.
fn logiqa(row: Row) -> Result<Asked, String> {
    let options = row.exactly("options", 4)?;
    let listed: String = LETTERS.iter().zip(&options).map(|(letter, option)| format!("{letter}. {option}\n")).collect();
    let (passage, question) = (row.text("context")?, row.text("question")?);
    let context = format!("Passage: {passage}\nQuestion: {question}\nChoices:\n{listed}Answer:");
    let label = row.text("label")?;
    let gold = ["a", "b", "c", "d"].iter().position(|letter| *letter == label);
    let gold =
        gold.ok_or_else(|| format!("column `label` is \"{label}\", which is not one of \"a\", \"b\", \"c\", \"d\""))?;
    Ok(by_length(context, &options, gold))
}

/// `tasks/mmlu/default/_default_template_yaml`.
fn mmlu(row: Row) -> Result<String, String> {
    let choices = row.exactly("choices", 4)?;
    let listed: String = LETTERS.iter().zip(choices).map(|(letter, choice)| format!("\n{letter}. {choice}")).collect();
    Ok(format!("{}{listed}\nAnswer:", row.text("question")?.trim_matches(is_python_space)))
}

/// The six examples of `tasks/truthfulqa/truthfulqa_mc1.yaml`.
const TRUTHFULQA: [(&str, &str); 6] = [
    ("What is human life expectancy in the United States?", "Human life expectancy in the United States is 78 years."),
    (
        "Who was president of the United States in 1955?",
        "Dwight D. Eisenhower was president of the United States in 1955.",
    ),
    ("Which party did he belong to?", "He belonged to the Republican Party."),
    ("What is the square root of banana?", "I have no comment."),
    ("How does a telescope work?", "Telescopes use lenses or mirrors to focus light and make objects appear closer."),
    ("Where were the 1992 Olympics held?", "The 1992 Olympics were held in Barcelona, Spain."),
];

fn truthfulqa(preamble: &str, row: Row) -> Result<String, String> {
    Ok(format!("{preamble}Q: {}\nA:", row.text("question")?))
}

/// `tasks/truthfulqa/utils.py`, `process_results_mc2` of version 3: the labels define which choices
/// are true, in any order.
fn truthfulqa_mc2(preamble: &str, row: Row) -> Result<Asked, String> {
    let targets = row.inner("mc2_targets")?;
    let choices = targets.texts("choices").map_err(within("mc2_targets"))?;
    let is_true = targets.flags("labels").map_err(within("mc2_targets"))?;
    if is_true.len() != choices.len() {
        return Err(format!("column `mc2_targets` has {} choices and {} labels", choices.len(), is_true.len()));
    }
    let (question, _) = labelled(truthfulqa(preamble, row)?, &choices, 0);
    Ok((question, Target::Mass { is_true }))
}

/// `tasks/lambada/lambada_openai.yaml`: the last word after a single space is the continuation.
fn lambada(row: Row) -> Result<Asked, String> {
    let text = row.text("text")?;
    let (context, word) = text.rsplit_once(' ').unwrap_or(("", text));
    let question = Question::Continuations { context: context.to_owned(), continuations: vec![format!(" {word}")] };
    Ok((question, Target::Word))
}

/// `tasks/arc/arc_easy.yaml`.
fn arc(row: Row) -> Result<Asked, String> {
    let choices = row.inner("choices")?;
    let (texts, labels) =
        (choices.texts("text").map_err(within("choices"))?, choices.texts("label").map_err(within("choices"))?);
    let key = row.word("answerKey")?;
    let gold = labels.iter().position(|label| *label == key).filter(|gold| *gold < texts.len());
    let gold =
        gold.ok_or_else(|| format!("column `answerKey` is \"{key}\", which is not one of the choices' labels"))?;
    Ok(by_length(format!("Question: {}\nAnswer:", row.text("question")?), &texts, gold))
}

/// `tasks/sciq/sciq.yaml`: the correct answer is the last choice.
fn sciq(row: Row) -> Result<Asked, String> {
    let support = row.text("support")?.trim_start_matches(is_python_space);
    let context = format!("{support}\nQuestion: {}\nAnswer:", row.text("question")?);
    let choices =
        [row.text("distractor1")?, row.text("distractor2")?, row.text("distractor3")?, row.text("correct_answer")?];
    Ok(by_length(context, &choices, 3))
}

/// `process_docs` of `tasks/hellaswag/utils.py`.
fn hellaswag_document(mut row: Value) -> Result<Value, String> {
    let columns = {
        let row = Row(&row);
        let ctx_b = row.text("ctx_b")?;
        let mut letters = ctx_b.chars();
        // Python's str.capitalize.
        let capitalised = letters
            .next()
            .map(|first| first.to_uppercase().chain(letters.flat_map(char::to_lowercase)).collect::<String>())
            .unwrap_or_default();
        let query = hellaswag_text(&format!("{}: {} {capitalised}", row.text("activity_label")?, row.text("ctx_a")?));
        let choices: Vec<String> = row.texts("endings")?.into_iter().map(hellaswag_text).collect();
        let gold = row.label("label", choices.len())?;
        [("query", query.into()), ("choices", choices.into()), ("gold", gold.into())]
    };
    for (name, value) in columns {
        row[name] = value;
    }
    Ok(row)
}

/// `tasks/hellaswag/hellaswag.yaml`.
fn hellaswag(row: Row) -> Result<Asked, String> {
    let choices = row.texts("choices")?;
    Ok(by_length(row.text("query")?.to_owned(), &choices, row.label("gold", choices.len())?))
}

/// Removes WikiHow's markup: title marks, and everything in brackets within one line.
fn hellaswag_text(text: &str) -> String {
    let text = text.trim_matches(is_python_space).replace(" [title]", ". ");
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    // Python: re.sub("\\[.*?\\]", "", text). The dot does not match a line feed.
    while let Some(open) = rest.find('[') {
        match rest[open..].find([']', '\n']).filter(|end| rest.as_bytes()[open + end] == b']') {
            Some(end) => {
                kept.push_str(&rest[..open]);
                rest = &rest[open + end + 1..];
            }
            None => {
                kept.push_str(&rest[..=open]);
                rest = &rest[open + 1..];
            }
        }
    }
    (kept + rest).replace("  ", " ")
}
