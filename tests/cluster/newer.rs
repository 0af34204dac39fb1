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
    stateful::{begins_anew, has_moved, made_again},
};

use crate::sequential::{nothing_is_left, running, times_told, with_exclusive_volume};

/// The Migration.
pub const NAME: &str = "web";
/// The pod that it moves.
pub const POD: &str = "web-0";
/// Where that listens.
pub const PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(90);

/// What the user does.
pub struct Play {
    /// In a few words.
    pub what: &'static str,
    /// The Migration is deleted when it is committed, and asks only later.
    pub is_deleted: bool,
    /// The answer.
    pub answer: fn(Asked) -> Result<()>,
}

/// It is for the user to say what becomes of the memory.
pub struct Asked<'a> {
    /// The move.
    pub scene: &'a Scene<'a>,
    /// Looks for copies.
    pub sentry: Sentry,
    /// A connection on which nothing is said while the pod moves: so the try that is lost has nothing to write, and
    /// the volume fits the memory whatever ran.
    pub line: Line,
    /// The number that it was answered last.
    pub count: u64,
    /// UID of the pod that was lost.
    pub lost: String,
    /// The Migration had been deleted before it asked.
    is_deleted: bool,
    /// Where the numbers are written, on either node.
    numbers: String,
    /// Those that were written when the move began.
    written: String,
}

impl Asked<'_> {
    /// The volume has these numbers more than when the move began, and no others.
    pub fn has_written(&self, further: &[u64]) -> Result<()> {
        let further: String = further.iter().map(|number| format!("{number}\n")).collect();
        let expected = format!("{}{further}", self.written);
        let found = self.scene.cluster.on_node(NODES[0], &["cat", &self.numbers])?;
        ensure!(found == expected, "{found:?} instead of {expected:?}");
        Ok(())
    }

    /// What the Migration tells its user to type for this answer.
    fn command(&self, key: &str) -> String {
        let (namespace, lost) = (&self.scene.cluster.namespace, &self.lost);
        format!("kubectl annotate --overwrite migration {NAME} -n {namespace} {key}={lost}")
    }

    /// Types it.
    pub fn answer(&self, key: &str) -> Result<()> {
        let command = self.command(key);
        let arguments: Vec<&str> = command.split_whitespace().skip(1).collect();
        self.scene.cluster.kubectl(&arguments).map(drop)
    }

    /// The Migration says, and an event, that it may have run, what its volume is and what can be done.
    fn says_what_can_be_chosen(&self) -> Result<()> {
        let (scene, cluster) = (self.scene, self.scene.cluster);
        let mut migration = Value::Null;
        cluster.await_that("it asks what becomes of the memory", SOON, || {
            migration = scene.latest()?;
            let has_run = !migration["status"]["resumedAt"].is_null();
            let (stalled, reason, message) = condition(&migration, "Stalled");
            let asks = stalled == "True" && reason == "VolumesNewer";
            ensure!(has_run || asks, "Stalled={stalled}, {reason}: {message}");
            Ok(true)
        })?;
        let status = &migration["status"];
        if !status["resumedAt"].is_null() {
            return Err(Missed("the script had done all that it does".into()).into());
        }
        let unasked = status["deletedUnasked"].as_bool().unwrap_or_default();
        ensure!(status["askedPodUID"] == self.lost.as_str(), "{status:#}");
        ensure!(unasked == self.is_deleted, "{status:#}");
        let (_, _, message) = condition(&migration, "Stalled");
        let refused = format!("pod {POD} could not be restored on {}", scene.node(Role::Target));
        let volume = format!("{} (claim data-{POD})", cluster.namespace);
        let give_up = match self.is_deleted {
            true => self.command(names::GIVE_UP_MEMORY) + ".",
            false => "delete the Migration".to_owned(),
        };
        for words in [refused.as_str(), "may have run", volume.as_str(), give_up.as_str()] {
            ensure!(message.contains(words), "{words:?} is not in {message}");
        }
        let tells = message.contains("deleted before this was asked, which gives nothing up");
        ensure!(tells == self.is_deleted, "{message}");
        let restore = self.command(names::RESTORE_ANYWAY);
        ensure!(message.ends_with(&restore), "{message} does not end with {restore}");
        judge::events_tell(cluster, &migration, &[("Warning", "Stalled")])
    }

    /// An answer about another pod is told to be one, and changes nothing.
    pub fn says_what_does_not_count(&self, other: &str) -> Result<()> {
        let cluster = self.scene.cluster;
        let key = if self.is_deleted { names::GIVE_UP_MEMORY } else { names::RESTORE_ANYWAY };
        let annotation = format!("{key}={other}");
        cluster.kubectl(&["annotate", "--overwrite", "migration", NAME, &annotation])?;
        let restore = self.command(names::RESTORE_ANYWAY);
        cluster.await_that("it says that this is another pod", SOON, || {
            let (stalled, reason, message) = condition(&cluster.get("migration", NAME)?, "Stalled");
            let answer = format!("{key} says \"{other}\", which is not the UID of this pod");
            ensure!(
                stalled == "True"
                    && reason == "VolumesNewer"
                    && message.contains(&answer)
                    && message.ends_with(&restore),
                "Stalled={stalled}, {reason}: {message}"
            );
            Ok(true)
        })
    }
}

/// The user wants the memory: it goes on as it was at the commit, with its connection.
fn restored(mut asked: Asked) -> Result<()> {
    let (scene, cluster) = (asked.scene, asked.scene.cluster);
    asked.answer(names::RESTORE_ANYWAY)?;
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
    asked.has_written(&[asked.count + 1])?;
    let looks = asked.sentry.stop(false)?;
    judge::one_copy_ran(scene, &looks, Outcome::Moved, false)?;
    scene.history.kept_its_word()?;
    nothing_is_left(cluster, &migration, POD)
}

/// The user deletes the Migration that asks.
fn deleted(asked: Asked) -> Result<()> {
    asked.scene.cluster.kubectl(&["delete", "migration", NAME, "--wait=false"])?;
    is_given_up(asked)
}

/// The user of a Migration that was deleted before it asked says it in so many words.
fn given_up(asked: Asked) -> Result<()> {
    asked.answer(names::GIVE_UP_MEMORY)?;
    is_given_up(asked)
}

/// The Migration goes, and a fresh pod finds the volume as it was.
fn is_given_up(asked: Asked) -> Result<()> {
    let (scene, cluster) = (asked.scene, asked.scene.cluster);
    cluster.await_that("the Migration goes", PATIENCE, || {
        Ok(cluster.get("migration", NAME)?.is_null())
    })?;
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
    asked.has_written(&[])?;
    let answer = Line::connect(&fresh, PORT)?.ask()?;
    ensure!(answer == "1", "it has started with {answer}");
    asked.has_written(&[1])?;
    let looks = asked.sentry.stop(false)?;
    if let Some(double) = doubles(&looks, |_| true) {
        bail!("two copies ran: {double}");
    }
    scene.history.kept_its_word()?;
    nothing_is_left(cluster, &migration, POD)
}

/// Moves the pod, loses it, and lets the user choose.
pub fn play(cluster: &Cluster, directory: &str, play: &Play) -> Result<()> {
    in_time(play.what, || attempt(cluster, directory, play)).context(play.what)
}

fn attempt(cluster: &Cluster, directory: &str, play: &Play) -> Result<()> {
    let source = running(cluster, POD)?;
    let scene = Scene::new(cluster, NODES, source, NAME);
    let outcome = is_asked(&scene, directory, play.is_deleted).and_then(play.answer);
    Gate::open_all(cluster)?;
    let missed = match outcome {
        Err(error) if error.is::<Missed>() => Some(error),
        outcome => explained(&scene, outcome).map(|()| None)?,
    };
    if missed.is_some() {
        // Nothing has happened to it.
        cluster.await_that("the pod has moved", PATIENCE, || {
            let (succeeded, reason, message) = condition(&scene.latest()?, "Succeeded");
            ensure!(succeeded == "True", "{succeeded}, {reason}: {message}");
            Ok(true)
        })?;
    }
    drop(scene);
    cluster.kubectl(&["delete", "migrations", "--all", "--timeout=60s"])?;
    missed.map_or(Ok(()), Err)
}

fn is_asked<'a>(scene: &'a Scene<'a>, directory: &str, is_deleted: bool) -> Result<Asked<'a>> {
    let cluster = scene.cluster;
    let mut line = Line::connect(&scene.source, PORT)?;
    let count = line.ask()?;
    let numbers = format!("{directory}/numbers");
    let written = cluster.on_node(NODES[0], &["cat", &numbers])?;
    let last = written.lines().next_back();
    ensure!(last == Some(count.as_str()), "{written:?} when it has answered {count}");
    let sentry = Sentry::start(cluster, &NODES)?;

    let lost = is_lost(scene, is_deleted)?;
    let count = count.parse()?;
    let asked = Asked { scene, sentry, line, count, lost, is_deleted, numbers, written };
    asked.says_what_can_be_chosen()?;
    let since = unix_ms();
    asked.says_what_does_not_count(&scene.source.uid)?;
    cluster.await_that("kubelet has tried again, in vain", SOON, || {
        let fields = format!("reason=Failed,involvedObject.uid={}", asked.lost);
        Ok(times_told(cluster, &fields)? > 1)
    })?;
    for pod in [&asked.lost, &scene.source.uid] {
        ensure!(!asked.sentry.ran_since(pod, since), "{pod} ran before anybody had chosen");
    }
    let (pod, migration) = (cluster.get("pod", POD)?, cluster.get("migration", NAME)?);
    ensure!(pod["metadata"]["uid"] == asked.lost.as_str(), "it was made again: {pod:#}");
    ensure!(!migration.is_null(), "its deletion has given the memory up");
    ensure!(migration["status"]["failedRestores"].is_null(), "{:#}", migration["status"]);
    asked.has_written(&[])?;
    Ok(asked)
}

/// The pod is made again after the commit, and the script that holds its tasks is killed: nobody can know whether
/// they have run. Gives the pod's UID.
fn is_lost(scene: &Scene, is_deleted: bool) -> Result<String> {
    let cluster = scene.cluster;
    begin(scene, Moment::Voted, None)?;
    Gate::LetGo.close(cluster)?;
    Gate::Decision.open(cluster)?;
    let lost = made_again(scene, |_| true)?;
    begins_anew(scene, &lost)?;
    if is_deleted {
        cluster.kubectl(&["delete", "migration", NAME, "--wait=false"])?;
    }
    let hold = Sign::InNode(Role::Target, InNode::Hold);
    let killer = Probe::start(scene, &hold, Some(Victim::Script.as_str()))?.context("no probe")?;
    Gate::LetGo.open(cluster)?;
    killer.sees()?;
    Ok(lost)
}

#[test]
fn memory_older_than_its_volume_is_restored_or_given_up_as_its_user_says() -> Result<()> {
    all(&[
        Play { what: "restored", is_deleted: false, answer: restored },
        Play { what: "deleted before it asks", is_deleted: true, answer: given_up },
    ])
}

#[test]
#[ignore = "it is given up in another way above"]
fn memory_older_than_its_volume_goes_with_the_migration_that_asks() -> Result<()> {
    all(&[Play { what: "deleted when it asks", is_deleted: false, answer: deleted }])
}

fn all(plays: &[Play]) -> Result<()> {
    let cluster = Cluster::with_namespace("newer")?;
    Gate::open_all(&cluster)?;
    with_exclusive_volume(&cluster, |directory| {
        plays.iter().try_for_each(|one| play(&cluster, directory, one))
    })
}
