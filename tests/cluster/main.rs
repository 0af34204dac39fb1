//! End-to-end tests on the sandbox cluster: real kubelets, containerd, runc and CRIU. Run them with
//! `cargo xtask test`; they run one after another. Those that take long for what they add to the others are
//! ignored, each with its reason, and run by `cargo xtask test --faults`.

mod afterwards;
mod agentless;
mod attached;
mod cold;
mod cold_ends;
mod deletions;
mod doctor;
mod dual_stack;
mod faults;
mod hold;
mod jobs;
mod kept;
mod leaving;
mod listed;
mod manifests;
mod migration;
mod network;
mod newer;
mod ordinals;
mod owners;
mod placement;
mod placement_admission;
mod placement_moves;
mod placement_nodes;
mod policies;
mod preflight;
mod preflight_manifests;
mod preflight_nodes;
mod preflight_volumes;
mod redis;
mod refusal;
mod reserve;
mod scarcity;
mod sequential;
mod service;
mod shims;
mod sidecars;
mod states;
mod trial;
mod uninstall;
mod unseen;

/// Deploys the example application into a test's namespace.
fn counter(
    cluster: &transship_tests::cluster::Cluster,
) -> anyhow::Result<transship_tests::cluster::Pod> {
    cluster.apply(include_str!("../../examples/counter.yaml"))?;
    cluster.rolled_out("counter")?;
    cluster.pod("app=counter")
}
