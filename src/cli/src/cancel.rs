//! `cancel`: deletes a Migration; before its commit the source goes on, after it it finishes first, or gives up what
//! cannot be restored on volumes that may be newer.

use anyhow::Result;
use clap::Args as ClapArgs;
use kube::{Api, Client, ResourceExt, api::DeleteParams};
use transship_api::{
    Decision, Migration,
    conditions::{self, reasons},
    names,
};

use crate::{Outcome, connect::explain, progress};

/// `kubectl transship cancel NAME`.
#[derive(ClapArgs)]
pub struct Args {
    /// Name of the migration.
    #[arg(value_name = "MIGRATION")]
    name: String,
    /// Wait until it is gone.
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

/// Runs the command.
pub async fn run(args: Args, client: Client, namespace: &str) -> Result<Outcome> {
    let name = args.name.rsplit('/').next().unwrap_or(&args.name);
    let api: Api<Migration> = Api::namespaced(client, namespace);
    let hint = "list what there is with `kubectl get migrations`";
    let migration = api.get(name).await.map_err(|error| explain(error, hint))?;
    api.delete(name, &DeleteParams::default()).await.map_err(|error| explain(error, hint))?;
    if let Some(consequence) = consequence(&migration) {
        eprintln!("{name} is committed already: {consequence}, then the object goes.");
    }
    println!("migration.transship.dev/{} cancelled", migration.name_any());
    if !args.wait {
        return Ok(Outcome::Done);
    }
    progress::until_gone(&api, name, std::time::Duration::from_secs(args.timeout)).await
}

/// What comes of its deletion, if that is not that the source goes on.
fn consequence(migration: &Migration) -> Option<&'static str> {
    let status = migration.status.as_ref()?;
    if status.decision != Some(Decision::Commit) {
        return None;
    }
    let stalled = conditions::find(&status.conditions, conditions::STALLED);
    let is_asked =
        stalled.is_some_and(|c| c.status == "True" && c.reason == reasons::VOLUMES_NEWER);
    // Somebody wanted the memory, and it may be that nothing comes of it.
    let was_wanted = migration.annotations().contains_key(names::RESTORE_ANYWAY);
    Some(match is_asked || (was_wanted && status.failed_restores.is_some()) {
        true => "the pod's memory is given up if it is not being restored at this moment",
        false => "it will finish",
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use transship_api::{
        MigrationSpec, MigrationStatus,
        conditions::{ConditionStatus, set_condition},
    };

    use super::*;

    fn committed(reason: &str) -> Migration {
        let mut status =
            MigrationStatus { decision: Some(Decision::Commit), ..MigrationStatus::default() };
        let (true_, now) = (ConditionStatus::True, Timestamp::UNIX_EPOCH);
        set_condition(&mut status.conditions, conditions::STALLED, true_, reason, "", None, now);
        let mut migration = Migration::new("m", MigrationSpec::for_pod("web-0"));
        migration.status = Some(status);
        migration
    }

    #[test]
    fn whoever_gives_memory_up_is_told_so() {
        let mut migration = Migration::new("m", MigrationSpec::for_pod("web-0"));
        assert_eq!(consequence(&migration), None);
        migration.status = Some(MigrationStatus::default());
        assert_eq!(consequence(&migration), None, "the source goes on");

        let gives_up = |migration: &Migration| consequence(migration).unwrap().contains("given up");
        assert!(gives_up(&committed(reasons::VOLUMES_NEWER)));
        let mut failing = committed(reasons::RESTORE_FAILED);
        assert!(!gives_up(&failing), "it is tried until it runs");
        failing.metadata.annotations =
            Some([(names::RESTORE_ANYWAY.to_owned(), "uid-1".to_owned())].into());
        assert!(!gives_up(&failing), "nothing has failed yet");
        failing.status.as_mut().unwrap().failed_restores = Some(3);
        assert!(gives_up(&failing));
    }
}
