//! Cold: the application ends gracefully, its files move, and it starts afresh with them under its own name.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    faults::{
        nodes::{NODES, restarts},
        sentry::{Looks, Sentry, doubles, ran},
    },
};

use crate::sequential::{
    known_by, made_by_the_controller, nothing_is_left, owner_and_service_have, running,
};

/// How long a move may take. containerd looks for the end of what has ended at intervals that double.
const PATIENCE: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(90);

/// Notes each start and each graceful end in a volume and in the container's own files, and counts requests in
/// memory. Takes as many seconds to end as its argument says. The sentry knows it by its first line.
const SCRIPT: &str = r#"import mmap, socket, threading, os, signal, sys, time
places = ["/data", "/srv"]
os.makedirs("/srv", exist_ok=True)
def note(what):
    for place in places:
        with open(f"{place}/{what}", "a") as file:
            file.write(f"{socket.gethostname()}\n")
def end(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(float(sys.argv[1]))
    note("ended")
    print("ended", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
note("started")
print("started", open("/srv/started").read().count("\n"), flush=True)
count = 0
server = socket.create_server(("", 8080))
while True:
    connection = server.accept()[0]
    with connection:
        if connection.recv(1):
            count += 1
            connection.sendall(b"%d\n" % count)
"#;

/// In one line, as it stands in manifests of pods and of what makes pods.
const SPEC: &str = "{terminationGracePeriodSeconds: 20, volumes: [{name: data, emptyDir: {}}], \
    containers: [{name: main, image: 'localhost/transship-examples:1', imagePullPolicy: IfNotPresent, \
    command: [python3, -u, -c, SCRIPT, 'LINGER'], volumeMounts: [{name: data, mountPath: /data}], \
    lifecycle: {preStop: {exec: {command: [sh, -c, 'echo x >> /data/stopping']}}, \
    postStart: {exec: {command: [sh, -c, 'echo x >> /data/starting']}}}, \
    readinessProbe: {exec: {command: [sh, -c, 'test -s /data/started']}, periodSeconds: 1}}]}";

const STATEFUL: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: web
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: SPEC
"#;

const BARE: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: lone
  labels: {app: lone}
  annotations: {example.com/note: kept}
spec: SPEC
"#;

fn manifest(of: &str, linger: u32) -> String {
    // JSON's quoted text is YAML's.
    let script = Value::from(SCRIPT).to_string();
    let spec = SPEC.replace("LINGER", &linger.to_string()).replace("SCRIPT", &script);
    of.replace("SPEC", &spec)
}

/// Asks the application how often it was asked, this time included: since its start, as nothing else is in
/// its memory.
fn ask(cluster: &Cluster, pod: &Pod) -> Result<u64> {
    let address = format!("{}:8080", pod.ip).parse()?;
    let mut answer = String::new();
    cluster.await_that("the application answers", SOON, || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"x")?;
        answer.clear();
        Ok(BufReader::new(stream).read_line(&mut answer)? > 0)
    })?;
    Ok(answer.trim().parse()?)
}

/// The lines of a file in the pod; none of one that is not there.
fn lines(cluster: &Cluster, pod: &str, path: &str) -> Result<Vec<String>> {
    let script = format!("cat {path} 2>/dev/null || true");
    let text = cluster.kubectl(&["exec", pod, "--", "sh", "-c", &script])?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Both kinds of files say that the application was started and has ended so often, always as this pod.
fn files_say(cluster: &Cluster, pod: &str, started: usize, ended: usize) -> Result<()> {
    for (file, times) in [
        ("/data/started", started),
        ("/srv/started", started),
        ("/data/ended", ended),
        ("/srv/ended", ended),
    ] {
        let found = lines(cluster, pod, file)?;
        ensure!(found == vec![pod.to_owned(); times], "{file}, wanted {times} times: {found:?}");
    }
    Ok(())
}

fn watched<T>(cluster: &Cluster, work: impl FnOnce() -> Result<T>) -> Result<(T, Looks)> {
    let sentry = Sentry::start(cluster, &NODES);
    cluster.await_that("both nodes are looked at", SOON, || Ok(sentry.stands(&NODES)))?;
    let done = work();
    let looks = sentry.stop();
    if let Some(double) = doubles(&looks, |_| true) {
        bail!("two copies ran: {double}");
    }
    Ok((done?, looks))
}

/// Moves a pod that has been started and has ended so often before.
fn moved(cluster: &Cluster, before: &Pod, times: usize) -> Result<Pod> {
    let known = known_by(&cluster.get("pod", &before.name)?);
    let printed = cluster.kubectl(&["logs", &before.name])?;
    let hooks = |pod: &Pod| -> Result<[usize; 2]> {
        let runs = |file| anyhow::Ok(lines(cluster, &pod.name, file)?.len());
        Ok([runs("/data/stopping")?, runs("/data/starting")?])
    };
    let [stops, starts] = hooks(before)?;
    ask(cluster, before)?;
    ask(cluster, before)?;
    let (object, looks) = watched(cluster, || {
        let migration = cluster.migrate_in("Cold", &before.name, before.other_node())?;
        cluster.succeeded(&migration, PATIENCE)
    })?;
    let status = &object["status"];
    ensure!(status["chosenMode"] == "Cold" && status["handOver"] == "Sequential", "{status:#}");
    ensure!(status["failedRestores"].is_null(), "not at the first try: {status:#}");
    let (_, _, told) = condition(&object, "Restored");
    ensure!(told == format!("started 1 container on {}", before.other_node()), "{told}");

    let after = running(cluster, &before.name)?;
    ensure!(
        after.uid != before.uid && after.node == before.other_node() && after.ips == before.ips,
        "{before:?} → {after:?}"
    );
    ensure!(ran(&looks, &before.uid) && ran(&looks, &after.uid), "nobody looked: {looks:?}");
    nothing_is_left(cluster, &object, &before.name)?;
    let pod = cluster.get("pod", &before.name)?;
    ensure!(known_by(&pod) == known, "{known:#} became {:#}", known_by(&pod));
    ensure!(restarts(&pod) == 0, "{:#}", pod["status"]);

    files_say(cluster, &after.name, times + 1, times)?;
    let now = hooks(&after)?;
    ensure!(now == [stops + 1, starts + 1], "{stops} preStop, {starts} postStart became {now:?}");
    ensure!(ask(cluster, &after)? == 1, "it remembers");
    let in_order = format!("{printed}ended\nstarted {}\n", times + 1);
    cluster.await_that("the log tells of both", SOON, || {
        let now = cluster.kubectl(&["logs", &after.name])?;
        ensure!(now == in_order, "{now}");
        Ok(true)
    })?;
    Ok(after)
}

#[test]
fn a_stateful_set_pod_ends_and_starts_elsewhere_with_its_name_and_its_files() -> Result<()> {
    let cluster = Cluster::with_namespace("cold")?;
    cluster.apply(&manifest(STATEFUL, 0))?;
    let mut pod = running(&cluster, "web-0")?;
    for times in 1..=2 {
        pod = moved(&cluster, &pod, times)?;
        owner_and_service_have(&cluster, &pod)?;
    }
    let made = made_by_the_controller(&cluster)?;
    ensure!(made == 1, "the StatefulSet's controller made {made} pods");
    Ok(())
}

#[test]
fn a_bare_pod_ends_and_starts_elsewhere_with_its_name_and_its_files() -> Result<()> {
    let cluster = Cluster::with_namespace("cold-bare")?;
    cluster.apply(&manifest(BARE, 1))?;
    let pod = running(&cluster, "lone")?;
    moved(&cluster, &pod, 1).map(drop)
}

#[test]
fn a_pod_whose_holder_dies_while_it_ends_is_started_again_where_it_was() -> Result<()> {
    let cluster = Cluster::with_namespace("cold-holder")?;
    cluster.apply(&manifest(STATEFUL, 8))?;
    let before = running(&cluster, "web-0")?;
    ask(&cluster, &before)?;
    let (object, looks) = watched(&cluster, || {
        let migration = cluster.migrate_in("Cold", &before.name, before.other_node())?;
        // It is told to end right after the hook.
        cluster.await_that("the application is told to end", SOON, || {
            Ok(!lines(&cluster, "web-0", "/data/stopping")?.is_empty())
        })?;
        cluster
            .on_node(&before.node, &["transship-probe", "kill", &cluster.namespace, "holder"])?;
        cluster.ended(&migration, PATIENCE)?;
        cluster.get("migration", &migration)
    })?;
    let status = &object["status"];
    let (succeeded, _, message) = condition(&object, "Succeeded");
    ensure!(succeeded == "False" && status["decision"] == "Abort", "{status:#}");
    ensure!(status["phase"] == "RolledBack", "{status:#}");
    let again = format!("they were started again on {}", before.node);
    ensure!(message.contains(&again), "{message}");

    nothing_is_left(&cluster, &object, "web-0")?;
    let now = running(&cluster, "web-0")?;
    ensure!(now == before, "{before:?} became {now:?}");
    let pod = cluster.get("pod", "web-0")?;
    ensure!(restarts(&pod) == 1, "{:#}", pod["status"]);
    let ended = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    ensure!(ended["exitCode"] == 0, "{ended:#}");
    // Its own files are there after a start that would otherwise have begun with the image's.
    files_say(&cluster, "web-0", 2, 1)?;
    ensure!(ask(&cluster, &now)? == 1, "it remembers");
    let elsewhere =
        looks.iter().any(|(node, look)| *node != before.node && !look.running.is_empty());
    ensure!(!elsewhere && ran(&looks, &before.uid), "{looks:?}");
    // And it moves.
    moved(&cluster, &now, 2).map(drop)
}

#[test]
fn an_application_that_is_killed_while_it_ends_moves_all_the_same() -> Result<()> {
    let cluster = Cluster::with_namespace("cold-killed")?;
    cluster.apply(&manifest(STATEFUL, 15))?;
    let before = running(&cluster, "web-0")?;
    let (object, _) = watched(&cluster, || {
        let migration = cluster.migrate_in("Cold", &before.name, before.other_node())?;
        cluster.await_that("the application is told to end", SOON, || {
            Ok(!lines(&cluster, "web-0", "/data/stopping")?.is_empty())
        })?;
        // The brackets keep the shell from being meant.
        let kill = "pkill -9 -f '[m]map, socket, threading, os, signal'";
        cluster.on_node(&before.node, &["sh", "-c", kill])?;
        cluster.succeeded(&migration, PATIENCE)
    })?;
    let after = running(&cluster, "web-0")?;
    ensure!(after.node == before.other_node(), "{before:?} → {after:?}");
    nothing_is_left(&cluster, &object, "web-0")?;
    files_say(&cluster, "web-0", 2, 0)
}

#[test]
fn a_pod_of_a_deployment_is_told_what_to_do_instead() -> Result<()> {
    let cluster = Cluster::with_namespace("cold-refused")?;
    let before = crate::counter(&cluster)?;
    let migration = cluster.migrate_in("Cold", &before.name, before.other_node())?;
    cluster.ended(&migration, SOON)?;
    let object = cluster.get("migration", &migration)?;
    let (succeeded, _, message) = condition(&object, "Succeeded");
    ensure!(succeeded == "False" && message.contains("NoNameOfItsOwn"), "{:#}", object["status"]);
    ensure!(message.contains("mode: StopAndCopy"), "{message}");
    let now = cluster.pod("app=counter")?;
    ensure!(now == before, "{before:?} became {now:?}");
    Ok(())
}
