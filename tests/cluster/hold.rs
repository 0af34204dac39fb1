//! The hold: while the target is held and undecided, nothing that dies makes it run.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use transship_api::duration;
use transship_tests::{
    cluster::{Cluster, Pod, condition, migration, plugin},
    counter::Client,
    faults::{
        Gate,
        driver::in_time,
        judge::no_record_is_left,
        nodes::{NODES, healthy, is_ready},
        probe::Probe,
        sentry::{Sentry, ran},
    },
    node::{
        moment::Moment,
        process::Victim::{self, Agent, Containerd, Holder, Kubelet, Shim, Supervisor},
    },
    prober::unix_ms,
};

use crate::{counter, faults::source_goes_on};

/// Replicas of the operator, as the chart has them.
const REPLICAS: &str = "2";

fn scale_operator(cluster: &Cluster, replicas: &str) -> Result<()> {
    cluster.kubectl(&[
        "--namespace=transship-system",
        "scale",
        "deployment/transship-operator",
        "--replicas",
        replicas,
    ])?;
    let want: u64 = replicas.parse()?;
    cluster.await_that("the operator is scaled", Duration::from_secs(60), || {
        let pods = cluster.kubectl(&[
            "--namespace=transship-system",
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/component=operator",
            "-o",
            "name",
        ])?;
        Ok(pods.lines().count() as u64 == want)
    })
}

/// Times that a frozen task cannot change: user and system time, and context switches.
const ACTIVITY: &str = r#"
for c in /sys/fs/cgroup/freezer/kubepods/pod$UID/* /sys/fs/cgroup/freezer/kubepods/*/pod$UID/*; do
  for p in $(cat $c/cgroup.procs 2>/dev/null); do
    [ "$(cat /proc/$p/comm)" = pause ] && continue
    echo "$p $(cut -d' ' -f14,15 /proc/$p/stat) $(grep -h ctxt /proc/$p/status | tr -d '\n') $(cat $c/freezer.state)"
  done
done
"#;

fn activity(cluster: &Cluster, pod: &Pod) -> Result<String> {
    let script = ACTIVITY.replace("$UID", &pod.uid);
    cluster.on_node(&pod.node, &["sh", "-c", &script])
}

/// `kubectl transship nodes` shows both sides of the namespace's migration as frozen and voted.
fn both_are_shown_as_voted(cluster: &Cluster) -> Result<()> {
    let ours = format!("{}/", cluster.namespace);
    cluster.await_that("both sides are shown as voted", Duration::from_secs(30), || {
        let output = plugin()?.arg("nodes").stdin(Stdio::null()).output()?;
        let shown = String::from_utf8_lossy(&output.stdout);
        let is_shown = |side: &str| {
            let mut lines = shown.lines().filter(|line| line.contains(&ours));
            lines.any(|line| line.contains(side) && line.contains(" frozen, voted "))
        };
        ensure!(output.status.success() && is_shown(" source ") && is_shown(" target "), "{shown}");
        Ok(true)
    })
}

/// Another Migration of a pod that moves says whose the pod is, and ends without a trace.
fn another_is_refused(cluster: &Cluster, source: &Pod, first: &str) -> Result<()> {
    const ANOTHER: &str = "another";
    cluster.apply(&migration(ANOTHER, &source.name, source.other_node()))?;
    cluster.ended(ANOTHER, Duration::from_secs(10))?;
    let object = cluster.get("migration", ANOTHER)?;
    let (admitted, reason, message) = condition(&object, "Admitted");
    let holder = format!("Migration {}/{first} holds the pod", cluster.namespace);
    ensure!(
        admitted == "False" && reason == "PodClaimed" && message.contains(&holder),
        "{admitted}, {reason}: {message}"
    );
    cluster.kubectl(&["delete", "migration", ANOTHER, "--timeout=30s"])?;
    let claim = cluster.get("migration", first)?["metadata"]["uid"].clone();
    let pod = cluster.get("pod", &source.name)?;
    ensure!(pod["metadata"]["annotations"]["transship.dev/claim"] == claim, "{pod:#}");
    Ok(())
}

/// A migration whose target is held and undecided: the decision is held back until its gate is opened. Gives the
/// source, the target, the Migration's name and a client of the source.
fn undecided(cluster: &Cluster) -> Result<(Pod, Pod, String, Client)> {
    let source = counter(cluster)?;
    let client = Client::of(&source)?;
    Gate::Decision.close(cluster)?;
    let migration = cluster.migrate(&source.name, source.other_node())?;
    let mut target = None;
    cluster.await_that("the target is held", Duration::from_secs(60), || {
        let object = cluster.get("migration", &migration)?;
        let uid = object["status"]["target"]["podUID"].as_str().unwrap_or_default().to_owned();
        ensure!(!uid.is_empty(), "no target pod yet: {object:#}");
        let record = format!("/var/lib/transship/pods/{uid}/record.json");
        let record = cluster.on_node(source.other_node(), &["cat", &record])?;
        let name = object["status"]["target"]["podName"].as_str().unwrap_or_default().to_owned();
        target = Some(Pod { name, uid, node: source.other_node().to_owned(), ..source.clone() });
        Ok(record.contains("\"held\""))
    })?;
    Ok((source, target.context("no target")?, migration, client))
}

/// What has lost its shim is lost to the runtime: it ends, and has not run.
fn ends_with_its_shim(cluster: &Cluster, target: &Pod) -> Result<()> {
    let sentry = Sentry::start(cluster, &NODES)?;
    let since = unix_ms();
    cluster.kill(&target.node, Shim)?;
    cluster.await_that("the target has ended", Duration::from_secs(30), || {
        Ok(activity(cluster, target)?.is_empty())
    })?;
    ensure!(!sentry.ran_since(&target.uid, since), "it ran when its shim was killed");
    Ok(())
}

#[test]
fn nothing_that_is_killed_makes_a_held_target_run() -> Result<()> {
    let cluster = Cluster::with_namespace("hold")?;
    Gate::Decision.open(&cluster)?;
    let (source, target, migration, client) = undecided(&cluster)?;
    let result = (|| {
        both_are_shown_as_voted(&cluster)?;
        another_is_refused(&cluster, &source, &migration)?;
        let before = activity(&cluster, &target)?;
        ensure!(before.contains("FROZEN") && !before.contains("THAWED"), "not held: {before:?}");
        let kill = |victim: Victim| -> Result<()> {
            cluster.kill(&target.node, victim)?;
            let after = activity(&cluster, &target)?;
            ensure!(
                after == before,
                "after kill -9 of {} the target was active:\n{before}\n{after}",
                victim.as_str()
            );
            Ok(())
        };
        [Holder, Supervisor, Agent, Containerd, Kubelet].into_iter().try_for_each(kill)?;
        // Whoever comes back finds it as it was, too.
        healthy(&cluster, &NODES)?;
        let after = activity(&cluster, &target)?;
        ensure!(after == before, "with all back the target was active:\n{before}\n{after}");
        ends_with_its_shim(&cluster, &target)
    })();
    Gate::Decision.open(&cluster)?;
    result?;
    // Whatever is decided, one pod runs in the end, and no number was lost or came twice.
    cluster.ended(&migration, Duration::from_secs(120))?;
    cluster.await_that("one pod runs", Duration::from_secs(60), || {
        let pod = cluster.pod("app=counter")?;
        Ok(is_ready(&cluster.get("pod", &pod.name)?))
    })?;
    let report = client.stop();
    ensure!(report.jumps.is_empty(), "{report:?}");
    let live = cluster.pod("app=counter")?;
    eprintln!("after the kills the pod runs on {} (came from {})", live.node, source.node);
    Ok(())
}

#[test]
fn an_operator_that_dies_undecided_is_followed_by_one_that_decides() -> Result<()> {
    let cluster = Cluster::with_namespace("operator")?;
    Gate::Decision.open(&cluster)?;
    let (source, _, migration, client) = undecided(&cluster)?;
    let result = scale_operator(&cluster, "0");
    // Whatever came of it: others need the operator.
    let opened = Gate::Decision.open(&cluster);
    let scaled = scale_operator(&cluster, REPLICAS);
    result.and(opened).and(scaled)?;
    cluster.succeeded(&migration, Duration::from_secs(120))?;
    let report = client.stop();
    ensure!(report.is_whole(), "{report:?}");
    ensure!(cluster.pod("app=counter")?.node == source.other_node());
    Ok(())
}

/// How long the source may stand still for a target that fails in the hold: well above what it takes to see that, and
/// well below the seconds for which runc tries to remove the cgroups of tasks that are left to it.
const STANDSTILL: Duration = Duration::from_secs(5);

/// Kills one of those who hold the target's container, in that moment; whichever it is, the target never runs, and has
/// not voted yet, so the source goes on.
fn a_kill_in_the_hold_is_rolled_back(victim: &str) -> Result<()> {
    in_time(victim, || kill_in_the_hold(victim))
}

fn kill_in_the_hold(victim: &str) -> Result<()> {
    let cluster = Cluster::with_namespace(&format!("kill-{victim}"))?;
    let before = counter(&cluster)?;
    let client = Client::of(&before)?;
    let target = before.other_node();
    let sentry = Sentry::start(&cluster, &NODES)?;
    let killer = Probe::on_node(&cluster, target, Moment::Hold, Some(victim))?;
    let migration = cluster.migrate(&before.name, target)?;
    killer.sees().with_context(|| format!("{victim} was not killed"))?;
    cluster.ended(&migration, Duration::from_secs(90))?;
    let object = cluster.get("migration", &migration)?;
    ensure!(object["status"]["phase"] == "RolledBack", "{:#}", object["status"]);
    let held = object["status"]["target"]["podUID"].as_str().context("no target")?;
    ensure!(!ran(&sentry.stop(false)?, held), "the target ran: {:#}", object["status"]);
    let downtime = object["status"]["downtime"].as_str().context("no downtime")?;
    let standstill = duration::parse(downtime)?;
    ensure!(standstill < STANDSTILL, "it stood still for {downtime}: {:#}", object["status"]);
    cluster.kubectl(&["delete", "migration", &migration, "--timeout=60s"])?;
    source_goes_on(&cluster, &before, client).with_context(|| format!("{:#}", object["status"]))?;
    no_record_is_left(&cluster, target)
}

#[test]
fn a_kill_of_the_script_in_the_hold_is_rolled_back() -> Result<()> {
    a_kill_in_the_hold_is_rolled_back("script")
}

#[test]
fn a_kill_of_criu_in_the_hold_is_rolled_back() -> Result<()> {
    a_kill_in_the_hold_is_rolled_back("criu")
}

#[test]
fn a_kill_of_the_wrapper_in_the_hold_is_rolled_back() -> Result<()> {
    a_kill_in_the_hold_is_rolled_back("wrapper")
}
