//! A shim that stands still when containerd restarts, while the containers in its care are frozen for a move:
//! containerd takes it for dead and wants its containers deleted. They stay as they are until it is decided what
//! becomes of them, and the shim, which nobody knows any more when it goes on, does not stay for ever.

use std::time::Duration;

use anyhow::{Result, ensure};
use transship_api::Role;
use transship_tests::{
    cluster::Cluster,
    counter::Client,
    faults::{
        Gate,
        driver::{Scene, begin, explained},
        judge,
        moment::Moment,
        nodes::NODES,
        outcome::Outcome,
        sentry::Sentry,
    },
    node::process::Victim,
    prober::unix_ms,
};

use crate::counter;

const NAME: &str = "counter";
const SOON: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(120);
/// A shim has to look forgotten for a minute.
const FORGOTTEN: Duration = Duration::from_secs(150);
/// The shims in whose bundle the pod's UID stands.
const SHIMS: &str = "for p in $(pgrep -x containerd-shim); do \
    grep -qs UID /proc/$p/cwd/config.json && echo $p; done; true";
/// What an agent removes whenever it begins to look for what nobody needs.
const GOING: &str = "/var/lib/transship/migrations/.gone-of-a-test";

/// The shim of the source, on whose node all of this happens.
struct Shim<'a> {
    cluster: &'a Cluster,
    node: &'static str,
    pid: String,
}

impl<'a> Shim<'a> {
    fn of(scene: &Scene<'a>) -> Result<Shim<'a>> {
        let (cluster, node) = (scene.cluster, scene.node(Role::Source));
        let script = SHIMS.replace("UID", &scene.source.uid);
        let found = cluster.on_node(node, &["sh", "-c", &script])?;
        let pid = found.trim().to_owned();
        ensure!(pid.parse::<u32>().is_ok(), "the pod has not one shim: {found:?}");
        Ok(Shim { cluster, node, pid })
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let kill = format!("kill {signal} {}", self.pid);
        self.cluster.on_node(self.node, &["sh", "-c", &kill]).map(drop)
    }

    /// Whether there is such a file of the process.
    fn has(&self, file: &str) -> Result<bool> {
        let path = format!("/proc/{}/{file}", self.pid);
        Ok(self.cluster.try_on_node(self.node, &["test", "-e", &path])?.status.success())
    }

    /// The agent has seen it with its bundle, by which it knows whose it is.
    fn is_seen(&self) -> Result<()> {
        self.cluster.on_node(self.node, &["mkdir", "-p", GOING])?;
        self.cluster.await_that("the agent has looked around", SOON, || {
            let there = self.cluster.try_on_node(self.node, &["test", "-e", GOING])?;
            Ok(!there.status.success())
        })
    }

    /// containerd restarts and does not reach it, so that its bundle goes.
    fn is_forgotten(&self) -> Result<()> {
        self.cluster.kill(self.node, Victim::Containerd)?;
        self.cluster.await_that("containerd has forgotten the shim", SOON, || {
            Ok(!self.has("cwd/config.json")?)
        })?;
        ensure!(self.has("exe")?, "it is not there any more");
        Ok(())
    }
}

fn goes_as_decided(scene: &Scene, client: Client) -> Result<()> {
    let cluster = scene.cluster;
    let sentry = Sentry::start(cluster, &NODES)?;
    begin(scene, Moment::Voted, None)?;
    let since = unix_ms();
    let shim = Shim::of(scene)?;
    shim.is_seen()?;
    shim.signal("-STOP")?;
    let forgotten = shim.is_forgotten();
    shim.signal("-CONT")?;
    forgotten?;
    judge::nobody_ran_undecided(scene, &sentry, since)?;

    Gate::Decision.open(cluster)?;
    let migration = cluster.succeeded(NAME, PATIENCE)?;
    let downtime = migration["status"]["downtime"].as_str();
    judge::the_client_was_served(scene, client, Outcome::Moved, downtime)?;
    cluster.await_that("the forgotten shim has ended", FORGOTTEN, || Ok(!shim.has("exe")?))?;
    let looks = sentry.stop(false)?;
    judge::one_copy_ran(scene, &looks, Outcome::Moved, false)?;
    scene.history.kept_its_word()?;
    judge::nothing_is_left_beside_the_pod(cluster, &NODES)
}

#[test]
#[ignore = "of shims that die there is a fault in the run of all tests; this one takes a minute to be ended"]
fn a_shim_that_is_forgotten_while_its_pod_is_frozen_thaws_nothing_and_is_ended() -> Result<()> {
    let cluster = Cluster::with_namespace("forgotten")?;
    Gate::open_all(&cluster)?;
    let source = counter(&cluster)?;
    let client = Client::of(&source)?;
    let scene = Scene::new(&cluster, NODES, source, NAME);
    let outcome = goes_as_decided(&scene, client);
    Gate::open_all(&cluster)?;
    explained(&scene, outcome)
}
