//! Runs the checks of the fuzz targets on their seeds, on the inputs that fuzzing found, on mutated
//! copies of both, and on the worst files that we know.
//!
//! `make fuzz` searches for more.

#![allow(clippy::unwrap_used, missing_docs)]

mod changes;
mod readers;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use changes::{Dice, Told, change};
use inheritune_checkpoint::safetensors_header::MAX_TENSORS;
use readers::{READERS, Reader, decoder_config, pickle, safetensors_header, shard_index, torch_archive};

/// Number of mutated files per kind. A minute of `make fuzz` reads a thousand times as many.
const CHANGED_FILES: u32 = 1000;

/// Memory is measured for the whole process, so only one test may run at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn seeds(reader: Reader) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(reader.name);
    let mut seeds: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    seeds.sort();
    assert!(seeds.len() > 5, "the seeds of {} were not found", reader.name);
    seeds
}

#[test]
fn kept_files_are_answered() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for reader in READERS {
        for (name, file) in seeds(reader) {
            let _told = Told(format!("{}/{name}", reader.name));
            (reader.check)(&file);
        }
    }
}

#[test]
fn changed_files_are_answered() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut dice = Dice(0x1234_5678_9abc_def1);
    for reader in READERS {
        let seeds = seeds(reader);
        for round in 0..CHANGED_FILES {
            let (name, file) = &seeds[dice.below(seeds.len())];
            let (_, other) = &seeds[dice.below(seeds.len())];
            let file = changed(reader, file, other, &mut dice);
            let _told = Told(format!("{}/{name}, round {round}", reader.name));
            (reader.check)(&file);
        }
    }
}

/// Returns a mutated copy of `file`. Half of the archives are rebuilt with a change in a single
/// entry, so that they stay intact.
fn changed(reader: Reader, file: &[u8], other: &[u8], dice: &mut Dice) -> Vec<u8> {
    if reader.name == "torch_archive"
        && dice.below(2) == 0
        && let Some(mut entries) = torch_archive::entries(file)
    {
        let at = dice.below(entries.len());
        change(&mut entries[at].1, other, dice);
        return torch_archive::archive(&entries);
    }
    let mut file = file.to_vec();
    change(&mut file, other, dice);
    file
}

/// Returns JSON of at most `length` bytes that repeats `item`, a function of the item's index.
fn filled(length: usize, (open, item, close): (&str, fn(usize) -> String, &str)) -> Vec<u8> {
    let mut json = open.to_owned();
    for item in (0..).map(item) {
        if json.len() + item.len() + close.len() > length {
            break;
        }
        json.push_str(&item);
    }
    // Remove the last comma.
    json.pop();
    (json + close).into_bytes()
}

// Files of the maximum size, with the content that takes the most memory or time for its size.

#[test]
fn the_worst_headers_stay_within_limits() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let most = |i: usize| match i < MAX_TENSORS {
        true => format!(r#""{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#),
        false => " ".repeat(16 << 20),
    };
    for header in [
        ("{", most as fn(usize) -> String, "}"),
        (r#"{"__metadata__":{"#, |i| format!(r#""{i}":"","#), "}}"),
        (r#"{"a":{"dtype":"U8","shape":["#, |_| "0,".repeat(1 << 10), r#"],"data_offsets":[0,0]}}"#),
        (r#"{""#, |_| r"\u00e9".repeat(1 << 10) + ",", r#"":1}"#),
    ] {
        safetensors_header::check(&[[0; 8].as_slice(), &filled(16 << 20, header)].concat());
    }
}

#[test]
fn the_worst_indexes_stay_within_limits() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let most = |i: usize| match i < MAX_TENSORS {
        true => format!(r#""{i:x}":"{:x}.bin","#, i % 1024),
        false => " ".repeat(16 << 20),
    };
    for index in [
        (r#"{"weight_map":{"#, most as fn(usize) -> String, "}}"),
        (r#"{"weight_map":{"#, |i| format!(r#""{i:x}":"{i:x}.bin","#), "}}"),
        (r#"{"metadata":["#, |_| "{},".repeat(1 << 10), r#"],"weight_map":{"a":"m.bin"}}"#),
        (r#"{"weight_map":{"a":""#, |_| "n".repeat(1 << 10) + ",", r#".bin"}}"#),
    ] {
        shard_index::check(&filled(16 << 20, index));
    }
}

#[test]
fn the_worst_configs_stay_within_limits() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for values in [
        ("[", (|_| "0,".repeat(1 << 10)) as fn(usize) -> String, "]"),
        ("[", |_| r#"{"":0},"#.repeat(1 << 10), "]"),
        ("{", |i| format!(r#""{i}":0,"#), "}"),
    ] {
        decoder_config::check(&filled(1 << 20, values));
    }
    decoder_config::check(
        br#"{"model_type":"llama","hidden_size":1048576,"num_attention_heads":1,"intermediate_size":1048576,
            "max_position_embeddings":1048576,"vocab_size":1048576,"num_hidden_layers":1024}"#,
    );
}

#[test]
fn the_worst_pickles_stay_within_limits() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for pickle in pickles() {
        assert!(!pickle::check_memory(&pickle));
    }
    assert!(pickle::check_memory(&most_tensors()));
}

#[test]
fn the_worst_archives_stay_within_limits() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let entries = |count: usize, name: &str| -> Vec<_> {
        (0..count).map(|i| (format!("{name}{i}/data.pkl"), Vec::new())).collect()
    };
    torch_archive::check(&torch_archive::archive(&entries(65_535, "")));
    torch_archive::check(&torch_archive::archive(&entries(30_000, &"n".repeat(480))));
}

/// Returns programs that each exhaust one limit, or repeat one operation as often as possible.
fn pickles() -> Vec<Vec<u8>> {
    let program = |parts: &[&[u8]]| [b"\x80\x02", parts.concat().as_slice(), b"."].concat();
    // Lists of a thousand values created by `opcodes`, repeated.
    let lists = |opcodes: &[u8], times: usize| {
        let thousand = [b"(".as_slice(), &opcodes.repeat(1000), b"e"].concat();
        program(&[b"]", &thousand.repeat(times)])
    };
    vec![
        lists(b"N", 2_090),
        lists(b")\x94", 1_040),
        lists(b"}K\0Ns", 690),
        program(&[b"(".as_slice(), &b"N".repeat(262_000), b"t"]),
        // Consecutive tuples of a full stack.
        program(&[b"]", &[b"(".as_slice(), &b"N".repeat(200_000), b"ta"].concat().repeat(10)]),
        // Half a million attributes, set a million times.
        program(&[b"}}q\x01(", &b"X\x09\0\0\0_metadataN".repeat(500_000), b"u", &b"h\x01b".repeat(1 << 20)]),
        // One name, as long as a pickle may be, used as both parts of a class.
        program(&[b"X\0\0\0\x03", &vec![b'a'; 3 << 24], b"q\0h\0\x93"]),
        vec![b')'; 1 << 20],
        vec![b'('; 1 << 20],
    ]
}

/// Returns the maximum number of tensors of a checkpoint. They share the arguments of one call, but
/// each has its own dimensions.
fn most_tensors() -> Vec<u8> {
    let mut pickle =
        b"\x80\x02}(X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\nq\x01((X\x07\0\0\0storagectorch\nByteStorage\n\
        X\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\0(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01tq\x03h\x03\x89\
        ccollections\nOrderedDict\n)Rtq\x04R"
            .to_vec();
    for i in 1..MAX_TENSORS {
        pickle.extend([b"X\x05\0\0\0", format!("{i:05x}").as_bytes(), b"h\x01h\x04R"].concat());
    }
    [pickle, b"u.".to_vec()].concat()
}
