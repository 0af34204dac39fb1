//! Faults at every step of a migration, on the sandbox cluster: one test for each row of the
//! [`matrix`]. `cargo xtask test --faults` runs them.

mod matrix;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libtest_mimic::{Arguments, Trial};
use transship_tests::faults::{
    cell::Cell,
    driver,
    stage::Stage,
    table::{self, Row},
};

/// Names the file for the table of a run of all cells in which all held.
const TABLE: &str = "TRANSSHIP_FAULTS_TABLE";

/// Asks for [`matrix::SOME`] instead of all.
const SOME: &str = "TRANSSHIP_FAULTS_SOME";

/// What the cells share, set when the first one needs it.
#[derive(Default)]
struct Run {
    stage: Option<Stage>,
    rows: Vec<Row>,
}

type Shared = Arc<Mutex<Run>>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let run = Shared::default();
    let mut cells = matrix::all();
    let count = cells.len();
    check_names(&cells);
    if std::env::var_os(SOME).is_some() {
        cells.retain(|cell| matrix::SOME.contains(&cell.name().as_str()));
        assert_eq!(cells.len(), matrix::SOME.len(), "a cell of the few is not in the matrix");
    }
    let trials = cells.into_iter().map(|cell| trial(cell, &run)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut run = lock(&run);
    eprint!("{}", table::lines(&run.rows));
    if let Some(stage) = run.stage.take()
        && let Err(error) = stage.strike()
    {
        eprintln!("in the end: {error:?}");
        return ExitCode::FAILURE;
    }
    if run.rows.len() == count
        && let Some(path) = std::env::var_os(TABLE).map(PathBuf::from)
        && let Err(error) = std::fs::write(&path, table::document(&run.rows))
    {
        eprintln!("cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn lock(run: &Shared) -> MutexGuard<'_, Run> {
    run.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name that stands twice would hide a test.
fn check_names(cells: &[Cell]) {
    let names: BTreeSet<String> = cells.iter().map(Cell::name).collect();
    assert_eq!(names.len(), cells.len(), "a cell stands twice in the matrix");
}

fn trial(cell: Cell, run: &Shared) -> Trial {
    let run = run.clone();
    let trial = move || {
        let mut run = lock(&run);
        let row = hold(&mut run, &cell).map_err(|error| {
            // Not only at the end of a run of hours.
            eprintln!("{}: {error:?}", cell.name());
            format!("{error:#}").lines().next().unwrap_or_default().to_owned()
        })?;
        run.rows.push(row);
        Ok(())
    };
    Trial::test(cell.name(), trial)
}

/// A cell that fails leaves the stage in disorder: the next one gets another.
fn hold(run: &mut Run, cell: &Cell) -> anyhow::Result<Row> {
    let stage = match run.stage.take() {
        Some(stage) => stage,
        None => Stage::set()?,
    };
    let row = driver::run(&stage, cell)?;
    run.stage = Some(stage);
    Ok(row)
}
