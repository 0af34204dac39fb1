//! Real applications from packages move to and fro under load, on the sandbox cluster, each judged
//! by its own client. `cargo xtask test` runs them; `--only applications::redis` picks one.

mod batch;
mod client;
mod databases;
mod frame;
mod keyvalue;
mod messaging;
mod native;
mod web;
mod wire;

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Trial};

use crate::frame::{Application, World};

/// What the names of the trials begin with.
const PREFIX: &str = "applications::";

/// Those that are slow to start come last: all are deployed at once.
fn all() -> Vec<Application> {
    vec![
        keyvalue::redis(),
        keyvalue::memcached(),
        web::nginx(),
        native::threads(),
        batch::compression(),
        web::node(),
        web::gunicorn(),
        web::apache(),
        messaging::nats(),
        keyvalue::etcd(),
        databases::postgresql(),
        databases::mariadb(),
        web::tomcat(),
        messaging::rabbitmq(),
    ]
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let chosen: Vec<Arc<Application>> = all()
        .into_iter()
        .filter(|application| is_chosen(&arguments, &name(application)))
        .map(Arc::new)
        .collect();
    if arguments.list || chosen.is_empty() {
        let trials = chosen.iter().map(|a| Trial::test(name(a), || Ok(()))).collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let world = match World::deploy(&chosen) {
        Ok(world) => Arc::new(world),
        Err(error) => {
            eprintln!("the applications could not be deployed: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials = chosen.into_iter().map(|application| trial(application, &world)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        // Left for a look; the next run removes it.
        std::mem::forget(world);
    }
    conclusion.exit_code()
}

fn name(application: &Application) -> String {
    format!("{PREFIX}{}", application.name)
}

/// As libtest-mimic chooses, which tells it to nobody.
fn is_chosen(arguments: &Arguments, name: &str) -> bool {
    let matches = |filter: &String| match arguments.exact {
        true => name == filter,
        false => name.contains(filter.as_str()),
    };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}

fn trial(application: Arc<Application>, world: &Arc<World>) -> Trial {
    let world = world.clone();
    Trial::test(name(&application), move || {
        frame::moves_to_and_fro(&world, &application).map_err(|error| {
            // Not only at the end of all.
            eprintln!("{}: {error:#}", application.name);
            format!("{error:#}").into()
        })
    })
}
