//! Shards that are missing, truncated, from another model or changed during the copy, and indexes
//! whose names point elsewhere. The job fails, names the file, and leaves no part of the target
//! visible.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{House, first, gpt2_json, llama_json, tensors, write_checkpoint, write_sharded};
use inheritune_checkpoint::decoder_config::DecoderConfig;
use inheritune_checkpoint::safetensors_header::{Dtype as HeaderDtype, NewTensor, write_header};
use inheritune_domain::job::{JobRecord, JobStatus};
use inheritune_domain::spec::{JobOutcome, SliceSpec};
use inheritune_store::artifacts::ArtifactFilter;
use inheritune_store::jobs::Page;
use safetensors::Dtype;
use serde_json::{Value, json};

const SHARDS: usize = 3;

fn shard(number: usize) -> String {
    format!("model-{number:05}-of-{SHARDS:05}.safetensors")
}

/// Writes the checkpoint `name` with three shards; each `flavour` has different bytes.
fn sharded(house: &House, name: &str, flavour: u8) -> PathBuf {
    let (dir, config) = (house.dir.path().join(name), llama_json(2));
    write_sharded(&dir, &config, &tensors(&config, Dtype::F16, flavour, str::to_owned), SHARDS);
    dir
}

#[tokio::test]
async fn shards_that_are_not_the_index_s_are_named() {
    let house = House::build().await;
    // The same tensors, file names and sizes, but each file contains another tensor.
    let config = llama_json(2);
    let mut other = tensors(&config, Dtype::F16, 9, str::to_owned);
    other.reverse();
    let other_dir = house.dir.path().join("other");
    write_sharded(&other_dir, &config, &other, SHARDS);

    fs::remove_file(sharded(&house, "missing", 0).join(shard(3))).unwrap();
    let cut = |name: &str, keep: &dyn Fn(u64) -> u64| {
        let path = sharded(&house, name, 0).join(shard(2));
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(keep(file.metadata().unwrap().len())).unwrap();
    };
    cut("mid-tensor", &|length| length - 101);
    cut("mid-header", &|_| 64);
    cut("longer", &|length| length + 1);
    fs::copy(other_dir.join(shard(3)), sharded(&house, "swapped", 0).join(shard(3))).unwrap();
    let dir = sharded(&house, "exchanged", 0);
    fs::rename(dir.join(shard(1)), dir.join("kept")).unwrap();
    fs::rename(dir.join(shard(2)), dir.join(shard(1))).unwrap();
    fs::rename(dir.join("kept"), dir.join(shard(2))).unwrap();
    let dir = sharded(&house, "twice", 0);
    fs::copy(dir.join(shard(1)), dir.join(shard(3))).unwrap();
    // A model of another width: all names match.
    let mut wide = config.clone();
    wide["hidden_size"] = json!(16);
    let wide_dir = house.dir.path().join("wide");
    write_sharded(&wide_dir, &wide, &tensors(&wide, Dtype::F16, 0, str::to_owned), SHARDS);
    fs::copy(wide_dir.join(shard(2)), sharded(&house, "other-width", 0).join(shard(2))).unwrap();

    let twice = || "occurs twice: also as `model.".to_owned();
    let cases = [
        ("missing", format!("{} is missing, though model.safetensors.index.json names it", shard(3))),
        ("mid-tensor", format!("{} its header describes ", shard(2))),
        ("mid-header", format!("{} its header of ", shard(2))),
        ("longer", format!("{} its header describes ", shard(2))),
        ("swapped", twice()),
        ("twice", twice()),
        ("other-width", format!("{}: tensor `model.layers.", shard(2))),
    ];
    for (name, expected) in cases {
        let error = refused(&house, first(house.location(name), 1)).await;
        assert!(error.contains(&expected) && error.contains(name), "{name}: {error}");
    }
    // The shards' own headers count, not the index.
    let made = house.slice(first(house.location("exchanged"), 1)).await;
    assert_eq!(made.fresh_tensors, 0);
    house.close().await;
}

/// If names, types and shapes match, headers cannot distinguish the shards of two models. The slice
/// succeeds, and `inheritance.json` contains the digest of every tensor.
#[tokio::test]
async fn a_shard_of_a_twin_is_told_by_digests_alone() {
    let house = House::build().await;
    let (one, two) = (sharded(&house, "one", 0), sharded(&house, "two", 50));
    let honest = house.slice(first(house.location("one"), 1)).await;
    fs::copy(two.join(shard(1)), one.join(shard(1))).unwrap();
    let swapped = house.slice(first(house.location("one"), 1)).await;
    let digest = async |artifact| house.json(artifact, "inheritance.json").await["tensors"][0]["sha256"].clone();
    assert_ne!(digest(honest.checkpoint).await, digest(swapped.checkpoint).await);
    house.close().await;
}

#[tokio::test]
async fn names_in_an_index_never_leave_the_folder() {
    let house = House::build().await;
    let other = sharded(&house, "other", 0);
    let absolute = other.join(shard(2)).display().to_string();
    let names = [
        ("above", "../other/model-00002-of-00003.safetensors"),
        ("below", "more/../../other/model-00002-of-00003.safetensors"),
        ("absolute", absolute.as_str()),
        ("backslash", "..\\other\\model-00002-of-00003.safetensors"),
        ("uri", "file:///model-00002-of-00003.safetensors"),
        ("nothing", ".safetensors"),
        ("dots", "..safetensors"),
    ];
    for (name, file) in names {
        let path = sharded(&house, name, 0).join("model.safetensors.index.json");
        let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        index["weight_map"]["model.norm.weight"] = json!(file);
        fs::write(path, index.to_string()).unwrap();
        let error = refused(&house, first(house.location(name), 1)).await;
        assert!(
            error.contains("model.safetensors.index.json: tensor `model.norm.weight` is mapped to `")
                && error.contains(if file.contains('/') {
                    "which is in another folder"
                } else {
                    "which is not a .safetensors"
                }),
            "{name}: {error}"
        );
    }
    house.close().await;
}

#[tokio::test]
async fn links_are_followed_only_where_it_is_allowed() {
    let house = House::build().await;
    let outside = tempfile::tempdir().unwrap();
    // The hub's cache is a folder of links.
    let blobs = sharded(&house, "blobs", 0);
    let linked = |name: &str, to: &Path| {
        let dir = sharded(&house, name, 0);
        fs::copy(blobs.join(shard(2)), to).unwrap();
        fs::remove_file(dir.join(shard(2))).unwrap();
        symlink(to, dir.join(shard(2))).unwrap();
    };
    linked("inside", &house.dir.path().join("blob"));
    house.slice(first(house.location("inside"), 1)).await;

    linked("outside", &outside.path().join("blob"));
    let error = refused(&house, first(house.location("outside"), 1)).await;
    assert!(
        error.contains("leads through a link to a location that this service may not read") && !error.contains("blob"),
        "{error}"
    );
    symlink(outside.path(), house.dir.path().join("folder")).unwrap();
    let error = refused(&house, first(house.location("folder"), 1)).await;
    assert!(error.contains("folder: it leads through a link to a location that this service may not read"), "{error}");
    house.close().await;
}

#[tokio::test]
async fn a_file_that_is_cut_or_removed_during_the_copy_is_named() {
    let house = House::build().await;
    let cut: Change = |path, half| OpenOptions::new().write(true).open(path).unwrap().set_len(half).unwrap();
    let removed: Change = |path, _| fs::remove_file(path).unwrap();
    for (name, change) in [("cut", cut), ("removed", removed)] {
        changed_during_the_copy(&house, name, change).await;
    }
    house.close().await;
}

#[tokio::test]
async fn a_file_that_is_replaced_or_rewritten_during_the_copy_is_named() {
    let house = House::build().await;
    // Only renames a copy made beforehand: copying would take as long as the job.
    let replaced: Change = |path, _| fs::rename(twin(path), path).unwrap();
    let rewritten: Change = |path, half| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"other bytes", half).unwrap();
    };
    let grown: Change = |path, _| {
        OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
    };
    for (name, change) in [("replaced", replaced), ("rewritten", rewritten), ("grown", grown)] {
        changed_during_the_copy(&house, name, change).await;
    }
    house.close().await;
}

/// Changes a file; the second argument is half its length.
type Change = fn(&Path, u64);

/// Slices a checkpoint of about 110 MB that is changed once the slicer starts to write. On a busy
/// machine the change may come after the last tensor has been copied. The test then tries again.
async fn changed_during_the_copy(house: &House, name: &str, change: Change) {
    for time in 0..10 {
        if was_named(house, &format!("{name}-{time}"), change).await {
            return;
        }
    }
    panic!("{name}: the change was never noticed");
}

async fn was_named(house: &House, name: &str, change: Change) -> bool {
    let mut config = gpt2_json(1);
    config["n_embd"] = json!(1024);
    config["vocab_size"] = json!(16_384);
    let path = large(&house.dir.path().join(name), &config);
    fs::copy(&path, twin(&path)).unwrap();
    let half = path.metadata().unwrap().len() / 2;
    let written = house.dir.path().join("objects");
    let before = files(&written);
    let changing = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        // The header has been read and the plan made before the first file appears.
        while files(&written) == before {
            assert!(started.elapsed() < Duration::from_secs(30), "nothing was written");
            std::thread::sleep(Duration::from_millis(1));
        }
        change(&path, half);
    });
    let visible = visible(house).await;
    // A single attempt: to a second one the changed file would be a valid file.
    let record = house.job_once(inheritune_slicer::handler(&house.store), first(house.location(name), 1)).await;
    changing.await.unwrap();
    if matches!(record.outcome, Some(JobOutcome::Sliced(_))) {
        return false;
    }
    let error = nothing_made(house, visible, record).await;
    assert!(error.contains(&format!("{name}/model.safetensors")), "{name}: {error}");
    true
}

/// The path of a copy of `path`, made before the job.
fn twin(path: &Path) -> PathBuf {
    path.with_extension("twin")
}

/// Writes a checkpoint whose numbers are all 0, which takes almost no time.
fn large(dir: &Path, config: &Value) -> PathBuf {
    write_checkpoint(dir, config, &[]);
    let specs = DecoderConfig::from_hf(config).unwrap().tensors();
    let stored: Vec<NewTensor<'_>> = specs
        .iter()
        .filter(|spec| spec.tied_to.is_none())
        .map(|spec| NewTensor { name: &spec.name, dtype: HeaderDtype::F32, shape: &spec.shape })
        .collect();
    let header = write_header(&stored).unwrap();
    let data: u64 = stored.iter().map(|tensor| 4 * tensor.shape.iter().product::<u64>()).sum();
    let path = dir.join("model.safetensors");
    fs::write(&path, &header).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(header.len() as u64 + data).unwrap();
    path
}

/// The number of files below `dir`.
fn files(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.filter_map(Result::ok).map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}

/// Runs a job that must fail permanently without leaving anything behind, and returns its error.
async fn refused(house: &House, spec: SliceSpec) -> String {
    let before = visible(house).await;
    let record = house.job(inheritune_slicer::handler(&house.store), spec).await;
    assert_eq!(record.attempts, 1, "{:?}", record.error);
    nothing_made(house, before, record).await
}

async fn nothing_made(house: &House, before: (usize, usize), record: JobRecord) -> String {
    let error = record.error.unwrap_or_default();
    assert_eq!((record.status, record.outcome), (JobStatus::Failed, None), "{error}");
    assert_eq!(visible(house).await, before, "{error}");
    error
}

/// The number of artifacts, and the number of files in the object store.
async fn visible(house: &House) -> (usize, usize) {
    let page = Page { size: 100, token: None };
    let artifacts = house.store.list_artifacts(&ArtifactFilter::default(), &page).await.unwrap();
    (artifacts.items.len(), files(&house.dir.path().join("objects")))
}
