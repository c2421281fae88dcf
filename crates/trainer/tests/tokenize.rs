//! Tokenize jobs on a real store: every kind of file, determinism, document boundaries, bad input.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write as _;
use std::path::Path;

use inheritune_domain::artifact::Location;
use inheritune_domain::id::ArtifactId;
use inheritune_domain::spec::{JobOutcome, JobSpec, TokenizeSpec, Tokenized, TokenizerSource};
use inheritune_lm::tokenizer::Tokenizer;
use inheritune_lm::tokens::TokenSet;
use serde_json::json;
use support::Bench;

fn spec(sources: Vec<Location>, tokenizer: TokenizerSource) -> JobSpec {
    JobSpec::Tokenize(TokenizeSpec { sources, tokenizer, validation_fraction: 0.1 })
}

fn train(vocab_size: u32) -> TokenizerSource {
    TokenizerSource::Train { vocab_size }
}

/// Real English that is always there.
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

/// All ids of both parts, and the folder.
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
    // Two gzip members after one another are one file.
    let (first, second) = rows.split_at(rows.find('\n').unwrap() + 1);
    std::fs::write(bench.path("rows.jsonl.gz"), [gzip(first.as_bytes()), gzip(second.as_bytes())].concat()).unwrap();
    std::fs::write(bench.path("rows.jsonl.zst"), zstd::encode_all(rows.as_bytes(), 3).unwrap()).unwrap();
    // One file a document, in order of their names.
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
    // The tokenizer of the first set gives the second the same ids.
    let again = spec(vec![bench.uri("folder")], TokenizerSource::From(Location::Artifact(plain.tokens)));
    let again = tokenized(&bench, again).await;
    assert!(ids(&bench, again.tokens).await.0 == expected);
    assert_eq!(bench.read(again.tokens, "tokenizer.json").await, bench.read(plain.tokens, "tokenizer.json").await);
}

/// What pyarrow packed in each way (scripts/make-parquet.py) is what the same rows are as JSONL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parquet_rows_are_documents() {
    let bench = Bench::new().await;
    let mut texts = vec!["first row".to_owned(), "zwölf Wörter\nund 漢字 🦀".to_owned(), "no more\n\n".repeat(300)];
    texts.extend((0..40).map(|i| format!("row {i}")));
    let rows: String = texts.iter().map(|text| json!({ "text": text }).to_string() + "\n").collect();
    std::fs::write(bench.path("rows.jsonl"), rows).unwrap();
    let plain = tokenized(&bench, spec(vec![bench.uri("rows.jsonl")], train(300))).await;
    let (expected, _) = ids(&bench, plain.tokens).await;
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parquet");
    for packing in ["none", "snappy", "gzip", "zstd", "lz4"] {
        let name = format!("{packing}.parquet");
        std::fs::copy(packed.join(&name), bench.path(&name)).unwrap();
        let from = TokenizerSource::From(Location::Artifact(plain.tokens));
        let made = tokenized(&bench, spec(vec![bench.uri(&name)], from)).await;
        assert_eq!((made.documents, made.text_bytes), (plain.documents, plain.text_bytes), "{packing}");
        assert!(ids(&bench, made.tokens).await.0 == expected, "{packing}");
    }
    for (name, words) in [("no-text.parquet", "no column `text` but content, id"), ("numbers.parquet", "no string")] {
        std::fs::copy(packed.join(name), bench.path(name)).unwrap();
        let error = bench.permanent_error(spec(vec![bench.uri(name)], train(300))).await;
        assert!(error.contains(name) && error.contains(words), "{error}");
    }
    let cut = std::fs::read(packed.join("zstd.parquet")).unwrap();
    std::fs::write(bench.path("cut.parquet"), &cut[..cut.len() / 2]).unwrap();
    let error = bench.permanent_error(spec(vec![bench.uri("cut.parquet")], train(300))).await;
    assert!(error.contains("cut.parquet") && error.contains("Parquet"), "{error}");
}

/// nanoGPT's folder of `train.bin` and `val.bin`, and llm.c's shards with their header.
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
    assert_eq!(split, (1000, validation_ids.len() as u64), "the split is the files'");
    assert_eq!((taken.documents, taken.text_bytes), (1, 0));
    assert!(ids(&bench, taken.tokens).await.0 == all);

    // Without a file for validation, a share is held out; with llm.c's header and packed, the tokens are the same.
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
    for (name, words) in [("odd.bin", "16-bit"), ("large.bin", "token 400 is not below the vocabulary (400)")] {
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

/// Tokenizers of the other kinds give their ids, and their files travel with the tokens byte for byte.
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
    assert!(error.contains("cut.txt.gz") && error.contains("unpacked"), "{error}");
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
