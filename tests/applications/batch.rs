//! A batch job: a pipe of programs that write one file, whose content does not depend on when they
//! were moved.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use transship_tests::cluster::Pod;

use crate::frame::{Application, World};

/// Numbers in a row are compressed until they are enough, by two threads. The loop makes a new
/// process for each hundred thousand of them.
const SCRIPT: &str = "until [ -e /tmp/begin ]; do sleep 0.1; done
    n=0
    while [ ! -e /tmp/enough ]; do
        seq $((n + 1)) $((n + 100000)); n=$((n + 100000)); echo $n > /tmp/count
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
                Ok(run(world, pod, "stat -c %s /tmp/numbers.zst")?.trim() != "0")
            })
        },
        open: |_, _, _| anyhow::bail!("nobody is connected to a batch job"),
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
