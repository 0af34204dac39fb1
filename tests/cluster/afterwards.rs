//! A pod that was moved is a pod like any other: everything that people and kubelet do with pods.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use transship_tests::{
    cluster::{Cluster, Pod},
    faults::judge::is_said,
    line::Line,
};

const PATIENCE: Duration = Duration::from_secs(30);
/// After which kubelet kills what has not ended.
const GRACE: Duration = Duration::from_secs(30);
/// kubelet looks now and then at what pods use.
const MEASURED: Duration = Duration::from_secs(90);

/// Prints numbered lines and what it hears on its standard input; answers every byte with the
/// number of bytes so far; a file makes it eat more memory than it may have.
const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: any}
spec:
  selector: {matchLabels: {app: any}}
  template:
    metadata: {labels: {app: any}}
    spec:
      terminationGracePeriodSeconds: 30
      containers:
        - name: any
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          stdin: true
          command: [python3, -u, -c]
          args:
            - |
              import os, signal, socket, sys, threading, time
              def say(text):
                  os.write(1, (text + "\n").encode())
              def lines():
                  for n in range(1, 1 << 40):
                      say(f"line {n}")
                      time.sleep(0.02)
              def hear():
                  for line in sys.stdin:
                      say("heard " + line.strip())
              def eat():
                  while not os.path.exists("/tmp/eat"):
                      time.sleep(0.1)
                  hog = [bytearray(os.urandom(1 << 20)) for _ in range(200)]
              def stop(*_):
                  say("asked to stop")
                  os._exit(0)
              signal.signal(signal.SIGTERM, stop)
              for work in lines, hear, eat:
                  threading.Thread(target=work, daemon=True).start()
              count = 0
              server = socket.create_server(("", 8080))
              while True:
                  connection, _ = server.accept()
                  def serve(connection=connection):
                      global count
                      while connection.recv(1):
                          count += 1
                          connection.sendall(b"%d\n" % count)
                  threading.Thread(target=serve, daemon=True).start()
          lifecycle: {preStop: {exec: {command: [sh, -c, "echo hook ran > /proc/1/fd/1"]}}}
          resources: {limits: {memory: 100Mi}}
"#;

fn deploy(name: &str, manifest: &str) -> Result<(Cluster, Pod)> {
    let cluster = Cluster::with_namespace(name)?;
    cluster.apply(manifest)?;
    cluster.rolled_out("any")?;
    let pod = cluster.pod("app=any")?;
    Ok((cluster, pod))
}

/// Waits until its owner has made another pod in the place of this one.
fn another_takes_the_place_of(cluster: &Cluster, pod: &Pod) -> Result<()> {
    cluster.await_that("another pod takes its place", Duration::from_secs(60), || {
        let other = cluster.pod("app=any")?;
        Ok(other.uid != pod.uid && Line::connect(&other, 8080)?.ask()? == "1")
    })
}

/// A kubectl that runs on, and the lines that it prints.
struct Stream {
    kubectl: Child,
    lines: mpsc::Receiver<String>,
}

impl Stream {
    fn start(cluster: &Cluster, args: &[&str]) -> Result<Stream> {
        let mut kubectl = cluster
            .kubectl_command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = BufReader::new(kubectl.stdout.take().context("no stdout")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Stream { kubectl, lines })
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.kubectl.stdin.as_mut().context("no stdin")?, "{line}")?)
    }

    /// The first line to come that has this in it.
    fn find(&self, text: &str) -> Result<String> {
        let begun = std::time::Instant::now();
        while let Some(left) = PATIENCE.checked_sub(begun.elapsed()) {
            let line = self.lines.recv_timeout(left).with_context(|| format!("no {text:?}"))?;
            if line.contains(text) {
                return Ok(line);
            }
        }
        bail!("no {text:?} within {PATIENCE:?}")
    }

    /// All lines, once kubectl has ended by itself.
    fn rest(mut self) -> Result<Vec<String>> {
        let lines = self.lines.iter().collect();
        self.kubectl.wait()?;
        Ok(lines)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

/// The numbers of the lines, in the order in which they stand there.
fn numbers(log: &str) -> Vec<u64> {
    log.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect()
}

fn usage(cluster: &Cluster, pod: &Pod) -> Result<Value> {
    let path = format!("/api/v1/nodes/{}/proxy/stats/summary", pod.node);
    let summary: Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", &path])?)?;
    let pods = summary["pods"].as_array().context("no pods")?;
    let found = pods.iter().find(|stats| stats["podRef"]["uid"] == pod.uid.as_str());
    found.cloned().with_context(|| format!("kubelet has no statistics of {}", pod.name))
}

/// What metrics-server reads tells of the pod's container.
fn is_measured(cluster: &Cluster, pod: &Pod) -> Result<bool> {
    const METRICS: [&str; 3] = [
        "container_cpu_usage_seconds_total{",
        "container_memory_working_set_bytes{",
        "container_start_time_seconds{",
    ];
    let path = format!("/api/v1/nodes/{}/proxy/metrics/resource", pod.node);
    let told = cluster.kubectl(&["get", "--raw", &path])?;
    let ours = format!("pod=\"{}\"", pod.name);
    for metric in METRICS {
        let is_it = |line: &str| line.starts_with(metric) && line.contains(&ours);
        ensure!(told.lines().any(is_it), "{metric}…}} of {} is missing", pod.name);
    }
    Ok(true)
}

/// Logs of before and after: each line once, in order, and nothing is lost.
fn logs_are_whole(cluster: &Cluster, pod: &Pod) -> Result<()> {
    let mut log = String::new();
    cluster.await_that("the logs go on", PATIENCE, || {
        log = cluster.kubectl(&["logs", &pod.name])?;
        Ok(numbers(&log).len() > 100)
    })?;
    let found = numbers(&log);
    let whole: Vec<u64> = (1..=found.last().copied().unwrap_or(0)).collect();
    ensure!(
        found == whole,
        "kubectl logs has lines {:?} to {:?}, {} of them",
        found.first(),
        found.last(),
        found.len()
    );
    let last = cluster.kubectl(&["logs", &pod.name, "--tail=1"])?;
    ensure!(numbers(&last).last() > whole.last(), "the log stands still: {last}");
    Ok(())
}

/// A plain deletion: preStop hook, then the signal, then an end by itself within the grace.
fn stops_when_it_is_deleted(cluster: &Cluster, pod: &Pod) -> Result<()> {
    let log = Stream::start(cluster, &["logs", "-f", "--tail=1", &pod.name])?;
    log.find("line ")?;
    let begun = std::time::Instant::now();
    cluster.kubectl(&["delete", "pod", &pod.name, "--timeout=60s"])?;
    let took = begun.elapsed();
    let rest = log.rest()?;
    let place = |text: &str| rest.iter().position(|line| line == text);
    let (hook, signal) = (place("hook ran"), place("asked to stop"));
    ensure!(hook.is_some() && hook < signal, "hook at {hook:?}, signal at {signal:?}");
    ensure!(took < GRACE, "it was killed after its grace: {took:?}");
    Ok(())
}

#[test]
fn a_moved_pod_logs_attaches_forwards_measures_and_stops_like_any_other() -> Result<()> {
    let (cluster, before) = deploy("any", MANIFEST)?;
    ensure!(Line::connect(&before, 8080)?.ask()? == "1");
    let pod = cluster.moved("app=any", &before)?;

    logs_are_whole(&cluster, &pod)?;

    // attach shows what is printed, and reaches the standard input.
    let mut attached = Stream::start(&cluster, &["attach", "-i", &pod.name])?;
    attached.find("line ")?;
    attached.tell("a word")?;
    attached.find("heard a word")?;
    drop(attached);

    // port-forward.
    let forward = Stream::start(&cluster, &["port-forward", &pod.name, ":8080"])?;
    let line = forward.find("Forwarding from 127.0.0.1:")?;
    let port = line.split(['>', ' ']).find_map(|word| word.strip_prefix("127.0.0.1:"));
    let port: u16 = port.context("no port")?.parse()?;
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"x")?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer)?;
    ensure!(answer == *b"2\n", "{answer:?}");
    drop(forward);

    // What kubelet measures, and from where `kubectl top` has it.
    let mut busy = 0;
    cluster.await_that("kubelet measures the pod", MEASURED, || {
        let stats = usage(&cluster, &pod)?;
        let container = &stats["containers"][0];
        let seen = container["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap_or(0);
        let went_on = busy > 0 && seen > busy;
        busy = busy.max(seen);
        let memory = container["memory"]["workingSetBytes"].as_u64().unwrap_or(0);
        Ok(went_on && (1 << 20..100 << 20).contains(&memory))
    })?;
    cluster.await_that(
        "kubelet tells metrics-server of the pod",
        Duration::from_secs(60),
        || is_measured(&cluster, &pod),
    )?;

    stops_when_it_is_deleted(&cluster, &pod)?;
    cluster.rolled_out("any")
}

#[test]
fn a_moved_pod_of_a_stateful_set_logs_and_stops_like_any_other() -> Result<()> {
    let cluster = Cluster::with_namespace("any-stateful")?;
    let manifest = MANIFEST
        .replace("kind: Deployment", "kind: StatefulSet")
        .replace("spec:\n  selector:", "spec:\n  serviceName: any\n  selector:");
    cluster.apply(&manifest)?;
    cluster.kubectl(&["rollout", "status", "statefulset/any", "--timeout=90s"])?;
    let before = cluster.pod("app=any")?;
    let mut line = Line::connect(&before, 8080)?;
    ensure!(line.ask()? == "1");
    let pod = cluster.moved("app=any", &before)?;
    ensure!(pod.name == before.name && pod.uid != before.uid, "{before:?} → {pod:?}");
    ensure!(line.ask()? == "2");
    logs_are_whole(&cluster, &pod)?;
    stops_when_it_is_deleted(&cluster, &pod)?;
    another_takes_the_place_of(&cluster, &pod)
}

#[test]
fn a_moved_pod_is_killed_when_out_of_memory_moves_again_and_is_evicted() -> Result<()> {
    let (cluster, before) = deploy("limits", MANIFEST)?;
    let mut line = Line::connect(&before, 8080)?;
    ensure!(line.ask()? == "1");
    let pod = cluster.moved("app=any", &before)?;
    ensure!(line.ask()? == "2");

    // The limit of memory is in force.
    cluster.kubectl(&["exec", &pod.name, "--", "touch", "/tmp/eat"])?;
    cluster.await_that(
        "the container is killed and starts anew",
        Duration::from_secs(60),
        || {
            let status = cluster.get("pod", &pod.name)?["status"]["containerStatuses"][0].clone();
            Ok(status["restartCount"] == 1
                && status["lastState"]["terminated"]["reason"] == "OOMKilled"
                && status["ready"] == true)
        },
    )?;
    ensure!(line.ask().is_err(), "the connection outlived its process");
    let mut line = Line::connect(&pod, 8080)?;
    ensure!(line.ask()? == "1", "old memory was restored");
    let log = cluster.kubectl(&["logs", "--previous", &pod.name])?;
    ensure!(!numbers(&log).is_empty(), "no logs of the container before");

    // The container that kubelet started moves like the one that was restored.
    let pod = cluster.moved("app=any", &pod)?;
    ensure!(line.ask()? == "2");
    ensure!(!numbers(&cluster.kubectl(&["logs", &pod.name])?).is_empty());

    // An eviction ends it, and its owner makes another.
    let log = Stream::start(&cluster, &["logs", "-f", "--tail=1", &pod.name])?;
    log.find("line ")?;
    let eviction = format!(
        r#"{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{}","namespace":"{}"}}}}"#,
        pod.name, cluster.namespace
    );
    let file = std::env::temp_dir().join(format!("{}-eviction.json", cluster.namespace));
    std::fs::write(&file, eviction)?;
    let path = format!("/api/v1/namespaces/{}/pods/{}/eviction", cluster.namespace, pod.name);
    cluster.kubectl(&["create", "--raw", &path, "-f", &file.to_string_lossy()])?;
    let rest = log.rest()?;
    ensure!(rest.iter().any(|line| line == "hook ran"), "no preStop hook");
    ensure!(rest.iter().any(|line| line == "asked to stop"), "no signal");
    another_takes_the_place_of(&cluster, &pod)
}

#[test]
#[ignore = "kubelet looks at what pods have written now and then; another eviction is shown above"]
fn a_moved_pod_that_writes_more_than_it_may_is_evicted_by_kubelet() -> Result<()> {
    // It asks for nothing, so no node need say how much it has.
    let limited =
        "{limits: {memory: 100Mi, ephemeral-storage: 16Mi}, requests: {ephemeral-storage: 0}}";
    let manifest = MANIFEST.replace("{limits: {memory: 100Mi}}", limited);
    let (cluster, before) = deploy("storage", &manifest)?;
    let mut line = Line::connect(&before, 8080)?;
    ensure!(line.ask()? == "1");
    let pod = cluster.moved("app=any", &before)?;
    ensure!(line.ask()? == "2");

    let write = "head -c 33554432 /dev/urandom > /var/much";
    cluster.kubectl(&["exec", &pod.name, "--", "sh", "-c", write])?;
    let evicted = format!("reason=Evicted,involvedObject.uid={}", pod.uid);
    is_said(&cluster, &evicted, "ephemeral", MEASURED)?;
    cluster.await_that("its containers end", MEASURED, || {
        let phase = cluster.get("pod", &pod.name)?["status"]["phase"].clone();
        // Which of them is by how they have ended.
        Ok(["Failed", "Succeeded"].iter().any(|ended| phase == *ended))
    })?;
    ensure!(line.ask().is_err(), "the connection outlived its process");
    // Its object would stay beside the next one.
    cluster.kubectl(&["delete", "pod", &pod.name, "--timeout=60s"])?;
    another_takes_the_place_of(&cluster, &pod)
}
