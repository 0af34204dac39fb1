//! `transship-operator`: the controllers of Transship's kinds, the webhooks, and the authority of
//! its certificates.

mod agents;
mod app;
mod args;
mod context;
mod controllers;
mod events;
mod http;
mod leader;
mod metrics;
mod pki;
mod uninstall;
mod webhooks;

use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::{Args, Command, LogFormat};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Two providers in one process make the first use of TLS panic: this one is used everywhere.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("another TLS provider was installed before");
    }
    let args = Args::parse();
    let filter = EnvFilter::try_new(&args.log_level).context("LOG_LEVEL is not a filter")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => log.init(),
    }
    let config = kube::Config::infer().await.context("cannot reach the API server")?;
    let client = transship_client::connect(config)?;
    match args.command {
        None => {
            tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
            app::run(args, client).await
        }
        Some(Command::Uninstall { timeout_seconds }) => {
            let limit = Duration::from_secs(timeout_seconds);
            uninstall::run(client, &args.namespace, limit).await
        }
    }
}
