//! Which copies of the application ran when, on both nodes, from before the migration to its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    process::{ChildStdin, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::{cluster::Cluster, node::copies::Look, prober::unix_ms};

/// How soon everybody has looked for the first time.
const START: Duration = Duration::from_secs(60);
/// Pace at which a node that went off is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// What was seen where.
pub type Looks = Vec<(&'static str, Look)>;

#[derive(Default)]
struct Shared {
    looks: Looks,
    /// The probes end when these close.
    open: BTreeMap<&'static str, ChildStdin>,
    /// A probe has ended by itself: for a while nobody looked.
    interrupted: bool,
    ended: bool,
}

/// Looks until it is stopped.
pub struct Sentry {
    shared: Arc<Mutex<Shared>>,
    threads: Vec<JoinHandle<()>>,
}

impl Sentry {
    /// Starts a probe on each node, and returns when every node has been looked at.
    pub fn start(cluster: &Cluster, nodes: &[&'static str]) -> Result<Sentry> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let begin = |node: &&'static str| {
            let (cluster, node, ours) = (cluster.view(), *node, shared.clone());
            std::thread::spawn(move || stand(&cluster, node, &ours))
        };
        let threads = nodes.iter().map(begin).collect();
        let sentry = Sentry { shared, threads };
        cluster.await_that("every node is looked at", START, || Ok(sentry.stands(nodes)))?;
        Ok(sentry)
    }

    fn stands(&self, nodes: &[&str]) -> bool {
        let shared = lock(&self.shared);
        nodes.iter().all(|node| shared.looks.iter().any(|(seen, _)| seen == node))
    }

    /// Whether a pod's application runs on a node, as seen last.
    pub fn sees(&self, node: &str, pod: &str) -> bool {
        let shared = lock(&self.shared);
        let latest = shared.looks.iter().rev().find(|(seen, _)| *seen == node);
        latest.is_some_and(|(_, look)| look.running.contains(pod))
    }

    /// Whether a pod's application runs on any node at a time, a Unix time in milliseconds, or was seen to
    /// since.
    pub fn ran_since(&self, pod: &str, since: u64) -> bool {
        ran_since(&lock(&self.shared).looks, pod, since)
    }

    /// Ends the probes and gives what was seen, in order of time. An error if nobody looked at a node for a
    /// while, unless one `was_off`: then there was nothing to be seen.
    pub fn stop(mut self, was_off: bool) -> Result<Looks> {
        self.end();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let interrupted = lock(&self.shared).interrupted;
        ensure!(was_off || !interrupted, "for a while nobody looked at a node");
        let mut looks = std::mem::take(&mut lock(&self.shared).looks);
        looks.sort_by_key(|(_, look)| look.at);
        Ok(looks)
    }

    fn end(&self) {
        let mut shared = lock(&self.shared);
        shared.ended = true;
        shared.open.clear();
    }
}

impl Drop for Sentry {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stand(cluster: &Cluster, node: &'static str, shared: &Mutex<Shared>) {
    while !lock(shared).ended {
        let mut command =
            cluster.on_node_command(node, &["transship-probe", "copies", &cluster.namespace]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let Ok(mut probe) = command.spawn() else {
            lock(shared).interrupted = true;
            return;
        };
        if let Some(stdin) = probe.stdin.take() {
            let mut shared = lock(shared);
            // Otherwise it is dropped, and the probe ends.
            if !shared.ended {
                shared.open.insert(node, stdin);
            }
        }
        let lines = probe.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines());
        for line in lines.map_while(Result::ok) {
            if let Ok(look) = serde_json::from_str(&line) {
                lock(shared).looks.push((node, look));
            }
        }
        let _ = probe.wait();
        let mut shared = lock(shared);
        shared.open.remove(node);
        if !shared.ended {
            // The node is off, and nothing runs there.
            shared.interrupted = true;
            shared.looks.push((node, Look { at: unix_ms(), running: BTreeSet::new() }));
        }
        drop(shared);
        std::thread::sleep(AGAIN);
    }
}

/// Says when two copies ran at the same time, if ever. Only pods count that are `counted`.
pub fn doubles(looks: &Looks, counted: impl Fn(&str) -> bool) -> Option<String> {
    let mut running: BTreeMap<&str, &BTreeSet<String>> = BTreeMap::new();
    for (node, look) in looks {
        running.insert(node, &look.running);
        let copies: Vec<String> = running
            .iter()
            .flat_map(|(node, pods)| pods.iter().map(move |pod| format!("{pod} on {node}")))
            .filter(|copy| counted(copy.split(' ').next().unwrap_or_default()))
            .collect();
        if copies.len() > 1 {
            return Some(format!("at {}: {}", look.at, copies.join(" and ")));
        }
    }
    None
}

/// How often the turn to run passed between two copies.
pub fn turns(looks: &Looks, one: &str, other: &str) -> usize {
    let mut running: Vec<&str> = looks
        .iter()
        .flat_map(|(_, look)| {
            [one, other].into_iter().filter(move |copy| look.running.contains(*copy))
        })
        .collect();
    running.dedup();
    running.len().saturating_sub(1)
}

fn ran_since(looks: &Looks, pod: &str, since: u64) -> bool {
    // What was told last on each node still is.
    let mut then: BTreeMap<&str, bool> = BTreeMap::new();
    for (node, look) in looks {
        let runs = look.running.contains(pod);
        if look.at <= since {
            then.insert(node, runs);
        } else if runs {
            return true;
        }
    }
    then.values().any(|runs| *runs)
}

/// Whether a pod's application ever ran.
pub fn ran(looks: &Looks, pod: &str) -> bool {
    looks.iter().any(|(_, look)| look.running.contains(pod))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at: u64, pods: &[&str]) -> Look {
        Look { at, running: pods.iter().map(|pod| (*pod).to_owned()).collect() }
    }

    #[test]
    fn two_copies_at_one_time_are_a_double_and_one_after_the_other_are_not() {
        let moved = vec![
            ("node-a", look(1, &["s"])),
            ("node-b", look(2, &[])),
            ("node-a", look(3, &[])),
            ("node-b", look(4, &["t"])),
        ];
        assert_eq!(doubles(&moved, |_| true), None);
        assert!(ran(&moved, "t") && !ran(&moved, "u"));
        assert!(ran_since(&moved, "s", 2) && !ran_since(&moved, "s", 3));
        assert!(
            ran_since(&moved, "t", 3) && ran_since(&moved, "t", 5) && !ran_since(&moved, "u", 0)
        );
        assert_eq!(turns(&moved, "s", "t"), 1);
        let back = [("node-b", look(5, &[])), ("node-a", look(6, &["s"]))];
        let to_and_fro: Looks = moved.iter().cloned().chain(back).collect();
        assert_eq!(turns(&to_and_fro, "s", "t"), 2);
        assert_eq!(turns(&to_and_fro, "s", "u"), 0);
        let beside = vec![("node-a", look(1, &["s", "s again"]))];
        assert!(doubles(&beside, |pod| pod == "s").is_some());
        let twice = vec![("node-a", look(1, &["s"])), ("node-b", look(4, &["t"]))];
        assert!(doubles(&twice, |_| true).is_some_and(|text| text.contains("s on node-a")));
        assert_eq!(doubles(&twice, |pod| pod != "t"), None);
    }
}
