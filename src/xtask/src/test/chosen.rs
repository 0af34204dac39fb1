//! What `--only` chooses, known before anything is built for it: a name that no test has would run nothing, and
//! pass.

use std::{path::Path, process::Stdio};

use anyhow::{Context, Result, bail};

use super::{Args, LEFT, Options, PLACEMENT, test_program, which_faults};

/// Full names of tests.
pub(super) struct Chosen {
    /// Of the cluster tests.
    cluster: Vec<String>,
    /// Of the faults, or of the applications.
    others: Vec<String>,
}

impl Chosen {
    /// Those that have `part` in their names, of what else the arguments ask for; an error if there is none.
    pub(super) fn by(part: &str, args: &Args, root: &Path) -> Result<Chosen> {
        let named = |program: &str, options: &Options| named(part, root, program, options);
        let (mut cluster, mut others) = (Vec::new(), Vec::new());
        if args.faults {
            if args.are_whole() {
                cluster = named("cluster", &Options::of(LEFT))?;
            }
            others = named("faults", &which_faults(args))?;
        } else if args.applications {
            others = named("applications", &Options::default())?;
        } else {
            cluster = named("cluster", &Options::default())?;
        }
        if cluster.is_empty() && others.is_empty() {
            bail!(
                "--only {part}: no such test has that in its name. Write a part of the name of a cluster test, \
                 as in `hold` or `placement::`; of a fault or of a test that is left to these with --faults; \
                 of an application with --applications. Unit tests are run by `cargo test`"
            );
        }
        Ok(Chosen { cluster, others })
    }

    /// Whether there are faults or applications among them.
    pub(super) fn has_others(&self) -> bool {
        !self.others.is_empty()
    }

    /// The cluster tests, if there are any.
    pub(super) fn cluster_tests(&self) -> Option<Options> {
        exactly(self.cluster.iter())
    }

    /// The cluster tests for two nodes, and those for three.
    pub(super) fn by_nodes(&self) -> (Option<Options>, Option<Options>) {
        let on = |three: bool| {
            exactly(self.cluster.iter().filter(|name| name.starts_with(PLACEMENT) == three))
        };
        (on(false), on(true))
    }
}

/// These tests and no others, be they ignored or not; nothing if there are none.
fn exactly<'a>(names: impl Iterator<Item = &'a String>) -> Option<Options> {
    let mut options = Options::of(["--exact", "--include-ignored"]);
    let count = options.arguments.len();
    options.arguments.extend(names.cloned());
    (options.arguments.len() > count).then_some(options)
}

/// Full names of the tests of a program that have this in their names.
fn named(part: &str, root: &Path, program: &str, options: &Options) -> Result<Vec<String>> {
    let output = test_program(root, program)
        .arg("--list")
        .args(&options.arguments)
        .envs(options.environment.iter().cloned())
        .stderr(Stdio::inherit())
        .output()
        .context("listing tests")?;
    if !output.status.success() {
        bail!("the list of {program} ended with {}", output.status);
    }
    let list = String::from_utf8_lossy(&output.stdout);
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.filter(|name| name.contains(part)).map(str::to_owned).collect())
}
