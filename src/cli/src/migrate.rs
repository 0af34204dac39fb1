//! `migrate`: writes a Migration, and waits for its end if asked to.

use std::time::Duration;

use anyhow::Result;
use clap::{Args as ClapArgs, ValueEnum};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, ResourceExt, api::PostParams};
use transship_api::{Migration, MigrationSpec, Mode, Network, duration};

use crate::{Outcome, connect::explain, progress};

/// `kubectl transship migrate POD`.
#[derive(ClapArgs)]
pub struct Args {
    /// The pod, as NAME or pod/NAME.
    #[arg(value_name = "POD")]
    pod: String,
    /// Node to move it to; without it the placement engine chooses.
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// How the pod moves: Auto, PreCopy, PostCopy, Hybrid, StopAndCopy, or Cold (a graceful stop and a
    /// fresh start with its files).
    #[arg(long, default_value = "Auto", value_parser = parse::<Mode>)]
    mode: Mode,
    /// What becomes of address and connections: Auto, Preserve or Close.
    #[arg(long, default_value = "Auto", value_parser = parse::<Network>)]
    network: Network,
    /// How long the application may stand still, such as 300ms.
    #[arg(long)]
    max_downtime: Option<String>,
    /// Only check and forecast; the pod is not touched.
    #[arg(long)]
    dry_run: bool,
    /// Name of the Migration; without it one is made from the pod's name.
    #[arg(long)]
    name: Option<String>,
    /// Wait for the end and show each step.
    #[arg(long)]
    wait: bool,
    /// How long to wait, such as 10m; the migration goes on afterwards.
    #[arg(long, default_value = "10m", value_parser = |text: &str| duration::parse(text))]
    timeout: Duration,
    /// Print the object instead of a line about it.
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Name,
    Json,
    Yaml,
}

/// Reads an enum of the API by the name it has there.
fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|error| error.to_string())
}

/// Runs the command.
pub async fn run(args: Args, client: Client, namespace: &str) -> Result<Outcome> {
    let migration = manifest(&args, Timestamp::now());
    let api: Api<Migration> = Api::namespaced(client, namespace);
    let created = api
        .create(&PostParams::default(), &migration)
        .await
        .map_err(|error| explain(error, "install Transship first, see its README"))?;
    let name = created.name_any();
    match args.output {
        None => println!("migration.transship.dev/{name} created"),
        Some(Output::Name) => println!("migration.transship.dev/{name}"),
        Some(Output::Json) => println!("{}", serde_json::to_string_pretty(&created)?),
        Some(Output::Yaml) => print!("{}", serde_yaml::to_string(&created)?),
    }
    if !args.wait {
        eprintln!("Follow it with `kubectl transship describe {name}`.");
        return Ok(Outcome::Done);
    }
    progress::until_ended(&api, &name, args.timeout).await
}

fn manifest(args: &Args, now: Timestamp) -> Migration {
    let pod = args.pod.rsplit('/').next().unwrap_or(&args.pod);
    let mut spec = MigrationSpec::for_pod(pod);
    spec.target_node =
        args.to.as_ref().map(|node| node.rsplit('/').next().unwrap_or(node).to_owned());
    spec.mode = args.mode;
    spec.network = args.network;
    spec.dry_run = args.dry_run;
    if let Some(max_downtime) = &args.max_downtime {
        spec.max_downtime.clone_from(max_downtime);
    }
    let name = args.name.clone().unwrap_or_else(|| {
        // Pod names may be as long as names can be; the time keeps two tries apart.
        let head: String = pod.chars().take(200).collect();
        format!("{head}-{}", now.strftime("%m%d-%H%M%S"))
    });
    Migration::new(&name, spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn flags_become_the_fields_of_the_spec() {
        let args = Command::parse_from([
            "migrate",
            "pod/web-0",
            "--to",
            "node/b",
            "--mode",
            "StopAndCopy",
            "--max-downtime",
            "1s",
        ])
        .args;
        let migration = manifest(&args, Timestamp::UNIX_EPOCH);
        assert_eq!(migration.name_any(), "web-0-0101-000000");
        assert_eq!(migration.spec.pod_name, "web-0");
        assert_eq!(migration.spec.target_node.as_deref(), Some("b"));
        assert_eq!(migration.spec.mode, Mode::StopAndCopy);
        assert_eq!(migration.spec.max_downtime, "1s");
        migration.validate_cel().unwrap();
    }

    #[test]
    fn an_unknown_mode_is_refused_with_the_ones_there_are() {
        let error = Command::try_parse_from(["migrate", "web-0", "--mode", "Warp"]).err().unwrap();
        assert!(error.to_string().contains("StopAndCopy"), "{error}");
    }
}
