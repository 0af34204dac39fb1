//! `transship-probe connect|kill`: what the tests do inside the nodes of the sandbox, where a shell would be too
//! slow.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use transship_tests::{hold_victim, prober::probe};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Open a new connection every 10 ms, and print what was seen as JSON.
    Connect {
        /// Address and port to connect to.
        address: SocketAddr,
        /// How long to go on.
        seconds: u64,
        /// How long an attempt may take, in milliseconds.
        #[arg(long, default_value_t = 250)]
        patience: u64,
    },
    /// Await the moment in which CRIU's script holds a restored container, kill -9 the script or one of those
    /// who called it, and print the victim's name.
    Kill {
        /// Callers between the script and the victim: 0 is the script, 1 CRIU, 2 runc, 3 the wrapper.
        callers: u32,
        /// How long to wait for that moment.
        seconds: u64,
    },
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Action::Connect { address, seconds, patience } => {
            let end = Instant::now() + Duration::from_secs(seconds);
            let patience = Duration::from_millis(patience);
            let report =
                probe(address, Duration::from_millis(10), patience, || Instant::now() >= end);
            println!("{}", serde_json::to_string(&report)?);
        }
        Action::Kill { callers, seconds } => {
            println!("{}", hold_victim::kill(callers, Duration::from_secs(seconds))?);
        }
    }
    Ok(())
}
