//! `cargo xtask test`: everything, cheapest first; each stage has a time budget and says how long
//! it took.
//!
//! The stages only call tools; what is tested is decided where it lives.

mod chart;
mod chosen;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::Args as ClapArgs;

use crate::{
    images,
    sandbox::{self, layout},
};

use chosen::Chosen;

/// What the names of the tests that need a third node begin with, those of their modules, and no others contain.
/// All others are written for two nodes.
const PLACEMENT: &str = "placement";
/// Chooses the cluster tests that are left to the run of the faults.
const LEFT: [&str; 3] = ["--ignored", "--skip", PLACEMENT];

/// Runs all tests.
#[derive(ClapArgs)]
pub struct Args {
    /// Only the tests on the cluster whose names contain this, each on as many nodes as it is written for, and also
    /// those that are left to --faults.
    #[arg(long, value_name = "NAME", conflicts_with = "quick")]
    only: Option<String>,
    /// Only the faults, and before them those cluster tests that a run of all tests leaves out: they are marked
    /// as ignored. What each fault comes to is kept in target/faults, and docs/faults.md is written from it.
    #[arg(long, conflicts_with = "quick")]
    faults: bool,
    /// Which run of the faults it is; one that was broken off is gone on with.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, requires = "faults")]
    run: u8,
    /// Go on with a run that another version of the checkout has begun.
    #[arg(long, requires = "faults")]
    any_version: bool,
    /// Only the faults of these places in their list, as in 40..80.
    #[arg(long, value_name = "RANGE", requires = "faults")]
    cells: Option<String>,
    /// Pairs of nodes on which faults are tried side by side.
    #[arg(long, value_name = "NUMBER", default_value_t = 2, requires = "faults", value_parser = clap::value_parser!(u8).range(1..=4))]
    pairs: u8,
    /// A few of the faults instead of all.
    #[arg(long, requires = "faults")]
    some: bool,
    /// Only the real applications under load.
    #[arg(long, conflicts_with_all = ["quick", "faults"])]
    applications: bool,
    /// Leave the sandbox up afterwards.
    #[arg(long)]
    keep: bool,
    /// Leave out everything that needs the sandbox.
    #[arg(long)]
    quick: bool,
}

impl Args {
    /// Whether of the faults all are asked for, or those of a name; not a few, nor some places of their list.
    fn are_whole(&self) -> bool {
        !self.some && self.cells.is_none()
    }
}

struct Stages {
    begun: Instant,
    lines: Vec<String>,
}

impl Stages {
    fn run<T>(
        &mut self,
        name: &str,
        budget_s: u64,
        stage: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        eprintln!("\n=== {name} (budget {budget_s} s)");
        let begun = Instant::now();
        let result = stage().with_context(|| format!("stage {name:?}"));
        let took = begun.elapsed().as_secs();
        let note = if took > budget_s { "  over its budget" } else { "" };
        self.lines.push(format!("{name:<28} {took:>5} s of {budget_s:>5} s{note}"));
        result
    }

    fn print(&self) {
        eprintln!("\n=== time per stage");
        for line in &self.lines {
            eprintln!("{line}");
        }
        eprintln!("{:<28} {:>5} s", "all", self.begun.elapsed().as_secs());
    }
}

/// Runs the task.
pub fn run(args: Args) -> Result<ExitCode> {
    let root = layout::checkout()?;
    let mut stages = Stages { begun: Instant::now(), lines: Vec::new() };
    let result = all(&args, &root, &mut stages);
    if !args.quick && !args.keep {
        let down = stages.run("sandbox down", 60, sandbox::down);
        stages.print();
        result.and(down)?;
    } else {
        stages.print();
        result?;
    }
    Ok(ExitCode::SUCCESS)
}

fn all(args: &Args, root: &Path, stages: &mut Stages) -> Result<()> {
    let everything = args.only.is_none() && !args.faults && !args.applications;
    stages.run("tools", 120, sandbox::ensure_tools)?;
    let chosen = match &args.only {
        // Before anything that takes longer.
        Some(part) => Some(stages.run("names of tests", 420, || Chosen::by(part, args, root))?),
        None => None,
    };
    if everything {
        stages.run("format", 10, || cargo(root, &["fmt", "--all", "--check"], &[]))?;
        stages.run("lints", 420, || {
            cargo(
                root,
                &[
                    "clippy",
                    "--locked",
                    "--workspace",
                    "--all-targets",
                    "--all-features",
                    "--",
                    "-D",
                    "warnings",
                ],
                &[],
            )
        })?;
        stages.run("generated files", 10, || crate::generate::generate(root, true))?;
        stages.run("unit and model tests", 600, || {
            cargo(root, &["test", "--locked", "--workspace"], &[])
        })?;
        stages.run("documentation", 120, || {
            cargo(
                root,
                &["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"],
                &[("RUSTDOCFLAGS", "-D warnings")],
            )
        })?;
    }
    if args.quick {
        return Ok(());
    }
    stages.run("Kubernetes, a root for nodes", 900, sandbox::ensure_caches)?;
    stages.run("images", 600, || images::build(root))?;
    let tests = ClusterTests::of(args, chosen.as_ref());
    if sandbox::nodes().is_ok_and(|nodes| everything || tests.cannot_run_on(nodes.len())) {
        // Another run was broken off, or kept it, and may have left anything behind.
        stages.run("the sandbox that is there, down", 60, sandbox::down)?;
    }
    stages.run("sandbox up, with the chart", 300, sandbox::up)?;
    if everything {
        stages.run("chart", 10, || chart::lint(root))?;
        stages.run("runc and CRIU in a node", 240, || node_tests(root))?;
    }
    install_probe(&images::release_dir(root).join("transship-probe"))?;
    if args.faults {
        return all_faults(args, root, stages, chosen.as_ref(), tests.on_two);
    }
    if args.applications {
        stages.run("the applications' image", 240, || {
            sandbox::load(&[images::applications(root)?])
        })?;
        return stages
            .run("real applications", 560, || on_cluster(root, "applications", &options(args)));
    }
    if let Some(options) = tests.on_two {
        stages.run("cluster tests", 2100, || on_cluster(root, "cluster", &options))?;
    }
    if everything {
        stages.run("a few of the faults", 320, || on_cluster(root, "faults", &some_faults()))?;
        stages.run("demo", 120, || crate::demo::run(crate::demo::Args {}).map(drop))?;
    }
    if let Some(options) = tests.on_three {
        stages.run("a third node", 120, || sandbox::grow(3))?;
        install_probe(&images::release_dir(root).join("transship-probe"))?;
        stages.run("cluster tests of placement", 420, || on_cluster(root, "cluster", &options))?;
    }
    Ok(())
}

/// What runs of the program of cluster tests, by the number of nodes it is written for.
struct ClusterTests {
    on_two: Option<Options>,
    on_three: Option<Options>,
}

impl ClusterTests {
    fn of(args: &Args, chosen: Option<&Chosen>) -> Self {
        let (on_two, on_three) = match chosen {
            Some(chosen) if args.faults => (chosen.cluster_tests(), None),
            Some(chosen) => chosen.by_nodes(),
            None if args.faults => (args.are_whole().then(|| Options::of(LEFT)), None),
            None => (Some(Options::of(["--skip", PLACEMENT])), Some(Options::of([PLACEMENT]))),
        };
        Self { on_two, on_three }
    }

    /// Nodes are added for those that are written for more, but none is taken away.
    fn cannot_run_on(&self, nodes: usize) -> bool {
        self.on_two.is_some() && nodes > 2 || self.on_three.is_some() && nodes > 3
    }
}

/// The cluster tests that are left to the faults, and these.
fn all_faults(
    args: &Args,
    root: &Path,
    stages: &mut Stages,
    chosen: Option<&Chosen>,
    left: Option<Options>,
) -> Result<()> {
    if let Some(options) = left {
        stages.run("cluster tests left to this", 1500, || on_cluster(root, "cluster", &options))?;
    }
    if chosen.is_some_and(|chosen| !chosen.has_others()) {
        return Ok(());
    }
    if !args.some {
        // One more: for the operators.
        stages.run("pairs of nodes", 240, || sandbox::grow(2 * args.pairs + 1))?;
        install_probe(&images::release_dir(root).join("transship-probe"))?;
        stages.run("another agent's image", 240, || {
            sandbox::load(&[images::agent_with_other_programs(root)?])
        })?;
    }
    stages.run("faults", 6600, || on_cluster(root, "faults", &faults(args, root)))
}

/// Test programs that need a real runc and CRIU, but no Kubernetes: (package, test).
const IN_NODE: [(&str, &str); 2] =
    [("transship-shim", "restore"), ("transship-transport", "in_node")];
/// What such a test prints when it finds no CRIU; in a node that is a failure.
const SKIPPED: &str = "skipped";

/// Builds those programs statically and runs them in a node.
fn node_tests(root: &Path) -> Result<()> {
    const DIRECTORY: &str = "/var/tmp/transship-tests";
    let release = images::release_dir(root);
    copy_to_node("node-a", &release.join("transship-runc"), DIRECTORY, "transship-runc")?;
    for (package, test) in IN_NODE {
        let output = images::static_cargo(root)
            .args(["test", "--no-run", "--message-format=json", "-p", package, "--test", test])
            .args(images::STATIC_BUILD)
            .stderr(Stdio::inherit())
            .output()
            .context("building a test")?;
        let program = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|message| message["target"]["name"] == test)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .with_context(|| format!("cargo built no test {test}"))?;
        copy_to_node("node-a", &program, DIRECTORY, test)?;
        let script = format!(
            "cd {DIRECTORY} && TRANSSHIP_IN_NODE=1 ./{test} --test-threads=1 --nocapture 2>&1"
        );
        let output = sandbox::exec_command("node-a", &["sh", "-c", &script])?.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        if !output.status.success() || text.contains(SKIPPED) {
            bail!("{test} ended with {}, or skipped something", output.status);
        }
    }
    status(&mut sandbox::exec_command("node-a", &["rm", "-r", DIRECTORY])?)
}

fn copy_to_node(node: &str, program: &Path, directory: &str, name: &str) -> Result<()> {
    let file = fs::File::open(program).with_context(|| format!("opening {}", program.display()))?;
    let script =
        format!("mkdir -p {directory} && cat > {directory}/{name} && chmod 755 {directory}/{name}");
    let mut command = sandbox::exec_command(node, &["sh", "-c", &script])?;
    status(command.stdin(file))
}

/// What a test program on the cluster is told: its options, and more of its environment.
#[derive(Default)]
struct Options {
    arguments: Vec<String>,
    environment: Vec<(&'static str, std::ffi::OsString)>,
}

impl Options {
    fn of<const N: usize>(arguments: [&str; N]) -> Options {
        Options { arguments: arguments.map(str::to_owned).into(), ..Options::default() }
    }
}

fn options(args: &Args) -> Options {
    Options { arguments: args.only.iter().cloned().collect(), ..Options::default() }
}

/// Which of the faults are asked for, whatever their names.
fn which_faults(args: &Args) -> Options {
    if args.some {
        return some_faults();
    }
    let mut options = Options::default();
    if let Some(cells) = &args.cells {
        options.environment.push(("TRANSSHIP_FAULTS_CELLS", cells.into()));
    }
    options
}

fn faults(args: &Args, root: &Path) -> Options {
    let mut options = which_faults(args);
    options.arguments.extend(args.only.iter().cloned());
    if args.some {
        return options;
    }
    let run = root.join(format!("target/faults/run-{}.jsonl", args.run));
    options.environment.push(("TRANSSHIP_FAULTS_RUN", run.into()));
    options.environment.push(("TRANSSHIP_FAULTS_TABLE", root.join("docs/faults.md").into()));
    if args.any_version {
        options.environment.push(("TRANSSHIP_FAULTS_ANY_VERSION", "1".into()));
    }
    options
}

fn some_faults() -> Options {
    Options { environment: vec![("TRANSSHIP_FAULTS_SOME", "1".into())], ..Options::default() }
}

/// The end-to-end tests of a program, one after another, with what they need named in the
/// environment.
fn on_cluster(root: &Path, program: &str, options: &Options) -> Result<()> {
    let plugin = images::release_dir(root).join("kubectl-transship");
    let xtask = std::env::current_exe()?;
    let environment: [(&str, std::ffi::OsString); 8] = [
        // An error's text says where it comes from; the frames of the test harness bury it.
        ("RUST_BACKTRACE", "0".into()),
        ("KUBECONFIG", layout::kubeconfig().into()),
        ("TRANSSHIP_XTASK", xtask.into()),
        ("TRANSSHIP_KUBECTL", layout::kubectl().into()),
        ("TRANSSHIP_HELM", layout::helm().into()),
        ("TRANSSHIP_PLUGIN", plugin.into()),
        ("TRANSSHIP_CHECKOUT", root.into()),
        ("TRANSSHIP_OTHER_PROGRAMS", images::OTHER_PROGRAMS.into()),
    ];
    let mut command = test_program(root, program);
    command
        .args(["--test-threads=1", "--nocapture"])
        .args(&options.arguments)
        .envs(environment)
        .envs(options.environment.iter().cloned());
    status(&mut command)
}

/// A program of tests on the cluster, to be given its options.
fn test_program(root: &Path, program: &str) -> Command {
    let mut command = Command::new(cargo_program());
    command
        .current_dir(root)
        .args(["test", "--locked", "-p", "transship-tests", "--features", "cluster"])
        .args(["--test", program, "--"]);
    command
}

/// Puts the prober on each node.
fn install_probe(program: &Path) -> Result<()> {
    for node in sandbox::nodes()? {
        copy_to_node(&node, program, "/usr/local/bin", "transship-probe")?;
    }
    Ok(())
}

/// The cargo that runs us.
pub fn cargo_program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn cargo(root: &Path, args: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    status(
        Command::new(cargo_program())
            .current_dir(root)
            .args(args)
            .envs(environment.iter().copied()),
    )
}

fn status(command: &mut Command) -> Result<()> {
    let status =
        command.status().with_context(|| format!("running {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{:?} ended with {status}", command.get_program());
    }
    Ok(())
}
