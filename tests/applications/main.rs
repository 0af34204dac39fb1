//! Real applications from packages move to and fro under load, on the sandbox cluster, each judged
//! by its own client; those that need a setting for it are refused without. `cargo xtask test --applications`
//! runs them; `--only applications::redis` picks one.

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

use anyhow::{Context, Result};
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
        .filter(|application| names(application).iter().any(|name| is_chosen(&arguments, name)))
        .map(Arc::new)
        .collect();
    if arguments.list || chosen.is_empty() {
        let names = chosen.iter().flat_map(|application| names(application));
        let trials = names.map(|name| Trial::test(name, || Ok(()))).collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let world = match World::deploy(&chosen) {
        Ok(world) => Arc::new(world),
        Err(error) => {
            eprintln!("the applications could not be deployed: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials = chosen.iter().flat_map(|application| trials(application, &world)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        // Left for a look; the next run removes it.
        std::mem::forget(world);
    }
    conclusion.exit_code()
}

/// Names of an application's trials: its move, and where it needs a setting its refusal without.
fn names(application: &Application) -> Vec<String> {
    let name = format!("{PREFIX}{}", application.name);
    let unset = application.setting.as_ref().map(|_| format!("{name}_without_its_setting"));
    [name].into_iter().chain(unset).collect()
}

/// As libtest-mimic chooses, which tells it to nobody.
fn is_chosen(arguments: &Arguments, name: &str) -> bool {
    let matches = |filter: &String| match arguments.exact {
        true => name == filter,
        false => name.contains(filter.as_str()),
    };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}

fn trials(application: &Arc<Application>, world: &Arc<World>) -> Vec<Trial> {
    let tests: [fn(&World, &Application) -> Result<()>; 2] =
        [frame::moves_to_and_fro, is_refused_without_its_setting];
    let named = names(application).into_iter().zip(tests);
    named
        .map(|(name, test)| {
            let (world, application, ours) = (world.clone(), application.clone(), name.clone());
            Trial::test(name, move || {
                test(&world, &application).map_err(|error| {
                    // Not only at the end of all.
                    eprintln!("{ours}: {error:#}");
                    format!("{error:#}").into()
                })
            })
        })
        .collect()
}

fn is_refused_without_its_setting(world: &World, application: &Application) -> Result<()> {
    let setting = application.setting.as_ref().context("it needs no setting")?;
    frame::is_refused_without(world, application, setting)
}
