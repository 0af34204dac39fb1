//! What an administrator on the node can see and do.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use transship_host::HostRoot;
use transship_host::paths::{MigrationDir, Role};
use transship_host::{files, journal};
use transship_rpc::{SideStatus, Stage};

use crate::holder::VOUCHED;
use crate::source::files::GIVEN_UP;
use crate::status;

/// Prints one line for each migration that this node has a part in.
pub fn status(host: &HostRoot) -> Result<ExitCode> {
    println!("{:<44} {:<22} {:<9} {:<8} POD", "MIGRATION", "LAST ENTRY", "STAGE", "HOLDER");
    for name in files::list(&host.migrations())? {
        let dir = MigrationDir::at(host.migrations().join(&name));
        if dir.identify().is_none() {
            continue;
        }
        println!("{}", line(&name, &dir)?);
    }
    Ok(ExitCode::SUCCESS)
}

fn line(name: &str, dir: &MigrationDir) -> Result<String> {
    let pod = match dir.read_task() {
        Ok(Some(task)) => format!("{}/{}", task.pod.namespace, task.pod.name),
        Ok(None) => "(no task yet)".to_owned(),
        Err(error) => format!("(damaged task: {error})"),
    };
    let entries = journal::read::<Value>(&dir.journal())?;
    let last = entries.last().and_then(|line| line.entry["kind"].as_str()).unwrap_or("-");
    let shown: SideStatus =
        files::read_json_opt(&dir.path().join(status::FILE))?.unwrap_or_default();
    let stage = Stage::try_from(shown.stage).unwrap_or_default();
    let holder = if dir.is_closed()? {
        "closed"
    } else if journal::is_locked(&dir.journal())? {
        "running"
    } else {
        "none"
    };
    Ok(format!("{name:<44} {last:<22} {:<9} {holder:<8} {pod}", stage.as_str_name()))
}

/// The directory of a migration that this node is the source of, and that is not finished here.
fn open_source(host: &HostRoot, migration_uid: &str) -> Result<MigrationDir> {
    let dir = host.migration(migration_uid, Role::Source)?;
    if dir.read_task()?.is_none() {
        bail!("this node is not the source of migration {migration_uid}");
    }
    if dir.is_closed()? {
        bail!("migration {migration_uid} is finished on this node");
    }
    Ok(dir)
}

/// Leaves the administrator's word that a pod which goes on here does so without the files that cannot be kept.
pub fn give_up_files(host: &HostRoot, migration_uid: &str) -> Result<ExitCode> {
    let dir = open_source(host, migration_uid)?;
    files::write_atomic(&dir.path().join(GIVEN_UP), b"")
        .context("the word cannot be left for the holder")?;
    println!("noted; the Migration will say whose files are lost");
    Ok(ExitCode::SUCCESS)
}

/// Leaves the administrator's word for the source's holder, which acts on it only where the
/// protocol has no other way out.
pub fn resolve(host: &HostRoot, migration_uid: &str, vouched: bool) -> Result<ExitCode> {
    let dir = open_source(host, migration_uid)?;
    if !vouched {
        bail!(
            "the source goes on only where nothing else can: write --the-target-is-off to vouch \
             that the target's node does not run and will not come back with this pod"
        );
    }
    files::write_atomic(&dir.path().join(VOUCHED), b"")
        .context("the word cannot be left for the holder")?;
    println!("noted; see `transship-holder status`");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::areas::tests::task;

    #[test]
    fn a_migration_is_shown_with_its_last_journal_entry() {
        let root = tempfile::tempdir().unwrap();
        let host = HostRoot::at(root.path());
        let dir = host.migration("m-uid", Role::Source).unwrap();
        let mut task = task();
        task.role = Role::Source;
        dir.write_task(&task).unwrap();
        let (mut journal, _) = journal::Journal::open(&dir.journal()).unwrap();
        journal.append(&serde_json::json!({"kind": "voted"})).unwrap();
        let text = line("m-uid.source", &dir).unwrap();
        assert!(text.contains("voted") && text.contains("running"), "{text}");
        assert!(text.ends_with("ns/p"), "{text}");
        drop(journal);
        dir.close().unwrap();
        assert!(line("m-uid.source", &dir).unwrap().contains("closed"));
    }

    #[test]
    fn the_last_resort_needs_an_open_source_and_an_explicit_word() {
        let root = tempfile::tempdir().unwrap();
        let host = HostRoot::at(root.path());
        assert!(resolve(&host, "m-uid", true).is_err());
        let dir = host.migration("m-uid", Role::Source).unwrap();
        let mut task = task();
        task.role = Role::Source;
        dir.write_task(&task).unwrap();
        assert!(resolve(&host, "m-uid", false).unwrap_err().to_string().contains("vouch"));
        resolve(&host, "m-uid", true).unwrap();
        assert!(dir.path().join(VOUCHED).exists());
        assert!(!dir.path().join(GIVEN_UP).exists());
        give_up_files(&host, "m-uid").unwrap();
        assert!(dir.path().join(GIVEN_UP).exists());
        dir.close().unwrap();
        assert!(give_up_files(&host, "m-uid").is_err());
    }
}
