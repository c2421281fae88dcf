//! Collects the counters of a job's process and adds them to those of its worker, which Prometheus
//! scrapes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};

use super::wire::Count;
use crate::telemetry::metric::METRICS;

/// A recorder for counter increments. It ignores gauges and histograms, which jobs do not use.
#[derive(Debug, Default)]
pub(super) struct Counted {
    counters: Mutex<HashMap<Key, Arc<AtomicU64>>>,
}

impl Counted {
    /// Returns the increments since the last call.
    pub(super) fn take(&self) -> Vec<Count> {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = counters.iter().filter_map(|(key, counter)| {
            let by = counter.swap(0, Ordering::AcqRel);
            let labels = key.labels().map(|label| (label.key().to_owned(), label.value().to_owned())).collect();
            (by > 0).then(|| Count { name: key.name().to_owned(), labels, by })
        });
        grown.collect()
    }
}

impl Recorder for Counted {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        Counter::from_arc(Arc::clone(counters.entry(key.clone()).or_default()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// Adds the increments of a job's process to this process's counters. Ignores unknown metric names.
pub(super) fn add(counts: Vec<Count>) {
    for count in counts.into_iter().filter(|count| METRICS.iter().any(|(name, _)| *name == count.name)) {
        let labels: Vec<Label> = count.labels.into_iter().map(|(key, value)| Label::new(key, value)).collect();
        let key = Key::from_parts(count.name, labels);
        let metadata = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        metrics::with_recorder(|recorder| recorder.register_counter(&key, &metadata)).increment(count.by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told_once() {
        let counted = Counted::default();
        metrics::with_local_recorder(&counted, || {
            metrics::counter!("tokens", "kind" => "train").increment(3);
            metrics::counter!("tokens", "kind" => "train").increment(4);
            metrics::gauge!("level").set(1.0);
        });
        let labels = vec![("kind".to_owned(), "train".to_owned())];
        assert_eq!(counted.take(), [Count { name: "tokens".to_owned(), labels, by: 7 }]);
        assert_eq!(counted.take(), []);
    }
}
