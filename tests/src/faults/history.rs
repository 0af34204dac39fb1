//! Every state of a Migration that the API server showed, from its creation on.

use std::{
    io::BufReader,
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use transship_api::Step;

use crate::cluster::{Cluster, condition};

/// Fields of the status that are written once.
const ONCE: [&str; 3] = ["decision", "resumedAt", "resolution"];
/// Pace at which a watch that broke is begun again.
const AGAIN: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(2);

#[derive(Default)]
struct Shared {
    states: Vec<Value>,
    watch: Option<Child>,
    ended: bool,
}

/// Collects states until it is dropped.
pub struct History {
    shared: Arc<Mutex<Shared>>,
}

impl History {
    /// Begins before the Migration exists.
    pub fn start(cluster: &Cluster, migration: &str) -> History {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (cluster, name, ours) = (cluster.view(), migration.to_owned(), shared.clone());
        std::thread::spawn(move || collect(&cluster, &name, &ours));
        History { shared }
    }

    /// The step that was seen last.
    pub fn step(&self) -> Step {
        lock(&self.shared).states.last().map(step).unwrap_or_default()
    }

    /// The state that was seen last; null before the first.
    pub fn latest(&self) -> Value {
        lock(&self.shared).states.last().cloned().unwrap_or_default()
    }

    /// Waits until the step is reached or passed.
    pub fn reaches(&self, step: Step, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        while self.step() < step {
            if Instant::now() >= end {
                bail!("step {step} did not come within {patience:?}: {}", self.latest());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until the end is seen, and no longer than that. This takes nothing from the machine; it proves nothing
    /// either, since a watch may have broken.
    pub fn await_end(&self, patience: Duration) {
        let end = Instant::now() + patience;
        while !self.step().is_final() && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
    }

    /// What is written once has never changed, and what has ended stays so.
    pub fn kept_its_word(&self) -> Result<()> {
        kept_their_word(&lock(&self.shared).states)
    }
}

fn kept_their_word(states: &[Value]) -> Result<()> {
    for pair in states.windows(2) {
        let [before, after] = pair else { continue };
        if before["metadata"]["uid"] != after["metadata"]["uid"] {
            // Another Migration of the same name.
            continue;
        }
        for field in ONCE {
            let (before, after) = (&before["status"][field], &after["status"][field]);
            ensure!(before.is_null() || before == after, "{field} went from {before} to {after}");
        }
        let [said, says] = [before, after].map(|state| condition(state, "Succeeded").0);
        let was_open = !matches!(said.as_str(), "True" | "False");
        ensure!(was_open || said == says, "Succeeded went from {said} to {says}");
        let [stood, stands] = [step(before), step(after)];
        ensure!(!stood.is_final() || stood == stands, "it ended at {stood} and went to {stands}");
    }
    Ok(())
}

fn step(state: &Value) -> Step {
    serde_json::from_value(state["status"]["step"].clone()).unwrap_or_default()
}

impl Drop for History {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        shared.ended = true;
        if let Some(watch) = &mut shared.watch {
            let _ = watch.kill();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches until told to end; a watch breaks with the API server.
fn collect(cluster: &Cluster, name: &str, shared: &Mutex<Shared>) {
    loop {
        let started = cluster.spawn_kubectl(&["get", "migrations", "--watch", "-o", "json"]);
        let Ok(mut watch) = started else { return };
        let stdout = watch.stdout.take();
        {
            let mut shared = lock(shared);
            shared.watch = Some(watch);
            if shared.ended {
                break;
            }
        }
        let objects = stdout.into_iter().flat_map(|stdout| {
            serde_json::Deserializer::from_reader(BufReader::new(stdout)).into_iter::<Value>()
        });
        for object in objects.map_while(Result::ok) {
            if object["metadata"]["name"] == name {
                lock(shared).states.push(object);
            }
        }
        reap(shared);
        if lock(shared).ended {
            return;
        }
        std::thread::sleep(AGAIN);
    }
    reap(shared);
}

fn reap(shared: &Mutex<Shared>) {
    let watch = lock(shared).watch.take();
    if let Some(mut watch) = watch {
        let _ = watch.kill();
        let _ = watch.wait();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_word_may_be_given_but_not_changed_or_taken_back() {
        let none = json!({"status": {}});
        let commit = json!({"status": {"decision": "Commit"}});
        let abort = json!({"status": {"decision": "Abort"}});
        kept_their_word(&[none.clone(), commit.clone(), commit.clone()]).unwrap();
        kept_their_word(&[commit.clone(), abort]).unwrap_err();
        kept_their_word(&[commit, none]).unwrap_err();
        let ended = |uid: &str, step: &str, succeeded: &str| {
            json!({"metadata": {"uid": uid}, "status": {"step": step, "conditions":
                [{"type": "Succeeded", "status": succeeded}]}})
        };
        let (goes, well) = (ended("u", "Voting", "Unknown"), ended("u", "Succeeded", "True"));
        kept_their_word(&[goes.clone(), well.clone(), well.clone()]).unwrap();
        kept_their_word(&[well.clone(), ended("u", "Succeeded", "False")]).unwrap_err();
        kept_their_word(&[well.clone(), ended("u", "Failed", "True")]).unwrap_err();
        kept_their_word(&[well, ended("v", "Pending", "Unknown")]).unwrap();
    }
}
