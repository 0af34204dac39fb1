//! `transship-probe ADDRESS SECONDS`: opens a new connection every 10 ms and prints what it saw as
//! JSON. Runs inside the nodes of the sandbox, hence a program of its own.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use clap::Parser;
use transship_tests::prober::probe;

#[derive(Parser)]
struct Args {
    /// Address and port to connect to.
    address: SocketAddr,
    /// How long to go on.
    seconds: u64,
    /// How long an attempt may take, in milliseconds.
    #[arg(long, default_value_t = 250)]
    patience: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let report = probe(
        args.address,
        Duration::from_millis(10),
        Duration::from_millis(args.patience),
        || Instant::now() >= end,
    );
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
