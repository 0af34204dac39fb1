//! Faults in the orders in which the source ends before the pod is made again: the sequential one, and Cold.
//! Whoever dies, the pod goes on here or there, with its files and, unless it was Cold, its memory and its
//! connection.

mod cases;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use transship_api::{Role::Target, Step, duration};
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    counter::Client,
    faults::{
        Gate,
        driver::{Scene, begin, explained, in_time},
        fault::Fault::{Chart, Kill, PowerOff},
        judge,
        locks::Locks,
        moment::Sign,
        nodes::{Pair, has_ended_once, healthy},
        outcome::Outcome::{self, Moved, Restarted, RestartedThere, Stayed, TargetLost},
        probe::{Missed, Probe},
        sentry::Sentry,
        stage::{affinity, counts},
        table::Row,
    },
    node::{moment::Moment::Hold, process::Victim},
    prober::unix_ms,
    residue,
    stateful::{
        EMPTY_DIR, all_is_there, begins_anew, connect, goes_on, has_node, made_again,
        nothing_is_left, running, spec, stateful,
    },
};

pub use cases::{ALL, Case, SOME};
use cases::{Order, When};

/// The Migration.
const NAME: &str = "web";
const POD: &str = "web-0";
/// containerd looks for the end of what has ended at intervals that double, and a node may start anew.
const PATIENCE: Duration = Duration::from_secs(240);
/// kubelet tells of a start a moment later than the node's holder.
const SOON: Duration = Duration::from_secs(30);
/// How soon nothing is left of the pod as it was: kubelet takes its time.
const TIDY: Duration = Duration::from_secs(60);
/// How long the pod has to end, in its spec. Put before it: where it may run.
const GRACE: &str = "terminationGracePeriodSeconds: 1";
/// A Cold one takes all of it, since nothing handles its signal: what is done to it from outside when its end
/// begins is done before its files go.
const LONGER_GRACE: &str = "terminationGracePeriodSeconds: 5";
/// Beside the numbers: more than a stream carries at once, and than a full disk has room for.
const BALLAST: &str = "head -c 1048576 /dev/urandom > /data/ballast";
/// All that a Cold pod keeps.
const FILES: &str = "cat /data/numbers; sha256sum < /data/ballast";

/// Runs a case between two nodes and judges it. An error says which invariant does not hold.
pub fn run(pair: Pair, case: &Case, locks: &Locks) -> Result<Row> {
    in_time(&case.name(), || attempt(pair, case, locks))
}

fn attempt(pair: Pair, case: &Case, locks: &Locks) -> Result<Row> {
    let held = locks.take(case.fault);
    let cluster = Cluster::with_namespace(&format!("orders-{}", pair[0]))?;
    // After a run that was broken off, too.
    Gate::open_all(&cluster)?;
    healthy(&cluster, &pair)?;
    let grace = match case.order {
        Order::Sequential => GRACE,
        Order::Cold => LONGER_GRACE,
    };
    let spec = spec(EMPTY_DIR, "", "");
    let spec = spec.replacen(GRACE, &format!("{}, {grace}", affinity(&pair)), 1);
    cluster.apply(&stateful(&spec, ""))?;
    let mut scene = Scene::new(&cluster, pair, running(&cluster, POD)?, NAME);
    if case.order == Order::Cold {
        scene.mode = "Cold";
    }

    let outcome = case.fault.prepare(&scene).and_then(|()| judged(case, &scene));
    // Whatever went wrong, the next one finds everything in order. What could be judged has been undone.
    let undone = match &outcome {
        Ok(_) => Ok(()),
        Err(_) => case.fault.end(&scene).and(Gate::open_all(&cluster)),
    };
    let outcome = match outcome {
        // It takes its course, of which nothing is known.
        Err(error) if error.is::<Missed>() => cluster.ended(NAME, PATIENCE).and(Err(error)),
        outcome => explained(&scene, outcome),
    };
    let cleared = case.fault.clear(&scene);
    if let Err(error) = &outcome
        && !error.is::<Missed>()
    {
        return outcome;
    }
    undone.and(cleared)?;
    drop(scene);
    cluster.kubectl(&["delete", "migrations", "--all", "--timeout=60s"])?;
    judge::no_node_tells_of_it(&cluster)?;
    let _going = held.over();
    // Its namespace goes with it.
    drop(cluster);
    outcome
}

fn judged(case: &Case, scene: &Scene) -> Result<Row> {
    let cluster = scene.cluster;
    let before = State::of(case, scene)?;
    let there = residue::on_all(cluster, &scene.nodes)?;
    let there = residue::together(there.iter().filter(|thing| counts(thing, Some(&scene.source))));
    let sentry = Sentry::start(cluster, &scene.nodes)?;

    let (struck, since) = strike(case, scene)?;
    let end = Instant::now() + case.fault.lasts();
    if case.leaves_the_source_alone() {
        judge::it_goes_on_meanwhile(scene, &sentry, case.fault.lasts())?;
    }
    thread::sleep(end.saturating_duration_since(Instant::now()));
    // A rollout goes on by itself when it has begun, and takes longer than what is then left of the migration.
    let is_awaited = case.when == When::Voted && matches!(case.fault, Chart(_));
    if !case.fault.goes_on() || is_awaited {
        case.fault.end(scene).context("undoing the fault")?;
    }
    if case.when == When::Voted {
        judge::nobody_ran_undecided(scene, &sentry, since)?;
    }
    Gate::open_all(cluster)?;
    let over = Instant::now();
    if !case.fault.goes_on() {
        judge::it_tells_what_runs(scene, &sentry, case.fault)?;
    }
    // Of one that has vanished its pod alone tells.
    if !case.fault.strips_finalizer() {
        scene.history.await_end(PATIENCE);
        cluster.ended(NAME, PATIENCE.saturating_sub(over.elapsed()))?;
    }
    let now = running(cluster, POD)?;
    let settled = over.elapsed();
    if case.fault.goes_on() {
        case.fault.end(scene).context("undoing the fault")?;
    }

    let migration = scene.latest()?;
    let mut told = None;
    cluster.await_that("the pod is what the Migration says", SOON, || {
        told = Some(outcome(scene, &migration, &cluster.get("pod", POD)?)?);
        Ok(true)
    })?;
    let outcome = told.context("no outcome")?;
    ensure!(case.outcomes.contains(&outcome), "{outcome} is not right here");
    before.goes_on(cluster, &now, outcome)?;
    let looks = sentry.stop(matches!(case.fault, PowerOff(..)))?;
    judge::one_copy_ran(scene, &looks, outcome, false)?;
    judge::every_turn_was_due(scene, &looks)?;
    scene.history.kept_its_word()?;
    if !case.fault.concerns_all() {
        judge::it_is_told(cluster, &migration)?;
    }
    nothing_is_left(cluster, &scene.nodes, NAME, POD)?;
    let counts = |thing: &str| counts(thing, Some(&now));
    residue::no_more_together(cluster, &scene.nodes, &there, TIDY, counts)?;
    let downtime = migration["status"]["downtime"].as_str();
    Ok(Row {
        name: case.name(),
        struck,
        outcome,
        settled,
        standstill: downtime.and_then(|text| duration::parse(text).ok()).unwrap_or_default(),
        says: condition(&migration, "Succeeded").2,
    })
}

/// Begins the migration and the fault at its moment; gives the step at which that was, and the time.
fn strike(case: &Case, scene: &Scene) -> Result<(Step, u64)> {
    let moment = case.moment();
    let standing = begin(scene, moment, None)?;
    match case.when {
        When::Leaving | When::OnTrial | When::Voted => {}
        When::LetGo => {
            Gate::Decision.open(scene.cluster)?;
            made_again(scene, has_node)?;
        }
        When::Held => {
            let Kill(Target, victim) = case.fault else { bail!("it would come too late") };
            kill_in_the_hold(scene, victim)?;
            return Ok((scene.history.step(), unix_ms()));
        }
    }
    let (struck, since) = (scene.history.step(), unix_ms());
    let begun: Result<()> = match case.when {
        When::Leaving if struck > moment.latest() => {
            Err(Missed(format!("{} was over: {struck}", moment.title())).into())
        }
        _ => case.fault.begin(scene).context("injecting the fault"),
    };
    if let Some(standing) = standing {
        // Its node may have gone meanwhile.
        let _ = standing.go_on();
    }
    begun.map(|()| (struck, since))
}

/// Of a migration that both have voted for: the pod is made again, and the victim is killed when that is held.
fn kill_in_the_hold(scene: &Scene, victim: Victim) -> Result<()> {
    let cluster = scene.cluster;
    Gate::LetGo.close(cluster)?;
    Gate::Decision.open(cluster)?;
    let pod = made_again(scene, |_| true)?;
    begins_anew(scene, &pod)?;
    let sign = Sign::InNode(Target, Hold);
    let killer = Probe::start(scene, &sign, Some(victim.as_str()))?.context("no probe")?;
    Gate::LetGo.open(cluster)?;
    killer.sees().map(drop)
}

/// What has to be there afterwards.
enum State {
    /// Memory, connection and file.
    Whole(Client),
    /// The files, of which [`FILES`] tells this.
    Files(String),
}

impl State {
    fn of(case: &Case, scene: &Scene) -> Result<State> {
        let client = connect(&scene.source)?;
        if case.order == Order::Sequential {
            return Ok(State::Whole(client));
        }
        goes_on(scene.cluster, &client)?;
        all_is_there(scene.cluster, &scene.source, client)?;
        in_pod(scene.cluster, BALLAST)?;
        in_pod(scene.cluster, FILES).map(State::Files)
    }

    fn goes_on(self, cluster: &Cluster, pod: &Pod, outcome: Outcome) -> Result<()> {
        match self {
            Self::Whole(client) if outcome.is_whole() => {
                goes_on(cluster, &client)?;
                all_is_there(cluster, pod, client).map(drop)
            }
            // Its connections may have ended; what it said it has said once.
            Self::Whole(client) => {
                let report = client.stop();
                ensure!(report.jumps.is_empty(), "numbers were lost or repeated: {report:?}");
                Ok(())
            }
            Self::Files(told) => {
                let now = in_pod(cluster, FILES)?;
                ensure!(now == told, "the files were:\n{told}\nand are:\n{now}");
                Ok(())
            }
        }
    }
}

fn in_pod(cluster: &Cluster, script: &str) -> Result<String> {
    cluster.kubectl(&["exec", POD, "--", "sh", "-c", script])
}

/// What became of the pod, if the Migration says the same.
fn outcome(scene: &Scene, migration: &Value, pod: &Value) -> Result<Outcome> {
    let (now, afresh, status) = (Pod::of(pod), has_ended_once(pod), &migration["status"]);
    let (succeeded, reason, message) = condition(migration, "Succeeded");
    let says = format!("{succeeded}, {reason}: {message}");
    let outcome = match (now.uid == scene.source.uid, now.node == scene.node(Target)) {
        (true, _) if afresh => Restarted,
        (true, _) => Stayed,
        (false, true) if afresh => RestartedThere,
        (false, true) => Moved,
        // Made again where it was.
        (false, false) => TargetLost,
    };
    let committed = status["decision"] == "Commit";
    ensure!(committed == (now.uid != scene.source.uid), "{outcome}, but {status:#}");
    let is_target = status["target"]["podUID"] == now.uid.as_str();
    ensure!(is_target || !committed, "somebody else has made {now:?}: {status:#}");
    let has_moved = matches!(outcome, Moved | RestartedThere);
    let has_ended = matches!(succeeded.as_str(), "True" | "False");
    ensure!(!has_ended || (succeeded == "True") == has_moved, "{outcome}, but {says}");
    if status["chosenMode"] == "Cold" && !committed {
        let again = message.contains("they were started again on");
        ensure!(again == afresh, "{outcome}, but {says}");
    }
    ensure!(afresh || now.ips == scene.source.ips, "{:?} became {now:?}", scene.source);
    Ok(outcome)
}
