//! State beside plain memory: several containers at one point, shared files, System V memory,
//! files of the root file system, hooks.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use transship_tests::{
    cluster::{Cluster, Pod, condition},
    faults::{
        Gate,
        driver::{Scene, explained},
        nodes::NODES,
    },
    line::Line,
};

use crate::{
    jobs::cancelled,
    preflight::{deployment, sleeper},
    sidecars::hooks_ended,
};

/// Two containers that share an emptyDir and a System V segment. `writer` counts requests on 8080
/// in the segment, in the emptyDir and in a file of its root file system; `reader` tells on 8081
/// what it sees of the first two.
const TWO: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: two}
data:
  common.py: |
    import ctypes, os, socket
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    segment = libc.shmget(0x5354, 4096, 0o1600)
    assert segment >= 0, os.strerror(ctypes.get_errno())
    shared = ctypes.c_uint64.from_address(libc.shmat(segment, None, 0))
    def serve(port, answer):
        server = socket.create_server(("", port))
        while True:
            connection, _ = server.accept()
            while connection.recv(64):
                connection.sendall(answer().encode() + b"\n")
  writer.py: |
    from common import *
    os.symlink("count", "/var/link")
    os.makedirs("/srv/dir"); open("/srv/dir/one", "w").write("1"); os.link("/srv/dir/one", "/srv/dir/two")
    os.setxattr("/srv/dir/one", "user.note", b"kept")
    os.remove("/etc/passwd")
    sparse = open("/srv/sparse", "wb"); sparse.truncate(64 << 20); sparse.seek(32 << 20); sparse.write(b"x"); sparse.flush()
    log = open("/var/count", "w"); data = open("/data/count", "w")
    posix = open("/dev/shm/count", "w")
    def answer():
        shared.value += 1
        for file in (log, data, posix):
            file.seek(0); file.write(str(shared.value)); file.flush()
        return str(shared.value)
    serve(8080, answer)
  reader.py: |
    from common import *
    data = open("/data/count")
    def answer():
        data.seek(0)
        return f"{shared.value} {data.read()}"
    serve(8081, answer)
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: two}
spec:
  selector: {matchLabels: {app: two}}
  template:
    metadata: {labels: {app: two}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: writer
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [python3, -u, /code/writer.py]
          env: [{name: PYTHONDONTWRITEBYTECODE, value: "1"}]
          volumeMounts: [{name: data, mountPath: /data}, {name: code, mountPath: /code}]
          readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 2}
        - name: reader
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [sh, -c, "while [ ! -e /data/count ]; do sleep 0.1; done; exec python3 -u /code/reader.py"]
          env: [{name: PYTHONDONTWRITEBYTECODE, value: "1"}]
          volumeMounts: [{name: data, mountPath: /data}, {name: code, mountPath: /code}]
          readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 2}
      volumes: [{name: data, emptyDir: {}}, {name: code, configMap: {name: two}}]
"#;

/// Counts calls of its preStop hook, and answers them with their number; the other hook notes each of its runs.
const HOOK: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: hook}
spec:
  selector: {matchLabels: {app: hook}}
  template:
    metadata: {labels: {app: hook}, annotations: {transship.dev/post-start: run}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
        - name: hook
          image: localhost/transship-examples:1
          imagePullPolicy: IfNotPresent
          command: [python3, -u, -c]
          args:
            - |
              from http.server import BaseHTTPRequestHandler, HTTPServer
              calls = 0
              class Handler(BaseHTTPRequestHandler):
                  protocol_version = "HTTP/1.1"
                  def do_GET(self):
                      global calls
                      if self.path == "/stop":
                          calls += 1
                      body = f"{calls}\n".encode()
                      self.send_response(200)
                      self.send_header("Content-Length", str(len(body)))
                      self.end_headers()
                      self.wfile.write(body)
              HTTPServer(("", 8080), Handler).serve_forever()
          lifecycle:
            preStop: {httpGet: {path: /stop, port: 8080}}
            postStart: {exec: {command: [sh, -c, echo run >> /tmp/runs]}}
          readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 2}
"#;

/// Keeps files of so many MiB open that have no name. Each request is appended to them, and answered with its
/// number and, for each file, its length and what has become of it.
const UNLINKED: &str = r#"
import hashlib, os, socket
class Unlinked:
    def __init__(self, mib):
        self.file = os.open(f"/tmp/{mib}", os.O_CREAT | os.O_RDWR)
        os.unlink(f"/tmp/{mib}")
        self.digest = hashlib.sha256()
        for _ in range(mib):
            self.append(os.urandom(1 << 20))
    def append(self, piece):
        assert os.write(self.file, piece) == len(piece)
        self.digest.update(piece)
    def tell(self):
        found, at = hashlib.sha256(), 0
        while piece := os.pread(self.file, 1 << 20, at):
            found.update(piece)
            at += len(piece)
        whole = found.digest() == self.digest.digest() and os.fstat(self.file).st_nlink == 0
        return f"{at} {'whole' if whole else 'damaged'}"
files = [Unlinked(2), Unlinked(200)]
server = socket.create_server(("", 8080))
count = 0
while True:
    connection, _ = server.accept()
    while request := connection.recv(1):
        count += 1
        for file in files:
            file.append(request)
        told = " ".join(file.tell() for file in files)
        connection.sendall(f"{count} {told}\n".encode())
"#;

#[test]
fn two_containers_move_at_one_point_with_their_shared_files_and_system_v_memory() -> Result<()> {
    let cluster = Cluster::with_namespace("two")?;
    cluster.apply(TWO)?;
    cluster.rolled_out("two")?;
    let before = cluster.pod("app=two")?;
    let (mut writer, mut reader) = (Line::connect(&before, 8080)?, Line::connect(&before, 8081)?);
    for n in 1..=100 {
        ensure!(writer.ask()? == n.to_string());
    }
    ensure!(reader.ask()? == "100 100");

    let after = cluster.moved("app=two", &before)?;

    ensure!(reader.ask()? == "100 100", "the reader lost sight of the shared state");
    for n in 101..=110 {
        ensure!(writer.ask()? == n.to_string());
        // Still the same memory and the same file, not copies.
        ensure!(reader.ask()? == format!("{n} {n}"));
    }
    let run = |container: &str, script: &str| {
        cluster.kubectl(&["exec", &after.name, "-c", container, "--", "sh", "-c", script])
    };
    ensure!(run("writer", "cat /var/count /dev/shm/count /data/count")? == "110110110");
    ensure!(run("reader", "cat /dev/shm/count /data/count")? == "110110");
    ensure!(
        run(
            "writer",
            "readlink /var/link; stat -c %h /srv/dir/two; test -e /etc/passwd || echo gone"
        )? == "count\n2\ngone\n"
    );
    let sparse = run("writer", "stat -c '%s %b' /srv/sparse")?;
    let mut words = sparse.split_whitespace();
    ensure!(words.next() == Some("67108864"), "{sparse}");
    let blocks: u64 = words.next().context("no blocks")?.parse()?;
    ensure!(blocks < 1024, "a sparse file was filled: {blocks} blocks");
    let note = run(
        "writer",
        "python3 -c 'import os; print(os.getxattr(\"/srv/dir/one\", \"user.note\").decode())'",
    )?;
    ensure!(note == "kept\n", "{note}");

    // A fresh token, not the one of the pod that is gone.
    let token = run("writer", "cat /var/run/secrets/kubernetes.io/serviceaccount/token")?;
    let claims = token.split('.').nth(1).context("not a token")?.to_owned();
    let decoded = run(
        "writer",
        &format!(
            "python3 -c 'import base64; print(base64.urlsafe_b64decode(\"{claims}\" + \"==\").decode())'"
        ),
    )?;
    ensure!(decoded.contains(&after.uid) && !decoded.contains(&before.uid), "{decoded}");

    cluster.moved("app=two", &after)?;
    ensure!(writer.ask()? == "111" && reader.ask()? == "111 111");
    Ok(())
}

#[test]
fn large_files_without_a_name_move_with_their_content() -> Result<()> {
    let cluster = Cluster::with_namespace("unlinked")?;
    let container = sleeper(&json!({"command": ["python3", "-u", "-c", UNLINKED]}));
    let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [container]});
    cluster.apply(&deployment("unlinked", &spec))?;
    cluster.rolled_out("unlinked")?;
    let mut pod = cluster.pod("app=unlinked")?;
    let mut line = Line::connect(&pod, 8080)?;
    let mut count = 0;
    let mut is_whole = || -> Result<()> {
        count += 1;
        let answer = line.ask()?;
        let (small, large) = ((2 << 20) + count, (200 << 20) + count);
        ensure!(answer == format!("{count} {small} whole {large} whole"), "{answer}");
        Ok(())
    };
    is_whole()?;
    for _ in 0..2 {
        pod = cluster.moved("app=unlinked", &pod)?;
        is_whole()?;
    }
    Ok(())
}

#[test]
fn an_http_pre_stop_hook_does_not_reach_the_moved_application_and_a_cancelled_move_runs_no_hook()
-> Result<()> {
    let cluster = Cluster::with_namespace("hook")?;
    Gate::open_all(&cluster)?;
    cluster.apply(HOOK)?;
    cluster.rolled_out("hook")?;
    let before = cluster.pod("app=hook")?;
    let calls = |pod: &Pod| -> Result<String> {
        let mut stream = TcpStream::connect((pod.ip.as_str(), 8080))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /calls HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let lines: Vec<String> = BufReader::new(stream).lines().collect::<Result<_, _>>()?;
        lines.last().cloned().context("no reply")
    };
    ensure!(calls(&before)? == "0");
    let after = cluster.moved("app=hook", &before)?;
    ensure!(calls(&after)? == "0", "the hook of the pod that moved away reached the application");
    let runs = |pod: &Pod| cluster.kubectl(&["exec", &pod.name, "--", "cat", "/tmp/runs"]);
    let told = hooks_ended(&cluster, &format!("{}-to-{}", before.name, after.node))?;
    ensure!(told.0 == "True" && runs(&after)? == "run\nrun\n", "{told:?}: {}", runs(&after)?);

    // Nor does the hook of a target that is given up, as late as it can be, reach the source; and its other hook is
    // not run.
    let scene = Scene::new(&cluster, NODES, after, "hook");
    let outcome = cancelled(&scene);
    Gate::open_all(&cluster)?;
    explained(&scene, outcome)?;
    let live = cluster.pod("app=hook")?;
    ensure!(live == scene.source, "{:?} became {live:?}", scene.source);
    ensure!(calls(&live)? == "0", "the hook of a cancelled target reached the application");
    ensure!(runs(&live)? == "run\nrun\n", "a cancelled move ran a hook: {}", runs(&live)?);
    // It may have stood still for longer than its probe has patience.
    cluster.await_that("the source is Ready", Duration::from_secs(30), || {
        Ok(condition(&cluster.get("pod", &live.name)?, "Ready").0 == "True")
    })
}

#[test]
fn a_node_that_has_left_the_cluster_leaves_neither_its_node_nor_its_lease() -> Result<()> {
    let cluster = Cluster::with_namespace("left")?;
    let mut system = cluster.view();
    system.namespace = "transship-system".into();
    // Never in the cluster: to the operator it is the same.
    system.apply(
        "apiVersion: transship.dev/v1alpha1\nkind: Node\nmetadata: {name: node-left}\nspec: {}\n---\n\
         apiVersion: coordination.k8s.io/v1\nkind: Lease\n\
         metadata: {name: transship-node-node-left}\nspec: {holderIdentity: node-left}\n",
    )?;
    cluster.await_that("node and Lease are gone", Duration::from_secs(120), || {
        let nodes = cluster.kubectl(&["get", "nodes.transship.dev", "-o", "name"])?;
        let leases = system.kubectl(&["get", "leases", "-o", "name"])?;
        Ok(!nodes.contains("node-left") && !leases.contains("node-left"))
    })
}
