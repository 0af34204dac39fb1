//! People who scale, roll or delete a StatefulSet, or delete its pod, in the middle of a move of that pod.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    faults::{
        Gate,
        driver::{Scene, begin, explained},
        judge,
        moment::Moment,
        nodes::NODES,
        outcome::Outcome,
        sentry::{Sentry, ran},
    },
    stateful::{goes, has_moved},
};

use crate::{
    scarcity::{allow_pods, say_no_more},
    sequential::{EMPTY_DIR, connect, goes_on, nothing_is_left, running, spec, stateful},
};

const NAME: &str = "web";
const POD: &str = "web-0";
const SOON: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(90);
/// The quota that keeps the pod from being made again.
pub const QUOTA: &str = "no-pods";

/// How far the move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Before anybody has voted.
    Prepared,
    /// Both sides have voted, and nothing is decided.
    Voted,
    /// The source is gone, and no quota leaves room for the pod that is to be made again.
    MadeAgain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Scale(usize),
    DeletePod,
    /// `kubectl rollout restart`.
    Roll,
}

/// What becomes of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Moved,
    /// As [`Fate::Moved`], and as soon as it is Ready there a fresh one comes in its place.
    MovedAndReplaced,
    /// A fresh one comes in its place.
    Replaced,
    Gone,
}

impl Fate {
    /// The application went on, on the other node.
    fn moves(self) -> bool {
        matches!(self, Self::Moved | Self::MovedAndReplaced)
    }
}

type Case = (When, Act, Fate);

impl Act {
    /// How many pods there are in the end.
    fn pods(self) -> usize {
        match self {
            Self::Scale(count) => count,
            Self::DeletePod | Self::Roll => 1,
        }
    }

    fn act(self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::Scale(count) => scale(cluster, count),
            Self::DeletePod => cluster.kubectl(&["delete", "pod", POD, "--wait=false"]).map(drop),
            Self::Roll => {
                cluster.kubectl(&["rollout", "restart", "statefulset", NAME])?;
                cluster.await_that("the controller knows of it", SOON, || {
                    let set = cluster.get("statefulset", NAME)?;
                    Ok(set["status"]["observedGeneration"] == set["metadata"]["generation"])
                })
            }
        }
    }
}

fn scale(cluster: &Cluster, count: usize) -> Result<()> {
    let replicas = format!("--replicas={count}");
    cluster.kubectl(&["scale", "statefulset", NAME, &replicas]).map(drop)
}

fn play(cluster: &Cluster, case: Case) -> Result<()> {
    let source = running(cluster, POD)?;
    let scene = Scene::new(cluster, NODES, source, NAME);
    let outcome = comes_true(&scene, case);
    Gate::open_all(cluster)?;
    say_no_more(cluster, QUOTA)?;
    explained(&scene, outcome).with_context(|| format!("{case:?}"))?;
    let migration = cluster.get("migration", NAME)?;
    drop(scene);

    scale(cluster, 1)?;
    running(cluster, POD)?;
    nothing_is_left(cluster, &migration, POD)?;
    cluster.kubectl(&["delete", "migrations", "--all", "--timeout=60s"]).map(drop)
}

fn comes_true(scene: &Scene, (when, act, fate): Case) -> Result<()> {
    let cluster = scene.cluster;
    let client = connect(&scene.source)?;
    let sentry = Sentry::start(cluster, &NODES)?;

    let moment = if when == When::Prepared { Moment::Prepared } else { Moment::Voted };
    begin(scene, moment, None)?;
    if when == When::MadeAgain {
        is_refused(cluster, NAME)?;
    }
    act.act(cluster)?;
    if when != When::MadeAgain {
        cluster.await_that("the controller has begun", SOON, || has_begun(scene, act))?;
    }
    Gate::open_all(cluster)?;
    if fate.moves() {
        say_no_more(cluster, QUOTA)?;
    }
    cluster.ended(NAME, PATIENCE)?;
    // Only now: it ends for the sake of the owner, not for want of room.
    say_no_more(cluster, QUOTA)?;
    tells(scene, when, act, fate)?;
    is_as_wished(scene, act, fate)?;
    if fate == Fate::Moved {
        goes_on(cluster, &client)?;
        let report = client.stop();
        ensure!(report.is_whole(), "{report:?}");
    }
    let looks = sentry.stop(false)?;
    let outcome = if fate.moves() { Outcome::Moved } else { Outcome::Gone };
    judge::one_copy_ran(scene, &looks, outcome, true)?;
    ensure!(ran(&looks, &scene.target_uid()) == fate.moves(), "{fate:?}: {looks:?}");
    scene.history.kept_its_word()
}

/// From now on the pod is a state on two disks, and the Migration says why it is not made again.
pub fn is_refused(cluster: &Cluster, migration: &str) -> Result<()> {
    allow_pods(cluster, QUOTA, 0)?;
    Gate::open_all(cluster)?;
    cluster.await_that("it says why the pod is not made again", SOON, || {
        let migration = cluster.get("migration", migration)?;
        let (stalled, reason, message) = condition(&migration, "Stalled");
        ensure!(
            stalled == "True"
                && reason == "TargetPodFailed"
                && message.contains("exceeded quota: no-pods"),
            "{:#}",
            migration["status"]
        );
        Ok(true)
    })
}

/// The StatefulSet's controller has done what it can as long as the pod is what it is.
fn has_begun(scene: &Scene, act: Act) -> Result<bool> {
    Ok(match act {
        Act::Scale(0) | Act::DeletePod | Act::Roll => goes(scene.cluster, POD, &scene.source.uid)?,
        Act::Scale(_) => !scene.cluster.get("pod", "web-1")?.is_null(),
    })
}

fn tells(scene: &Scene, when: When, act: Act, fate: Fate) -> Result<()> {
    let migration = scene.cluster.get("migration", NAME)?;
    let status = &migration["status"];
    let (succeeded, reason, message) = condition(&migration, "Succeeded");
    let says = format!("{}: {succeeded}, {reason}: {message}", status["phase"]);
    let expected = match (fate, when) {
        _ if fate.moves() => ("True", "Succeeded", "Migrated"),
        (_, When::MadeAgain) => ("False", "Failed", "SourceGone"),
        _ => ("False", "RolledBack", "SourceGone"),
    };
    let phase = status["phase"].as_str().unwrap_or_default();
    ensure!((succeeded.as_str(), phase, reason.as_str()) == expected, "{says}");
    if (when, act) == (When::MadeAgain, Act::Scale(0)) {
        ensure!(message.contains("scaled down"), "{says}");
    }
    ensure!(fate.moves() != status["resumedAt"].is_null(), "resumedAt: {says}");
    ensure!(condition(&migration, "Stalled").0 == "False", "it is over and Stalled: {says}");
    Ok(())
}

fn is_as_wished(scene: &Scene, act: Act, fate: Fate) -> Result<()> {
    let cluster = scene.cluster;
    let old = [scene.source.uid.clone(), scene.target_uid()];
    cluster.await_that("there are as many pods as are wished", SOON, || {
        let pods = cluster.list("pods", "")?;
        let is_old = |pod: &Value| old.contains(&Pod::of(pod).uid);
        let is_replaced = matches!(fate, Fate::Replaced | Fate::MovedAndReplaced);
        ensure!(!is_replaced || !pods.iter().any(is_old), "the pod is not a fresh one");
        let count = pods.len();
        ensure!(count == act.pods(), "{count} pods");
        let status = cluster.get("statefulset", NAME)?["status"].clone();
        let ready = status["readyReplicas"].as_u64().unwrap_or(0);
        ensure!(ready == act.pods() as u64, "{status:#}");
        Ok(true)
    })?;
    if fate == Fate::Gone {
        return Ok(());
    }
    running(cluster, POD)?;
    if fate == Fate::Moved {
        let object = cluster.get("pod", POD)?;
        ensure!(has_moved(scene, &object), "{:?} became {object:#}", scene.source);
    }
    Ok(())
}

fn play_all(cases: &[(When, Act, Fate)]) -> Result<()> {
    let cluster = Cluster::with_namespace("stateful-owner")?;
    Gate::open_all(&cluster)?;
    cluster.apply(&stateful(&spec(EMPTY_DIR, "", ""), ""))?;
    cases.iter().try_for_each(|case| play(&cluster, *case))
}

#[test]
fn a_stateful_set_is_scaled_and_rolled_and_its_pod_deleted_during_a_move() -> Result<()> {
    play_all(&[
        (When::Prepared, Act::Scale(2), Fate::Moved),
        (When::Voted, Act::DeletePod, Fate::Replaced),
        (When::MadeAgain, Act::Roll, Fate::MovedAndReplaced),
        (When::MadeAgain, Act::Scale(0), Fate::Gone),
    ])
}

#[test]
#[ignore = "it is scaled and rolled at another moment above"]
fn a_stateful_set_is_scaled_and_rolled_at_the_other_moments() -> Result<()> {
    play_all(&[
        (When::MadeAgain, Act::Scale(2), Fate::Moved),
        (When::Prepared, Act::Scale(0), Fate::Gone),
        (When::Prepared, Act::Roll, Fate::Replaced),
    ])
}

/// The StatefulSet is deleted with this `--cascade`, when its pod is not there.
fn delete(cluster: &Cluster, cascade: &str) -> Result<()> {
    let manifest = stateful(&spec(EMPTY_DIR, "", ""), "");
    cluster.apply(&manifest)?;
    let source = running(cluster, POD)?;
    let scene = Scene::new(cluster, NODES, source, NAME);
    let outcome = goes_as_told(&scene, cascade);
    Gate::open_all(cluster)?;
    say_no_more(cluster, QUOTA)?;
    explained(&scene, outcome).with_context(|| format!("--cascade={cascade}"))?;
    let migration = scene.history.latest();
    drop(scene);

    // The next one adopts the pod that lives on, and makes another in the place of one that went.
    cluster.apply(&manifest)?;
    running(cluster, POD)?;
    nothing_is_left(cluster, &migration, POD)?;
    cluster.kubectl(&["delete", "statefulset", NAME, "--cascade=foreground", "--timeout=60s"])?;
    cluster.kubectl(&["delete", "migrations", "--all", "--timeout=60s"]).map(drop)
}

fn goes_as_told(scene: &Scene, cascade: &str) -> Result<()> {
    let cluster = scene.cluster;
    let client = connect(&scene.source)?;
    let sentry = Sentry::start(cluster, &NODES)?;

    begin(scene, Moment::Voted, None)?;
    is_refused(cluster, NAME)?;
    let flag = format!("--cascade={cascade}");
    cluster.kubectl(&["delete", "statefulset", NAME, &flag, "--timeout=60s"])?;
    let outcome = match cascade {
        "orphan" => {
            say_no_more(cluster, QUOTA)?;
            lives_on(scene)?;
            goes_on(cluster, &client)?;
            let report = client.stop();
            ensure!(report.is_whole(), "{report:?}");
            Outcome::Moved
        }
        _ => {
            goes_along(scene)?;
            Outcome::Gone
        }
    };
    let looks = sentry.stop(false)?;
    judge::one_copy_ran(scene, &looks, outcome, true)?;
    scene.history.kept_its_word()
}

/// The pod runs on the other node, and belongs to nobody.
fn lives_on(scene: &Scene) -> Result<()> {
    let cluster = scene.cluster;
    cluster.ended(NAME, PATIENCE)?;
    let migration = cluster.get("migration", NAME)?;
    let (succeeded, reason, message) = condition(&migration, "Succeeded");
    ensure!(succeeded == "True", "{reason}: {message}");
    running(cluster, POD)?;
    let object = cluster.get("pod", POD)?;
    let is_nobodys = object["metadata"]["ownerReferences"].is_null();
    ensure!(has_moved(scene, &object) && is_nobodys, "{:?} became {object:#}", scene.source);
    Ok(())
}

/// The Migration goes with what belongs to the StatefulSet, and says before that no pod is made again.
fn goes_along(scene: &Scene) -> Result<()> {
    let cluster = scene.cluster;
    cluster.await_that("the Migration goes", PATIENCE, || {
        Ok(cluster.get("migration", NAME)?.is_null())
    })?;
    cluster.await_that("it has told why", SOON, || {
        let (succeeded, reason, message) = condition(&scene.history.latest(), "Succeeded");
        ensure!(succeeded == "False" && reason == "SourceGone", "{succeeded}, {reason}: {message}");
        Ok(true)
    })?;
    say_no_more(cluster, QUOTA)?;
    cluster.await_that("no pod is left", SOON, || Ok(cluster.list("pods", "")?.is_empty()))
}

fn delete_all(cascades: &[&str]) -> Result<()> {
    let cluster = Cluster::with_namespace("stateful-deleted")?;
    Gate::open_all(&cluster)?;
    cascades.iter().try_for_each(|cascade| delete(&cluster, cascade))
}

#[test]
#[ignore = "a Deployment is deleted in a move by `owners`"]
fn a_stateful_set_that_is_deleted_takes_along_the_state_of_its_pod_or_lets_it_go() -> Result<()> {
    delete_all(&["background", "orphan"])
}

#[test]
#[ignore = "it takes it along in the background, too"]
fn a_stateful_set_that_is_deleted_in_the_foreground_takes_along_the_state_of_its_pod() -> Result<()>
{
    delete_all(&["foreground"])
}
