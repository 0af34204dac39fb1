//! What people do in the middle of a migration, knowing nothing of it or too much.

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;
use transship_api::{Role, names};

use super::driver::Scene;
use crate::cluster::{Cluster, migration};

/// The second Migration that is asked for.
pub const AGAIN: &str = "again";
/// Keeps people from removing our finalizer.
const GUARD: &str = "transship-kinds";
const GUARD_KIND: &str = "validatingadmissionpolicybinding";

/// What somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// Deletes the Migration.
    DeleteMigration,
    /// Deletes the source pod.
    DeleteSource,
    /// Deletes the target pod.
    DeleteTarget,
    /// Deletes the Deployment.
    DeleteDeployment,
    /// Scales the Deployment to nothing.
    ScaleDown,
    /// Restarts the Deployment.
    Roll,
    /// Drains a side's node.
    Drain(Role),
    /// Asks for a second Migration of the pod.
    MigrateAgain,
    /// Takes the Migration's finalizer off and deletes it.
    StripFinalizer,
}

impl Act {
    /// How it stands in a test's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::DeleteMigration => "delete_migration",
            Self::DeleteSource => "delete_source",
            Self::DeleteTarget => "delete_target",
            Self::DeleteDeployment => "delete_deployment",
            Self::ScaleDown => "scale_to_nothing",
            Self::Roll => "roll",
            Self::Drain(Role::Source) => "drain",
            Self::Drain(Role::Target) => "drain_target",
            Self::MigrateAgain => "migrate_again",
            Self::StripFinalizer => "strip_finalizer",
        }
    }

    /// The Migration goes with it.
    pub fn removes_the_migration(self) -> bool {
        matches!(self, Self::DeleteMigration | Self::StripFinalizer)
    }

    /// The owner may start a fresh pod while an old one still ends.
    pub fn orders_a_fresh_pod(self) -> bool {
        matches!(self, Self::DeleteSource | Self::DeleteTarget | Self::Roll | Self::Drain(_))
    }

    /// Does it.
    pub fn act(self, scene: &Scene) -> Result<()> {
        let cluster = scene.cluster;
        let delete = |kind: &str, name: &str| {
            cluster.kubectl(&["delete", kind, name, "--wait=false", "--ignore-not-found"]).map(drop)
        };
        match self {
            Self::DeleteMigration => delete("migration", &scene.migration),
            Self::DeleteSource => delete("pod", &scene.source.name),
            Self::DeleteTarget => delete("pod", &target(scene)?),
            Self::DeleteDeployment => delete("deployment", "counter"),
            Self::ScaleDown => {
                cluster.kubectl(&["scale", "deployment", "counter", "--replicas=0"]).map(drop)
            }
            Self::Roll => cluster.kubectl(&["rollout", "restart", "deployment/counter"]).map(drop),
            Self::Drain(role) => drain(scene, role),
            Self::MigrateAgain => {
                let target = scene.node(Role::Target);
                cluster.apply(&migration(AGAIN, &scene.source.name, target)).map(drop)
            }
            Self::StripFinalizer => strip(cluster, &scene.migration),
        }
    }

    /// Takes back what would disturb others.
    pub fn undo(self, scene: &Scene) -> Result<()> {
        match self {
            Self::Drain(role) => {
                let drains = std::mem::take(&mut *scene.background.borrow_mut());
                drains.into_iter().for_each(|drain| drop(drain.join()));
                scene.cluster.kubectl(&["uncordon", scene.node(role)]).map(drop)
            }
            _ => Ok(()),
        }
    }
}

/// The target pod's name, which may just be made: its name is recorded first, and then its UID.
fn target(scene: &Scene) -> Result<String> {
    let mut name = String::new();
    scene.cluster.await_that("there is a target pod", Duration::from_secs(15), || {
        let target = scene.history.latest()["status"]["target"].clone();
        name = target["podName"].as_str().context("it is not recorded")?.to_owned();
        Ok(!scene.target_uid().is_empty())
    })?;
    Ok(name)
}

/// Begins it, and returns when it has got to the pod. It ends when the pod is gone, or gives up: either is
/// judged by what is there then.
fn drain(scene: &Scene, role: Role) -> Result<()> {
    // The target has none of the application's labels before it is the pod, and no owner.
    let pods = match role {
        Role::Source => "app=counter",
        Role::Target => names::MIGRATION_LABEL,
    };
    let mut drain = scene.cluster.spawn_kubectl(&[
        "drain",
        scene.node(role),
        &format!("--pod-selector={pods}"),
        "--ignore-daemonsets",
        "--force",
        "--timeout=30s",
    ])?;
    let said = BufReader::new(drain.stdout.take().context("no stdout")?);
    let mut lines = said.lines().map_while(Result::ok);
    let _begun = lines.find(|line| line.starts_with("evicting pod"));
    scene.background.borrow_mut().push(std::thread::spawn(move || {
        // Somebody has to listen to the end.
        lines.for_each(drop);
        let _ = drain.wait();
    }));
    Ok(())
}

/// An administrator's way past the guard.
fn strip(cluster: &Cluster, name: &str) -> Result<()> {
    let mut guard = cluster.get(GUARD_KIND, GUARD)?;
    cluster.kubectl(&["delete", GUARD_KIND, GUARD])?;
    let stripped = cluster.kubectl(&["delete", "migration", name, "--wait=false"]).and_then(|_| {
        // The API server goes by the old policies for a moment.
        cluster.await_that("the Migration has vanished", Duration::from_secs(15), || {
            let nothing = r#"{"metadata":{"finalizers":null}}"#;
            cluster.try_kubectl(&["patch", "migration", name, "--type=merge", "-p", nothing])?;
            Ok(cluster.get("migration", name)?.is_null())
        })
    });
    for field in ["resourceVersion", "uid", "creationTimestamp", "generation", "managedFields"] {
        if let Some(metadata) = guard["metadata"].as_object_mut() {
            metadata.remove(field);
        }
    }
    let restored = restore(cluster, &guard);
    stripped.and(restored)
}

fn restore(cluster: &Cluster, guard: &Value) -> Result<()> {
    cluster.apply(&guard.to_string()).map(drop)
}
