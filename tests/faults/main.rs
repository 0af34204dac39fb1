//! Faults at every step of a migration, on the sandbox cluster: one test for each row of the
//! [`matrix`]. `cargo xtask test --faults` runs them.

mod matrix;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use libtest_mimic::{Arguments, Trial};
use transship_tests::faults::{
    cell::Cell,
    driver,
    table::{self, Row},
};

/// Names the file for the table of a run of all cells in which all held.
const TABLE: &str = "TRANSSHIP_FAULTS_TABLE";

type Rows = Arc<Mutex<Vec<Row>>>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let rows = Rows::default();
    let cells = matrix::all();
    let count = cells.len();
    check_names(&cells);
    let trials = cells.into_iter().map(|cell| trial(cell, &rows)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
    eprint!("{}", table::lines(&rows));
    if rows.len() == count
        && let Some(path) = std::env::var_os(TABLE).map(PathBuf::from)
        && let Err(error) = std::fs::write(&path, table::document(&rows))
    {
        eprintln!("cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// A name that stands twice would hide a test.
fn check_names(cells: &[Cell]) {
    let names: BTreeSet<String> = cells.iter().map(Cell::name).collect();
    assert_eq!(names.len(), cells.len(), "a cell stands twice in the matrix");
}

fn trial(cell: Cell, rows: &Rows) -> Trial {
    let rows = rows.clone();
    let run = move || {
        let row = driver::run(&cell).map_err(|error| {
            // Not only at the end of a run of hours.
            eprintln!("{}: {error:?}", cell.name());
            format!("{error:#}").lines().next().unwrap_or_default().to_owned()
        })?;
        rows.lock().unwrap_or_else(PoisonError::into_inner).push(row);
        Ok(())
    };
    Trial::test(cell.name(), run)
}
