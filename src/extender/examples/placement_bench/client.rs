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

use super::{Size, objects, pin};

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
        "filter + prioritize of one pod, {} of each kind, milliseconds p50 / p99 / max: as the client \
         waits, and as the server computes",
        size.requests
    );
    for (kind, annotations) in objects::kinds() {
        let mut times = [const { Vec::new() }; 4];
        let mut left = 0;
        for number in 0..size.requests {
            // Which one goes first changes, so that warmth favours neither.
            for index in if number % 2 == 0 { [0, 1] } else { [1, 0] } {
                let prefix = ["/wire", "/v1/placement"][index];
                let pod = objects::pending(number, kind, annotations.clone());
                let before = server.computed();
                let (time, nodes) = place(&mut sender, prefix, pod, &names).await;
                times[index].push(time);
                times[index + 2].push(server.computed() - before);
                if index == 1 {
                    left = nodes;
                }
            }
        }
        let [wire, all, wire_computed, computed] = times.map(quantiles);
        println!("{kind:<12} waits {all}   computes {computed}   {left} nodes left");
        println!("   wire alone waits {wire}   computes {wire_computed}");
    }
}

/// One pod, and how many nodes were left for it.
async fn place(
    sender: &mut SendRequest<Full<Bytes>>,
    prefix: &str,
    pod: Value,
    names: &[String],
) -> (Duration, usize) {
    let question = serde_json::to_vec(&json!({"Pod": pod, "Nodes": null, "NodeNames": names}));
    let question = Bytes::from(question.unwrap());
    let began = Instant::now();
    let filtered = ask(sender, &format!("{prefix}/filter"), question).await;
    let mut time = began.elapsed();
    // The client's own work is not measured.
    let filtered: Value = serde_json::from_slice(&filtered).unwrap();
    let left = filtered["NodeNames"].as_array().unwrap().len();
    if left > 1 {
        let question = json!({"Pod": pod, "Nodes": null, "NodeNames": filtered["NodeNames"]});
        let question = Bytes::from(serde_json::to_vec(&question).unwrap());
        let began = Instant::now();
        ask(sender, &format!("{prefix}/prioritize"), question).await;
        time += began.elapsed();
    }
    (time, left)
}

async fn ask(sender: &mut SendRequest<Full<Bytes>>, path: &str, question: Bytes) -> Bytes {
    let request = Request::post(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(question))
        .unwrap();
    sender.ready().await.unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    response.into_body().collect().await.unwrap().to_bytes()
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    format!("{:>6.2} / {:>6.2} / {:>6.2}", at(0.5), at(0.99), at(1.0))
}
