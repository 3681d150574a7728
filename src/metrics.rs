//! What Prometheus is told, as OpenMetrics text: the only user of prometheus-client. It must not know
//! where figures come from.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::event::{Prediction, Timings};

/// Upper limits of the histograms' buckets, in seconds.
const LIMITS: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0, 10.0];

type Labels = Vec<(&'static str, String)>;

/// How long each stage took, by variant, since the start.
#[derive(Clone, Debug)]
pub struct Metrics {
    stages: Family<Labels, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { stages: Family::new_with_constructor(|| Histogram::new(LIMITS)) }
    }
}

/// A figure as it is now.
#[derive(Clone, Debug)]
pub struct Figure {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    value: Value,
}

#[derive(Clone, Debug)]
enum Value {
    Counter(u64),
    Gauge(Vec<(Labels, f64)>),
}

impl Figure {
    /// Something that is counted from the start.
    pub fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, unit: None, value: Value::Counter(value) }
    }

    /// Something that goes up and down; nothing when it is not known.
    pub fn gauge(name: &'static str, help: &'static str, value: impl Into<Option<f64>>) -> Self {
        Self::gauges(name, help, value.into().map(|value| (Vec::new(), value)))
    }

    /// The same for several things, which their labels name.
    pub fn gauges(
        name: &'static str,
        help: &'static str,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) -> Self {
        Self { name, help, unit: None, value: Value::Gauge(values.into_iter().collect()) }
    }

    /// In this unit, which becomes the end of its name.
    #[must_use]
    pub fn unit(self, unit: &str) -> Self {
        Self { unit: Some(Unit::Other(unit.to_owned())), ..self }
    }
}

impl Metrics {
    /// A frame was classified.
    pub fn observe(&self, prediction: &Prediction) {
        let Timings { wait, decode, preprocess, inference, total } = prediction.timings_ms;
        let stages = [wait, decode, preprocess, inference, total];
        let names = ["wait", "decode", "preprocess", "inference", "total"];
        for (stage, ms) in names.into_iter().zip(stages) {
            let labels = vec![("variant", prediction.variant.clone()), ("stage", stage.to_owned())];
            self.stages.get_or_create(&labels).observe(ms / 1e3);
        }
    }

    /// All of it as OpenMetrics text, `figures` last.
    pub fn text(&self, figures: &[Figure]) -> String {
        let mut registry = Registry::with_prefix("vggd");
        let help = "Time that frames spent in each stage";
        registry.register_with_unit("stage", help, Unit::Seconds, self.stages.clone());
        for Figure { name, help, unit, value } in figures {
            let (name, help) = (*name, *help);
            match (value, unit.clone()) {
                (Value::Counter(count), _) => {
                    registry.register(name, help, ConstCounter::new(*count));
                }
                (Value::Gauge(values), unit) => {
                    let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
                    for (labels, value) in values {
                        family.get_or_create(labels).set(*value);
                    }
                    match unit {
                        Some(unit) => registry.register_with_unit(name, help, unit, family),
                        None => registry.register(name, help, family),
                    }
                }
            }
        }
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("writing to a string");
        text
    }
}
