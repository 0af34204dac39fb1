//! Cold: the application ends gracefully, its files move, and it starts afresh with them under its own name.
//! What its init container has made moves along.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    faults::{
        nodes::{NODES, restarts},
        sentry::{Looks, Sentry, doubles, ran},
    },
    node::process::Victim,
};

use crate::{
    refusal::{Serving, refused},
    sequential::{
        known_by, made_by_the_controller, nothing_is_left, owner_and_service_have, running,
        stateful,
    },
};

/// How long a move may take. containerd looks for the end of what has ended at intervals that double.
pub const PATIENCE: Duration = Duration::from_secs(240);
pub const SOON: Duration = Duration::from_secs(90);

/// Notes each start and each graceful end in a volume and in the container's own files, and counts requests in
/// memory. Takes as many seconds to end as /data/linger says, if that is there. The sentry knows it by its first
/// line.
const SCRIPT: &str = r#"import mmap, socket, threading, os, signal, sys, time
places = ["/data", "/srv"]
os.makedirs("/srv", exist_ok=True)
def note(what):
    for place in places:
        with open(f"{place}/{what}", "a") as file:
            file.write(f"{socket.gethostname()}\n")
def end(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.path.exists("/data/linger"):
        time.sleep(float(open("/data/linger").read()))
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
    initContainers: [{name: first, image: 'localhost/transship-examples:1', imagePullPolicy: IfNotPresent, \
    command: [sh, -c, 'echo x >> /data/first'], volumeMounts: [{name: data, mountPath: /data}]}], \
    containers: [{name: main, image: 'localhost/transship-examples:1', imagePullPolicy: IfNotPresent, \
    command: [python3, -u, -c, SCRIPT], volumeMounts: [{name: data, mountPath: /data}], \
    lifecycle: {preStop: {exec: {command: [sh, -c, 'echo x >> /data/stopping']}}, \
    postStart: {exec: {command: [sh, -c, 'echo x >> /data/starting']}}}, \
    readinessProbe: {exec: {command: [sh, -c, 'test -s /data/started']}, periodSeconds: 1}}]}";

pub const BARE: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: lone
  labels: {app: lone}
  annotations: {example.com/note: kept}
spec: SPEC
"#;

pub fn manifest(of: &str) -> String {
    // JSON's quoted text is YAML's.
    let script = Value::from(SCRIPT).to_string();
    of.replace("SPEC", &SPEC.replace("SCRIPT", &script))
}

/// Runs a shell's command in the pod's application.
pub fn sh(cluster: &Cluster, pod: &str, script: &str) -> Result<String> {
    cluster.kubectl(&["exec", pod, "-c", "main", "--", "sh", "-c", script])
}

/// From now on the application takes so many seconds to end.
pub fn lingers(cluster: &Cluster, pod: &str, seconds: u32) -> Result<()> {
    sh(cluster, pod, &format!("echo {seconds} > /data/linger")).map(drop)
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
pub fn lines(cluster: &Cluster, pod: &str, path: &str) -> Result<Vec<String>> {
    let text = sh(cluster, pod, &format!("cat {path} 2>/dev/null || true"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Both kinds of files say that the application was started and has ended so often, always as this pod.
pub fn files_say(cluster: &Cluster, pod: &str, started: usize, ended: usize) -> Result<()> {
    ["/data", "/srv"].iter().try_for_each(|place| says(cluster, pod, place, started, ended))
}

/// The same of one kind.
pub fn says(cluster: &Cluster, pod: &str, place: &str, started: usize, ended: usize) -> Result<()> {
    for (file, times) in [("started", started), ("ended", ended)] {
        let found = lines(cluster, pod, &format!("{place}/{file}"))?;
        ensure!(
            found == vec![pod.to_owned(); times],
            "{place}/{file}, wanted {times} times: {found:?}"
        );
    }
    Ok(())
}

/// Does something while both nodes are watched for two copies.
pub fn watched<T>(cluster: &Cluster, work: impl FnOnce() -> Result<T>) -> Result<(T, Looks)> {
    let sentry = Sentry::start(cluster, &NODES)?;
    let done = work();
    let looks = sentry.stop(false)?;
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
    let first = lines(cluster, &after.name, "/data/first")?;
    ensure!(first == ["x"], "init containers ran {} times", first.len());
    ensure!(ask(cluster, &after)? == 1, "it remembers");
    let in_order = format!("{printed}ended\nstarted {}\n", times + 1);
    cluster.await_that("the log tells of both", SOON, || {
        let now = cluster.kubectl(&["logs", &after.name])?;
        ensure!(now == in_order, "{now}");
        Ok(true)
    })?;
    Ok(after)
}

/// Begins to move a pod, and waits until its application is told to end, right after its hook.
fn told_to_end(cluster: &Cluster, pod: &Pod) -> Result<String> {
    let stops = || anyhow::Ok(lines(cluster, &pod.name, "/data/stopping")?.len());
    let before = stops()?;
    let migration = cluster.migrate_in("Cold", &pod.name, pod.other_node())?;
    cluster.await_that("the application is told to end", SOON, || Ok(stops()? > before))?;
    Ok(migration)
}

#[test]
fn a_stateful_set_pod_ends_and_starts_elsewhere_or_where_it_was_with_its_name_and_its_files()
-> Result<()> {
    let cluster = Cluster::with_namespace("cold")?;
    cluster.apply(&manifest(&stateful("SPEC", "")))?;
    let pod = moved(&cluster, &running(&cluster, "web-0")?, 1)?;
    owner_and_service_have(&cluster, &pod)?;
    lingers(&cluster, "web-0", 8)?;
    let pod = started_again(&cluster, &pod)?;
    lingers(&cluster, "web-0", 0)?;
    let pod = moved(&cluster, &pod, 3)?;
    owner_and_service_have(&cluster, &pod)?;
    let made = made_by_the_controller(&cluster, "web")?;
    ensure!(made == 1, "the StatefulSet's controller made {made} pods");
    Ok(())
}

/// The holder dies while the pod ends, which was moved once: it starts again where it was.
fn started_again(cluster: &Cluster, before: &Pod) -> Result<Pod> {
    let (object, looks) = watched(cluster, || {
        let migration = told_to_end(cluster, before)?;
        cluster.kill(&before.node, Victim::Holder)?;
        cluster.ended(&migration, PATIENCE)?;
        cluster.get("migration", &migration)
    })?;
    let status = &object["status"];
    let (succeeded, _, message) = condition(&object, "Succeeded");
    ensure!(succeeded == "False" && status["decision"] == "Abort", "{status:#}");
    ensure!(status["phase"] == "RolledBack", "{status:#}");
    let again = format!("they were started again on {}", before.node);
    ensure!(message.ends_with(&again), "{message}");

    nothing_is_left(cluster, &object, "web-0")?;
    let now = running(cluster, "web-0")?;
    ensure!(now == *before, "{before:?} became {now:?}");
    let pod = cluster.get("pod", "web-0")?;
    ensure!(restarts(&pod) == 1, "{:#}", pod["status"]);
    let ended = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    ensure!(ended["exitCode"] == 0, "{ended:#}");
    // Its own files are there after a start that would otherwise have begun with the image's.
    files_say(cluster, "web-0", 3, 2)?;
    ensure!(ask(cluster, &now)? == 1, "it remembers");
    let elsewhere =
        looks.iter().any(|(node, look)| *node != before.node && !look.running.is_empty());
    ensure!(!elsewhere && ran(&looks, &before.uid), "{looks:?}");
    Ok(now)
}

#[test]
#[ignore = "a pod of a StatefulSet, above, ends and starts alike"]
fn a_bare_pod_ends_and_starts_elsewhere_also_when_it_is_killed_while_it_ends() -> Result<()> {
    let cluster = Cluster::with_namespace("cold-bare")?;
    cluster.apply(&manifest(BARE))?;
    let before = moved(&cluster, &running(&cluster, "lone")?, 1)?;
    lingers(&cluster, "lone", 15)?;
    let (object, _) = watched(&cluster, || {
        let migration = told_to_end(&cluster, &before)?;
        // The brackets keep the shell from being meant.
        let kill = "pkill -9 -f '[m]map, socket, threading, os, signal'";
        cluster.on_node(&before.node, &["sh", "-c", kill])?;
        cluster.succeeded(&migration, PATIENCE)
    })?;
    let after = running(&cluster, "lone")?;
    ensure!(after.node == before.other_node(), "{before:?} → {after:?}");
    nothing_is_left(&cluster, &object, "lone")?;
    files_say(&cluster, "lone", 3, 1)
}

#[test]
fn a_pod_of_a_deployment_is_told_what_to_do_instead() -> Result<()> {
    let cluster = Cluster::with_namespace("cold-refused")?;
    let mut web = Serving::deploy(&cluster, "")?;
    let expected = [("NoNameOfItsOwn", "the pod has no name of its own")];
    refused(&cluster, &web.pod, &json!({"mode": "Cold"}), &expected)?;
    web.is_untouched(&cluster)
}
