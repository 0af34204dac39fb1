//! `cancel`: deletes a Migration; before its commit the source goes on, after it it finishes first.

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
    let status = migration.status.as_ref();
    api.delete(name, &DeleteParams::default()).await.map_err(|error| explain(error, hint))?;
    if status.is_some_and(|status| status.decision == Some(Decision::Commit)) {
        eprintln!("{name} is committed already: it will finish, then the object goes.");
    }
    println!("migration.transship.dev/{} cancelled", migration.name_any());
    if !args.wait {
        return Ok(Outcome::Done);
    }
    progress::until_gone(&api, name, std::time::Duration::from_secs(args.timeout)).await
}
