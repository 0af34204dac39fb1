//! `cargo xtask bench`: measurements, most of them on the running sandbox, always two things side by
//! side in one run, since machines are noisy. Never part of a test.

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args as ClapArgs, Subcommand};
use transship_tests::cluster::Cluster;

use crate::{
    images,
    sandbox::{self, layout},
};

/// Measures.
#[derive(ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// What the wrapper adds to an ordinary container's life (create, start, delete)
    Wrapper {
        /// Pairs of containers
        #[arg(long, default_value_t = 20)]
        pairs: usize,
    },
    /// How long a pod stands still, by its memory
    Freeze {
        /// Touched memory in MiB
        #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 1024])]
        mebibytes: Vec<u32>,
        /// Moves for each
        #[arg(long, default_value_t = 5)]
        moves: usize,
    },
    /// How long the extender takes to place one pod in a large cluster; needs no sandbox
    Placement {
        /// Nodes
        #[arg(long, default_value_t = 5000)]
        nodes: usize,
        /// Pods that are there
        #[arg(long, default_value_t = 100_000)]
        pods: usize,
        /// Pods that are placed, of each kind
        #[arg(long, default_value_t = 500)]
        requests: usize,
    },
    /// How long the scheduler transship and the cluster's own take to schedule many pods
    Scheduling {
        /// Nodes, without kubelets
        #[arg(long, default_value_t = 100)]
        nodes: usize,
        /// Pods
        #[arg(long, default_value_t = 1000)]
        pods: usize,
        /// Rounds for each scheduler
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
}

/// Runs the task.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.what {
        What::Wrapper { pairs } => wrapper(pairs)?,
        What::Freeze { mebibytes, moves } => freeze(&mebibytes, moves)?,
        What::Placement { nodes, pods, requests } => example(
            "placement_bench",
            &[
                ("run", None),
                ("--nodes", Some(nodes)),
                ("--pods", Some(pods)),
                ("--requests", Some(requests)),
            ],
        )?,
        What::Scheduling { nodes, pods, rounds } => example(
            "scheduling_bench",
            &[("--nodes", Some(nodes)), ("--pods", Some(pods)), ("--rounds", Some(rounds))],
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a program that measures the extender. It is none of this crate's: the tasks that build
/// everything should not have to build a Kubernetes client first.
fn example(name: &str, arguments: &[(&str, Option<usize>)]) -> Result<()> {
    let root = layout::checkout()?;
    let mut build = images::static_cargo(&root);
    build.arg("build").args(images::STATIC_BUILD).args(images::PRODUCT);
    build.args(["-p", "transship-extender", "--example", name]);
    ensure!(build.status()?.success(), "{name} could not be built");
    let mut command = Command::new(images::release_dir(&root).join("examples").join(name));
    command.current_dir(root).env("KUBECONFIG", layout::kubeconfig());
    for (argument, value) in arguments {
        command.arg(argument).args(value.map(|value| value.to_string()));
    }
    ensure!(command.status()?.success(), "{name} failed");
    Ok(())
}

fn wrapper(pairs: usize) -> Result<()> {
    let noop = std::fs::File::open(images::release_dir(&layout::checkout()?).join("noop"))
        .context("build it first: cargo xtask images")?;
    let rootfs = "mkdir -p /var/lib/transship-bench && cat > /var/lib/transship-bench/noop && chmod 755 /var/lib/transship-bench/noop";
    let put: &mut Command = &mut sandbox::exec_command("node-a", &["sh", "-c", rootfs])?;
    ensure!(put.stdin(noop).status()?.success(), "the container's root could not be made");
    let programs = ["/usr/sbin/runc", "/opt/transship/bin/transship-runc"];
    let mut times = [Vec::new(), Vec::new()];
    for pair in 0..pairs {
        // Which one goes first changes, so that warmth favours neither.
        for index in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            let name = format!("bench-{index}-{pair}");
            let mut container = sandbox::exec_command(
                "node-a",
                &[
                    "ctr",
                    "--namespace",
                    "bench",
                    "run",
                    "--rm",
                    "--runc-binary",
                    programs[index],
                    "--rootfs",
                    "/var/lib/transship-bench",
                    &name,
                    "/noop",
                ],
            )?;
            let begun = Instant::now();
            let output = container.output()?;
            times[index].push(begun.elapsed());
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    println!("container life of `noop`, {pairs} pairs, milliseconds min / median / max");
    let medians = programs.iter().zip(&mut times).map(|(program, times)| line(program, times));
    let medians: Vec<f64> = medians.collect();
    println!(
        "added by the wrapper: {:.1} ms ({:+.1} %)",
        medians[1] - medians[0],
        (medians[1] / medians[0] - 1.0) * 100.0
    );
    Ok(())
}

fn freeze(mebibytes: &[u32], moves: usize) -> Result<()> {
    let root = layout::checkout()?;
    let manifest = std::fs::read_to_string(root.join("examples/counter.yaml"))?;
    let cluster =
        Cluster::new(&layout::kubectl(), &layout::kubeconfig(), &std::env::current_exe()?, "bench");
    // Left over from a run that was interrupted, if it is there.
    cluster.kubectl(&["delete", "namespace", "bench", "--ignore-not-found", "--timeout=120s"])?;
    cluster.kubectl(&["create", "namespace", "bench"])?;
    println!("freeze by touched memory, {moves} moves each, milliseconds min / median / max");
    for mebibytes in mebibytes {
        cluster.apply(&manifest.replace("256 << 20", &format!("{mebibytes} << 20")))?;
        cluster.rolled_out("counter")?;
        let mut freezes = Vec::new();
        for _ in 0..moves {
            let mut pod = None;
            cluster.await_that("one pod runs", Duration::from_secs(90), || {
                pod = Some(cluster.pod("app=counter")?);
                Ok(true)
            })?;
            let pod = pod.context("no pod")?;
            let migration = cluster.migrate(&pod.name, pod.other_node())?;
            let object = cluster.succeeded(&migration, Duration::from_secs(120))?;
            let downtime = object["status"]["downtime"].as_str().context("no downtime")?;
            freezes.push(
                transship_api::duration::parse(downtime).map_err(|e| anyhow::anyhow!("{e}"))?,
            );
        }
        line(&format!("{mebibytes} MiB"), &mut freezes);
    }
    cluster.kubectl(&["delete", "namespace", "bench", "--timeout=120s"])?;
    Ok(())
}

/// Prints one line and returns the median in milliseconds.
fn line(what: &str, times: &mut [Duration]) -> f64 {
    times.sort();
    let at = |index: usize| times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0);
    let median = at(times.len() / 2);
    println!(
        "{what:<36} {:>8.1} / {median:>8.1} / {:>8.1}",
        at(0),
        at(times.len().saturating_sub(1))
    );
    median
}
