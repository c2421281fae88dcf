//! Training curves as an event file that TensorBoard reads: TFRecord frames (length, its checksum, an `Event`, its
//! checksum) of TensorFlow's `event.proto` and `summary.proto`, of which scalars need a handful of fields.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use inheritune_api::v1;
use prost::Message;

use crate::failure::Failure;

/// What every event file starts with.
const FILE_VERSION: &str = "brain.Event:2";
/// TFRecord's masked checksum: turned right by 15 bits, plus this.
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
    fn now() -> Self {
        Self { wall_time: now().as_secs_f64(), ..Self::default() }
    }
}

/// Since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// An event file that is being written; TensorBoard may read it meanwhile.
pub struct EventFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventFile {
    /// Starts a file in the folder `dir`, with a name of its own among others.
    ///
    /// # Errors
    /// The folder or the file cannot be made.
    pub fn create(dir: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(dir).map_err(|error| Failure::local(dir, error))?;
        let path = dir.join(format!("events.out.tfevents.{}.inheritune.{}", now().as_secs(), std::process::id()));
        let file = File::create_new(&path).map_err(|error| Failure::local(&path, error))?;
        let mut events = Self { path, file: BufWriter::new(file) };
        events.write(&Event { file_version: Some(FILE_VERSION.to_owned()), ..Event::now() })?;
        events.flush()?;
        Ok(events)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends points, a scalar each; what is written is complete.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, points: &[v1::MetricPoint]) -> Result<(), Failure> {
        for point in points {
            let value = Value { tag: point.name.clone(), simple_value: Some(point.value as f32) };
            let step = i64::try_from(point.step).unwrap_or(i64::MAX);
            self.write(&Event { step, summary: Some(Summary { value: vec![value] }), ..Event::now() })?;
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

/// A TFRecord.
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

    /// A file that TensorBoard's own writer made of the same three points, less its times
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

    #[test]
    fn points_are_appended_as_they_come() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(dir.path()).unwrap();
        let empty = std::fs::metadata(events.path()).unwrap().len();
        let point = v1::MetricPoint { name: "train_loss".to_owned(), step: 1, tokens_seen: 8, value: 4.5 };
        events.append(std::slice::from_ref(&point)).unwrap();
        let once = std::fs::metadata(events.path()).unwrap().len();
        events.append(&[point.clone(), point]).unwrap();
        let thrice = std::fs::metadata(events.path()).unwrap().len();
        assert_eq!((thrice - empty, empty > 0), (3 * (once - empty), true));
    }
}
