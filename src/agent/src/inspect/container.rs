//! One container: what it has mounted and changed, and its processes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use transship_core::facts::{
    ContainerFacts, MountOrigin, Part, PodFacts, ProcessFacts, ProcessState, Resource,
    ResourceKind, Unseen,
};
use transship_host::freezer::{CgroupVersion, Freezer, FreezerState};
use transship_runtime::cri::State;
use transship_runtime::mounts::{parse, upper_dir};

use super::descriptors::{self, Seen, Surroundings, is_gone};
use super::ends::Now;
use super::proc::{self, Status};
use super::processes::{descends, status, statuses};
use super::projected::Projected;
use super::{Found, Inspector, mounts, network, read, sizes};

/// What was seen of a container's processes.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// Of each.
    pub(super) seen: Vec<Seen>,
    /// Where they are listed.
    freezer: Option<Freezer>,
}

impl Inspector {
    /// A container, and what was seen of its processes. What could not be counted or looked at is noted in its `pod`.
    pub(super) fn container(
        &self,
        found: Found,
        place: mounts::Node<'_>,
        pod: &mut PodFacts,
    ) -> (ContainerFacts, Looked) {
        let mut facts = ContainerFacts {
            name: found.cri.name,
            id: found.cri.id,
            running: found.cri.state == State::Running,
            attempt: found.cri.attempt,
            image: found.image.image,
            image_digest: found.image.digest,
            image_id: found.image.id,
            ..ContainerFacts::default()
        };
        let Some(container) = found.container else { return (facts, Looked::default()) };
        facts.pid = container.pid;
        facts.criu_config.clone_from(&container.criu_config);
        let mut unseen = Vec::new();
        let dir = self.proc().join(container.pid.to_string());
        let mountinfo = read(&dir.join("mountinfo")).unwrap_or_else(|error| {
            unseen.push((Part::Rest, format!("its mounts cannot be read: {error}")));
            String::new()
        });
        let own_mounts = parse(&mountinfo);
        facts.mounts = mounts::classify(&own_mounts, place);
        let root = own_mounts.iter().rev().find(|mount| mount.point == Path::new("/"));
        if let Some(root) = root {
            facts.rootfs_type = root.fs_type.clone();
            if let Some(upper) = upper_dir(&root.super_options) {
                let size = sizes::of(&self.host.join(upper));
                facts.rootfs_changed_bytes = size.bytes;
                facts.rootfs_changed_files = size.entries;
                if size.cut {
                    pod.incomplete.push(format!(
                        "container {} has changed more than {} files",
                        facts.name,
                        sizes::MAX_ENTRIES
                    ));
                }
            }
        }
        facts.user_namespace = self.differs(container.pid, 1, "user").unwrap_or_else(|error| {
            unseen.push((Part::Rest, format!("its user namespace cannot be read: {error}")));
            false
        });
        let freezer = Freezer {
            dir: self.host.join(&container.freezer),
            version: if container.cgroup_version == 1 {
                CgroupVersion::V1
            } else {
                CgroupVersion::V2
            },
        };
        let volumes = facts.mounts.iter().filter(|m| m.origin == MountOrigin::Projected);
        let volumes = volumes.map(|mount| mount.path.clone()).collect();
        let around = Surroundings {
            rootfs_device: root.and_then(|mount| proc::packed_device(&mount.device)),
            mount_ids: mount_ids(&mountinfo),
            projected: Projected::look(&dir.join("root"), volumes),
            remade: mounts::remade(&own_mounts, place),
        };
        match freezer.state() {
            Ok(state) => facts.frozen = state != FreezerState::Thawed,
            Err(error) => {
                let message = format!("whether it is paused cannot be read: {}", error.chain());
                unseen.push((Part::Rest, message));
            }
        }
        let statuses = self.statuses(&freezer, container.pid).unwrap_or_else(|error| {
            unseen.push((Part::Processes, format!("its processes cannot be listed: {error}")));
            BTreeMap::new()
        });
        if statuses.is_empty() && unseen.is_empty() {
            unseen.push((Part::Processes, "none of its processes can be seen".into()));
        }
        let mut looked = Looked { seen: Vec::new(), freezer: Some(freezer) };
        let mut denied = Vec::new();
        for (pid, status) in &statuses {
            let (mut process, seen) = self.process(*pid, status, container.pid, &around);
            process.outside = !descends(*pid, container.pid, &statuses);
            facts.rss_bytes += process.rss_bytes;
            if !process.outside {
                facts.anonymous_bytes += status.anonymous_bytes;
                let rollup = self.proc().join(format!("{pid}/smaps_rollup"));
                let rollup = std::fs::read_to_string(rollup).unwrap_or_default();
                facts.shared_bytes += proc::shared_bytes(&rollup);
                // Of one that ends meanwhile the kernel says that it is not allowed.
                if let Some(why) = seen.denied.as_ref().filter(|_| self.is_alive(*pid)) {
                    denied.push(format!(
                        "process {} ({}): {why}",
                        process.name, process.container_pid
                    ));
                }
            }
            facts.processes.push(process);
            looked.seen.push(seen);
        }
        if let Some(first) = denied.first() {
            let more = match denied.len() - 1 {
                0 => String::new(),
                more => format!(", and the like of {more} more"),
            };
            unseen.push((Part::Processes, format!("{first}{more}")));
        }
        let of_this =
            |(part, message): (Part, String)| Unseen::of_container(&facts.name, part, message);
        pod.unseen.extend(unseen.into_iter().map(of_this));
        (facts, looked)
    }

    /// What a container that was looked at has by now.
    pub(super) fn now(&self, container: i32, looked: &Looked) -> io::Result<Now> {
        let Some(freezer) = &looked.freezer else { return Ok(Now::default()) };
        let all = self.statuses(freezer, container)?;
        let inside = all.keys().copied().filter(|pid| descends(*pid, container, &all)).collect();
        Now::look(self.proc(), inside, || network::unix_sockets(self.proc(), container))
    }

    fn statuses(&self, freezer: &Freezer, init: i32) -> io::Result<BTreeMap<i32, Status>> {
        let pids = freezer.tasks().map_err(|error| io::Error::other(error.chain()))?;
        statuses(&pids, init, |pid| status(self.proc(), pid))
    }

    /// Whether a process is there still and has not ended.
    fn is_alive(&self, pid: i32) -> bool {
        status(self.proc(), pid).is_ok_and(|status| status.state != ProcessState::Zombie)
    }

    fn process(
        &self,
        pid: i32,
        status: &Status,
        init: i32,
        around: &Surroundings,
    ) -> (ProcessFacts, Seen) {
        let mut own_namespaces = Vec::new();
        let mut denied = Vec::new();
        for kind in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
            match self.differs(pid, init, kind) {
                Ok(true) => own_namespaces.push(kind.to_owned()),
                Ok(false) => {}
                Err(error) => denied.push(("its namespaces", error)),
            }
        }
        let own_mounts = own_namespaces.iter().any(|kind| kind == "mnt").then(|| {
            let mountinfo = read(&self.proc().join(format!("{pid}/mountinfo")));
            let mountinfo = mountinfo.unwrap_or_else(|error| {
                denied.push(("its mounts", error));
                String::new()
            });
            Surroundings { mount_ids: mount_ids(&mountinfo), ..around.clone() }
        });
        let around = own_mounts.as_ref().unwrap_or(around);
        let mut seen = descriptors::of_process(self.proc(), pid, around);
        for (what, error) in &denied {
            seen.deny(what, error);
        }
        let mut resources = std::mem::take(&mut seen.resources);
        if status.huge_bytes > 0 && !resources.iter().any(|r| r.kind == ResourceKind::HugePages) {
            resources.push(Resource {
                kind: ResourceKind::HugePages,
                fd: -1,
                detail: "huge pages".into(),
                bytes: status.huge_bytes,
            });
        }
        let facts = ProcessFacts {
            pid,
            container_pid: status.container_pid,
            name: status.name.clone(),
            state: status.state,
            uid: status.uid,
            threads: status.threads,
            rss_bytes: status.rss_bytes,
            outside: false,
            tracer_pid: status.tracer_pid,
            own_namespaces,
            resources,
            more: Vec::new(),
            descriptors: seen.count,
        };
        (facts, seen)
    }

    /// Whether two processes are in different namespaces of a kind. None are where the kernel does not have the
    /// kind, or one of them is gone.
    fn differs(&self, one: i32, other: i32, kind: &str) -> io::Result<bool> {
        let of = |pid: i32| match self.namespace(pid, kind) {
            Err(error) if is_gone(&error) => Ok(None),
            namespace => namespace.map(Some),
        };
        Ok(matches!((of(one)?, of(other)?), (Some(a), Some(b)) if a != b))
    }

    /// Whether a process is in the node's own namespace of a kind.
    pub(super) fn is_in_nodes(&self, pid: i32, kind: &str) -> io::Result<bool> {
        Ok(self.namespace(pid, kind)? == self.namespace(1, kind)?)
    }

    fn namespace(&self, pid: i32, kind: &str) -> io::Result<PathBuf> {
        std::fs::read_link(self.proc().join(format!("{pid}/ns/{kind}")))
    }
}

/// Ids of the mounts that a `mountinfo` lists.
fn mount_ids(mountinfo: &str) -> Vec<u64> {
    mountinfo.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}
