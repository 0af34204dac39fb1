//! What is done to a migration, and how it is taken back.

use std::time::Duration;

use anyhow::Result;
use transship_api::Role;

use super::{
    chart::Chart,
    disk,
    driver::Scene,
    link::{self, Link, Stream},
    nodes,
    user::Act,
};
use crate::{cluster::Cluster, node::process::Victim};

/// The machine of the API server.
const CONTROL_PLANE: &str = "control-plane";
/// An operator's own container in its pod.
const OPERATOR: &str = "operator";
/// What a full disk has left, in KiB: less than anything needs.
const NOTHING: u32 = 16;
/// On the API server's machine, for as long as it is to stay stopped.
const STOPPED: &str = "/run/api-server-stopped";
/// How long the API server may take to serve again.
const SERVES: Duration = Duration::from_secs(90);

/// How long something is out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Length {
    /// Shorter than anybody's patience.
    Briefly,
    /// Longer than a target may run unconfirmed, and than it takes to prove that it has stopped, where
    /// anybody can.
    Long,
    /// Until the migration is over. A node without power is taken out of the cluster, too.
    ForGood,
}

/// The shorter one.
const BRIEFLY: Duration = Duration::from_secs(6);
/// Longer than it takes to prove that a target has stopped, and than anybody is waited for: 30 seconds, and
/// the operator looks again every five.
const LONG: Duration = Duration::from_secs(40);
/// Where no operator can prove anything meanwhile: longer than a target may run unconfirmed, 20 seconds.
const LONG_UNPROVEN: Duration = Duration::from_secs(26);

impl Length {
    fn name(self) -> &'static str {
        match self {
            Self::Briefly => "briefly",
            Self::Long => "for_long",
            Self::ForGood => "for_good",
        }
    }
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// kill -9 of a process in a side's node.
    Kill(Role, Victim),
    /// kubelet kills the application's container, as for a probe that fails: the verb goes through
    /// containerd and its shim to the runtime wrapper.
    KillContainer(Role),
    /// kill -9 of the operator that leads.
    KillLeader,
    /// kill -9 of all operators.
    KillOperators,
    /// Nothing goes over a link.
    Cut(Link, Length),
    /// Little goes over a link at a time, until the migration is over.
    Slow(Link),
    /// The stream between the nodes suffers, until the migration is over.
    Stream(Stream),
    /// The API server stands still: its connections stay open and nobody answers.
    PauseApi(Length),
    /// kill -9 of the API server, which is kept from being started again for long: its connections end and
    /// nobody listens.
    StopApi,
    /// A side's disk becomes full, until the migration is over.
    FillDisk(Role),
    /// Pods on a side's node get no more memory than they have, until the migration is over.
    TakeMemory(Role),
    /// A side's node loses its power for so long.
    PowerOff(Role, Length),
    /// Somebody does something.
    User(Act),
    /// The source's node does not reach the API server, and the target pod is deleted: the source cannot read
    /// what is decided then.
    AbortUnread,
    /// Operators and agents are replaced by those of another revision, and every program that these have put on the
    /// nodes.
    Chart(Chart),
}

fn side(role: Role) -> &'static str {
    match role {
        Role::Source => "source",
        Role::Target => "target",
    }
}

impl Fault {
    /// How it stands in a test's name.
    pub fn name(self) -> String {
        match self {
            Self::Kill(role, victim) => format!("kill_{}_{}", side(role), victim.as_str()),
            Self::KillContainer(role) => format!("kill_container_of_{}", side(role)),
            Self::KillLeader => "kill_leader".into(),
            Self::KillOperators => "kill_operators".into(),
            Self::Cut(link, length) => format!("cut_{}_{}", link.name(), length.name()),
            Self::Slow(link) => format!("slow_{}", link.name()),
            Self::Stream(stream) => stream.name().into(),
            Self::PauseApi(length) => format!("pause_api_{}", length.name()),
            Self::StopApi => "stop_api".into(),
            Self::FillDisk(role) => format!("fill_disk_of_{}", side(role)),
            Self::TakeMemory(role) => format!("take_memory_of_{}", side(role)),
            Self::PowerOff(role, length) => format!("power_off_{}_{}", side(role), length.name()),
            Self::User(act) => act.name().into(),
            Self::AbortUnread => "abort_unread".into(),
            Self::Chart(chart) => chart.name().into(),
        }
    }

    /// How long it goes on before it is undone.
    pub fn lasts(self) -> Duration {
        let length = match self {
            Self::Cut(_, length) | Self::PauseApi(length) | Self::PowerOff(_, length) => length,
            Self::StopApi => Length::Long,
            _ => return Duration::ZERO,
        };
        match length {
            Length::Briefly => BRIEFLY,
            Length::Long if self.concerns_all() => LONG_UNPROVEN,
            Length::Long => LONG,
            Length::ForGood => Duration::ZERO,
        }
    }

    /// It happens to the whole cluster, and not to one pair of nodes or one namespace: nothing else may be
    /// tested at that time.
    pub fn concerns_all(self) -> bool {
        matches!(
            self,
            Self::KillLeader
                | Self::KillOperators
                | Self::Cut(Link::Operators, _)
                | Self::Slow(Link::Operators)
                | Self::PauseApi(_)
                | Self::StopApi
                | Self::Chart(_)
        )
    }

    /// Agents end, or cannot ask what is still needed: what a cell has left on the nodes stays there meanwhile.
    pub fn stops_agents(self) -> bool {
        matches!(self, Self::PauseApi(_) | Self::StopApi | Self::Chart(_))
    }

    /// The Migration vanishes, whatever is left of it.
    pub fn strips_finalizer(self) -> bool {
        matches!(self, Self::User(Act::StripFinalizer))
    }

    /// It is undone only when the migration is over: its end is not what anybody waits for.
    pub fn goes_on(self) -> bool {
        matches!(
            self,
            Self::Slow(_)
                | Self::Stream(_)
                | Self::FillDisk(_)
                | Self::TakeMemory(_)
                | Self::PowerOff(_, Length::ForGood)
                | Self::User(Act::Drain(_))
                | Self::Chart(_)
        )
    }

    /// What has to be there before the migration begins.
    pub fn prepare(self, scene: &Scene) -> Result<()> {
        if let Self::Chart(chart) = self {
            return chart.prepare(scene.cluster);
        }
        let Self::FillDisk(role) = self else { return Ok(()) };
        disk::make_small(scene.cluster, scene.node(role))
    }

    /// Injects it.
    pub fn begin(self, scene: &Scene) -> Result<()> {
        let cluster = scene.cluster;
        match self {
            Self::Kill(role, victim) => cluster.kill(scene.node(role), victim),
            // Whether it is refused depends on the moment: what then runs is judged.
            Self::KillContainer(role) => {
                let pod = match role {
                    Role::Source => scene.source.uid.clone(),
                    Role::Target => scene.target_uid(),
                };
                kill_containers(cluster, scene.node(role), &pod, None)
            }
            Self::KillLeader => {
                // The others may be on the same node.
                let leader = nodes::leader(cluster)?;
                kill_containers(cluster, &leader.node, &leader.uid, Some(OPERATOR))
            }
            Self::KillOperators => {
                let nodes = nodes::with_operators(cluster)?;
                nodes.iter().try_for_each(|node| cluster.kill(node, Victim::Operator))
            }
            Self::Cut(link, _) => link.cut(scene),
            Self::Slow(link) => link.slow_down(scene),
            Self::Stream(stream) => stream.disturb(scene),
            Self::PauseApi(_) => pause_api(scene, "-STOP"),
            Self::StopApi => stop_api(cluster),
            Self::FillDisk(role) => disk::fill(cluster, scene.node(role), NOTHING),
            Self::TakeMemory(role) => {
                // Little more: what is not touched is given up first.
                let limit = "echo $(($(cat memory.usage_in_bytes) + (32 << 20)))";
                limit_memory(scene, role, limit)
            }
            Self::PowerOff(role, length) => {
                let node = scene.node(role);
                cluster.sandbox(&["kill", node])?;
                match length {
                    Length::ForGood => {
                        cluster.kubectl(&["delete", "node", node, "--timeout=60s"]).map(drop)
                    }
                    Length::Briefly | Length::Long => Ok(()),
                }
            }
            Self::User(act) => act.act(scene),
            Self::AbortUnread => {
                Link::Api(Role::Source).cut(scene)?;
                Act::DeleteTarget.act(scene)
            }
            Self::Chart(chart) => chart.apply(cluster),
        }
    }

    /// Takes it back; does nothing where there is nothing to take back.
    pub fn end(self, scene: &Scene) -> Result<()> {
        let cluster = scene.cluster;
        match self {
            Self::Kill(..) | Self::KillContainer(_) | Self::KillLeader | Self::KillOperators => {
                Ok(())
            }
            Self::Cut(Link::Operators, _) | Self::Slow(Link::Operators) => {
                nodes::names(cluster)?.iter().try_for_each(|node| link::mend(cluster, node))
            }
            Self::Cut(..) | Self::Slow(_) | Self::Stream(_) | Self::AbortUnread => {
                scene.nodes.iter().try_for_each(|node| link::mend(cluster, node))
            }
            Self::PauseApi(_) => pause_api(scene, "-CONT"),
            Self::StopApi => start_api(cluster),
            Self::FillDisk(role) => disk::empty(cluster, scene.node(role)),
            Self::TakeMemory(role) => limit_memory(scene, role, "echo -1"),
            Self::Chart(_) => Chart::settled(cluster),
            Self::PowerOff(role, length) => {
                cluster.sandbox(&["start", scene.node(role)])?;
                match length {
                    // kubelet makes a new node of it, to which another agent comes.
                    Length::ForGood => nodes::healthy(cluster, &scene.nodes),
                    Length::Briefly | Length::Long => Ok(()),
                }
            }
            Self::User(act) => act.undo(scene),
        }
    }

    /// Removes what [`Fault::prepare`] has made.
    pub fn clear(self, scene: &Scene) -> Result<()> {
        let Self::FillDisk(role) = self else { return Ok(()) };
        disk::make_large(scene.cluster, scene.node(role))?;
        // The checks of the next migration go by what its agent has seen.
        nodes::has_looked(scene.cluster, scene.node(role))
    }
}

/// kill -9, through the runtime, of a pod's containers or of the one of this name.
fn kill_containers(cluster: &Cluster, node: &str, pod: &str, name: Option<&str>) -> Result<()> {
    let named = name.map(|name| format!(",labels.\"io.kubernetes.container.name\"=={name}"));
    let named = named.unwrap_or_default();
    let script = format!(
        "c=$(ctr -n k8s.io containers ls -q 'labels.\"io.kubernetes.pod.uid\"=={pod},labels.\"io.cri-containerd.kind\"==container{named}'); \
         test -n \"$c\" || {{ echo 'the pod has no container' >&2; exit 1; }}; \
         for c in $c; do ctr -n k8s.io tasks kill --signal SIGKILL $c; done; true"
    );
    cluster.on_node(node, &["sh", "-c", &script]).map(drop)
}

/// Limits all pods of a node together.
fn limit_memory(scene: &Scene, role: Role, limit: &str) -> Result<()> {
    let script = format!("cd /sys/fs/cgroup/memory/kubepods && {limit} > memory.limit_in_bytes");
    scene.cluster.on_node(scene.node(role), &["sh", "-c", &script]).map(drop)
}

fn pause_api(scene: &Scene, signal: &str) -> Result<()> {
    let command = ["pkill", signal, "-x", "kube-apiserver"];
    scene.cluster.on_node(CONTROL_PLANE, &command).map(drop)
}

/// Kills it whenever it is there: its machine starts it again at once. Ends by itself, should nobody start it.
fn stop_api(cluster: &Cluster) -> Result<()> {
    let stay = format!(
        "for i in $(seq 600); do [ -e {STOPPED} ] || exit; pkill -KILL -x kube-apiserver; sleep 0.1; done; \
         rm -f {STOPPED}"
    );
    let script =
        format!("touch {STOPPED} && {{ setsid sh -c '{stay}' </dev/null >/dev/null 2>&1 & }}");
    cluster.on_node(CONTROL_PLANE, &["sh", "-c", &script]).map(drop)
}

/// Returns when it serves: everybody else may find out later, at a pace of his own.
fn start_api(cluster: &Cluster) -> Result<()> {
    cluster.on_node(CONTROL_PLANE, &["rm", "-f", STOPPED])?;
    cluster.await_that("the API server serves again", SERVES, || {
        let asked = ["get", "--raw=/readyz", "--request-timeout=2s"];
        Ok(cluster.try_kubectl(&asked)?.status.success())
    })
}
