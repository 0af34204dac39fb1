//! Memory that may be older than the volume that it belongs to: a pod that was made again is lost when it may have
//! run. Its user says whether it is restored all the same, or the memory given up; until then nothing runs.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use transship_api::{Role, names};
use transship_tests::{
    cluster::{Cluster, condition},
    faults::{
        Gate,
        driver::{Scene, begin, explained, in_time},
        judge,
        moment::{Moment, Sign},
        nodes::NODES,
        outcome::Outcome,
        probe::{Missed, Probe},
        sentry::{Sentry, doubles},
    },
    line::Line,
    node::{moment::Moment as InNode, process::Victim},
    prober::unix_ms,
    stateful::{has_moved, made_again},
};

use crate::sequential::{nothing_is_left, running, times_told, with_exclusive_volume};

const NAME: &str = "web";
const POD: &str = "web-0";
const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(90);

/// It is for the user to say what becomes of the memory.
struct Asked<'a> {
    scene: &'a Scene<'a>,
    sentry: Sentry,
    /// A connection on which nothing is said while the pod moves: so the try that is lost has nothing to write, and
    /// the volume fits the memory whatever ran.
    line: Line,
    /// The number that it was answered last.
    count: u64,
    /// Where the numbers are written, on either node.
    numbers: String,
    /// UID of the pod that was lost.
    lost: String,
    /// What restores the memory all the same, as the Migration tells.
    command: String,
}

impl Asked<'_> {
    /// The volume has these numbers and no others.
    fn has_written(&self, numbers: impl Iterator<Item = u64>) -> Result<()> {
        let expected: String = numbers.map(|number| format!("{number}\n")).collect();
        let found = self.scene.cluster.on_node(NODES[0], &["cat", &self.numbers])?;
        ensure!(found == expected, "{found:?} instead of {expected:?}");
        Ok(())
    }
}

/// The user wants the memory: it goes on as it was at the commit, with its connection.
fn restored(mut asked: Asked) -> Result<()> {
    let (scene, cluster) = (asked.scene, asked.scene.cluster);
    let command: Vec<&str> = asked.command.split_whitespace().skip(1).collect();
    cluster.kubectl(&command)?;
    let migration = cluster.succeeded(NAME, PATIENCE)?;
    let (stalled, reason, _) = condition(&migration, "Stalled");
    let status = &migration["status"];
    ensure!(status["failedRestores"] == 1 && stalled == "False", "{reason}: {status:#}");

    let after = running(cluster, POD)?;
    ensure!(after.uid != asked.lost, "the pod that was lost runs: {after:?}");
    cluster.await_that("the pod has moved", SOON, || {
        Ok(has_moved(scene, &cluster.get("pod", POD)?))
    })?;
    let answer = asked.line.ask()?;
    ensure!(answer == (asked.count + 1).to_string(), "{answer} after {}", asked.count);
    asked.has_written(1..=asked.count + 1)?;
    let looks = asked.sentry.stop(false)?;
    judge::one_copy_ran(scene, &looks, Outcome::Moved, false)?;
    scene.history.kept_its_word()?;
    nothing_is_left(cluster, &migration, POD)
}

/// The user gives the memory up: a fresh pod finds the volume as it was.
fn given_up(asked: Asked) -> Result<()> {
    let (scene, cluster) = (asked.scene, asked.scene.cluster);
    cluster.kubectl(&["delete", "migration", NAME, "--timeout=90s"])?;
    let mut migration = Value::Null;
    cluster.await_that("it has told of its end", SOON, || {
        migration = scene.history.latest();
        let (succeeded, reason, message) = condition(&migration, "Succeeded");
        ensure!(
            succeeded == "False" && reason == "Cancelled" && message.contains("given up"),
            "{succeeded}, {reason}: {message}"
        );
        Ok(true)
    })?;

    let fresh = running(cluster, POD)?;
    ensure!(fresh.uid != asked.lost && fresh.uid != scene.source.uid, "not afresh: {fresh:?}");
    asked.has_written(1..=asked.count)?;
    let answer = Line::connect(&fresh, PORT)?.ask()?;
    ensure!(answer == "1", "it has started with {answer}");
    asked.has_written((1..=asked.count).chain([1]))?;
    let looks = asked.sentry.stop(false)?;
    if let Some(double) = doubles(&looks, |_| true) {
        bail!("two copies ran: {double}");
    }
    scene.history.kept_its_word()?;
    nothing_is_left(cluster, &migration, POD)
}

/// Moves the pod, loses it, and lets the user choose.
fn attempt(cluster: &Cluster, directory: &str, choice: fn(Asked) -> Result<()>) -> Result<()> {
    let source = running(cluster, POD)?;
    let scene = Scene::new(cluster, NODES, source, NAME);
    let outcome = is_asked(&scene, format!("{directory}/numbers")).and_then(choice);
    Gate::open_all(cluster)?;
    let missed = match outcome {
        Err(error) if error.is::<Missed>() => Some(error),
        outcome => explained(&scene, outcome).map(|()| None)?,
    };
    drop(scene);
    if missed.is_some() {
        // Nothing has happened to it.
        cluster.succeeded(NAME, PATIENCE)?;
    }
    cluster.kubectl(&["delete", "migrations", "--all", "--timeout=60s"])?;
    missed.map_or(Ok(()), Err)
}

fn is_asked<'a>(scene: &'a Scene<'a>, numbers: String) -> Result<Asked<'a>> {
    let cluster = scene.cluster;
    let mut line = Line::connect(&scene.source, PORT)?;
    let count: u64 = line.ask()?.parse()?;
    let sentry = Sentry::start(cluster, &NODES)?;

    let lost = is_lost(scene)?;
    let annotation = format!("{}={lost}", names::RESTORE_ANYWAY);
    let namespace = &cluster.namespace;
    let command =
        format!("kubectl annotate --overwrite migration {NAME} -n {namespace} {annotation}");
    let asked = Asked { scene, sentry, line, count, numbers, lost, command };
    says_what_can_be_chosen(&asked)?;
    let since = unix_ms();
    says_what_does_not_count(&asked)?;
    cluster.await_that("kubelet has tried again, in vain", SOON, || {
        let fields = format!("reason=Failed,involvedObject.uid={}", asked.lost);
        Ok(times_told(cluster, &fields)? > 1)
    })?;
    for pod in [&asked.lost, &scene.source.uid] {
        ensure!(!asked.sentry.ran_since(pod, since), "{pod} ran before anybody had chosen");
    }
    let (pod, migration) = (cluster.get("pod", POD)?, cluster.get("migration", NAME)?);
    ensure!(pod["metadata"]["uid"] == asked.lost.as_str(), "it was made again: {pod:#}");
    ensure!(migration["status"]["failedRestores"].is_null(), "{:#}", migration["status"]);
    asked.has_written(1..=count)?;
    Ok(asked)
}

/// The pod is made again after the commit, and the script that holds its tasks is killed: nobody can know whether
/// they have run. Gives the pod's UID.
fn is_lost(scene: &Scene) -> Result<String> {
    let cluster = scene.cluster;
    begin(scene, Moment::Voted, None)?;
    Gate::LetGo.close(cluster)?;
    Gate::Decision.open(cluster)?;
    let lost = made_again(scene, |_| true)?;
    // Until then there is the journal of the restore on trial, by which the hold is over.
    let migration = scene.history.latest()["metadata"]["uid"].clone();
    let migration = migration.as_str().context("the Migration has no UID")?;
    let begun = format!(
        "cd /var/lib/transship/migrations/{migration}.target && grep -q {lost} task.json && [ ! -e closed ]"
    );
    let target = scene.node(Role::Target);
    cluster.await_that("the target begins anew", SOON, || {
        Ok(cluster.try_on_node(target, &["sh", "-c", &begun])?.status.success())
    })?;
    let hold = Sign::InNode(Role::Target, InNode::Hold);
    let killer = Probe::start(scene, &hold, Some(Victim::Script.as_str()))?.context("no probe")?;
    Gate::LetGo.open(cluster)?;
    killer.sees()?;
    Ok(lost)
}

/// The Migration says, and an event, that it may have run, what its volume is and what can be done.
fn says_what_can_be_chosen(asked: &Asked) -> Result<()> {
    let cluster = asked.scene.cluster;
    let mut migration = Value::Null;
    cluster.await_that("it asks what becomes of the memory", SOON, || {
        migration = cluster.get("migration", NAME)?;
        let has_run = !migration["status"]["resumedAt"].is_null();
        let (stalled, reason, message) = condition(&migration, "Stalled");
        let asks = stalled == "True" && reason == "VolumesNewer";
        ensure!(has_run || asks, "Stalled={stalled}, {reason}: {message}");
        Ok(true)
    })?;
    if !migration["status"]["resumedAt"].is_null() {
        return Err(Missed("the script had done all that it does".into()).into());
    }
    let (_, _, message) = condition(&migration, "Stalled");
    let node = asked.scene.node(Role::Target);
    let volume = format!("{} (claim data-{POD})", cluster.namespace);
    let refused = format!("pod {POD} could not be restored on {node}");
    for words in [refused.as_str(), "may have run", volume.as_str(), "delete the Migration"] {
        ensure!(message.contains(words), "{words:?} is not in {message}");
    }
    ensure!(message.ends_with(&asked.command), "{message} does not end with {}", asked.command);
    judge::events_tell(cluster, &migration, &[("Warning", "Stalled")])
}

/// An annotation that names another pod is answered, and changes nothing.
fn says_what_does_not_count(asked: &Asked) -> Result<()> {
    let (cluster, other) = (asked.scene.cluster, &asked.scene.source.uid);
    let annotation = format!("{}={other}", names::RESTORE_ANYWAY);
    cluster.kubectl(&["annotate", "--overwrite", "migration", NAME, &annotation])?;
    cluster.await_that("it says that this is another pod", SOON, || {
        let (stalled, reason, message) = condition(&cluster.get("migration", NAME)?, "Stalled");
        let answer = format!("says \"{other}\", which is not the UID of this pod");
        ensure!(
            stalled == "True"
                && reason == "VolumesNewer"
                && message.contains(&answer)
                && message.ends_with(&asked.command),
            "Stalled={stalled}, {reason}: {message}"
        );
        Ok(true)
    })
}

#[test]
fn memory_older_than_its_volume_is_restored_or_given_up_as_its_user_says() -> Result<()> {
    let cluster = Cluster::with_namespace("newer")?;
    Gate::open_all(&cluster)?;
    with_exclusive_volume(&cluster, |directory| {
        in_time("restored", || attempt(&cluster, directory, restored)).context("restored")?;
        in_time("given up", || attempt(&cluster, directory, given_up)).context("given up")
    })
}
