//! People who delete one of the pods of a sequential move, at each of its steps: the source, the pod of the
//! restore on trial, or the pod that was made again. What they wish comes true, or they were too late or too early to
//! mean anything; one copy runs at any time, and the Migration tells what became of the pod.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    counter::Client,
    faults::{
        Gate,
        driver::{Scene, begin, evidence, in_time},
        judge,
        moment::Moment,
        nodes::{NODES, is_ready, restarts},
        outcome::Outcome,
        probe::{Missed, Probe},
        sentry::Sentry,
    },
    stateful::{goes, has_moved, has_node, made_again},
};

use crate::{
    scarcity::checks_have_passed,
    sequential::{EMPTY_DIR, connect, goes_on, nothing_is_left, running, spec, stateful},
};

const NAME: &str = "web";
const POD: &str = "web-0";
const SOON: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(90);

/// Of the same name as the StatefulSet's, and nobody's.
const BARE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web-0, labels: {app: web}}
spec: SPEC
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    StatefulSet,
    Nobody,
}

/// The mode that moves the memory along.
const LIVE: &str = "Auto";

/// Which pod is deleted, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// Nothing is decided.
    Source(Moment),
    /// Nothing is decided.
    Trial(Moment),
    /// The source after the commit, when its containers have ended and its pod is about to go.
    Ended,
    /// It was made again and waits behind its gate. The API server removes a pod without a node at once, so
    /// who meant it is hardly ever seen.
    Gated,
    /// It was made again and let go to its node, where it is restored. It may run by then.
    LetGo,
    /// It was made again and runs, which is not recorded before it goes.
    Thawed,
    /// It was made again and runs, which is recorded; that all is over is not, before it goes.
    Confirmed,
}

/// What becomes of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Moved,
    Stayed,
    /// It is gone with its state. An owner makes a fresh one.
    Gone,
}

impl Owner {
    fn manifest(self) -> String {
        let spec = spec(EMPTY_DIR, "", "");
        match self {
            Self::StatefulSet => stateful(&spec, ""),
            Self::Nobody => BARE.replace("SPEC", &spec),
        }
    }
}

impl Victim {
    fn fate(self) -> Fate {
        match self {
            Self::Source(_) | Self::Ended | Self::LetGo | Self::Thawed | Self::Confirmed => {
                Fate::Gone
            }
            Self::Trial(_) => Fate::Stayed,
            Self::Gated => Fate::Moved,
        }
    }

    /// How the Migration may have ended: `Succeeded`, phase, reason.
    fn ends(self) -> &'static [[&'static str; 3]] {
        match self {
            // Nothing was recorded of it: there is no such pod to be moved, or it is about to go.
            Self::Source(Moment::Preflight) => {
                &[["False", "Failed", "PodNotRunning"], ["False", "Failed", "PodNotFound"]]
            }
            Self::Source(_) => &[["False", "RolledBack", "SourceGone"]],
            Self::Trial(_) => &[["False", "RolledBack", "TargetGone"]],
            Self::Ended => &[["False", "Failed", "SourceGone"]],
            Self::Gated | Self::Thawed | Self::Confirmed => &[["True", "Succeeded", "Migrated"]],
            Self::LetGo => &[["False", "Failed", "TargetGone"], ["True", "Succeeded", "Migrated"]],
        }
    }
}

fn play(cluster: &Cluster, owner: Owner, mode: &'static str, victim: Victim) -> Result<()> {
    let what = format!("{owner:?}, {mode}, {victim:?}");
    in_time(&what, || attempt(cluster, owner, mode, victim)).context(what)
}

fn attempt(cluster: &Cluster, owner: Owner, mode: &'static str, victim: Victim) -> Result<()> {
    let source = running(cluster, POD)?;
    let mut scene = Scene::new(cluster, NODES, source, NAME);
    scene.mode = mode;
    let outcome = comes_true(&scene, owner, victim);
    Gate::open_all(cluster)?;
    let missed = matches!(&outcome, Err(error) if error.is::<Missed>());
    if missed {
        // Nothing has happened to it.
        cluster.succeeded(NAME, PATIENCE)?;
    } else if let Err(error) = &outcome {
        return Err(anyhow!("{error:#}\n{}", evidence(&scene)));
    }
    let migration = cluster.get("migration", NAME)?;
    drop(scene);

    if owner == Owner::Nobody && victim.fate() == Fate::Gone && !missed {
        cluster.await_that("the pod's name is free", SOON, || {
            cluster.apply(&owner.manifest()).map(|_| true)
        })?;
    }
    running(cluster, POD)?;
    nothing_is_left(cluster, &migration, POD)?;
    cluster.kubectl(&["delete", "migrations", "--all", "--timeout=60s"])?;
    outcome
}

fn comes_true(scene: &Scene, owner: Owner, victim: Victim) -> Result<()> {
    let cluster = scene.cluster;
    let client = connect(&scene.source)?;
    let sentry = Sentry::start(cluster, &NODES)?;

    strike(scene, victim, &client)?;
    Gate::open_all(cluster)?;
    cluster.ended(NAME, PATIENCE)?;
    let migration = cluster.get("migration", NAME)?;
    let (succeeded, reason, message) = condition(&migration, "Succeeded");
    let phase = migration["status"]["phase"].as_str().unwrap_or_default();
    let told = [succeeded.as_str(), phase, reason.as_str()];
    ensure!(victim.ends().contains(&told), "{told:?}: {message}");
    if victim == Victim::Gated {
        ensure!(migration["status"]["failedRestores"] == 1, "{:#}", migration["status"]);
    }

    let fate = victim.fate();
    is_there(scene, owner, fate)?;
    if fate != Fate::Gone {
        goes_on(cluster, &client)?;
    }
    // Of one that is gone the connection ends; what it said it has said once.
    let report = client.stop();
    let may_end = fate == Fate::Gone;
    ensure!(report.is_whole() || (may_end && report.jumps.is_empty()), "{report:?}");
    let looks = sentry.stop(false)?;
    let outcome = match fate {
        Fate::Moved => Outcome::Moved,
        Fate::Stayed => Outcome::Stayed,
        Fate::Gone => Outcome::Gone,
    };
    judge::one_copy_ran(scene, &looks, outcome, true)?;
    scene.history.kept_its_word()
}

/// Begins the move and waits for a moment before the decision, which is not made before the gates are opened:
/// to delete something takes longer than some moments.
fn stop_at(scene: &Scene, moment: Moment) -> Result<Option<Probe>> {
    if moment.gate().is_none() {
        Gate::Decision.close(scene.cluster)?;
    }
    let standing = begin(scene, moment, None)?;
    if moment == Moment::Preflight {
        checks_have_passed(scene.cluster, &scene.source)?;
    }
    Ok(standing)
}

/// Lets what was kept standing go on.
fn go_on(standing: Option<Probe>) {
    if let Some(standing) = standing {
        // The move may have been given up and have ended it.
        let _ = standing.go_on();
    }
}

/// Deletes the victim when it is its time. The client is one of the source's.
fn strike(scene: &Scene, victim: Victim, client: &Client) -> Result<()> {
    let cluster = scene.cluster;
    let delete = |name: &str| cluster.kubectl(&["delete", "pod", name, "--wait=false"]).map(drop);
    // Decided, and held back at what this gate stands before.
    let committed = |held: Option<Gate>| -> Result<()> {
        begin(scene, Moment::Voted, None)?;
        held.map_or(Ok(()), |gate| gate.close(cluster))?;
        Gate::Decision.open(cluster)
    };
    match victim {
        Victim::Source(moment) => {
            let standing = stop_at(scene, moment)?;
            delete(POD)?;
            go_on(standing);
            await_end(cluster, POD, &scene.source.uid)
        }
        Victim::Trial(moment) => {
            let standing = stop_at(scene, moment)?;
            cluster
                .await_that("the pod is recorded", SOON, || Ok(!scene.target_uid().is_empty()))?;
            let target = scene.history.latest()["status"]["target"].clone();
            let text = |key: &str| target[key].as_str().with_context(|| format!("no {key}"));
            let (name, uid) = (text("podName")?, text("podUID")?);
            ensure!(name != POD, "the pod on trial has the source's name");
            delete(name)?;
            go_on(standing);
            await_end(cluster, name, uid)
        }
        Victim::Ended => {
            committed(Some(Gate::SourceDeletion))?;
            cluster.await_that("the source has ended", SOON, || {
                let pod = cluster.get("pod", POD)?;
                ensure!(pod["metadata"]["uid"] == scene.source.uid.as_str(), "it is {pod:#}");
                Ok(pod["status"]["containerStatuses"][0]["state"]["running"].is_null())
            })?;
            delete(POD)?;
            cluster.await_that("the source is gone", SOON, || {
                Ok(cluster.get("pod", POD)?["metadata"]["uid"] != scene.source.uid.as_str())
            })
        }
        Victim::Gated => {
            committed(Some(Gate::LetGo))?;
            let first = made_again(scene, |_| true)?;
            delete(POD)?;
            await_end(cluster, POD, &first)?;
            // The next one, which is restored.
            made_again(scene, |pod| pod["metadata"]["uid"] != first.as_str()).map(drop)
        }
        Victim::LetGo => {
            committed(None)?;
            let uid = made_again(scene, has_node)?;
            delete(POD)?;
            await_end(cluster, POD, &uid)
        }
        Victim::Thawed => {
            committed(Some(Gate::ResumedAt))?;
            let uid = made_again(scene, has_node)?;
            // With its memory, which nobody else has by now.
            goes_on(cluster, client)?;
            let status = scene.latest()?["status"].clone();
            ensure!(status["resumedAt"].is_null(), "it is recorded: {status:#}");
            delete(POD)?;
            await_end(cluster, POD, &uid)
        }
        Victim::Confirmed => {
            committed(Some(Gate::End))?;
            let uid = made_again(scene, has_node)?;
            goes_on(cluster, client)?;
            cluster.await_that("it is confirmed", SOON, || {
                Ok(!scene.latest()?["status"]["resumedAt"].is_null())
            })?;
            let status = scene.latest()?["status"].clone();
            ensure!(status["completionTime"].is_null(), "it is over: {status:#}");
            delete(POD)?;
            await_end(cluster, POD, &uid)
        }
    }
}

/// Waits until the object is being deleted or gone.
fn await_end(cluster: &Cluster, name: &str, uid: &str) -> Result<()> {
    cluster.await_that(&format!("{name} goes"), SOON, || goes(cluster, name, uid))
}

/// What is there in the end.
fn is_there(scene: &Scene, owner: Owner, fate: Fate) -> Result<()> {
    let cluster = scene.cluster;
    if fate == Fate::Gone && owner == Owner::Nobody {
        return cluster.await_that("no pod is left", SOON, || {
            let pods = cluster.list("pods", "")?;
            ensure!(pods.is_empty(), "{} pods", pods.len());
            Ok(true)
        });
    }
    let source = &scene.source;
    cluster.await_that("the right pod is Ready", PATIENCE, || {
        let object = cluster.get("pod", POD)?;
        let pod = Pod::of(&object);
        let is_right = match fate {
            Fate::Moved => has_moved(scene, &object),
            Fate::Stayed => pod == *source,
            Fate::Gone => pod.uid != source.uid && pod.uid != scene.target_uid(),
        };
        ensure!(is_right && is_ready(&object), "{fate:?}: {source:?} became {object:#}");
        ensure!(restarts(&object) == 0, "{pod:?} was started again");
        Ok(true)
    })
}

/// Deletes each of them in a move of its own, in this mode.
fn play_all(name: &str, owner: Owner, mode: &'static str, victims: &[Victim]) -> Result<()> {
    let cluster = Cluster::with_namespace(name)?;
    Gate::open_all(&cluster)?;
    cluster.apply(&owner.manifest())?;
    victims.iter().try_for_each(|victim| play(&cluster, owner, mode, *victim))
}

#[test]
fn the_source_the_pod_on_trial_or_the_one_made_again_is_deleted() -> Result<()> {
    let victims = [
        Victim::Source(Moment::Dumping),
        Victim::Trial(Moment::Restoring),
        Victim::Gated,
        Victim::LetGo,
    ];
    play_all("stateful-deletions", Owner::StatefulSet, LIVE, &victims)
}

#[test]
#[ignore = "they are deleted at other steps above"]
fn the_source_the_pod_on_trial_or_the_one_made_again_is_deleted_at_the_other_steps() -> Result<()> {
    let victims = [
        Victim::Source(Moment::TargetIsMade),
        Victim::Trial(Moment::TargetIsMade),
        Victim::Source(Moment::Prepared),
        Victim::Trial(Moment::Prepared),
        Victim::Source(Moment::TargetStarts),
        Victim::Trial(Moment::TargetStarts),
        Victim::Source(Moment::Freezing),
        Victim::Trial(Moment::Freezing),
        Victim::Trial(Moment::Dumping),
        Victim::Source(Moment::Reading),
        Victim::Trial(Moment::Reading),
        Victim::Source(Moment::Restoring),
        Victim::Trial(Moment::Voted),
        Victim::Ended,
        Victim::Thawed,
        Victim::Confirmed,
    ];
    play_all("stateful-deletions", Owner::StatefulSet, LIVE, &victims)
}

#[test]
#[ignore = "who means what is judged in every mode alike"]
fn the_ended_source_or_the_pod_made_again_is_deleted_where_only_files_move() -> Result<()> {
    let victims = [Victim::Source(Moment::Voted), Victim::LetGo];
    play_all("cold-deletions", Owner::StatefulSet, "Cold", &victims)
}

#[test]
#[ignore = "a pod of a StatefulSet is deleted above"]
fn a_bare_pod_that_is_deleted_in_a_move_is_not_made_again() -> Result<()> {
    let victims = [Victim::Source(Moment::Voted), Victim::Ended];
    play_all("bare-deletions", Owner::Nobody, LIVE, &victims)
}

#[test]
#[ignore = "it is deleted at other steps above"]
fn a_bare_pod_that_is_deleted_at_the_other_steps_is_not_made_again() -> Result<()> {
    // At the checks a StatefulSet would make another of the same name, which the Migration may well mean.
    let victims =
        [Victim::Source(Moment::Preflight), Victim::Source(Moment::Freezing), Victim::LetGo];
    play_all("bare-deletions", Owner::Nobody, LIVE, &victims)
}
