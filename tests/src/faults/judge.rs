//! The invariants, the same for every cell.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use transship_api::{MigrationStatus, Role, conditions::reasons, duration, names};

use super::{
    cell::TRUTH,
    driver::Scene,
    fault::Fault,
    nodes::{Pair, is_ready},
    outcome::Outcome,
    sentry::{Looks, Sentry, doubles, ran, turns},
    stage::NAME,
    truth::{self, Running},
    user::AGAIN,
};
use crate::{
    cluster::{Cluster, Pod, condition, of_kind},
    counter::{Client, Report},
};

/// By how much clocks may differ that look at the same thing: those of the client, which may have a request
/// under way already or be made to wait before its next one, of the nodes and of who looks at them.
const CLOCKS: u64 = 1_000;
/// How long after the target was let go on its node may note the time: both look at the clock between other
/// things that they do, and a busy machine makes them wait.
const NOTED: u64 = 2_000;
/// How soon everybody has to have taken away what he put somewhere. Of a stopped API server a kubelet, and then an
/// agent, may hear again only after the longest of its pauses, which is about a minute.
const TIDY: Duration = Duration::from_secs(120);
/// How soon a connection goes on: TCP tries again when it has waited for twice as long as before.
const RETRANSMISSION: Duration = Duration::from_secs(60);
/// How soon what a status says is told as an event.
const TOLD: Duration = Duration::from_secs(30);
/// Label of endpoints with their Service's name.
const SERVICE: &str = "kubernetes.io/service-name";

/// Never two copies; and the target ran only if that was decided, and not before it says so.
pub fn one_copy_ran(
    scene: &Scene,
    looks: &Looks,
    outcome: Outcome,
    fresh_allowed: bool,
) -> Result<()> {
    let status = scene.latest()?["status"].clone();
    let target = status["target"]["podUID"].as_str().unwrap_or_default();
    ensure!(ran(looks, &scene.source.uid), "nobody saw the source run: {looks:?}");
    ensure!(
        outcome != Outcome::Moved || ran(looks, target),
        "nobody saw the target run: {looks:?}"
    );
    let of_migration = |pod: &str| pod == scene.source.uid || pod == target;
    if let Some(double) = doubles(looks, |pod| !fresh_allowed || of_migration(pod)) {
        bail!("two copies ran: {double}");
    }
    let decision = &status["decision"];
    let may = outcome.may_have_run_on_the_target() && decision == "Commit";
    ensure!(may || target.is_empty() || !ran(looks, target), "the target ran ({decision})");
    let first = looks.iter().find(|(_, look)| look.running.contains(target));
    if let (Some((node, look)), Some(told)) = (first, resumed(&status)?) {
        let too_early = look.at + NOTED < told;
        ensure!(!too_early, "the target ran on {node} at {}, and says {told}", look.at);
    }
    Ok(())
}

/// The turn to run has passed to the target only by a Commit, and back only by a resolution.
pub fn every_turn_was_due(scene: &Scene, looks: &Looks) -> Result<()> {
    let status = scene.latest()?["status"].clone();
    let target = status["target"]["podUID"].as_str().unwrap_or_default();
    let causes = [status["decision"] == "Commit", !status["resolution"].is_null()];
    let due = causes.into_iter().filter(|cause| *cause).count();
    let passed = turns(looks, &scene.source.uid, target);
    ensure!(passed <= due, "the turn passed {passed} times, and {due} were due: {looks:?}");
    Ok(())
}

/// When the target says that it was let go on, as a Unix time in milliseconds. A Cold one says it when
/// everything has started.
fn resumed(status: &Value) -> Result<Option<u64>> {
    if status.is_null() || status["chosenMode"] == "Cold" {
        return Ok(None);
    }
    let status: MigrationStatus = serde_json::from_value(status.clone())?;
    Ok(status.resumed_at.and_then(|at| at.0.as_millisecond().try_into().ok()))
}

/// Both have voted and nothing is decided: whatever happens, both stand still.
pub fn nobody_ran_undecided(scene: &Scene, sentry: &Sentry, since: u64) -> Result<()> {
    let target = scene.target_uid();
    for pod in [&scene.source.uid, &target] {
        ensure!(!sentry.ran_since(pod, since), "{pod} ran before anything was decided");
    }
    Ok(())
}

/// The source has voted and reaches no API server: whatever was decided, it stands still.
pub fn the_source_waits(scene: &Scene, sentry: &Sentry, since: u64) -> Result<()> {
    let source = &scene.source.uid;
    ensure!(!sentry.ran_since(source, since), "{source} ran before it could read the Abort");
    Ok(())
}

/// The target stood still for longer than its liveness probe allows, and kubelet has not overlooked it.
pub fn kubelet_wanted_to_kill_the_target(scene: &Scene) -> Result<()> {
    let killing = format!("involvedObject.uid={},reason=Killing", scene.target_uid());
    scene.cluster.await_that("kubelet has wanted to kill the target", TOLD, || {
        let for_its_probe = |event: &Value| {
            event["message"].as_str().is_some_and(|said| said.contains("failed liveness probe"))
        };
        Ok(events(scene.cluster, &killing)?.iter().any(for_its_probe))
    })
}

/// The source runs again before the fault ends. A client may find out later, at TCP's own pace.
pub fn it_goes_on_meanwhile(scene: &Scene, sentry: &Sentry, patience: Duration) -> Result<()> {
    let (node, source) = (scene.node(Role::Source), &scene.source.uid);
    scene
        .cluster
        .await_that("the source goes on by itself", patience, || Ok(sentry.sees(node, source)))
}

/// The target gives up before the fault ends, as nothing more comes to it or it does not reach the API server. Who could
/// be told so may have had it forgotten since.
pub fn the_target_gives_up_meanwhile(scene: &Scene, patience: Duration) -> Result<()> {
    let journal =
        format!("/var/lib/transship/migrations/{}.target/journal", scene.migration_uid()?);
    let gave_up = format!("[ ! -e {journal} ] || grep -q aborted_before_vote {journal}");
    scene.cluster.await_that("the target gives up by itself", patience, || {
        let asked = scene.cluster.try_on_node(scene.node(Role::Target), &["sh", "-c", &gave_up])?;
        Ok(asked.status.success())
    })
}

/// Soon after the fault's end, however much of its course is before it, the Migration says what is so.
pub fn it_tells_what_runs(scene: &Scene, sentry: &Sentry, fault: Fault) -> Result<()> {
    let may_be_down = matches!(fault, Fault::PowerOff(Role::Source, _) | Fault::User(_));
    scene.cluster.await_that("the Migration says what runs", TRUTH, || {
        let migration = scene.cluster.get("migration", &scene.migration)?;
        if migration.is_null() {
            // Whether it may be gone is judged with the outcome.
            return Ok(true);
        }
        let target = migration["status"]["target"]["podUID"].as_str().unwrap_or_default();
        let running = Running {
            source: sentry.sees(scene.node(Role::Source), &scene.source.uid),
            target: sentry.sees(scene.node(Role::Target), target),
        };
        truth::tells(&migration, running, may_be_down).map(|()| true)
    })
}

/// The one pod that is there runs, or there is none and neither of the Migration's does. What passes for Ready may
/// have ended a moment ago.
pub fn what_is_there_runs(scene: &Scene, sentry: &Sentry, pods: &[Value]) -> Result<()> {
    if let [pod] = pods {
        let pod = Pod::of(pod);
        ensure!(sentry.sees(&pod.node, &pod.uid), "{} on {} does not run", pod.name, pod.node);
        return Ok(());
    }
    for pod in [&scene.source.uid, &scene.target_uid()] {
        for node in scene.nodes {
            ensure!(!sentry.sees(node, pod), "{pod} still runs on {node}");
        }
    }
    Ok(())
}

/// No number was lost or came twice; what went on with its connections is still answered on them.
/// Gives what the client saw.
pub fn the_client_was_served(
    scene: &Scene,
    client: Client,
    outcome: Outcome,
    downtime: Option<&str>,
) -> Result<Report> {
    if outcome.is_whole() {
        client.goes_on(scene.cluster, RETRANSMISSION)?;
    }
    let report = client.stop();
    ensure!(report.jumps.is_empty(), "numbers were lost or repeated: {report:?}");
    ensure!(report.is_whole() || !outcome.is_whole(), "{outcome}, but {report:?}");
    if let Some(told) = downtime.and_then(|text| duration::parse(text).ok())
        && outcome.is_whole()
    {
        let told = told.as_millis() as u64;
        let waited = report.longest_gap_ms;
        ensure!(told <= waited + CLOCKS, "{told} ms of standstill told, {waited} ms waited");
    }
    Ok(report)
}

/// The Migration's events say that its checks have passed, if they have, and how it has ended, if it has.
pub fn it_is_told(cluster: &Cluster, migration: &Value) -> Result<()> {
    let worth_telling = [
        ("Admitted", "True", "Normal"),
        ("Succeeded", "True", "Normal"),
        ("Succeeded", "False", "Warning"),
    ];
    let is = |of: &str, status: &str| condition(migration, of).0 == status;
    let worth_telling = worth_telling.into_iter().filter(|(of, status, _)| is(of, status));
    let told: Vec<(&str, &str)> = worth_telling.map(|(of, _, kind)| (kind, of)).collect();
    if told.is_empty() { Ok(()) } else { events_tell(cluster, migration, &told) }
}

/// For each kind of event with a condition of the Migration there is one of it that says what the condition says.
pub fn events_tell(cluster: &Cluster, migration: &Value, told: &[(&str, &str)]) -> Result<()> {
    let uid = migration["metadata"]["uid"].as_str().context("no UID")?;
    let of_it = format!("involvedObject.uid={uid}");
    cluster.await_that("events tell of it", TOLD, || {
        let events = events(cluster, &of_it)?;
        for (kind, of) in told {
            let (_, reason, message) = condition(migration, of);
            let tells = |event: &Value| {
                // It may be cut.
                let said = event["message"].as_str().unwrap_or_default();
                event["type"] == *kind
                    && event["reason"] == reason.as_str()
                    && !said.is_empty()
                    && message.starts_with(said)
            };
            ensure!(events.iter().any(tells), "none is {kind}, {reason}: {message}: {events:#?}");
        }
        Ok(true)
    })
}

/// An event of a pod says how a Migration that vanished has been settled.
pub fn its_vanishing_is_told(cluster: &Cluster, migration: &Value) -> Result<()> {
    let uid = migration["metadata"]["uid"].as_str().context("no UID")?;
    let of_such = format!("reason={}", reasons::MIGRATION_VANISHED);
    cluster.await_that("an event tells that it vanished", TOLD, || {
        let events = events(cluster, &of_such)?;
        let tells = |event: &Value| {
            // Before that is settled there may be a Warning.
            event["type"] == "Normal"
                && event["message"].as_str().is_some_and(|said| said.contains(uid))
        };
        ensure!(events.iter().any(tells), "none tells of {uid}: {events:#?}");
        Ok(true)
    })
}

/// The namespace's events with these fields.
pub fn events(cluster: &Cluster, fields: &str) -> Result<Vec<Value>> {
    let list = cluster.kubectl(&["get", "events", "--field-selector", fields, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// Waits until an event with these fields says these words.
pub fn is_said(cluster: &Cluster, fields: &str, words: &str, patience: Duration) -> Result<()> {
    cluster.await_that(&format!("an event says {words:?}"), patience, || {
        let told = events(cluster, fields)?;
        let says = |event: &Value| event["message"].as_str().is_some_and(|m| m.contains(words));
        ensure!(told.iter().any(says), "of those with {fields} there are {told:?}");
        Ok(true)
    })
}

/// Nothing of the migration is left while the pod runs on.
pub fn nothing_is_left_beside_the_pod(cluster: &Cluster, nodes: &Pair) -> Result<()> {
    cluster.await_that("no mark or target pod is left", TIDY, || {
        let all = cluster.list(&format!("{MARKED},services,endpointslices"), "")?;
        for migration in of_kind(&all, "Migration") {
            let (succeeded, _, message) = condition(migration, "Succeeded");
            let name = &migration["metadata"]["name"];
            ensure!(matches!(succeeded.as_str(), "True" | "False"), "{name} goes on: {message}");
        }
        one_alone_has_moved_it(&all)?;
        bears_no_mark(cluster, &all)?;
        the_service_leads_to_the_pod(&all)?;
        Ok(true)
    })?;
    nodes.iter().try_for_each(|node| no_record_is_left(cluster, node))
}

/// Why a second Migration is refused while the first one has the pod, or has done with it.
const REFUSED: [&str; 3] = [reasons::POD_CLAIMED, reasons::POD_NOT_RUNNING, reasons::POD_NOT_FOUND];

/// A second Migration of the pod, if there is one, was refused for the first one's sake, or has had a course of its
/// own; one of the two has moved the pod at most.
fn one_alone_has_moved_it(all: &[Value]) -> Result<()> {
    let is_second = |migration: &&Value| migration["metadata"]["name"] == AGAIN;
    let Some(second) = of_kind(all, "Migration").find(is_second) else { return Ok(()) };
    let (admitted, reason, message) = condition(second, "Admitted");
    let is_refused = REFUSED.contains(&reason.as_str());
    ensure!(admitted == "True" || is_refused, "{admitted}, {reason}: {message}");
    let has_moved = |migration: &&Value| condition(migration, "Succeeded").0 == "True";
    let moved = of_kind(all, "Migration").filter(has_moved).count();
    ensure!(moved <= 1, "both have moved the pod: {:#}", second["status"]);
    Ok(())
}

/// Kinds of objects that may bear a sign of a migration.
const MARKED: &str = "migrations,pods,secrets";

/// No object of the namespace, and not the namespace itself, bears a sign of a migration.
pub fn no_mark_is_left(cluster: &Cluster) -> Result<()> {
    bears_no_mark(cluster, &cluster.list(MARKED, "")?)
}

/// Whether a pod that stays bears a sign of a migration.
pub fn a_mark_is_left(cluster: &Cluster) -> Result<bool> {
    let mut pods = cluster.list("pods", "")?;
    pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(no_pod_is_marked(&pods).is_err())
}

/// No pod bears a sign of a migration.
pub fn no_pod_is_marked<'a>(pods: impl IntoIterator<Item = &'a Value>) -> Result<()> {
    for pod in pods {
        let (name, metadata) = (Pod::of(pod).name, &pod["metadata"]);
        let label = &metadata["labels"][names::MIGRATION_LABEL];
        ensure!(label.is_null(), "{name} is still marked: {metadata:#}");
        let claim = &metadata["annotations"][names::CLAIM];
        ensure!(claim.is_null(), "{name} is still claimed: {claim}");
    }
    Ok(())
}

fn bears_no_mark(cluster: &Cluster, all: &[Value]) -> Result<()> {
    for migration in of_kind(all, "Migration") {
        let metadata = &migration["metadata"];
        let finalizers = metadata["finalizers"].as_array();
        ensure!(finalizers.is_none_or(Vec::is_empty), "it is not forgotten: {metadata:#}");
        let witness = &metadata["annotations"][names::WITNESS];
        ensure!(witness.is_null(), "the Migration still refers to the pod's owner: {metadata:#}");
    }
    no_pod_is_marked(of_kind(all, "Pod"))?;
    let ours = |secret: &Value| {
        let name = secret["metadata"]["name"].as_str().unwrap_or_default();
        name.starts_with(&names::manifest_secrets("")[0])
    };
    ensure!(!of_kind(all, "Secret").any(ours), "the manifest is still stored");
    let namespace = cluster.get("namespace", &cluster.namespace)?["metadata"].clone();
    let mut marks = namespace["annotations"].as_object().into_iter().flatten();
    ensure!(
        namespace["labels"][names::HANDOVER_NAMESPACE_LABEL].is_null()
            && !marks.any(|(key, _)| key.starts_with(names::HELD_NAME_PREFIX)),
        "a name is still held back: {namespace:#}"
    );
    Ok(())
}

/// Where there is one pod of the example application, its Service has it and no other.
fn the_service_leads_to_the_pod(all: &[Value]) -> Result<()> {
    let mut pods: Vec<&Value> = of_kind(all, "Pod").collect();
    pods.retain(|pod| pod["metadata"]["labels"]["app"] == NAME && is_ready(pod));
    let [pod] = pods.as_slice() else { return Ok(()) };
    let of_it = |slice: &&Value| slice["metadata"]["labels"][SERVICE] == NAME;
    let slices: Vec<&Value> = of_kind(all, "EndpointSlice").filter(of_it).collect();
    let leads_there = |service: &Value| service["metadata"]["name"] == NAME;
    if slices.is_empty() && !of_kind(all, "Service").any(leads_there) {
        return Ok(());
    }
    let endpoints = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
    let ready: Vec<&Value> =
        endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).collect();
    let [endpoint] = ready.as_slice() else { bail!("the Service leads to {ready:?}") };
    let is_it = endpoint["targetRef"]["uid"] == pod["metadata"]["uid"];
    ensure!(is_it, "the Service leads elsewhere: {endpoint:#}");
    Ok(())
}

/// With the Migrations all nodes have forgotten them.
pub fn no_node_tells_of_it(cluster: &Cluster) -> Result<()> {
    let ours = format!("{}/", cluster.namespace);
    cluster.await_that("no node tells of a migration", TIDY, || {
        for node in cluster.list("nodes.transship.dev", "")? {
            let active = node["status"]["activeMigrations"].as_array().into_iter().flatten();
            let mut all = active.filter_map(|active| active["migration"].as_str());
            let told = all.find(|name| name.starts_with(&ours));
            ensure!(told.is_none(), "{} still tells of {told:?}", node["metadata"]["name"]);
        }
        Ok(true)
    })
}

/// No record or task of the test's namespace is left on a node.
pub fn no_record_is_left(cluster: &Cluster, node: &str) -> Result<()> {
    // The record of a pod that runs on stays, open, for as long as the pod does.
    let script = format!(
        "cd /var/lib/transship; for f in $(grep -l '\"{}\"' pods/*/record.json migrations/*/task.json 2>/dev/null); \
         do grep -q '\"state\":\"open\"' $f || echo $f; done",
        cluster.namespace
    );
    cluster
        .await_that(&format!("no record is left on {node}"), TIDY, || {
            let left = cluster.on_node(node, &["sh", "-c", &script])?;
            ensure!(left.trim().is_empty(), "{left}");
            Ok(true)
        })
        .context("residue")
}
