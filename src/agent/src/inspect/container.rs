//! One container: what it has mounted and changed, and its processes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use transship_core::facts::{
    ContainerFacts, MAX_PROCESSES, MAX_RESOURCES, MoreResources, MountOrigin, Part, PodFacts,
    ProcessFacts, ProcessState, Resource, ResourceKind, Unseen,
};
use transship_core::preflight::stands_in_the_way;
use transship_host::freezer::{CgroupVersion, Freezer, FreezerState};
use transship_runtime::cri::State;
use transship_runtime::mounts::{parse, upper_dir};

use super::descriptors::{self, Seen, Surroundings};
use super::proc::{self, Status};
use super::projected::Projected;
use super::{Found, Inspector, mounts, read, sizes};

impl Inspector {
    /// A container, and what was seen of each of its processes. What could not be counted or looked at is noted in
    /// its `pod`.
    pub(super) fn container(
        &self,
        found: Found,
        place: mounts::Node<'_>,
        pod: &mut PodFacts,
    ) -> (ContainerFacts, Vec<Seen>) {
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
        let Some(container) = found.container else { return (facts, Vec::new()) };
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
        facts.user_namespace = self.differs(container.pid, 1, "user");
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
        let statuses = match freezer.state().and_then(|state| Ok((state, freezer.tasks()?))) {
            Ok((state, pids)) => {
                facts.frozen = state != FreezerState::Thawed;
                let statuses = self.statuses(&pids);
                if statuses.is_empty() {
                    unseen.push((Part::Processes, "none of its processes can be seen".into()));
                }
                statuses
            }
            Err(error) => {
                let message = format!("its processes cannot be listed: {}", error.chain());
                unseen.push((Part::Rest, message));
                BTreeMap::new()
            }
        };
        let mut all = Vec::new();
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
            all.push(seen);
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
        (facts, all)
    }

    fn statuses(&self, pids: &[u32]) -> BTreeMap<i32, Status> {
        let pids = pids.iter().filter_map(|pid| i32::try_from(*pid).ok());
        pids.filter_map(|pid| Some((pid, self.status(pid)?))).collect()
    }

    fn status(&self, pid: i32) -> Option<Status> {
        Some(proc::status(&read(&self.proc().join(format!("{pid}/status"))).ok()?))
    }

    /// Whether a process is there still and has not ended.
    fn is_alive(&self, pid: i32) -> bool {
        self.status(pid).is_some_and(|status| status.state != ProcessState::Zombie)
    }

    fn process(
        &self,
        pid: i32,
        status: &Status,
        init: i32,
        around: &Surroundings,
    ) -> (ProcessFacts, Seen) {
        let own_namespaces: Vec<String> =
            ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
                .into_iter()
                .filter(|kind| self.differs(pid, init, kind))
                .map(str::to_owned)
                .collect();
        let own_mounts = own_namespaces.iter().any(|kind| kind == "mnt").then(|| {
            let mountinfo = read(&self.proc().join(format!("{pid}/mountinfo")));
            let mount_ids = mount_ids(&mountinfo.unwrap_or_default());
            Surroundings { mount_ids, ..around.clone() }
        });
        let around = own_mounts.as_ref().unwrap_or(around);
        let mut seen = descriptors::of_process(self.proc(), pid, around);
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

    /// Whether two processes are in different namespaces of a kind; `false` when it cannot be told.
    pub(super) fn differs(&self, one: i32, other: i32, kind: &str) -> bool {
        let of = |pid: i32| std::fs::read_link(self.proc().join(format!("{pid}/ns/{kind}"))).ok();
        matches!((of(one), of(other)), (Some(a), Some(b)) if a != b)
    }
}

/// Leaves out processes beyond the most that are told, plain ones first: those in which a check finds something are told
/// before any other, and then those that have unlinked files, whose sizes are added up. Tells whether a size is lost.
pub(super) fn bound(container: &mut ContainerFacts) -> Option<String> {
    let processes = &mut container.processes;
    processes.iter_mut().for_each(shorten);
    if processes.len() <= MAX_PROCESSES {
        return None;
    }
    let is_unlinked = |resource: &Resource| resource.kind == ResourceKind::UnlinkedFile;
    let has_unlinked = |process: &ProcessFacts| process.resources.iter().any(is_unlinked);
    processes.sort_by_cached_key(|process| (!stands_in_the_way(process), !has_unlinked(process)));
    let left_out = processes.split_off(MAX_PROCESSES);
    let is_lost = left_out.iter().any(has_unlinked);
    is_lost.then(|| {
        format!(
            "container {} has more than {MAX_PROCESSES} processes with unlinked files",
            container.name
        )
    })
}

/// Of each kind of resource the first are told, of those with a size the largest; the rest is counted.
fn shorten(process: &mut ProcessFacts) {
    let all = &mut process.resources;
    if all.len() <= MAX_RESOURCES {
        return;
    }
    all.sort_by_key(|resource| Reverse(resource.bytes));
    let mut counts: HashMap<ResourceKind, usize> = HashMap::new();
    let mut more: HashMap<ResourceKind, MoreResources> = HashMap::new();
    all.retain(|Resource { kind, bytes, .. }| {
        let count = counts.entry(*kind).or_default();
        *count += 1;
        let is_told = *count <= MAX_RESOURCES;
        if !is_told {
            let more = more.entry(*kind).or_default();
            more.kind = *kind;
            more.count += 1;
            more.bytes += bytes;
        }
        is_told
    });
    process.more = more.into_values().collect();
}

/// Whether a process descends from `init`, by the parents of all that are in the cgroup.
fn descends(mut pid: i32, init: i32, all: &BTreeMap<i32, Status>) -> bool {
    // A parent that has ended meanwhile has left its children to init.
    for _ in 0..=all.len() {
        if pid == init {
            return true;
        }
        match all.get(&pid) {
            Some(status) => pid = status.parent,
            None => return false,
        }
    }
    false
}

/// Ids of the mounts that a `mountinfo` lists.
fn mount_ids(mountinfo: &str) -> Vec<u64> {
    mountinfo.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_from_outside_is_no_descendant_of_the_first_process() {
        let parent = |parent| Status { parent, ..Status::default() };
        let all = [
            (10, parent(1)),
            (11, parent(10)),
            (12, parent(11)),
            (20, parent(1)),
            (21, parent(20)),
        ];
        let all = BTreeMap::from(all);
        for (pid, inside) in [(10, true), (12, true), (20, false), (21, false), (99, false)] {
            assert_eq!(descends(pid, 10, &all), inside, "{pid}");
        }
    }

    #[test]
    fn of_very_many_processes_those_are_told_that_stand_in_the_way() {
        let with = |pid: i32, kind: ResourceKind| ProcessFacts {
            pid,
            resources: vec![Resource { kind, ..Resource::default() }],
            ..ProcessFacts::default()
        };
        let plain = (1..=600).map(|pid| ProcessFacts { pid, ..ProcessFacts::default() });
        let mut processes: Vec<ProcessFacts> = plain.collect();
        processes.push(with(601, ResourceKind::UnlinkedFile));
        processes.push(ProcessFacts {
            pid: 602,
            state: ProcessState::Stopped,
            ..ProcessFacts::default()
        });
        processes.push(with(603, ResourceKind::IoUring));
        let mut container = ContainerFacts { processes, ..ContainerFacts::default() };
        assert_eq!(bound(&mut container), None);
        let told: Vec<i32> = container.processes.iter().map(|process| process.pid).collect();
        assert_eq!(told.len(), MAX_PROCESSES);
        assert_eq!(told[..4], [602, 603, 601, 1], "in their order otherwise");

        // So are, of a kind of which a process has very many, the largest.
        let file =
            |bytes| Resource { kind: ResourceKind::UnlinkedFile, bytes, ..Resource::default() };
        let process = &mut container.processes[2];
        process.resources.extend((1..=70).map(file));
        process.resources.push(Resource { kind: ResourceKind::IoUring, ..Resource::default() });
        assert_eq!(bound(&mut container), None);
        let process = &container.processes[2];
        let told = process.resources.iter().filter(|r| r.kind == ResourceKind::UnlinkedFile);
        assert_eq!(told.map(|r| r.bytes).collect::<Vec<_>>(), (7..=70).rev().collect::<Vec<_>>());
        assert!(process.resources.iter().any(|r| r.kind == ResourceKind::IoUring));
        let [more] = &process.more[..] else { panic!("{:?}", process.more) };
        assert_eq!((more.kind, more.count, more.bytes), (ResourceKind::UnlinkedFile, 7, 21));

        // What does not fit any more is told.
        container.name = "web".into();
        let unlinked = (700..1300).map(|pid| with(pid, ResourceKind::UnlinkedFile));
        container.processes.extend(unlinked);
        let told = bound(&mut container).unwrap();
        assert!(told.contains("container web has more than 512"), "{told}");
        assert_eq!(container.processes[..2].iter().map(|p| p.pid).collect::<Vec<_>>(), [602, 603]);
    }
}
