//! The processes of a container as a list: which there are, which came from outside, and what is told of very many.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use transship_core::facts::{
    ContainerFacts, MAX_PROCESSES, MAX_RESOURCES, MoreResources, ProcessFacts, ProcessState,
    Resource, ResourceKind,
};
use transship_core::preflight::stands_in_the_way;

use super::descriptors::is_gone;
use super::proc::{self, Status};
use super::read;

/// What a process says of itself.
pub fn status(proc: &Path, pid: i32) -> io::Result<Status> {
    Ok(proc::status(&read(&proc.join(format!("{pid}/status")))?))
}

/// What the processes of a container say of themselves, as far as they are there still.
pub fn statuses(
    pids: &[u32],
    init: i32,
    read: impl Fn(i32) -> io::Result<Status>,
) -> io::Result<BTreeMap<i32, Status>> {
    let there = |pid: &i32| match read(*pid) {
        Err(error) if is_gone(&error) => None,
        status => Some(status.map(|status| (*pid, status))),
    };
    let pids: Vec<i32> = pids.iter().filter_map(|pid| i32::try_from(*pid).ok()).collect();
    let mut all: BTreeMap<i32, Status> =
        pids.iter().filter_map(there).collect::<io::Result<_>>()?;
    // A child whose parent has ended meanwhile has another by now.
    let orphans: Vec<i32> = all.keys().copied().filter(|pid| !descends(*pid, init, &all)).collect();
    all.retain(|pid, _| !orphans.contains(pid));
    let again: BTreeMap<i32, Status> =
        orphans.iter().filter_map(there).collect::<io::Result<_>>()?;
    all.extend(again);
    Ok(all)
}

/// Whether a process descends from `init`, by the parents of all that are in the cgroup.
pub fn descends(mut pid: i32, init: i32, all: &BTreeMap<i32, Status>) -> bool {
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

/// Whether the main thread has ended while others run. That of a process that is ending may be the first as well.
fn is_headless(state: ProcessState, threads: u32) -> bool {
    state == ProcessState::Zombie && threads > 1
}

/// Looks once more at processes of which the main thread has ended: those that were ending have ended by now.
pub fn look_at_headless(proc: &Path, container: &mut ContainerFacts) {
    for process in &mut container.processes {
        if is_headless(process.state, process.threads) {
            let now = status(proc, process.pid);
            let now = now.ok().filter(|now| is_headless(now.state, now.threads));
            process.threads = now.map_or(0, |now| now.threads);
        }
    }
}

/// Leaves out processes beyond the most that are told, plain ones first: those in which a check finds something are told
/// before any other, and then those that have unlinked files, whose sizes are added up. Tells whether a size is lost.
pub fn bound(container: &mut ContainerFacts) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use rustix::io::Errno;

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
    fn a_child_that_lost_its_parent_while_they_were_read_is_asked_for_another() {
        // From the last to the first: 12 has ended when it is asked.
        let answers = RefCell::new(BTreeMap::from([
            (10, vec![1]),
            (11, vec![10, 12]),
            (13, vec![11, 11]),
            (20, vec![1, 1]),
            (21, vec![12]),
        ]));
        let read = |pid: i32| -> io::Result<Status> {
            let mut answers = answers.borrow_mut();
            let parent = answers.get_mut(&pid).and_then(Vec::pop).ok_or(Errno::NOENT)?;
            Ok(Status { parent, ..Status::default() })
        };
        let all = statuses(&[10, 11, 12, 13, 20, 21], 10, read).unwrap();
        let inside: Vec<i32> = all.keys().copied().filter(|pid| descends(*pid, 10, &all)).collect();
        assert_eq!((inside, all.contains_key(&20)), (vec![10, 11, 13], true));
        assert!(!all.contains_key(&12) && !all.contains_key(&21), "they are gone");
        assert!(statuses(&[10], 10, |_| Err(io::ErrorKind::PermissionDenied.into())).is_err());
    }

    #[test]
    fn a_process_that_was_ending_has_a_dead_main_thread_no_more() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, threads) in [(7, 2), (8, 1)] {
            let dir = proc.path().join(pid.to_string());
            std::fs::create_dir(&dir).unwrap();
            let status = format!("State:\tZ (zombie)\nThreads:\t{threads}\n");
            std::fs::write(dir.join("status"), status).unwrap();
        }
        let process = |pid, state| ProcessFacts { pid, state, threads: 3, ..Default::default() };
        let mut processes: Vec<_> = (7..=9).map(|pid| process(pid, ProcessState::Zombie)).collect();
        processes.push(process(10, ProcessState::Running));
        let mut container = ContainerFacts { processes, ..ContainerFacts::default() };
        look_at_headless(proc.path(), &mut container);
        let threads: Vec<u32> = container.processes.iter().map(|p| p.threads).collect();
        assert_eq!(threads, [2, 0, 0, 3]);
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
        assert_eq!(container.processes[..2].iter().map(|p| p.pid).collect::<Vec<_>>(), [601, 602]);
    }
}
