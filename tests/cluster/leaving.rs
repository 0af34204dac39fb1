//! The node on which a pod was lost leaves the cluster before its user has said what becomes of the memory. Whoever
//! removes a node does not say that: it is asked as before, and what is wanted happens on the node that is left.

use std::time::Duration;

use anyhow::{Result, ensure};
use transship_api::{Role, names};
use transship_tests::{
    cluster::{Cluster, condition},
    faults::{
        Gate, judge,
        nodes::{NODES, healthy},
        outcome::Outcome,
    },
    line::Line,
    node::process::Victim,
};

use crate::{
    newer::{Asked, NAME, POD, PORT, Play, play},
    sequential::{nothing_is_left, running, with_exclusive_volume},
};

const SOON: Duration = Duration::from_secs(60);
/// Kubernetes gives a node that is gone some time before it ends its pods for it.
const PATIENCE: Duration = Duration::from_secs(180);

fn leaves(asked: Asked) -> Result<()> {
    let (cluster, node) = (asked.scene.cluster, asked.scene.node(Role::Target));
    let left = cluster.kubectl(&["delete", "node", node, "--timeout=60s"]);
    let outcome = left.and_then(|_| goes_back(asked));
    // Whatever came of it: others need the node.
    let joined = joins_again(cluster, node);
    outcome.and(joined)?;
    nothing_is_left(cluster, &cluster.get("migration", NAME)?, POD)
}

/// It asks still, and on the answer the memory is restored where it came from.
fn goes_back(asked: Asked) -> Result<()> {
    let (scene, cluster) = (asked.scene, asked.scene.cluster);
    asked.says_what_does_not_count("nobody")?;
    let status = cluster.get("migration", NAME)?["status"].clone();
    ensure!(status["resolution"].is_null(), "it went back unasked: {status:#}");
    asked.has_written(&[])?;

    asked.answer(names::RESTORE_ANYWAY)?;
    cluster.ended(NAME, PATIENCE)?;
    let migration = cluster.get("migration", NAME)?;
    let (succeeded, reason, message) = condition(&migration, "Succeeded");
    let resolution = &migration["status"]["resolution"];
    ensure!(
        succeeded == "False" && reason == "TargetLost" && resolution == "SourceResumes",
        "{succeeded}, {reason}, {resolution}: {message}"
    );
    let after = running(cluster, POD)?;
    ensure!(
        after.node == scene.source.node && after.uid != scene.source.uid && after.uid != asked.lost,
        "{:?} became {after:?}",
        scene.source
    );
    let answer = Line::connect(&after, PORT)?.ask()?;
    ensure!(answer == (asked.count + 1).to_string(), "{answer} after {}", asked.count);
    asked.has_written(&[asked.count + 1])?;
    let looks = asked.sentry.stop(false)?;
    judge::one_copy_ran(scene, &looks, Outcome::TargetLost, false)?;
    scene.history.kept_its_word()
}

/// kubelet registers its node when it starts; the agent's pod may have been one of the former node's.
fn joins_again(cluster: &Cluster, node: &str) -> Result<()> {
    // The agent may have gone with the node.
    let kill = |victim: Victim| {
        let probe = ["transship-probe", "kill", &cluster.namespace, victim.as_str()];
        cluster.try_on_node(node, &probe)
    };
    kill(Victim::Kubelet)?;
    cluster.await_that("the node has joined the cluster again", SOON, || {
        Ok(!cluster.get("node", node)?.is_null())
    })?;
    kill(Victim::Agent)?;
    healthy(cluster, &NODES)
}

#[test]
#[ignore = "what is asked and answered is shown by `newer`"]
fn a_node_that_leaves_the_cluster_does_not_answer_for_the_user() -> Result<()> {
    let cluster = Cluster::with_namespace("leaving")?;
    Gate::open_all(&cluster)?;
    with_exclusive_volume(&cluster, |directory| {
        let leaves = Play { what: "the node leaves", is_deleted: false, answer: leaves };
        play(&cluster, directory, &leaves)
    })
}
