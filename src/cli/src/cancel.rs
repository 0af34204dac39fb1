//! `cancel`: deletes a Migration. Before its commit the source goes on. After it the Migration finishes first, but
//! where the pod's memory may be older than its volumes that is given up.

use anyhow::Result;
use clap::Args as ClapArgs;
use kube::{Api, Client, ResourceExt, api::DeleteParams};
use transship_api::{Decision, Migration};

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
    let was_deleted = status.deleted_unasked == Some(true);
    Some(match status.asked_pod_uid {
        Some(_) if was_deleted => {
            "it was deleted before, and finishes when what its condition Stalled asks is answered"
        }
        // Somebody may have wanted the memory meanwhile, and it may be that nothing comes of it.
        Some(_) => "the pod's memory is given up if it is not being restored at this moment",
        None => "it will finish",
    })
}

#[cfg(test)]
mod tests {
    use transship_api::{MigrationSpec, MigrationStatus};

    use super::*;

    #[test]
    fn whoever_gives_memory_up_is_told_so() {
        let mut migration = Migration::new("m", MigrationSpec::for_pod("web-0"));
        assert_eq!(consequence(&migration), None);
        migration.status = Some(MigrationStatus::default());
        assert_eq!(consequence(&migration), None, "the source goes on");

        let told = |asked: Option<&str>, deleted_unasked| {
            let mut migration = Migration::new("m", MigrationSpec::for_pod("web-0"));
            migration.status = Some(MigrationStatus {
                decision: Some(Decision::Commit),
                failed_restores: Some(3),
                asked_pod_uid: asked.map(str::to_owned),
                deleted_unasked,
                ..MigrationStatus::default()
            });
            consequence(&migration).unwrap()
        };
        assert_eq!(told(None, None), "it will finish", "it is tried until it runs");
        assert!(told(Some("uid-1"), None).contains("given up"));
        let unasked = told(Some("uid-1"), Some(true));
        assert!(unasked.contains("answered") && !unasked.contains("given up"), "{unasked}");
    }
}
