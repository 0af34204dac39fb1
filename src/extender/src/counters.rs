//! What is counted. Labels are bounded.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// By what was asked and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Request {
    /// `filter` or `prioritize`.
    pub verb: &'static str,
    /// `placed`, `refused`, `malformed` or `unready`.
    pub outcome: &'static str,
}

/// Counters of one extender.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Questions of kube-scheduler.
    pub requests: Family<Request, Counter>,
    /// How long they took.
    pub duration: Histogram,
    /// Choices that are not facts yet.
    pub assumed: Gauge,
    /// Pods that no node suits.
    pub waiting: Gauge,
    /// Pods that were put before their scheduler again.
    pub touched: Counter,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            duration: Histogram::new(exponential_buckets(0.000_25, 2.0, 12)),
            assumed: Gauge::default(),
            waiting: Gauge::default(),
            touched: Counter::default(),
        }
    }
}

impl Counters {
    /// Adds them to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "placement_requests",
            "Questions of kube-scheduler",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "placement_duration",
            "How long answers to kube-scheduler took",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register(
            "placement_assumed",
            "Pods with a node that they are not bound to yet",
            self.assumed.clone(),
        );
        registry.register("placement_waiting", "Pods that no node suits", self.waiting.clone());
        registry.register(
            "placement_touched",
            "Pods put before their scheduler again",
            self.touched.clone(),
        );
    }
}
