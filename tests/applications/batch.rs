//! A batch job: a pipe of programs that write one file, whose content does not depend on when they
//! were moved.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::{Cluster, Pod};

use crate::frame::{Application, Session, World};

/// The longest that a hundred thousand numbers may take, on a machine that others use.
const PATIENCE: Duration = Duration::from_secs(20);

/// Numbers in a row are compressed until they are enough, by two threads. The loop makes new
/// processes for each hundred thousand of them.
const SCRIPT: &str = "until [ -e /tmp/begin ]; do sleep 0.1; done
    n=0
    while [ ! -e /tmp/enough ]; do
        seq $((n + 1)) $((n + 100000)); n=$((n + 100000)); echo $n > /tmp/next; mv /tmp/next /tmp/count
    done | zstd -q -T2 -9 > /tmp/numbers.zst
    touch /tmp/done
    exec sleep infinity";

/// The pipe.
pub fn compression() -> Application {
    Application {
        name: "batch",
        script: SCRIPT,
        port: None,
        files: &[],
        // It takes what it gets, and others are tested beside it.
        container: json!({"resources": {"limits": {"cpu": "500m"}}}),
        pod: Value::Null,
        setting: None,
        sessions: 0,
        prepare: |world, pod| {
            run(world, pod, "touch /tmp/begin")?;
            world.cluster.await_that("the file is written", Duration::from_secs(60), || {
                let is_counted = run(world, pod, "test -s /tmp/count && echo yes || true")?;
                Ok(is_counted == "yes\n"
                    && run(world, pod, "stat -c %s /tmp/numbers.zst")?.trim() != "0")
            })
        },
        open: |world, pod, _| {
            let mut watch =
                Watch { cluster: world.cluster.view(), pod: pod.name.clone(), begun: 0, seen: 0 };
            watch.begun = watch.hundred_thousands()?;
            Ok(Box::new(watch))
        },
        verify: |world, pod, _| {
            let running = run(world, pod, "test -e /tmp/done || echo yes")?;
            ensure!(running == "yes\n", "it ended before it was told to");
            run(world, pod, "touch /tmp/enough")?;
            world.cluster.await_that("the batch job ends", Duration::from_secs(120), || {
                Ok(run(world, pod, "test -e /tmp/done && echo yes || true")? == "yes\n")
            })?;
            let sum = |numbers: &str| run(world, pod, &format!("{numbers} | sha256sum"));
            let (is, wanted) = (sum("zstd -dc /tmp/numbers.zst")?, sum("seq 1 $(cat /tmp/count)")?);
            let size = run(world, pod, "cat /tmp/count; stat -c %s /tmp/numbers.zst")?;
            ensure!(is == wanted, "the file is damaged; numbers and bytes: {size}");
            Ok(())
        },
    }
}

fn run(world: &World, pod: &Pod, script: &str) -> Result<String> {
    world.cluster.kubectl(&["exec", &pod.name, "--", "sh", "-c", script])
}

/// Nobody writes to a batch job: the n-th write is the n-th hundred thousand of numbers from now on.
struct Watch {
    cluster: Cluster,
    pod: String,
    begun: u64,
    /// So many have come since.
    seen: u64,
}

impl Watch {
    /// How many there are.
    fn hundred_thousands(&self) -> Result<u64> {
        let text = self.cluster.kubectl(&["exec", &self.pod, "--", "cat", "/tmp/count"])?;
        let count: u64 = text.trim().parse().with_context(|| format!("{text:?} is no count"))?;
        Ok(count / 100_000)
    }
}

impl Session for Watch {
    fn write(&mut self, n: u64) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.seen < n {
            ensure!(Instant::now() < end, "no further number was written within {PATIENCE:?}");
            let all = self.hundred_thousands()?;
            self.seen = all.checked_sub(self.begun).context("the numbers have begun anew")?;
        }
        Ok(())
    }
}
