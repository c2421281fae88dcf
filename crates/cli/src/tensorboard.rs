//! Writes training curves as an event file for TensorBoard.
//!
//! The file is a sequence of TFRecord frames: length, checksum of the length, an `Event`, checksum
//! of the event. The messages are those of TensorFlow's `event.proto` and `summary.proto`, reduced
//! to the few fields that scalars need.

use std::fs::{File, TryLockError};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use inheritune_api::v1;
use prost::Message;
use prost_types::Timestamp;

use crate::failure::Failure;

/// The version that every event file starts with.
const FILE_VERSION: &str = "brain.Event:2";
/// TFRecord masks a checksum by rotating it right by 15 bits and adding this.
const CRC_MASK: u32 = 0xa282_ead8;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

impl Event {
    fn at(time: Option<&Timestamp>) -> Self {
        let wall_time = time.map_or(0.0, |time| time.seconds as f64 + f64::from(time.nanos) / 1e9);
        Self { wall_time, ..Self::default() }
    }
}

/// The event file of a job. TensorBoard can read it while it is written.
///
/// All its content comes from the server, so the same job always gives the same file.
pub struct EventFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventFile {
    /// Creates the file of `job` in the folder `dir`, replacing an earlier one of the same job.
    ///
    /// # Errors
    /// The folder or the file cannot be created, the folder contains other curves, which
    /// TensorBoard would merge with these, or another export is writing to the file.
    pub fn create(dir: &Path, job: &v1::Job) -> Result<Self, Failure> {
        std::fs::create_dir_all(dir).map_err(|error| Failure::local(dir, error))?;
        let began = job.created_at.as_ref();
        let name = format!("events.out.tfevents.{}.inheritune.{}", began.map_or(0, |time| time.seconds), job.id);
        for entry in std::fs::read_dir(dir).map_err(|error| Failure::local(dir, error))? {
            let other = entry.map_err(|error| Failure::local(dir, error))?.file_name();
            let other = other.to_string_lossy();
            if other.contains("tfevents") && other != name {
                let problem = format!(
                    "already contains the curves of {other}, and TensorBoard would merge both; use a folder for each \
                     job, or remove that file"
                );
                return Err(Failure::local(dir, problem));
            }
        }
        let path = dir.join(name);
        let failed = |error| Failure::local(&path, error);
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::local(&path, "another export is writing to this file"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).map_err(failed)?;
        let mut events = Self { path, file: BufWriter::new(file) };
        events.write(&Event { file_version: Some(FILE_VERSION.to_owned()), ..Event::at(began) })?;
        events.flush()?;
        Ok(events)
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends each point as a scalar and flushes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, points: &[v1::MetricPoint]) -> Result<(), Failure> {
        for point in points {
            let value = Value { tag: point.name.clone(), simple_value: Some(point.value as f32) };
            let step = i64::try_from(point.step).unwrap_or(i64::MAX);
            self.write(&Event {
                step,
                summary: Some(Summary { value: vec![value] }),
                ..Event::at(point.time.as_ref())
            })?;
        }
        self.flush()
    }

    fn write(&mut self, event: &Event) -> Result<(), Failure> {
        self.file.write_all(&record(&event.encode_to_vec())).map_err(|error| Failure::local(&self.path, error))
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.file.flush().map_err(|error| Failure::local(&self.path, error))
    }
}

/// A TFRecord frame with `data`.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length, &masked_crc(&length)[..], data, &masked_crc(data)].concat()
}

fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(CRC_MASK).to_le_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A file with the same three points, without times, made by TensorBoard's own writer
    /// (tensorboard.summary.writer.record_writer and event_pb2, 2.21).
    const EXPECTED: &str = include_str!("../tests/golden/tensorboard.hex");

    #[test]
    fn a_file_is_what_tensorboard_writes() {
        let events = [
            Event { file_version: Some(FILE_VERSION.to_owned()), ..Event::default() },
            scalar(1, "train_loss", 4.5),
            scalar(2_000_000, "learning_rate", 3e-4),
            scalar(3, "gradient_norm", f32::INFINITY),
        ];
        let written: Vec<u8> = events.iter().flat_map(|event| record(&event.encode_to_vec())).collect();
        assert_eq!(hex::encode(written), EXPECTED.split_whitespace().collect::<String>());
    }

    fn scalar(step: i64, tag: &str, value: f32) -> Event {
        let value = Value { tag: tag.to_owned(), simple_value: Some(value) };
        Event { step, summary: Some(Summary { value: vec![value] }), ..Event::default() }
    }

    fn job(id: &str) -> v1::Job {
        let created_at = Some(Timestamp { seconds: 1_700_000_000, nanos: 0 });
        v1::Job { id: id.to_owned(), created_at, ..v1::Job::default() }
    }

    fn point(step: u64, seconds: i64, nanos: i32) -> v1::MetricPoint {
        let time = Some(Timestamp { seconds, nanos });
        v1::MetricPoint { name: "train_loss".to_owned(), step, tokens_seen: 8, value: 4.5, time }
    }

    /// Reads a file as TensorBoard does: checks both checksums of every record.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let (length, after) = rest.split_at(8);
            let (length_crc, after) = after.split_at(4);
            assert_eq!(length_crc, masked_crc(length));
            let (data, after) = after.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            let (data_crc, after) = after.split_at(4);
            assert_eq!(data_crc, masked_crc(data));
            events.push(Event::decode(data).unwrap());
            rest = after;
        }
        events
    }

    #[test]
    fn u6_points_carry_their_own_time_and_a_second_export_is_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let points = [point(1, 1_700_000_010, 500_000_000), point(2, 1_700_000_073, 0)];
        let export = || {
            let mut events = EventFile::create(dir.path(), &job("one")).unwrap();
            // Appended in two steps, as a watch does.
            events.append(&points[..1]).unwrap();
            assert_eq!(read(events.path()).len(), 2);
            events.append(&points[1..]).unwrap();
            (events.path().to_owned(), std::fs::read(events.path()).unwrap())
        };
        let (path, first) = export();
        let events = read(&path);
        let times: Vec<(i64, f64)> = events.iter().map(|event| (event.step, event.wall_time)).collect();
        assert_eq!(times, [(0, 1_700_000_000.0), (1, 1_700_000_010.5), (2, 1_700_000_073.0)]);
        assert_eq!(events[0].file_version.as_deref(), Some(FILE_VERSION));
        assert_eq!(export(), (path, first));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn u6_curves_of_two_jobs_or_of_an_older_export_are_not_drawn_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |id| EventFile::create(dir.path(), &job(id)).map(|_| ()).unwrap_err().to_string();
        let events = EventFile::create(dir.path(), &job("one")).unwrap();
        assert!(refused("one").contains("another export is writing"), "{}", refused("one"));
        drop(events);
        assert!(refused("two").contains("inheritune.one") && refused("two").contains("a folder for each job"));
        EventFile::create(dir.path(), &job("one")).unwrap();
        std::fs::write(dir.path().join("events.out.tfevents.1700000500.inheritune.4711"), "").unwrap();
        assert!(refused("one").contains("inheritune.4711"), "{}", refused("one"));
        // Other files are not curves.
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("notes.txt"), "").unwrap();
        EventFile::create(dir.path(), &job("one")).unwrap();
    }
}
