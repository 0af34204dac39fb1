//! Which cluster and namespace: kubectl's flags with kubectl's meaning.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// How to reach the API server.
#[derive(Args)]
pub struct Connection {
    /// Path of the kubeconfig file.
    #[arg(long, global = true, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Name of the context in the kubeconfig file.
    #[arg(long, global = true)]
    context: Option<String>,
    /// Namespace; without it the context's.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
}

impl Connection {
    /// A client, and the namespace to work in.
    pub async fn client(&self) -> Result<(Client, String)> {
        let options = KubeConfigOptions { context: self.context.clone(), ..Default::default() };
        let config = match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("reading kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        }
        .context("no usable kubeconfig; name one with --kubeconfig or $KUBECONFIG")?;
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok((Client::try_from(config)?, namespace))
    }
}

/// What the API server answered, as one sentence; `hint` says what to do when it is "not found".
pub fn explain(error: kube::Error, hint: &str) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 404 => {
            anyhow::anyhow!("{}; {hint}", status.message)
        }
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        other => anyhow::Error::new(other).context("asking the API server"),
    }
}
