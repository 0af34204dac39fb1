//! Talks to a holder's control socket as its agent does, for tries by hand on a node:
//!
//! ```text
//! control SOCKET UID source|target watch                  prints each snapshot as a line of JSON
//! control SOCKET UID source|target freeze|read|release|abort
//! ```

use anyhow::{Context, Result, bail};
use transship_rpc::holder_client::HolderClient;
use transship_rpc::{CommandRequest, Role, Verb, WatchRequest};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, uid, role, verb] = arguments.as_slice() else {
        bail!("write SOCKET UID source|target watch|freeze|read|release|abort");
    };
    let role = match role.as_str() {
        "source" => Role::Source,
        "target" => Role::Target,
        other => bail!("unknown role {other}"),
    };
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{socket}"))?;
    let channel = endpoint.connect().await.context("no holder listens")?;
    let mut client = HolderClient::new(channel);
    let verb = match verb.as_str() {
        "watch" => {
            let request = WatchRequest { migration_uid: uid.clone(), role: role as i32 };
            let mut snapshots = client.watch(request).await?.into_inner();
            while let Some(snapshot) = snapshots.message().await? {
                println!("{}", serde_json::to_string(&snapshot)?);
            }
            return Ok(());
        }
        "freeze" => Verb::Freeze,
        "read" => Verb::ReadDecision,
        "release" => Verb::Release,
        "abort" => Verb::Abort,
        other => bail!("unknown verb {other}"),
    };
    let request =
        CommandRequest { migration_uid: uid.clone(), role: role as i32, verb: verb as i32 };
    client.command(request).await?;
    Ok(())
}
