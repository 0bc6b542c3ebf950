//! What a transport counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// The meters of whatever is made inside [`recording`](Self::recording).
#[derive(Debug, Clone, Default)]
pub struct Meters(Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>);

impl Meters {
    /// Runs what makes a transport.
    pub fn recording<T>(&self, make: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(self, make)
    }

    /// A counter's value, named as `name{label}`, or `name`; zero for one that is not there.
    pub fn count(&self, name: &str) -> u64 {
        let meters = self.0.lock().unwrap();
        meters.get(name).map_or(0, |meter| meter.load(Ordering::Relaxed))
    }

    /// The same of a gauge.
    pub fn level(&self, name: &str) -> f64 {
        f64::from_bits(self.count(name))
    }

    /// Waits until a condition holds of them.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .is_err()
        {
            panic!("{what}: {:?}", self.0.lock().unwrap());
        }
    }

    fn meter(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<&str> = key.labels().map(|label| label.value()).collect();
        let name = match labels.is_empty() {
            true => key.name().to_owned(),
            false => format!("{}{{{}}}", key.name(), labels.join(",")),
        };
        Arc::clone(self.0.lock().unwrap().entry(name).or_default())
    }
}

impl Recorder for Meters {
    fn describe_counter(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}
    fn describe_gauge(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}
    fn describe_histogram(&self, _key: KeyName, _unit: Option<Unit>, _description: SharedString) {}

    fn register_counter(&self, key: &Key, _metadata: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.meter(key))
    }

    fn register_gauge(&self, key: &Key, _metadata: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.meter(key))
    }

    fn register_histogram(&self, _key: &Key, _metadata: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
