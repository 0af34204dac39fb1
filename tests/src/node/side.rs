//! This node's side of a test's migration, as its holder keeps it on the disk.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

const MIGRATIONS: &str = "/var/lib/transship/migrations";

/// This node's part in the migration of a namespace's pod.
#[derive(Debug, Clone)]
pub struct Side {
    directory: PathBuf,
    /// UID of the pod on this side.
    pub pod_uid: String,
}

impl Side {
    /// The open one that this node has, if any.
    pub fn find(namespace: &str) -> Option<Side> {
        Self::all(namespace).find(|side| !side.directory.join("closed").exists())
    }

    /// The same; where there is none, one that is closed and not forgotten yet.
    pub fn find_any(namespace: &str) -> Option<Side> {
        Self::find(namespace).or_else(|| Self::all(namespace).next())
    }

    fn all(namespace: &str) -> impl Iterator<Item = Side> {
        let entries = fs::read_dir(MIGRATIONS).into_iter().flatten().flatten();
        entries.filter_map(move |entry| {
            let directory = entry.path();
            let task: Value =
                serde_json::from_slice(&fs::read(directory.join("task.json")).ok()?).ok()?;
            (task["migration"]["namespace"] == namespace).then(|| Side {
                pod_uid: task["pod"]["uid"].as_str().unwrap_or_default().to_owned(),
                directory,
            })
        })
    }

    /// The migration's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `source` or `target`.
    pub fn role(&self) -> &str {
        self.directory.extension().and_then(|role| role.to_str()).unwrap_or_default()
    }

    /// Whether a CRIU has come to the memory of one of its containers, most of a dump: the image of a task's open files
    /// comes before that.
    pub fn has_begun_to_dump_memory(&self) -> bool {
        self.has_file("images", |name| name.starts_with("fdinfo-"))
    }

    /// Whether a CRIU has begun to restore one of its containers: from then on there is its log.
    pub fn has_begun_to_restore(&self) -> bool {
        self.has_file("work", |name| name == "restore.log")
    }

    /// In the directory of one of its containers.
    fn has_file(&self, kind: &str, is_wanted: impl Fn(&str) -> bool) -> bool {
        let containers = fs::read_dir(self.directory.join(kind)).into_iter().flatten().flatten();
        let files = containers.flat_map(|container| fs::read_dir(container.path()));
        files.flatten().flatten().any(|file| file.file_name().to_str().is_some_and(&is_wanted))
    }

    /// Whether its journal has an entry of this kind.
    pub fn has_journalled(&self, kind: &str) -> bool {
        let journal = fs::read_to_string(self.directory.join("journal")).unwrap_or_default();
        journal.lines().any(|line| is_entry(line, kind))
    }
}

/// Whether a journal's line holds an entry of this kind. The last line may be half written.
fn is_entry(line: &str, kind: &str) -> bool {
    serde_json::from_str::<Value>(line).is_ok_and(|line| line["entry"]["kind"] == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_known_by_its_kind_and_only_when_whole() {
        let line = r#"{"v":1,"boot_id":"b","at":1,"entry":{"kind":"decided","decision":"commit"}}"#;
        assert!(is_entry(line, "decided"));
        assert!(!is_entry(line, "commit"));
        assert!(!is_entry(&line[..line.len() - 1], "decided"));
    }
}
