//! Faults in the orders in which the source ends before the pod is made again: the sequential one, and Cold.
//! Whoever dies, the pod goes on here or there, with its files and, unless it was Cold, its memory and its
//! connection.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use transship_api::{
    Role::{Source, Target},
    duration,
};
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    counter::Client,
    faults::{
        Gate,
        driver::{Scene, begin, explained},
        fault::{
            Fault::{self, Kill, KillOperators, PauseApi, PowerOff},
            Length::Briefly,
        },
        judge,
        moment::Moment,
        nodes::{Pair, healthy, restarts},
        outcome::Outcome::{self, Moved, Restarted, RestartedThere, Stayed, TargetLost},
        sentry::Sentry,
        stage::affinity,
        table::Row,
    },
    node::process::Victim::{Agent, Containerd, Holder, Kubelet},
    prober::unix_ms,
    stateful::{
        EMPTY_DIR, all_is_there, connect, goes_on, has_node, made_again, nothing_is_left, running,
        spec, stateful,
    },
};

/// The Migration.
const NAME: &str = "web";
const POD: &str = "web-0";
/// containerd looks for the end of what has ended at intervals that double, and a node may start anew.
const PATIENCE: Duration = Duration::from_secs(240);
/// Put before this in the pod's spec: where it may run.
const BEFORE: &str = "terminationGracePeriodSeconds";

/// In which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Sequential,
    Cold,
}

/// At which moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Both sides have voted; the decision is held back until the fault is over.
    Voted,
    /// The pod was made again and let go to its node, where it is restored or started.
    LetGo,
}

/// A fault at a moment, and what is right for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    order: Order,
    when: When,
    /// What happens.
    pub fault: Fault,
    outcomes: &'static [Outcome],
}

const fn case(order: Order, when: When, fault: Fault, outcomes: &'static [Outcome]) -> Case {
    Case { order, when, fault, outcomes }
}

/// Every case.
pub const ALL: [Case; 12] = [
    case(Order::Sequential, When::Voted, Kill(Source, Holder), &[Moved]),
    case(Order::Sequential, When::Voted, Kill(Target, Holder), &[Moved]),
    // The restore on trial is gone; its images are on the disk.
    case(Order::Sequential, When::Voted, PowerOff(Target, Briefly), &[Moved, Stayed]),
    case(Order::Sequential, When::LetGo, Kill(Target, Agent), &[Moved]),
    case(Order::Sequential, When::LetGo, Kill(Target, Containerd), &[Moved, TargetLost]),
    case(Order::Sequential, When::LetGo, KillOperators, &[Moved]),
    case(Order::Sequential, When::LetGo, PauseApi(Briefly), &[Moved]),
    // Whether it had been confirmed before it was lost decides.
    case(
        Order::Sequential,
        When::LetGo,
        PowerOff(Target, Briefly),
        &[Moved, TargetLost, RestartedThere],
    ),
    case(Order::Cold, When::Voted, Kill(Source, Holder), &[Moved]),
    case(Order::Cold, When::Voted, Kill(Target, Holder), &[Moved]),
    case(Order::Cold, When::LetGo, Kill(Target, Kubelet), &[Moved]),
    case(Order::Cold, When::LetGo, KillOperators, &[Moved]),
];

/// Those of every run of all tests.
pub const SOME: [&str; 2] = [
    "sequential_kill_target_agent_while_the_pod_is_made_again",
    "cold_kill_source_holder_when_both_have_voted",
];

impl Case {
    /// The test's name.
    pub fn name(&self) -> String {
        let order = match self.order {
            Order::Sequential => "sequential",
            Order::Cold => "cold",
        };
        let when = match self.when {
            When::Voted => "when_both_have_voted",
            When::LetGo => "while_the_pod_is_made_again",
        };
        format!("{order}_{}_{when}", self.fault.name())
    }
}

/// Runs a case between two nodes and judges it. An error says which invariant does not hold.
pub fn run(pair: Pair, case: &Case) -> Result<Row> {
    let cluster = Cluster::with_namespace(&format!("orders-{}", pair[0]))?;
    // After a run that was broken off, too.
    Gate::open_all(&cluster)?;
    healthy(&cluster, &pair)?;
    let spec = spec(EMPTY_DIR, "", "");
    let spec = spec.replacen(BEFORE, &format!("{}, {BEFORE}", affinity(&pair)), 1);
    cluster.apply(&stateful(&spec, ""))?;
    let mut scene = Scene::new(&cluster, pair, running(&cluster, POD)?, NAME);
    if case.order == Order::Cold {
        scene.mode = "Cold";
    }

    let outcome = judged(case, &scene);
    // Whatever went wrong, the next one finds everything in order.
    let ended = case.fault.end(&scene);
    let opened = Gate::open_all(&cluster);
    let row = explained(&scene, outcome)?;
    ended.and(opened)?;
    drop(scene);
    cluster.kubectl(&["delete", "migrations", "--all", "--timeout=60s"])?;
    judge::no_node_tells_of_it(&cluster)?;
    Ok(row)
}

fn judged(case: &Case, scene: &Scene) -> Result<Row> {
    let cluster = scene.cluster;
    let before = State::of(case, scene)?;
    let sentry = Sentry::start(cluster, &scene.nodes)?;

    begin(scene, Moment::Voted, None)?;
    if case.when == When::LetGo {
        Gate::Decision.open(cluster)?;
        made_again(scene, has_node)?;
    }
    let (struck, since) = (scene.history.step(), unix_ms());
    case.fault.begin(scene).context("injecting the fault")?;
    thread::sleep(case.fault.lasts());
    case.fault.end(scene).context("undoing the fault")?;
    if case.when == When::Voted {
        judge::nobody_ran_undecided(scene, &sentry, since)?;
    }
    Gate::open_all(cluster)?;
    let over = Instant::now();
    cluster.ended(NAME, PATIENCE)?;
    let now = running(cluster, POD)?;
    let settled = over.elapsed();

    let migration = scene.latest()?;
    let outcome = outcome(scene, &migration, &cluster.get("pod", POD)?)?;
    ensure!(case.outcomes.contains(&outcome), "{outcome} is not right here");
    before.goes_on(cluster, &now, outcome)?;
    let looks = sentry.stop(matches!(case.fault, PowerOff(..)))?;
    judge::one_copy_ran(scene, &looks, outcome, false)?;
    scene.history.kept_its_word()?;
    nothing_is_left(cluster, &scene.nodes, NAME, POD)?;
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

/// What has to be there afterwards.
enum State {
    /// Memory, connection and file.
    Whole(Client),
    /// The file, with this in it.
    File(String),
}

impl State {
    fn of(case: &Case, scene: &Scene) -> Result<State> {
        let client = connect(&scene.source)?;
        if case.order == Order::Sequential {
            return Ok(State::Whole(client));
        }
        goes_on(scene.cluster, &client)?;
        all_is_there(scene.cluster, &scene.source, client).map(State::File)
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
            Self::File(numbers) => {
                let now = cluster.kubectl(&["exec", POD, "--", "cat", "/data/numbers"])?;
                ensure!(now == numbers, "the file was:\n{numbers}\nand is:\n{now}");
                Ok(())
            }
        }
    }
}

/// What became of the pod, if the Migration says the same.
fn outcome(scene: &Scene, migration: &Value, pod: &Value) -> Result<Outcome> {
    let (now, afresh, status) = (Pod::of(pod), restarts(pod) > 0, &migration["status"]);
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
    ensure!((succeeded == "True") == has_moved, "{outcome}, but {says}");
    ensure!(afresh || now.ips == scene.source.ips, "{:?} became {now:?}", scene.source);
    Ok(outcome)
}
