//! Pods of several kinds of containers: init containers, sidecars, hooks.

use std::time::Duration;

use anyhow::{Result, ensure};
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    line::Line,
};

/// `first` and `second` are ordinary init containers around the sidecar `helper`; they and the
/// postStart hook of `main` note each of their runs in an emptyDir. Sidecar and application count
/// requests in memory, in /dev/shm and in a System V segment that they share.
const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: trio}
data:
  serve.py: |
    import ctypes, os, socket, sys
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    segment = libc.shmget(0x5354, 4096, 0o1600)
    assert segment >= 0, os.strerror(ctypes.get_errno())
    shared = ctypes.c_uint64.from_address(libc.shmat(segment, None, 0))
    posix = os.open("/dev/shm/total", os.O_RDWR | os.O_CREAT)
    own = 0
    server = socket.create_server(("", int(sys.argv[1])))
    while True:
        connection, _ = server.accept()
        while connection.recv(64):
            own += 1
            shared.value += 1
            total = int(os.pread(posix, 20, 0) or 0) + 1
            os.pwrite(posix, b"%d" % total, 0)
            connection.sendall(b"%d %d %d\n" % (own, shared.value, total))
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: trio}
spec:
  selector: {matchLabels: {app: trio}}
  template:
    metadata:
      labels: {app: trio}
      annotations: {transship.dev/post-start: skip}
    spec:
      terminationGracePeriodSeconds: 1
      initContainers:
        - name: first
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [sh, -c, "echo first >> /data/runs"]
          volumeMounts: [{name: data, mountPath: /data}]
        - name: helper
          restartPolicy: Always
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [python3, -u, /code/serve.py, "8081"]
          env: [{name: PYTHONDONTWRITEBYTECODE, value: "1"}]
          startupProbe: {exec: {command: [cat, /dev/shm/total]}, periodSeconds: 1}
          volumeMounts: [{name: data, mountPath: /data}, {name: code, mountPath: /code}]
        - name: second
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [sh, -c, "echo second >> /data/runs"]
          volumeMounts: [{name: data, mountPath: /data}]
      containers:
        - name: main
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [python3, -u, /code/serve.py, "8080"]
          env: [{name: PYTHONDONTWRITEBYTECODE, value: "1"}]
          lifecycle: {postStart: {exec: {command: [sh, -c, "echo hook >> /data/runs"]}}}
          readinessProbe: {exec: {command: [cat, /data/runs]}, periodSeconds: 2}
          volumeMounts: [{name: data, mountPath: /data}, {name: code, mountPath: /code}]
      volumes: [{name: data, emptyDir: {}}, {name: code, configMap: {name: trio}}]
"#;

/// The same pod of a StatefulSet, whose hook runs again after a move.
fn of_a_stateful_set() -> String {
    MANIFEST
        .replace("kind: Deployment", "kind: StatefulSet")
        .replace("spec:\n  selector:", "spec:\n  serviceName: trio\n  selector:")
        .replace("post-start: skip", "post-start: run")
}

/// Moves the pod of this manifest to and fro in this order; each time its hook adds `again` to what it noted.
fn moves(name: &str, manifest: &str, workload: &str, order: &str, again: &str) -> Result<()> {
    let cluster = Cluster::with_namespace(name)?;
    cluster.apply(manifest)?;
    cluster.kubectl(&["rollout", "status", workload, "--timeout=90s"])?;
    let mut pod = cluster.pod("app=trio")?;
    let runs =
        |pod: &Pod| cluster.kubectl(&["exec", &pod.name, "-c", "main", "--", "cat", "/data/runs"]);
    let mut wanted = "first\nsecond\nhook\n".to_owned();
    ensure!(runs(&pod)? == wanted, "{}", runs(&pod)?);
    let (mut main, mut helper) = (Line::connect(&pod, 8080)?, Line::connect(&pod, 8081)?);
    let (mut own, mut total) = (0, 0);
    let mut ask = || -> Result<()> {
        own += 1;
        for line in [&mut main, &mut helper] {
            total += 1;
            let answer = line.ask()?;
            ensure!(answer == format!("{own} {total} {total}"), "{own}, {total}: {answer}");
        }
        Ok(())
    };
    ask()?;
    for _ in 0..2 {
        let migration = cluster.migrate(&pod.name, pod.other_node())?;
        let object = cluster.succeeded(&migration, Duration::from_secs(120))?;
        ensure!(object["status"]["handOver"] == order, "{:#}", object["status"]);
        let after = cluster.pod("app=trio")?;
        ensure!(after.node == pod.other_node() && after.ip == pod.ip, "{pod:?} → {after:?}");
        ask()?;
        let told = hooks_ended(&cluster, &migration)?;
        let expected = if again.is_empty() { "" } else { "True" };
        ensure!(told.0 == expected, "HooksRun: {told:?}");
        wanted += again;
        ensure!(runs(&after)? == wanted, "not {wanted:?}: {}", runs(&after)?);
        let object = cluster.get("pod", &after.name)?;
        for status in object["status"]["initContainerStatuses"].as_array().into_iter().flatten() {
            let state = &status["state"];
            let good = match status["name"].as_str() {
                Some("helper") => !state["running"].is_null() && status["ready"] == true,
                _ => state["terminated"]["exitCode"] == 0,
            };
            ensure!(good && status["restartCount"] == 0, "{status:#}");
        }
        pod = after;
    }

    // A sidecar that crashes starts anew, and the application stays.
    cluster.on_node(&pod.node, &["sh", "-c", "kill -9 $(pgrep -f '[s]erve.py 8081')"])?;
    cluster.await_that("the sidecar is restarted", Duration::from_secs(60), || {
        let object = cluster.get("pod", &pod.name)?;
        let statuses = object["status"]["initContainerStatuses"].clone();
        let helper = statuses.as_array().into_iter().flatten().find(|s| s["name"] == "helper");
        Ok(helper.is_some_and(|s| s["restartCount"] == 1 && s["ready"] == true))
    })?;
    let mut line = Line::connect(&pod, 8081)?;
    ensure!(line.ask()?.starts_with("1 "), "the restarted sidecar went on with old memory");
    let answer = main.ask()?;
    ensure!(
        answer.starts_with(&format!("{} ", own + 1)),
        "the application did not go on: {answer}"
    );
    Ok(())
}

/// How the postStart hooks have ended: one may outlast the move, and until then the pod is not let go.
pub fn hooks_ended(cluster: &Cluster, migration: &str) -> Result<(String, String, String)> {
    let mut told = Default::default();
    cluster.await_that("the pod can be moved again", Duration::from_secs(60), || {
        let object = cluster.get("migration", migration)?;
        told = condition(&object, "HooksRun");
        Ok(object["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty))
    })?;
    Ok(told)
}

#[test]
fn a_sidecar_moves_beside_its_application_and_nothing_that_ran_once_runs_again() -> Result<()> {
    moves("sidecar", MANIFEST, "deployment/trio", "Overlap", "")
}

#[test]
fn a_sidecar_of_a_stateful_set_moves_with_all_that_it_shares_and_the_hook_runs_again() -> Result<()>
{
    moves("sidecar-stateful", &of_a_stateful_set(), "statefulset/trio", "Sequential", "hook\n")
}

/// Each container has a hook that runs again after a move. That of `main` notes each of its runs; that of `other`
/// ends well at the start and fails whenever it finds that it has run before; that of `asker` is a request to `main`,
/// which notes it; that of `sleeper` is a pause.
const HOOKS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: hooked}
spec:
  selector: {matchLabels: {app: hooked}}
  template:
    metadata:
      labels: {app: hooked}
      annotations: {transship.dev/post-start: run}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: main
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [python3, -u, -c]
          args:
            - |
              from http.server import BaseHTTPRequestHandler, HTTPServer
              class Handler(BaseHTTPRequestHandler):
                  def do_GET(self):
                      with open("/data/runs", "a") as runs:
                          print("asked for", self.path, file=runs)
                      self.send_response(204)
                      self.end_headers()
              server = HTTPServer(("", 8080), Handler)
              open("/data/listens", "w").close()
              server.serve_forever()
          lifecycle:
            postStart:
              exec:
                command:
                  - sh
                  - -c
                  - |
                    until [ -e /data/listens ]; do sleep 0.1; done
                    if [ -e /data/runs ]; then word=after; else word=start; fi; echo $word >> /data/runs
          volumeMounts: [{name: data, mountPath: /data}]
        - name: other
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [sleep, "86400"]
          lifecycle: {postStart: {exec: {command: [mkdir, /data/once]}}}
          volumeMounts: [{name: data, mountPath: /data}]
        - name: asker
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [sleep, "86400"]
          lifecycle: {postStart: {httpGet: {path: /hook, port: 8080}}}
        - name: sleeper
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [sleep, "86400"]
          lifecycle: {postStart: {sleep: {seconds: 1}}}
      volumes: [{name: data, emptyDir: {}}]
"#;

#[test]
fn hooks_run_again_once_a_pod_has_moved_and_their_failure_harms_nobody() -> Result<()> {
    let cluster = Cluster::with_namespace("hooks")?;
    cluster.apply(HOOKS)?;
    cluster.rolled_out("hooked")?;
    let mut pod = cluster.pod("app=hooked")?;
    let runs =
        |pod: &Pod| cluster.kubectl(&["exec", &pod.name, "-c", "main", "--", "cat", "/data/runs"]);
    let mut wanted = "start\nasked for /hook\n".to_owned();
    ensure!(runs(&pod)? == wanted, "{}", runs(&pod)?);
    // The second time the manifest has lost them.
    for _ in 0..2 {
        let migration = cluster.migrate(&pod.name, pod.other_node())?;
        cluster.succeeded(&migration, Duration::from_secs(120))?;
        let told = hooks_ended(&cluster, &migration)?;
        ensure!(told.0 == "False" && told.1 == "HookFailed", "{told:?}");
        ensure!(told.2.ends_with("failed there: container other: it exited with 1"), "{told:?}");
        wanted.push_str("after\nasked for /hook\n");
        pod = cluster.pod("app=hooked")?;
        ensure!(runs(&pod)? == wanted, "{}", runs(&pod)?);
        let object = cluster.get("pod", &pod.name)?;
        for status in object["status"]["containerStatuses"].as_array().into_iter().flatten() {
            ensure!(status["ready"] == true && status["restartCount"] == 0, "{status:#}");
        }
    }
    Ok(())
}
