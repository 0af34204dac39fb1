//! `transship-probe …`: what the tests do inside the nodes of the sandbox, where a shell would be too slow.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use transship_tests::{
    node::{
        copies,
        moment::{self, Moment},
        process::{self, Victim},
        side::Side,
    },
    prober::probe,
};

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
        /// And after that until stdin ends.
        #[arg(long)]
        with_stdin: bool,
        /// How long an attempt may take, in milliseconds.
        #[arg(long, default_value_t = 250)]
        patience: u64,
    },
    /// Await a moment of a namespace's migration: an entry in this node's journal, `criu` in the middle of a
    /// dump, `restore` in that of a restore, or the `hold` of a restored container. CRIU (in the hold its script)
    /// stands still until the victim has been killed or, without one, until stdin ends; "now" is printed first.
    Await {
        /// The migration's namespace.
        namespace: String,
        /// What to wait for.
        moment: Moment,
        /// How long.
        seconds: u64,
        /// kill -9 this process in that moment.
        #[arg(long)]
        kill: Option<Victim>,
    },
    /// kill -9 a process that takes part in a namespace's migration.
    Kill {
        /// The migration's namespace.
        namespace: String,
        /// Whom.
        victim: Victim,
    },
    /// Print which copies of the application run whenever that changes, until stdin ends.
    Copies {
        /// The application's namespace.
        namespace: String,
    },
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Action::Connect { address, seconds, with_stdin, patience } => {
            let end = Instant::now() + Duration::from_secs(seconds);
            let patience = Duration::from_millis(patience);
            let stdin = with_stdin.then(|| std::thread::spawn(await_stdin));
            let over =
                || Instant::now() >= end && stdin.as_ref().is_none_or(|stdin| stdin.is_finished());
            let report = probe(address, Duration::from_millis(10), patience, over);
            println!("{}", serde_json::to_string(&report)?);
            Ok(())
        }
        Action::Await { namespace, moment, seconds, kill } => {
            let side = moment::wait(moment, &namespace, Duration::from_secs(seconds))?;
            let done = match kill {
                Some(victim) => {
                    let side = side.as_ref();
                    process::kill(victim, side, || moment::is_in_time(moment, victim, side))
                }
                None if moment.has_criu() => {
                    println!("now");
                    await_stdin();
                    Ok(())
                }
                None => Ok(()),
            };
            if moment.has_criu() {
                process::go_on();
            }
            done
        }
        Action::Kill { namespace, victim } => {
            // A target is closed when it is the pod.
            process::kill(victim, Side::find_any(&namespace).as_ref(), || Ok(()))
        }
        Action::Copies { namespace } => {
            std::thread::spawn(end_with_stdin);
            let mut stdout = std::io::stdout();
            copies::watch(&namespace, |look| {
                writeln!(stdout, "{}", serde_json::to_string(look)?)?;
                Ok(stdout.flush()?)
            })
        }
    }
}

/// Returns when stdin has ended.
fn await_stdin() {
    // One that cannot be read is over, too.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Who started us through `nsenter` cannot end us by a signal.
fn end_with_stdin() {
    await_stdin();
    std::process::exit(0);
}
