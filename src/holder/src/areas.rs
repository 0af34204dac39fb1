//! Which trees belong to a pod: known to both sides from the task, so that the target knows when
//! it has all of them.

use transship_host::task::HolderTask;
use transship_transport::Area;

use crate::pod::moving;

/// Names of the emptyDirs that are carried. Pods with one of huge pages are refused; that of a Migration which
/// an older version let begin is not among what was sent or kept, so it must not be waited for.
pub fn volumes(task: &HolderTask) -> Vec<String> {
    task.empty_dirs
        .iter()
        .filter(|volume| !volume.medium.starts_with("HugePages"))
        .map(|volume| volume.name.clone())
        .collect()
}

/// The trees that every container needs before it is restored. A pod that starts afresh has no memory, shared
/// or of the network.
pub fn shared(task: &HolderTask) -> Vec<Area> {
    let mut areas = match task.part.is_cold() {
        true => vec![Area::Beside],
        false => vec![Area::Shm, Area::Network, Area::Beside],
    };
    areas.extend(volumes(task).into_iter().map(Area::EmptyDir));
    areas
}

/// The name of the file in which a tree is kept.
pub fn file_name(area: &Area) -> String {
    area.to_string().replace('/', ".")
}

/// All trees of the pod.
pub fn all(task: &HolderTask) -> Vec<Area> {
    let rootfs = moving(task).map(|name| Area::Rootfs(name.to_owned()));
    shared(task).into_iter().chain(rootfs).collect()
}

/// Whether a tree belongs to the pod at all.
pub fn is_expected(task: &HolderTask, area: &Area) -> bool {
    match area {
        Area::Rootfs(container) => moving(task).any(|name| name == container),
        other => shared(task).contains(other),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use transship_host::paths::Role;
    use transship_host::record::{ContainerKind, ContainerRef};
    use transship_host::task::{EmptyDir, ObjectRef, Peer, TASK_VERSION};

    /// A task with an init container, two applications and three emptyDirs.
    pub(crate) fn task() -> HolderTask {
        let object = |name: &str| ObjectRef {
            namespace: "ns".into(),
            name: name.into(),
            uid: format!("{name}-uid"),
        };
        let container = |name: &str, kind| ContainerRef { name: name.into(), kind };
        let volume =
            |name: &str, medium: &str| EmptyDir { name: name.into(), medium: medium.into() };
        HolderTask {
            version: TASK_VERSION,
            migration: object("m"),
            role: Role::Target,
            node: "node-b".into(),
            pod: object("p"),
            peer: Peer { node: "node-a".into(), data_address: "10.0.0.1:9441".into() },
            containers: vec![
                container("setup", ContainerKind::Init),
                container("web", ContainerKind::App),
                container("aux", ContainerKind::App),
            ],
            empty_dirs: vec![volume("data", ""), volume("mem", "Memory"), volume("h", "HugePages")],
            sandbox: None,
            part: Default::default(),
            stand_ins: Vec::new(),
            hooks: Vec::new(),
            ending: None,
            network: None,
            host_name: None,
            max_frozen_millis: 1000,
            bandwidth_limit: 0,
            timeout_at_unix_millis: 1,
            kubelet_root: "/var/lib/kubelet".into(),
        }
    }

    #[test]
    fn a_pods_trees_are_known_from_its_task() {
        let task = task();
        assert_eq!(
            shared(&task),
            [
                Area::Shm,
                Area::Network,
                Area::Beside,
                Area::EmptyDir("data".into()),
                Area::EmptyDir("mem".into())
            ]
        );
        for (area, expected) in [
            (Area::Rootfs("web".into()), true),
            (Area::Rootfs("setup".into()), false),
            (Area::Rootfs("other".into()), false),
            (Area::EmptyDir("h".into()), false),
            (Area::Shm, true),
            (Area::Network, true),
            (Area::Beside, true),
        ] {
            assert_eq!(is_expected(&task, &area), expected, "{area}");
        }
        let cold = HolderTask { part: transship_host::task::Part::Cold, ..task };
        assert_eq!(
            all(&cold).iter().map(Area::to_string).collect::<Vec<_>>(),
            ["beside", "emptydir/data", "emptydir/mem", "rootfs/web", "rootfs/aux"]
        );
    }
}
