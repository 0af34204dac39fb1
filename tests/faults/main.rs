//! Faults in the course of a migration, on the sandbox cluster: one test for each cell of the
//! [`matrix`], and for each case of other orders ([`endurance`]). `cargo xtask test --faults` runs them.
//!
//! Each pair of nodes is a lane with a pod of its own; what happens to one lane does not concern the
//! others. A fault of the whole cluster comes when no other cell has a migration.

mod endurance;
mod matrix;

use std::{
    collections::BTreeSet,
    fs::{File, TryLockError},
    ops::Range,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use transship_tests::{
    cluster::{Cluster, path_in},
    faults::{
        cell::Cell,
        chart, driver,
        fault::Fault,
        locks::Locks,
        nodes::{self, FIRST, NODES, Pair},
        order::in_order,
        stage::Stage,
        table::{self, Entry, Row, Run},
        version,
    },
};

/// Names the file that keeps what a run's cells came to, one line each. A run that was broken off is gone
/// on with: cells that have held are not run again. One that is complete begins anew.
const RUN: &str = "TRANSSHIP_FAULTS_RUN";
/// Names the document to write from all such files in that one's directory.
const TABLE: &str = "TRANSSHIP_FAULTS_TABLE";
/// Goes on with a run of another version of the checkout.
const ANY_VERSION: &str = "TRANSSHIP_FAULTS_ANY_VERSION";
/// Asks for some cells by their places, as in `40..80`.
const CELLS: &str = "TRANSSHIP_FAULTS_CELLS";
/// Asks for [`matrix::SOME`] and [`endurance::SOME`] instead of all.
const SOME: &str = "TRANSSHIP_FAULTS_SOME";

/// What a test runs.
#[derive(Clone, Copy)]
enum Task {
    Cell(Cell),
    Case(endurance::Case),
}

impl Task {
    fn name(&self) -> String {
        match self {
            Self::Cell(cell) => cell.name(),
            Self::Case(case) => case.name(),
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Cell(cell) => cell.fault,
            Self::Case(case) => case.fault,
        }
    }
}

/// Two nodes, and what has been set up on them.
struct Lane {
    nodes: Pair,
    /// Set when the first cell needs it, and again after one that failed: that leaves it in disorder.
    stage: Option<Stage>,
}

/// What the cells share.
struct Shared {
    lanes: Mutex<Vec<Lane>>,
    locks: Locks,
    run: Mutex<Option<Run>>,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: Arguments) -> Result<ExitCode> {
    let (cells, cases) = (matrix::all(), endurance::ALL);
    // What takes longest comes first: nobody is to wait for it in the end. Cells of a pod with a liveness probe stand
    // together, so that it is not made again for each.
    let (longest, others): (Vec<Cell>, Vec<Cell>) =
        cells.iter().copied().partition(Cell::is_impatient);
    let longest = longest.into_iter().map(Task::Cell).chain(cases.map(Task::Case));
    let all: Vec<Task> = longest.chain(others.into_iter().map(Task::Cell)).collect();
    let all = in_order(all, Task::fault);
    check_names(&all)?;
    let file = std::env::var_os(RUN).map(PathBuf::from);
    let mut run = file.as_deref().map(Run::open).transpose()?;
    let mut tasks = chosen(&all)?;
    if let Some(run) = &mut run
        && std::env::var_os(CELLS).is_none()
        && all.iter().all(|task| run.held(&task.name()).is_some())
    {
        // It is complete: there is nothing to go on with.
        run.forget();
    }
    if let Some(run) = &mut run
        && !arguments.list
    {
        let version = version::of(&path_in("TRANSSHIP_CHECKOUT")?)?;
        run.go_on(&version, std::env::var_os(ANY_VERSION).is_some())?;
    }
    tasks.retain(|task| run.as_ref().is_none_or(|run| run.held(&task.name()).is_none()));
    let shared =
        Arc::new(Shared { lanes: Mutex::default(), locks: Locks::default(), run: Mutex::new(run) });
    let _alone = (!arguments.list).then(alone).transpose()?;
    if !arguments.list {
        let lanes = lanes()?;
        arguments.test_threads = Some(lanes.len());
        *lock(&shared.lanes) = lanes;
    }
    let trials = tasks.into_iter().map(|task| trial(task, &shared)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let struck = strike(&shared);
    if let (Some(path), Some(file)) = (std::env::var_os(TABLE).map(PathBuf::from), file) {
        // No file: no cell has been run.
        let runs = if file.exists() { Run::all_beside(&file)? } else { Vec::new() };
        let others = cases.map(|case| case.name());
        std::fs::write(&path, table::document(&cells, &others, &runs))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    struck.context("in the end")?;
    if let Some(run) = lock(&shared.run).as_ref()
        && all.iter().all(|task| run.held(&task.name()).is_some())
    {
        // A run counts as a whole.
        let failed: Vec<String> =
            all.iter().map(Task::name).filter(|name| run.failed(name)).collect();
        ensure!(failed.is_empty(), "all cells held, but not at once: {}", failed.join(", "));
    }
    Ok(conclusion.exit_code())
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name that stands twice would hide a test.
fn check_names(all: &[Task]) -> Result<()> {
    let names: BTreeSet<String> = all.iter().map(Task::name).collect();
    ensure!(names.len() == all.len(), "a cell stands twice in the matrix");
    Ok(())
}

/// The cells that are asked for.
fn chosen(all: &[Task]) -> Result<Vec<Task>> {
    if std::env::var_os(SOME).is_some() {
        let some = [matrix::SOME.as_slice(), &endurance::SOME].concat();
        let mut tasks = all.to_vec();
        tasks.retain(|task| some.contains(&task.name().as_str()));
        ensure!(tasks.len() == some.len(), "one of the few is not among all");
        return Ok(tasks);
    }
    let Ok(text) = std::env::var(CELLS) else { return Ok(all.to_vec()) };
    let places =
        range(&text).with_context(|| format!("{text:?}: write two places, as in 40..80"))?;
    let count = all.len();
    ensure!(places.start < count, "{text}: there are {count} cells");
    Ok(all[places.start..places.end.min(count)].to_vec())
}

fn range(text: &str) -> Option<Range<usize>> {
    let (start, end) = text.split_once("..")?;
    let range: Range<usize> = start.parse().ok()?..end.parse().ok()?;
    (range.start < range.end).then_some(range)
}

/// The sandbox is this run's for as long as the file is open. One that comes to its end puts the operators where there is
/// room, and on another's nodes they would pass for something that a cell has left.
fn alone() -> Result<File> {
    let path = path_in("KUBECONFIG")?.with_extension("faults");
    let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another run of the faults");
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    Ok(file)
}

/// A lane for each pair of nodes. Where there are several, the operators are on a node of their own.
fn lanes() -> Result<Vec<Lane>> {
    let cluster = Cluster::running("default")?;
    let pairs = nodes::pairs(&cluster)?;
    chart::keep_operators(&cluster, (pairs != [NODES]).then_some(FIRST))?;
    Ok(pairs.into_iter().map(|nodes| Lane { nodes, stage: None }).collect())
}

/// Everything is as it was.
fn strike(shared: &Shared) -> Result<()> {
    let lanes = std::mem::take(&mut *lock(&shared.lanes));
    if lanes.is_empty() {
        return Ok(());
    }
    let struck = lanes.into_iter().filter_map(|lane| lane.stage).map(Stage::strike);
    // Each of them, whatever became of the one before.
    let struck = struck.fold(Ok(()), Result::and);
    struck.and(chart::keep_operators(&Cluster::running("default")?, None))
}

fn trial(task: Task, shared: &Arc<Shared>) -> Trial {
    let shared = shared.clone();
    let trial = move || -> Result<(), Failed> {
        let outcome = hold(&shared, &task);
        let entry = match &outcome {
            Ok(row) => {
                eprintln!("{}", table::line(row));
                Entry::Held(row.clone())
            }
            Err(error) => {
                // Not only at the end of a run of hours.
                eprintln!("{}: {error:?}", task.name());
                Entry::Failed { name: task.name(), why: first_line(error) }
            }
        };
        if let Some(run) = lock(&shared.run).as_mut() {
            run.add(entry).map_err(|error| format!("{error:#}"))?;
        }
        outcome.map(drop).map_err(|error| first_line(&error).into())
    };
    Trial::test(task.name(), trial)
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}

/// Runs it on a free lane. There are as many lanes as threads.
fn hold(shared: &Shared, task: &Task) -> Result<Row> {
    let lane = lock(&shared.lanes).pop();
    let mut lane = lane.context("no lane is free")?;
    let nodes = lane.nodes;
    let outcome = match task {
        Task::Cell(cell) => {
            let set = || {
                let _held = shared.locks.take(cell.fault);
                Stage::set(nodes)
            };
            lane.stage.take().map_or_else(set, Ok).and_then(|stage| {
                let row = driver::run(&stage, cell, &shared.locks)?;
                lane.stage = Some(stage);
                Ok(row)
            })
        }
        Task::Case(case) => endurance::run(nodes, case, &shared.locks),
    };
    lock(&shared.lanes).push(lane);
    outcome
}
