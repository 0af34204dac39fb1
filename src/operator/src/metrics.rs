//! What the operator counts. Labels are bounded: kinds, reasons and roles, never names of pods.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// By kind of object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// Lower-case kind.
    pub kind: &'static str,
}

/// By kind of object and reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindReason {
    /// Lower-case kind.
    pub kind: &'static str,
    /// Reason, PascalCase.
    pub reason: &'static str,
}

/// By outcome and reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// Final phase.
    pub phase: String,
    /// Reason of the condition Succeeded.
    pub reason: String,
}

/// By role in a migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RoleLabel {
    /// `source` or `target`.
    pub role: &'static str,
}

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Reconciliations.
    pub reconciles: Family<Kind, Counter>,
    /// Their duration.
    pub reconcile_duration: Histogram,
    /// Reconciliations that failed.
    pub errors: Family<KindReason, Counter>,
    /// Migrations that ended.
    pub ended: Family<Outcome, Counter>,
    /// How long applications stood still.
    pub downtime: Histogram,
    /// Bytes sent by migrations that ended.
    pub transferred: Counter,
    /// Migrations under way.
    pub active: Gauge,
    /// Sides that agents report as open.
    pub sides: Family<RoleLabel, Gauge>,
    /// Our Nodes that are Ready.
    pub nodes_ready: Gauge,
    /// Our Nodes.
    pub nodes: Gauge,
    /// Creates and status writes held back during hand-overs.
    pub held_back: Family<Kind, Counter>,
    /// Objects refused at admission.
    pub refused: Family<Kind, Counter>,
    /// Objects whose authors were warned at admission.
    pub warned: Family<Kind, Counter>,
    /// What the extender counts.
    pub placement: transship_extender::Counters,
    /// 1 in the replica that leads.
    pub leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 14));
        let mut metrics = Self {
            registry: Registry::with_prefix("transship"),
            reconciles: Family::default(),
            reconcile_duration: seconds(),
            errors: Family::default(),
            ended: Family::default(),
            downtime: Histogram::new(exponential_buckets(0.025, 2.0, 12)),
            transferred: Counter::default(),
            active: Gauge::default(),
            sides: Family::default(),
            nodes_ready: Gauge::default(),
            nodes: Gauge::default(),
            held_back: Family::default(),
            refused: Family::default(),
            warned: Family::default(),
            placement: transship_extender::Counters::default(),
            leader: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("reconciles", "Reconciliations", self.reconciles.clone());
        r.register_with_unit(
            "reconcile_duration",
            "Duration of reconciliations",
            Unit::Seconds,
            self.reconcile_duration.clone(),
        );
        r.register("reconcile_errors", "Reconciliations that failed", self.errors.clone());
        r.register("migrations", "Migrations that ended", self.ended.clone());
        r.register_with_unit(
            "migration_downtime",
            "How long applications stood still",
            Unit::Seconds,
            self.downtime.clone(),
        );
        r.register_with_unit(
            "migration_transferred",
            "Sent by migrations that ended",
            Unit::Bytes,
            self.transferred.clone(),
        );
        r.register("migrations_active", "Migrations under way", self.active.clone());
        r.register("node_sides_active", "Sides that agents report as open", self.sides.clone());
        r.register("nodes_ready", "Nodes on which pods can be moved", self.nodes_ready.clone());
        r.register("nodes", "Nodes with an agent", self.nodes.clone());
        r.register(
            "handover_held_back",
            "Creates and status writes held back during hand-overs",
            self.held_back.clone(),
        );
        r.register("admission_warned", "Objects whose authors were warned", self.warned.clone());
        r.register("admission_refused", "Objects refused at admission", self.refused.clone());
        self.placement.register(r);
        r.register("leader", "1 in the replica that leads", self.leader.clone());
    }

    /// In Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_unit_and_the_common_prefix() {
        let metrics = Metrics::default();
        metrics.downtime.observe(0.184);
        let text = metrics.text();
        assert!(text.contains("transship_migration_downtime_seconds_sum 0.184"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("transship_"), "{line}");
        }
    }
}
