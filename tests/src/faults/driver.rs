//! Runs a cell: the example application with a client, its migration, the fault, and the judgement.

use std::{
    cell::RefCell,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use transship_api::{Role, Step};

use super::{
    cell::{Cell, TRUTH},
    fault::Fault,
    gate::Gate,
    history::History,
    judge,
    locks::Locks,
    moment::{Moment, Sign},
    nodes::Pair,
    outcome::{Outcome, Seen, tells_of_loss},
    probe::{MOMENT, Missed, Probe},
    sentry::Sentry,
    stage::{IMPATIENCE, NAME, Stage},
    stopwatch::Stopwatch,
    table::Row,
};
use crate::{
    cluster::{Cluster, Pod, condition, migration_in},
    counter::Client,
    prober::unix_ms,
};

/// How long a client waits for a reply: longer than any fault.
const CLIENT: Duration = Duration::from_secs(240);
/// How often is looked at a migration of which nothing is heard.
const LOOK: Duration = Duration::from_secs(3);
/// How often something is tried whose moment passed before it could be seen: then nothing was tested.
const TRIES: u32 = 8;
/// For how long a target still takes the API server for one that it reaches: five seconds from its last signature.
const CONTACT: Duration = Duration::from_secs(6);

/// A migration under way.
pub struct Scene<'a> {
    /// The cluster, in the cell's namespace.
    pub cluster: &'a Cluster,
    /// The nodes between which it goes.
    pub nodes: Pair,
    /// The pod before its migration.
    pub source: Pod,
    /// The Migration's name.
    pub migration: String,
    /// Its mode.
    pub mode: &'static str,
    /// What the API server showed of it.
    pub history: History,
    /// What a fault has begun and what ends by itself.
    pub background: RefCell<Vec<JoinHandle<()>>>,
}

impl<'a> Scene<'a> {
    /// Before a migration of this name begins, which is followed from now on.
    pub fn new(cluster: &'a Cluster, nodes: Pair, source: Pod, migration: &str) -> Self {
        Scene {
            cluster,
            nodes,
            source,
            migration: migration.into(),
            mode: "Auto",
            history: History::start(cluster, migration),
            background: RefCell::default(),
        }
    }

    /// A side's node.
    pub fn node(&self, role: Role) -> &'static str {
        let [first, second] = self.nodes;
        let (source, target) =
            if self.source.node == first { (first, second) } else { (second, first) };
        match role {
            Role::Source => source,
            Role::Target => target,
        }
    }

    /// The Migration as it is; the last that was seen of one that is gone.
    pub fn latest(&self) -> Result<Value> {
        // The watch tells sooner than anybody could ask, but not while it is broken.
        let now = self.cluster.get("migration", &self.migration)?;
        Ok(if now.is_null() { self.history.latest() } else { now })
    }

    /// The Migration's UID.
    pub fn migration_uid(&self) -> Result<String> {
        let uid = self.history.latest()["metadata"]["uid"].as_str().map(str::to_owned);
        uid.context("the Migration has no UID")
    }

    /// UID of the target pod; empty if there was none.
    pub fn target_uid(&self) -> String {
        let uid = &self.history.latest()["status"]["target"]["podUID"];
        uid.as_str().unwrap_or_default().to_owned()
    }
}

/// Runs a cell and judges it. An error says which invariant does not hold.
pub fn run(stage: &Stage, cell: &Cell, locks: &Locks) -> Result<Row> {
    in_time(&cell.name(), || attempt(stage, cell, locks))
}

/// Tries again what has [`Missed`] its moment; each attempt leaves everything in order for the next one.
pub fn in_time<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        match attempt() {
            Err(error) if error.is::<Missed>() => eprintln!("{what}: {error}"),
            outcome => return outcome,
        }
    }
    attempt()
}

fn attempt(stage: &Stage, cell: &Cell, locks: &Locks) -> Result<Row> {
    let held = locks.take(cell.fault);
    let mut watch = Stopwatch::start(cell.name());
    let cluster = &stage.cluster;
    let source = stage.pod(cell.is_impatient())?;
    let scene = Scene::new(cluster, stage.nodes, source, NAME);
    watch.lap("in order");

    let outcome = cell.fault.prepare(&scene).and_then(|()| judged(cell, &scene, &mut watch));
    // Whatever went wrong, the next cell finds everything in order. What could be judged has been undone.
    let undone = if outcome.is_ok() { Ok(()) } else { undo(cell, &scene) };
    let outcome = match outcome {
        // It takes its course, of which nothing is known.
        Err(error) if error.is::<Missed>() => {
            cluster.ended(NAME, cell.patience())?;
            Err(error)
        }
        outcome => explained(&scene, outcome),
    };
    let cleared = cell.fault.clear(&scene);
    if let Err(error) = &outcome
        && !error.is::<Missed>()
    {
        return outcome;
    }
    undone.and(cleared)?;

    let way = format!("{} to {}", scene.node(Role::Source), scene.node(Role::Target));
    drop(scene.history);
    cluster.kubectl(&["delete", "migrations", "--all", "--timeout=60s"])?;
    judge::no_node_tells_of_it(cluster)?;
    watch.lap("forgotten");
    let _going = held.over();
    if cell.strikes_an_ordinary_pod() {
        stage.clear()?;
    }
    stage.nothing_is_left().with_context(|| {
        let became =
            outcome.as_ref().map_or_else(ToString::to_string, |row| row.outcome.to_string());
        format!("{became}, from {way}")
    })?;
    watch.lap("nothing left");
    outcome
}

/// Takes back all that may have been done.
fn undo(cell: &Cell, scene: &Scene) -> Result<()> {
    let ended = cell.fault.end(scene);
    let turned = cell.moment.turn().map_or(Ok(()), |turn| turn.end(scene));
    ended.and(turned).and(Gate::open_all(scene.cluster))
}

/// From the first look to the last.
fn judged(cell: &Cell, scene: &Scene, watch: &mut Stopwatch) -> Result<Row> {
    let cluster = scene.cluster;
    let address = format!("{}:8080", scene.source.ip).parse()?;
    let client = Client::with_patience(address, Duration::from_millis(2), CLIENT)?;
    let sentry = Sentry::start(cluster, &scene.nodes)?;
    watch.lap("watched");

    let (struck, since) = strike(cell, scene)?;
    // The sides of one that has vanished settle it between them.
    let vanishes = cell.fault.strips_finalizer();
    let leaves_marks = vanishes && judge::a_mark_is_left(cluster)?;
    watch.lap("struck");
    let end = Instant::now() + cell.fault.lasts();
    if cell.leaves_the_source_alone() {
        judge::it_goes_on_meanwhile(scene, &sentry, IMPATIENCE)?;
        let left = end.saturating_duration_since(Instant::now());
        judge::the_target_gives_up_meanwhile(scene, left)?;
    }
    if cell.leaves_the_target_alone() {
        judge::the_target_gives_up_meanwhile(scene, IMPATIENCE)?;
    }
    // As long as it lasts, whatever the migration makes of it: it may do harm later.
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
    if cell.moment == Moment::AbortUnread {
        judge::the_source_waits(scene, &sentry, since)?;
    }
    if !cell.fault.goes_on() {
        cell.fault.end(scene).context("undoing the fault")?;
    }
    if let Some(turn) = cell.moment.turn() {
        turn.end(scene).context("undoing what led there")?;
    }
    if cell.moment.gate().is_some() && matches!(cell.fault, Fault::Chart(_)) {
        // It goes on by itself when it has begun, and takes longer than what is left of the migration.
        cell.fault.end(scene).context("the chart's rollout")?;
    }
    if cell.moment == Moment::Voted && !vanishes {
        judge::nobody_ran_undecided(scene, &sentry, since)?;
    }
    if let Some(gate) = cell.moment.gate() {
        cluster.await_that("the gate opens", MOMENT, || gate.open(cluster).map(|()| true))?;
    }
    watch.lap("undone");
    let over = Instant::now();
    if !cell.fault.goes_on() {
        judge::it_tells_what_runs(scene, &sentry, cell.fault)?;
    }
    let patience = cell.patience().saturating_sub(over.elapsed());
    let outcome = settled(cell, scene, &sentry, patience)?;
    watch.lap("settled");
    let took = over.elapsed();
    if cell.fault.goes_on() {
        cell.fault.end(scene).context("undoing the fault")?;
        let after = settled(cell, scene, &sentry, TRUTH)?;
        ensure!(after == outcome, "{outcome}, and then without the fault {after}");
    }

    ensure!(cell.outcomes.contains(&outcome), "{outcome} is not right here");
    let last = scene.latest()?;
    if cell.loses_memory(outcome) {
        tells_of_loss(&last)?;
    }
    let downtime = last["status"]["downtime"].as_str();
    let report = judge::the_client_was_served(scene, client, outcome, downtime)?;
    let looks = sentry.stop(matches!(cell.fault, Fault::PowerOff(..)))?;
    judge::one_copy_ran(scene, &looks, outcome, may_make_a_fresh_pod(cell))?;
    judge::every_turn_was_due(scene, &looks)?;
    scene.history.kept_its_word()?;
    // Who is killed or cut off may not come to tell what he has just written.
    if !cell.fault.concerns_all() {
        judge::it_is_told(cluster, &last)?;
    }
    if leaves_marks && was_left_over(cell, scene) {
        judge::its_vanishing_is_told(cluster, &last)?;
    }
    if cell.moment == Moment::Voted && cell.is_impatient() {
        judge::kubelet_wanted_to_kill_the_target(scene)?;
    }
    watch.lap("judged");
    judge::nothing_is_left_beside_the_pod(cluster, &scene.nodes)?;
    watch.lap("tidy");
    Ok(Row {
        name: cell.name(),
        struck,
        outcome,
        settled: took,
        standstill: Duration::from_millis(report.longest_gap_ms),
        says: condition(&last, "Succeeded").2,
    })
}

/// Something was frozen for a migration that has vanished, and it was not over.
fn was_left_over(cell: &Cell, scene: &Scene) -> bool {
    let was_frozen = !scene.history.latest()["status"]["frozenAt"].is_null();
    let stood_still = was_frozen || cell.moment.latest() >= Step::Freezing;
    stood_still && !scene.history.step().is_final()
}

/// The owner may: somebody wishes it, or between the source's release and the claim of the target nobody is there to
/// keep it from that. Then it is removed as one too many.
fn may_make_a_fresh_pod(cell: &Cell) -> bool {
    let is_wished = matches!(cell.fault, Fault::User(act) if act.orders_a_fresh_pod());
    is_wished || (cell.moment == Moment::HandingOver && cell.fault.concerns_all())
}

/// Begins the migration and the fault at its moment; gives the step at which that was, and the time.
fn strike(cell: &Cell, scene: &Scene) -> Result<(Step, u64)> {
    // Some moments are over before another process could be started in the node.
    let at_once = match (cell.moment.signs(), cell.fault) {
        ([.., Sign::InNode(where_, _)], Fault::Kill(role, victim)) => {
            (*where_ == role).then_some(victim.as_str())
        }
        _ => None,
    };
    let standing = begin(scene, cell.moment, at_once)?;
    let (struck, since) = (scene.history.step(), unix_ms());
    let begun: Result<()> = match at_once {
        _ if struck > cell.moment.latest() => {
            Err(Missed(format!("{} was over: {struck}", cell.moment.title())).into())
        }
        None => cell.fault.begin(scene).context("injecting the fault"),
        Some(_) => Ok(()),
    };
    if let Some(standing) = standing {
        if begun.is_ok() && cell.keeps_the_target_from_its_vote() {
            // There is nothing else to be seen of it.
            std::thread::sleep(CONTACT);
        }
        // Its node may have gone meanwhile.
        let _ = standing.go_on();
    }
    begun.map(|()| (struck, since))
}

/// Begins the migration and waits for a moment of it. Where the moment has a gate, that stays closed;
/// where CRIU is stopped for it, it goes on with the probe that is given back. `kill`: a process of the
/// last sign's node that is killed at the very moment.
pub fn begin(scene: &Scene, moment: Moment, kill: Option<&str>) -> Result<Option<Probe>> {
    let cluster = scene.cluster;
    if let Some(gate) = moment.gate() {
        gate.close(cluster)?;
    }
    let signs = moment.signs();
    let mut standing = None;
    for (index, sign) in signs.iter().enumerate() {
        let is_last = index + 1 == signs.len();
        let probe = Probe::start(scene, sign, kill.filter(|_| is_last))?;
        if index == 0 {
            let (name, target) = (&scene.migration, scene.node(Role::Target));
            cluster.apply(&migration_in(scene.mode, name, &scene.source.name, target))?;
        }
        if is_last && let Some(turn) = moment.turn() {
            is_held_back(scene, moment)?;
            turn.begin(scene)?;
            if moment.gate() == Some(Gate::Decision) {
                // The one that it leads to.
                Gate::Decision.open(cluster)?;
            }
        }
        match (sign, probe) {
            (Sign::Step(step), _) => scene.history.reaches(*step, MOMENT)?,
            (Sign::InNode(..), probe) => standing = probe.context("no probe")?.sees()?,
        }
    }
    if moment.turn().is_none() {
        is_held_back(scene, moment)?;
    }
    Ok(standing)
}

/// What a moment's gate keeps away has not been recorded before it was closed.
fn is_held_back(scene: &Scene, moment: Moment) -> Result<()> {
    let latest = scene.history.latest();
    match moment.gate().and_then(Gate::field) {
        Some(field) if !latest["status"][field].is_null() => {
            Err(Missed(format!("{field} was recorded too early")).into())
        }
        _ => Ok(()),
    }
}

/// Waits until the outcome is there, told, and lasts.
fn settled(cell: &Cell, scene: &Scene, sentry: &Sentry, patience: Duration) -> Result<Outcome> {
    let may_be_gone = matches!(cell.fault, Fault::User(act) if act.removes_the_migration());
    let (mut outcome, mut looked) = (None, Instant::now());
    let what = "what runs is right and the Migration tells it";
    scene.cluster.await_that(what, patience, || {
        // Asking takes from the machine what the migration needs. The watch tells of its end; it may have
        // broken, and the object may go.
        let latest = scene.history.latest();
        let (succeeded, _, message) = condition(&latest, "Succeeded");
        let has_ended = matches!(succeeded.as_str(), "True" | "False");
        ensure!(
            has_ended || may_be_gone || looked.elapsed() > LOOK,
            "at {}: {message}",
            latest["status"]["step"]
        );
        looked = Instant::now();
        let all = scene.cluster.list("migrations,pods", "")?;
        let (mut pods, migrations): (Vec<Value>, Vec<Value>) =
            all.into_iter().partition(|object| object["kind"] == "Pod");
        let ours = |migration: &Value| migration["metadata"]["name"] == scene.migration.as_str();
        let migration = migrations.into_iter().find(ours);
        let is_gone = migration.is_none();
        if is_gone {
            // Whoever settles what it has left takes its marks away in the end.
            judge::no_pod_is_marked(&pods)?;
        }
        pods.retain(|pod| {
            let metadata = &pod["metadata"];
            metadata["labels"]["app"] == NAME && metadata["deletionTimestamp"].is_null()
        });
        let target_uid = scene.target_uid();
        let source = &scene.source;
        let seen = Seen {
            migration: migration.as_ref().unwrap_or(&latest),
            is_gone,
            pods: &pods,
            source,
            target_uid: &target_uid,
            may_be_gone,
        };
        let now = seen.outcome()?;
        judge::what_is_there_runs(scene, sentry, &pods)?;
        // Seen twice: an owner may be about to act.
        let lasts = outcome.replace(now) == Some(now);
        Ok(lasts)
    })?;
    outcome.context("no outcome")
}

/// What came of it; an error with the [`evidence`].
pub fn explained<T>(scene: &Scene, outcome: Result<T>) -> Result<T> {
    outcome.map_err(|error| anyhow!("{error:#}\n{}", evidence(scene)))
}

/// What somebody needs who asks why a migration did not go as it should.
pub fn evidence(scene: &Scene) -> String {
    let cluster = scene.cluster;
    let shown = |args: &[&str]| cluster.kubectl(args).unwrap_or_else(|error| format!("{error:#}"));
    let mut text = format!("Migration: {:#}\n", scene.history.latest()["status"]);
    text += &shown(&["get", "pods", "-o", "wide"]);
    text += &shown(&["get", "events", "--sort-by=.metadata.creationTimestamp"]);
    for node in scene.nodes {
        let logs = format!(
            "cd /var/lib/transship/migrations && for d in $(grep -l '\"{}\"' */task.json | xargs -r -n1 dirname); \
             do echo \"--- $d\"; cat $d/journal; tail -n 30 $d/holder.log; done",
            cluster.namespace
        );
        let log = cluster.on_node(node, &["sh", "-c", &logs]);
        text += &format!("{node}:\n{}\n", log.unwrap_or_else(|error| format!("{error:#}")));
    }
    text
}
