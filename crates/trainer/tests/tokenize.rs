//! Tokenize jobs on a real store: file kinds, determinism, document boundaries, and bad input.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write as _;
use std::path::Path;

use inheritune_domain::artifact::Location;
use inheritune_domain::id::ArtifactId;
use inheritune_domain::spec::{JobOutcome, JobSpec, TokenizeSpec, Tokenized, TokenizerSource};
use inheritune_lm::tokenizer::Tokenizer;
use inheritune_lm::tokens::TokenSet;
use inheritune_trainer::corpus::Piece;
use inheritune_trainer::corpus::cutting::{Cutter, Cutting, MAX_UNCUT_BYTES};
use serde_json::json;
use support::Bench;

fn spec(sources: Vec<Location>, tokenizer: TokenizerSource) -> JobSpec {
    spec_of(sources, tokenizer, |_| {})
}

/// Same as [`spec`], modified by `change`.
fn spec_of(sources: Vec<Location>, tokenizer: TokenizerSource, change: impl Fn(&mut TokenizeSpec)) -> JobSpec {
    let mut spec = TokenizeSpec { sources, tokenizer, validation_fraction: 0.1, text_column: None, max_bad_rows: 0 };
    change(&mut spec);
    JobSpec::Tokenize(spec)
}

fn train(vocab_size: u32) -> TokenizerSource {
    TokenizerSource::Train { vocab_size }
}

/// Real English text that is always available.
fn text() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../LICENSE")).unwrap()
}

async fn tokenized(bench: &Bench, spec: JobSpec) -> Tokenized {
    let record = bench.work(spec).await;
    match record.outcome {
        Some(JobOutcome::Tokenized(tokenized)) => tokenized,
        other => panic!("{:?}: {:?}, {other:?}", record.status, record.error),
    }
}

/// All ids of the training and validation parts, and the folder they were fetched to.
async fn ids(bench: &Bench, artifact: ArtifactId) -> (Vec<i64>, std::path::PathBuf) {
    let dir = bench.path(&format!("fetched-{artifact}"));
    std::fs::create_dir_all(&dir).unwrap();
    bench.store.open(&Location::Artifact(artifact)).await.unwrap().fetch(&dir).await.unwrap();
    let set = TokenSet::open(&dir).unwrap();
    let mut ids = set.train().read(0..set.train().len()).unwrap();
    ids.extend(set.validation().read(0..set.validation().len()).unwrap());
    (ids, dir)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_becomes_tokens_that_decode_to_it() {
    let bench = Bench::new().await;
    std::fs::write(bench.path("license.txt"), text()).unwrap();
    let made = tokenized(&bench, spec(vec![bench.uri("license.txt")], train(500))).await;
    assert_eq!((made.vocab_size, made.documents, made.text_bytes), (500, 1, text().len() as u64));
    let (ids, dir) = ids(&bench, made.tokens).await;
    assert_eq!(ids.len() as u64, made.train_tokens + made.validation_tokens);
    let share = made.validation_tokens as f64 / ids.len() as f64;
    assert!((share - 0.1).abs() < 0.01, "{share}");
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let (end, words) = ids.split_last().unwrap();
    assert_eq!(Some(*end as u32), tokenizer.end_of_text_id());
    let words: Vec<u32> = words.iter().map(|id| *id as u32).collect();
    assert_eq!(tokenizer.decode(&words).unwrap(), text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_and_packings_do_not_change_the_tokens() {
    let bench = Bench::new().await;
    let documents: Vec<String> = text().split("\n\n").map(str::to_owned).collect();
    let rows: String = documents.iter().map(|text| json!({ "text": text, "meta": 1 }).to_string() + "\n").collect();
    let gzip = |bytes: &[u8]| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    };
    std::fs::write(bench.path("rows.jsonl"), &rows).unwrap();
    // Two concatenated gzip members are one file.
    let (first, second) = rows.split_at(rows.find('\n').unwrap() + 1);
    std::fs::write(bench.path("rows.jsonl.gz"), [gzip(first.as_bytes()), gzip(second.as_bytes())].concat()).unwrap();
    std::fs::write(bench.path("rows.jsonl.zst"), zstd::encode_all(rows.as_bytes(), 3).unwrap()).unwrap();
    // One file per document, in the order of their names.
    std::fs::create_dir(bench.path("folder")).unwrap();
    for (i, text) in documents.iter().enumerate() {
        std::fs::write(bench.path("folder").join(format!("{i:04}.txt")), text).unwrap();
    }
    std::fs::write(bench.path("folder").join("notes.pdf"), "not read").unwrap();
    let plain = tokenized(&bench, spec(vec![bench.uri("rows.jsonl")], train(400))).await;
    assert_eq!(plain.documents as usize, documents.iter().filter(|text| !text.is_empty()).count());
    let (expected, _) = ids(&bench, plain.tokens).await;
    for other in ["rows.jsonl.gz", "rows.jsonl.zst", "folder"] {
        let made = tokenized(&bench, spec(vec![bench.uri(other)], train(400))).await;
        assert!(ids(&bench, made.tokens).await.0 == expected, "{other}");
    }
    // With the tokenizer of the first set, the second set has the same ids.
    let again = spec(vec![bench.uri("folder")], TokenizerSource::From(Location::Artifact(plain.tokens)));
    let again = tokenized(&bench, again).await;
    assert!(ids(&bench, again.tokens).await.0 == expected);
    assert_eq!(bench.read(again.tokens, "tokenizer.json").await, bench.read(plain.tokens, "tokenizer.json").await);
}

/// Rows that pyarrow wrote with each codec (scripts/golden/make-parquet.py) give the same tokens as the
/// same rows in JSONL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_parquet_rows_are_documents() {
    let bench = Bench::new().await;
    let mut texts = vec!["first row".to_owned(), "zwölf Wörter\nund 漢字 🦀".to_owned(), "no more\n\n".repeat(300)];
    texts.extend((0..40).map(|i| format!("row {i}")));
    let rows: String = texts.iter().map(|text| json!({ "text": text }).to_string() + "\n").collect();
    std::fs::write(bench.path("rows.jsonl"), rows).unwrap();
    let plain = tokenized(&bench, spec(vec![bench.uri("rows.jsonl")], train(300))).await;
    let (expected, _) = ids(&bench, plain.tokens).await;
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parquet");
    // `binary`, `large` and `dictionary` have a different type of text column.
    for packing in ["none", "snappy", "gzip", "zstd", "lz4", "brotli", "binary", "large", "dictionary"] {
        let name = format!("{packing}.parquet");
        std::fs::copy(packed.join(&name), bench.path(&name)).unwrap();
        let from = TokenizerSource::From(Location::Artifact(plain.tokens));
        let made = tokenized(&bench, spec(vec![bench.uri(&name)], from)).await;
        assert_eq!((made.documents, made.text_bytes), (plain.documents, plain.text_bytes), "{packing}");
        assert!(ids(&bench, made.tokens).await.0 == expected, "{packing}");
    }
    for (name, words) in [
        ("no-text.parquet", "no column `text` (found: content, id)"),
        ("numbers.parquet", "contains INT64 values, not text"),
        ("lists.parquet", "a list in each row"),
        ("bytes.parquet", "row 1: column `text` contains bytes that are not valid UTF-8"),
    ] {
        std::fs::copy(packed.join(name), bench.path(name)).unwrap();
        let error = bench.permanent_error(spec(vec![bench.uri(name)], train(300))).await;
        assert!(error.contains(name) && error.contains(words) && error.len() < 400, "{error}");
    }
    std::fs::copy(packed.join("nested.parquet"), bench.path("nested.parquet")).unwrap();
    let inner =
        spec_of(vec![bench.uri("nested.parquet")], TokenizerSource::From(Location::Artifact(plain.tokens)), |spec| {
            spec.text_column = Some("doc.text".to_owned());
        });
    let made = tokenized(&bench, inner).await;
    assert!(ids(&bench, made.tokens).await.0 == expected, "d7: a column within a group");
    let cut = std::fs::read(packed.join("zstd.parquet")).unwrap();
    std::fs::write(bench.path("cut.parquet"), &cut[..cut.len() / 2]).unwrap();
    let error = bench.permanent_error(spec(vec![bench.uri("cut.parquet")], train(300))).await;
    assert!(error.contains("cut.parquet") && error.contains("Parquet"), "{error}");
}

/// A data set's own training and validation splits are used as they are; its test split is used for
/// neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2_a_validation_split_is_held_out_and_a_test_split_left_out() {
    let bench = Bench::new().await;
    let folder = bench.path("splits");
    std::fs::create_dir(&folder).unwrap();
    let rows = |word: &str| json!({ "text": format!("{word} {}", text()) }).to_string();
    for (file, word) in [("dev.jsonl", "measured"), ("test.jsonl", "neither"), ("train.jsonl", "trained")] {
        std::fs::write(folder.join(file), rows(word)).unwrap();
    }
    let made = tokenized(&bench, spec(vec![bench.uri("splits")], train(500))).await;
    assert_eq!(made.documents, 2);
    let left_out: Vec<String> = made.corpus.unwrap().left_out.into_iter().flat_map(|files| files.names).collect();
    assert_eq!(left_out, ["test.jsonl"]);
    let (_, dir) = ids(&bench, made.tokens).await;
    let set = TokenSet::open(&dir).unwrap();
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    for (part, word) in [(set.train(), "trained "), (set.validation(), "measured ")] {
        let ids: Vec<u32> = part.read(0..part.len()).unwrap().into_iter().map(|id| id as u32).collect();
        let decoded = tokenizer.decode(&ids).unwrap();
        assert!(decoded.starts_with(word), "{}", &decoded[..40]);
    }
}

/// nanoGPT's folder of `train.bin` and `val.bin`, and llm.c's shards with a header.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_files_are_taken_as_they_are() {
    let bench = Bench::new().await;
    std::fs::write(bench.path("license.txt"), text()).unwrap();
    let made = tokenized(&bench, spec(vec![bench.uri("license.txt")], train(400))).await;
    let (all, dir) = ids(&bench, made.tokens).await;
    let end = Tokenizer::from_dir(&dir).unwrap().end_of_text_id().unwrap();
    let bytes = |ids: &[i64]| ids.iter().flat_map(|id| u16::try_from(*id).unwrap().to_le_bytes()).collect::<Vec<u8>>();
    let from = || TokenizerSource::From(Location::Artifact(made.tokens));
    let (train_ids, validation_ids) = all.split_at(1000);
    let folder = bench.path("openwebtext");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("train.bin"), bytes(train_ids)).unwrap();
    std::fs::write(folder.join("val.bin"), bytes(validation_ids)).unwrap();
    std::fs::write(folder.join("meta.pkl"), "not read").unwrap();
    let taken = tokenized(&bench, spec(vec![bench.uri("openwebtext")], from())).await;
    let split = (taken.train_tokens, taken.validation_tokens);
    assert_eq!(split, (1000, validation_ids.len() as u64), "the split follows the files");
    assert_eq!((taken.documents, taken.text_bytes), (1, 0));
    assert!(ids(&bench, taken.tokens).await.0 == all);

    // Without a validation file, a share is held out. llm.c's header and compression do not change
    // the tokens.
    let mut header = [20_240_520_u32, 1, all.len() as u32].map(u32::to_le_bytes).concat();
    header.resize(1024, 0);
    let shard = [header, bytes(&all)].concat();
    std::fs::write(bench.path("shard.bin"), &shard).unwrap();
    std::fs::write(bench.path("packed.bin.zst"), zstd::encode_all(shard.as_slice(), 3).unwrap()).unwrap();
    for name in ["shard.bin", "packed.bin.zst"] {
        let taken = tokenized(&bench, spec(vec![bench.uri(name)], from())).await;
        assert_eq!(taken.validation_tokens, made.validation_tokens, "{name}");
        assert!(ids(&bench, taken.tokens).await.0 == all, "{name}");
    }

    std::fs::write(bench.path("odd.bin"), b"abc").unwrap();
    std::fs::write(bench.path("large.bin"), bytes(&[i64::from(end), 400])).unwrap();
    for (name, words) in
        [("odd.bin", "16-bit"), ("large.bin", "token 400 at position 1 is not below the vocabulary size (400)")]
    {
        let error = bench.permanent_error(spec(vec![bench.uri(name)], from())).await;
        assert!(error.contains(name) && error.contains(words), "{error}");
    }
    let error = bench.permanent_error(spec(vec![bench.uri("shard.bin")], train(300))).await;
    assert!(error.contains("name the tokenizer"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_source_holds_out_its_share() {
    let bench = Bench::new().await;
    let documents =
        |words: &str, count| (0..count).map(|i| json!({"text": format!("{words} {i}")}).to_string() + "\n").collect();
    let sources: [(&str, String); 2] =
        [("news.jsonl", documents("what is new", 400)), ("code.jsonl", documents("fn main()", 100))];
    for (name, rows) in &sources {
        std::fs::write(bench.path(name), rows).unwrap();
    }
    let made = tokenized(&bench, spec(sources.iter().map(|(name, _)| bench.uri(name)).collect(), train(400))).await;
    let (_, dir) = ids(&bench, made.tokens).await;
    let set = TokenSet::open(&dir).unwrap();
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let decode = |part: inheritune_lm::tokens::TokenSlice<'_>, range: std::ops::Range<u64>| {
        let ids: Vec<u32> = part.read(range).unwrap().into_iter().map(|id| id as u32).collect();
        tokenizer.decode(&ids).unwrap()
    };
    let ranges = set.meta().train_sources();
    assert_eq!(ranges.len(), 2);
    for ((_, rows), (range, words)) in sources.iter().zip(ranges.into_iter().zip(["what is new", "fn main()"])) {
        let (kept, rows) = (decode(set.train(), range), rows.lines().count());
        let found = kept.matches(words).count();
        assert!(kept.starts_with(words) && found.abs_diff(rows * 9 / 10) <= 2, "{found} of {rows}");
    }
    let held_out = decode(set.validation(), 0..set.validation().len());
    assert!(held_out.starts_with("what is new") && held_out.contains("fn main() 99"), "{held_out}");
}

/// Tokenizers of other kinds give their own ids, and their files are carried over byte for byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tokenizer_of_any_kind_is_taken() {
    let bench = Bench::new().await;
    std::fs::write(bench.path("license.txt"), text()).unwrap();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lm/tests/tokenizers");
    for (case, end) in [("sentencepiece-llama", 2), ("sentencepiece-google", 2), ("pair-opt", 2)] {
        let folder = bench.path(case);
        std::fs::create_dir(&folder).unwrap();
        for entry in std::fs::read_dir(cases.join(case)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
        let from = TokenizerSource::From(bench.uri(case));
        let made = tokenized(&bench, spec(vec![bench.uri("license.txt")], from)).await;
        let tokenizer = Tokenizer::from_dir(&folder).unwrap();
        assert_eq!(made.vocab_size, tokenizer.vocab_size(), "{case}");
        let expected: Vec<i64> = tokenizer.encode(&text()).unwrap().into_iter().map(i64::from).chain([end]).collect();
        assert!(ids(&bench, made.tokens).await.0 == expected, "{case}");
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name != "expected.json" {
                assert_eq!(bench.read(made.tokens, name).await, std::fs::read(&path).unwrap(), "{case}/{name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_threads_does_not_change_a_byte() {
    let bench = Bench::new().await;
    // Long enough for several pieces and batches.
    let long: String = (0..200).map(|i| format!("part {i}\n{}", text())).collect();
    std::fs::write(bench.path("long.txt"), long).unwrap();
    let mut made = Vec::new();
    for threads in [1, 2, 3] {
        let worker = bench.worker(threads);
        let job = bench.submit(spec(vec![bench.uri("long.txt")], train(600))).await;
        let Some(JobOutcome::Tokenized(set)) = bench.ended(job).await.outcome else { panic!("no token set") };
        worker.stop().await;
        let mut files = Vec::new();
        for name in ["train.bin", "validation.bin", "tokens.json", "tokenizer.json"] {
            files.push(bench.read(set.tokens, name).await);
        }
        made.push(files);
    }
    assert!(made[0] == made[1] && made[1] == made[2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_named() {
    let bench = Bench::new().await;
    let refused = async |name: &str, content: &[u8]| -> String {
        std::fs::write(bench.path(name), content).unwrap();
        bench.permanent_error(spec(vec![bench.uri(name)], train(300))).await
    };
    let error = refused("empty.txt", b"").await;
    assert!(error.contains("the corpus is empty") && error.contains("empty.txt"), "{error}");
    let error = refused("latin.txt", b"caf\xe9 au lait").await;
    assert!(error.contains("latin.txt") && error.contains("UTF-8 at byte 3"), "{error}");
    let error = refused("rows.jsonl", b"{\"text\": \"good\"}\n{\"txt\": \"bad\"}\n").await;
    assert!(error.contains("rows.jsonl") && error.contains("line 2") && error.contains("`text`"), "{error}");
    let error = refused("cut.txt.gz", &[0x1f, 0x8b, 8, 0, 0]).await;
    assert!(error.contains("cut.txt.gz") && error.contains("decompressed"), "{error}");
    let error = refused("one.txt", b"x").await;
    assert!(error.contains("too short") || error.contains("cannot be split"), "{error}");

    let error = bench.permanent_error(spec(vec![bench.uri("nowhere.txt")], train(300))).await;
    assert!(error.contains("nowhere.txt"), "{error}");
    std::fs::create_dir(bench.path("no-texts")).unwrap();
    std::fs::write(bench.path("no-texts/a.pdf"), "x").unwrap();
    std::fs::write(bench.path("no-texts/b.pdf"), "x").unwrap();
    let error = bench.permanent_error(spec(vec![bench.uri("no-texts")], train(300))).await;
    assert!(error.contains("no-texts") && error.contains(".jsonl"), "{error}");
    std::fs::write(bench.path("good.txt"), text()).unwrap();
    let from = TokenizerSource::From(bench.uri("no-texts"));
    let error = bench.permanent_error(spec(vec![bench.uri("good.txt")], from)).await;
    assert!(error.contains("no tokenizer.json"), "{error}");
    let outside = Location::Uri("file:///etc/hostname".to_owned());
    let error = bench.permanent_error(spec(vec![outside], train(300))).await;
    assert!(error.contains("/etc/hostname"), "{error}");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// The file name may mislead: C4, RedPajama and Dolma name JSON lines `.json`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_the_kind_of_a_file_is_told_by_its_content() {
    let bench = Bench::new().await;
    let documents: Vec<String> = text().split("\n\n").filter(|text| !text.is_empty()).map(str::to_owned).collect();
    let rows: String = documents.iter().map(|text| json!({ "url": "x", "text": text }).to_string() + "\n").collect();
    let array = serde_json::Value::from(documents.clone()).to_string();
    std::fs::write(bench.path("rows.jsonl"), &rows).unwrap();
    let plain = tokenized(&bench, spec(vec![bench.uri("rows.jsonl")], train(300))).await;
    let (expected, _) = ids(&bench, plain.tokens).await;
    let zstd_long = {
        let mut packed = zstd::Encoder::new(Vec::new(), 3).unwrap();
        packed.long_distance_matching(true).unwrap();
        packed.window_log(28).unwrap();
        packed.write_all(rows.as_bytes()).unwrap();
        packed.finish().unwrap()
    };
    for (name, bytes, kind) in [
        ("a.json", rows.as_bytes().to_vec(), "1 JSON lines"),
        ("c4-train.00000-of-01024.json.gz", gzip(rows.as_bytes()), "1 JSON lines in gzip"),
        ("d.json.zst", zstd_long, "1 JSON lines in zstd"),
        ("e.jsonl.gz", rows.as_bytes().to_vec(), "1 JSON lines"),
        ("f.jsonl", gzip(rows.as_bytes()), "1 JSON lines in gzip"),
        ("g.txt", rows.as_bytes().to_vec(), "1 JSON lines"),
        ("h.json", array.into_bytes(), "1 JSON array"),
    ] {
        std::fs::write(bench.path(name), bytes).unwrap();
        let from = TokenizerSource::From(Location::Artifact(plain.tokens));
        let made = tokenized(&bench, spec(vec![bench.uri(name)], from)).await;
        assert_eq!(made.documents, documents.len() as u64, "{name}");
        assert!(ids(&bench, made.tokens).await.0 == expected, "{name}");
        let facts = made.corpus.unwrap().summary(made.documents);
        assert_eq!(facts, format!("{} documents from 1 file ({kind})", documents.len()), "{name}");
    }
    for (name, bytes, words) in [
        ("a.csv", &b"text\n\"one\"\n"[..], "CSV or TSV table, which is not supported"),
        ("one.json", b"{\n  \"text\": \"a\"\n}\n", "one JSON object over several lines"),
        ("b.jsonl.bz2", b"BZh91AY&SY\0\0", "bzip2"),
        ("utf16.txt", b"\xff\xfea\0b\0", "UTF-16"),
    ] {
        std::fs::write(bench.path(name), bytes).unwrap();
        let error = bench.permanent_error(spec(vec![bench.uri(name)], train(300))).await;
        assert!(error.contains(name) && error.contains(words), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d2_files_that_are_no_data_are_left_out_and_said() {
    let bench = Bench::new().await;
    let rows: String = text().lines().map(|text| json!({ "text": text }).to_string() + "\n").collect();
    let folder = bench.path("hub");
    let write = |name: &str, content: &str| {
        std::fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        std::fs::write(folder.join(name), content).unwrap();
    };
    write("data/train-00000-of-00001.jsonl", &rows);
    let alone = tokenized(&bench, spec(vec![bench.uri("hub")], train(300))).await;
    for name in ["README.md", "LICENSE.txt", ".gitattributes", "_SUCCESS", "dataset_infos.json", "data/.a.jsonl.crc"] {
        write(name, "not data");
    }
    write(".ipynb_checkpoints/a-checkpoint.jsonl", &rows);
    write(".cache/huggingface/download/data/train.jsonl", &rows);
    let made = tokenized(&bench, spec(vec![bench.uri("hub")], train(300))).await;
    assert_eq!((made.documents, made.text_bytes), (alone.documents, alone.text_bytes));
    let facts = made.corpus.unwrap();
    let left_out: Vec<(&str, u64)> = facts.left_out.iter().map(|files| (files.reason.as_str(), files.files)).collect();
    assert_eq!(left_out, [("documentation", 2), ("hidden", 5), ("settings", 1)]);
    // A location that names a single file is read regardless of its name.
    let named = bench.uri("hub/.ipynb_checkpoints/a-checkpoint.jsonl");
    assert_eq!(tokenized(&bench, spec(vec![named], train(300))).await.documents, alone.documents);
    write("train.bin", "\u{1}\u{2}\u{3}\u{4}");
    let error = bench.permanent_error(spec(vec![bench.uri("hub")], train(300))).await;
    assert!(error.contains("contains both tokens (train.bin) and text"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d4_bad_rows_are_left_out_up_to_a_number_and_said() {
    let bench = Bench::new().await;
    let mut rows: Vec<String> = text().lines().map(|text| json!({ "text": text }).to_string()).collect();
    rows[0] = format!("\u{feff}{}", rows[0]);
    rows[3] = r#"{"text": null, "score": NaN}"#.to_owned();
    rows[7] = r#"{"text": "half an emoji \ud83d here"}"#.to_owned();
    std::fs::write(bench.path("a.jsonl"), rows.join("\r\n")).unwrap();
    let good = tokenized(&bench, spec(vec![bench.uri("a.jsonl")], train(300))).await;
    let facts = good.corpus.clone().unwrap();
    assert!(facts.rows_without_text > 0 && facts.bad_rows == 0, "{facts:?}");
    let (all, dir) = ids(&bench, good.tokens).await;
    let all: Vec<u32> = all.into_iter().map(|id| id as u32).collect();
    let decoded = Tokenizer::from_dir(&dir).unwrap().decode(&all).unwrap();
    assert!(decoded.contains("half an emoji \u{fffd} here") && !decoded.contains('\u{feff}'));
    rows[5] = r#"{"body": "another column"}"#.to_owned();
    rows[9] = "no json".to_owned();
    std::fs::write(bench.path("bad.jsonl"), rows.join("\n")).unwrap();
    let error = bench.permanent_error(spec(vec![bench.uri("bad.jsonl")], train(300))).await;
    assert!(
        error.contains("bad.jsonl: line 6: has no column `text` (found: body)") && error.contains("max_bad_rows"),
        "{error}"
    );
    let tolerant = spec_of(vec![bench.uri("bad.jsonl")], train(300), |spec| spec.max_bad_rows = 2);
    let facts = tokenized(&bench, tolerant).await.corpus.unwrap();
    assert_eq!(facts.bad_rows, 2);
    assert!(facts.first_bad_row.unwrap().contains("line 6"));
    std::fs::write(bench.path("a.txt"), format!("\u{feff}{}", text())).unwrap();
    let made = tokenized(&bench, spec(vec![bench.uri("a.txt")], train(300))).await;
    assert_eq!(made.text_bytes, text().len() as u64, "the byte order mark is not text");
    let packed = gzip(rows.join("\n").as_bytes());
    std::fs::write(bench.path("cut.jsonl.gz"), &packed[..packed.len() - 8]).unwrap();
    let error = bench.permanent_error(spec(vec![bench.uri("cut.jsonl.gz")], train(300))).await;
    assert!(error.contains("cut.jsonl.gz"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_the_text_may_be_in_another_column() {
    let bench = Bench::new().await;
    let row = |text: &str| json!({ "text": "not this", "content": text, "raw": { "body": text } }).to_string() + "\n";
    std::fs::write(bench.path("a.jsonl"), text().lines().map(row).collect::<String>()).unwrap();
    let of = |column: &str| {
        let column = Some(column.to_owned());
        spec_of(vec![bench.uri("a.jsonl")], train(300), |spec| spec.text_column = column.clone())
    };
    let made = tokenized(&bench, of("content")).await;
    assert_eq!(made.text_bytes, text().lines().map(str::len).sum::<usize>() as u64);
    let nested = tokenized(&bench, of("raw.body")).await;
    assert!(ids(&bench, nested.tokens).await.0 == ids(&bench, made.tokens).await.0);
    let error = bench.permanent_error(of("body")).await;
    assert!(error.contains("has no column `body` (found: text, content, raw)"), "{error}");
}

/// A special token spelled out in a text becomes that token, as in transformers, for every kind of
/// file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u13_special_tokens_in_text_are_special_tokens() {
    let bench = Bench::new().await;
    std::fs::write(bench.path("license.txt"), text()).unwrap();
    let made = tokenized(&bench, spec(vec![bench.uri("license.txt")], train(300))).await;
    let dir = ids(&bench, made.tokens).await.1;
    let end = i64::from(Tokenizer::from_dir(&dir).unwrap().end_of_text_id().unwrap());
    let document = "one document<|endoftext|>and another, to the model".repeat(20);
    std::fs::write(bench.path("a.txt"), &document).unwrap();
    std::fs::write(bench.path("a.jsonl"), json!({ "text": document }).to_string()).unwrap();
    let mut all = Vec::new();
    for name in ["a.txt", "a.jsonl"] {
        let from = TokenizerSource::From(Location::Artifact(made.tokens));
        let taken = tokenized(&bench, spec(vec![bench.uri(name)], from)).await;
        assert_eq!(taken.documents, 1, "{name}: rows and files are counted");
        let (found, _) = ids(&bench, taken.tokens).await;
        assert_eq!(found.iter().filter(|id| **id == end).count(), 21, "{name}");
        all.push(found);
    }
    assert!(all[0] == all[1]);
}

/// The ids of a document's pieces are those of the whole document, for every kind of tokenizer.
#[test]
fn d6_pieces_have_the_ids_of_the_whole() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lm/tests/tokenizers");
    let words = "The quick  brown fox (aged 1234567) doesn't   jump; naïve café, 漢字かな交じり文。 x=[1, 2]\n\tif a:\r\n  pass ";
    let lines = words.repeat(2500);
    let one_line = words.replace(['\n', '\r', '\t'], " ").repeat(2500);
    let han: String = "天地玄黄、宇宙洪荒。日月盈昃，辰宿列張。".repeat(5000);
    let trained = Tokenizer::train_byte_bpe([lines.as_str(), &han].into_iter(), 600).unwrap();
    let mut tokenizers = vec![("trained".to_owned(), trained)];
    for entry in std::fs::read_dir(&cases).unwrap() {
        let path = entry.unwrap().path();
        if let Ok(tokenizer) = Tokenizer::from_dir(&path) {
            tokenizers.push((path.file_name().unwrap().to_string_lossy().into_owned(), tokenizer));
        }
    }
    assert!(tokenizers.len() > 3, "{}", tokenizers.len());
    for (name, tokenizer) in &tokenizers {
        for (kind, document) in [("lines", &lines), ("one line", &one_line), ("no spaces", &han)] {
            let mut cutter = Cutter::new(Cutting::By(tokenizer));
            let pieces = cutter.push(document, true);
            let mut ids = Vec::new();
            for piece in &pieces {
                let Piece::Text { text, .. } = piece else { panic!("{piece:?}") };
                assert!(text.len() <= MAX_UNCUT_BYTES);
                ids.extend(tokenizer.encode(text).unwrap());
            }
            if cutter.forced() == 0 {
                // A text without spaces to cut at stays whole if it is short enough.
                assert!(pieces.len() > 2 || kind == "no spaces", "{name}, {kind}: {} pieces", pieces.len());
                assert!(ids == tokenizer.encode(document).unwrap(), "{name}, {kind}");
            } else {
                assert_eq!(kind, "no spaces", "{name} cannot be cut");
            }
        }
    }
}

/// Peak resident memory of this process in bytes since the last [`forget_peak`].
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Trains on and encodes one line of 10 MB, as JSON and as text, which used to take 160 bytes of
/// memory per byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_one_long_document_takes_little_memory() {
    let bench = Bench::new().await;
    let line = text().replace('\n', " ");
    let long = line.repeat((10 << 20) / line.len());
    std::fs::write(bench.path("a.txt"), &long).unwrap();
    std::fs::write(bench.path("a.jsonl"), json!({ "id": 1, "text": long, "n": 2 }).to_string()).unwrap();
    let bytes = long.len() as u64;
    drop(long);
    forget_peak();
    let before = peak_bytes();
    for name in ["a.txt", "a.jsonl"] {
        let made = tokenized(&bench, spec(vec![bench.uri(name)], train(400))).await;
        assert_eq!((made.documents, made.text_bytes), (1, bytes), "{name}");
        assert_eq!(made.corpus.unwrap().forced_cuts, 0, "{name}");
    }
    let took = peak_bytes().saturating_sub(before);
    assert!(took < 1 << 30, "{took} bytes beyond {before}");
}
