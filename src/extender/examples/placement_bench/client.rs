//! The client: asks as kube-scheduler does, one pod after another on one connection.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::{LEFT, Size, objects, pin};

/// What 99 of 100 pods must not wait longer for.
const GOAL: Duration = Duration::from_millis(10);

/// Ends the server with the client.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// Time on the processor so far: a busy machine does not lengthen it.
    fn computed(&self) -> Duration {
        let path = format!("/proc/{}/schedstat", self.0.id());
        let nanos = std::fs::read_to_string(path).unwrap();
        Duration::from_nanos(nanos.split(' ').next().unwrap().parse().unwrap())
    }

    /// Resident memory in MiB.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }
}

pub fn run(size: Size) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("serve")
        .args(["--nodes", &size.nodes.to_string(), "--pods", &size.pods.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let server = Server(child);
    let (address, seconds) = line.trim().split_once(' ').unwrap();
    pin(1);
    println!(
        "{} nodes, {} pods: taken in within {seconds} s, {:.0} MiB; server on one core",
        size.nodes,
        size.pods,
        server.memory()
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(measure(address, size, &server));
    println!("memory at the end: {:.0} MiB", server.memory());
}

async fn measure(address: &str, size: Size, server: &Server) {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let names: Vec<String> = (0..size.nodes).map(objects::node_name).collect();
    println!(
        "filter + prioritize of one pod through HTTP, {} of each kind, in milliseconds p50 / p99 / max.\n\
         waiting: from the question's first byte to the answer's last at the client, one question at a \
         time\n\
         server CPU: what the server's one thread computed meanwhile; a busy machine does not lengthen \
         it\n\
         wire alone: the same exchange without a decision, with as many nodes in the answers\n",
        size.requests
    );
    println!(
        "{:<20} {:<26} {:<26} {:<26} {:<26} nodes left",
        "kind of pod", "waiting", "server CPU", "waiting, wire alone", "server CPU, wire alone"
    );
    let mut missed = Vec::new();
    for (kind, annotations) in objects::kinds() {
        let mut times = [const { Vec::new() }; 4];
        let mut left = 0;
        for number in 0..size.requests {
            // Which one goes first changes, so that warmth favours neither.
            for index in if number % 2 == 0 { [0, 1] } else { [1, 0] } {
                let prefix = ["/v1/placement", "/wire"][index];
                let pod = objects::pending(number, kind, annotations.clone());
                let before = server.computed();
                let (time, nodes) = place(&mut sender, prefix, pod, &names, left).await;
                times[index * 2].push(time);
                times[index * 2 + 1].push(server.computed() - before);
                if index == 0 {
                    left = nodes;
                }
            }
        }
        let times = times.map(|mut times| {
            times.sort();
            times
        });
        let [waiting, computed, wire_waiting, wire_computed] = times.each_ref().map(|t| shown(t));
        println!(
            "{kind:<20} {waiting:<26} {computed:<26} {wire_waiting:<26} {wire_computed:<26} {left}"
        );
        let [waiting, computed, ..] = times;
        if quantile(&waiting, 0.99) >= GOAL {
            missed.push((kind, quantile(&computed, 0.99) < GOAL));
        }
    }
    println!("\ngoal: p99 of the waiting time under {} ms", GOAL.as_millis());
    for (kind, computes) in &missed {
        let cpu = if *computes { "under it: the machine was busy" } else { "over it too" };
        println!("missed by {kind}; the server's CPU time is {cpu}");
    }
    if missed.is_empty() {
        println!("reached by all kinds");
    }
}

/// One pod, and how many nodes were left for it. `left`: for the one before.
async fn place(
    sender: &mut SendRequest<Full<Bytes>>,
    prefix: &str,
    pod: Value,
    names: &[String],
    left: usize,
) -> (Duration, usize) {
    let question = serde_json::to_vec(&json!({"Pod": pod, "Nodes": null, "NodeNames": names}));
    let question = Bytes::from(question.unwrap());
    let began = Instant::now();
    let filtered = ask(sender, &format!("{prefix}/filter"), question, left).await;
    let mut time = began.elapsed();
    // The client's own work is not measured.
    let filtered: Value = serde_json::from_slice(&filtered).unwrap();
    let nodes = filtered["NodeNames"].as_array().unwrap().len();
    if nodes > 1 {
        let question = json!({"Pod": pod, "Nodes": null, "NodeNames": filtered["NodeNames"]});
        let question = Bytes::from(serde_json::to_vec(&question).unwrap());
        let began = Instant::now();
        ask(sender, &format!("{prefix}/prioritize"), question, left).await;
        time += began.elapsed();
    }
    (time, nodes)
}

async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    path: &str,
    question: Bytes,
    left: usize,
) -> Bytes {
    let request = Request::post(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .header(LEFT, left)
        .body(Full::new(question))
        .unwrap();
    sender.ready().await.unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    response.into_body().collect().await.unwrap().to_bytes()
}

fn quantile(sorted: &[Duration], part: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

fn shown(sorted: &[Duration]) -> String {
    let at = |part| quantile(sorted, part).as_secs_f64() * 1000.0;
    format!("{:.2} / {:.2} / {:.2}", at(0.5), at(0.99), at(1.0))
}
