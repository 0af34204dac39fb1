//! What was seen of the cells: kept in a file cell by cell, so that a run can be broken off and gone on
//! with, and put together as a document.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use transship_api::Step;

use super::{cell::Cell, moment::Moment, outcome::Outcome};

/// What was seen of a cell that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The cell's name.
    pub name: String,
    /// The Migration's step when the fault began.
    pub struck: Step,
    /// What became of the pod.
    pub outcome: Outcome,
    /// From the fault's end until what runs was right and told.
    pub settled: Duration,
    /// The client's longest wait for a reply.
    pub standstill: Duration,
    /// The message of `Succeeded`.
    pub says: String,
}

/// A line of a run's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// The version, see [`super::version`], of which the lines below speak.
    Of(String),
    /// Everything held.
    Held(Row),
    /// Something did not.
    Failed {
        /// The cell's name.
        name: String,
        /// What.
        why: String,
    },
}

/// A run of the matrix, kept in a file.
#[derive(Debug)]
pub struct Run {
    path: PathBuf,
    entries: Vec<Entry>,
}

impl Run {
    /// The run of this file, or an empty one.
    pub fn open(path: &Path) -> Result<Run> {
        let told = || format!("reading {}", path.display());
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(told),
        };
        let entries: Result<Vec<Entry>, _> = text.lines().map(serde_json::from_str).collect();
        Ok(Run { path: path.to_owned(), entries: entries.with_context(told)? })
    }

    /// The runs that are kept in files of this one's kind beside it, in order of their names.
    pub fn all_beside(path: &Path) -> Result<Vec<Run>> {
        let directory = path.parent().context("a file in a directory")?;
        let entries = fs::read_dir(directory)
            .with_context(|| format!("reading {}", directory.display()))?
            .collect::<Result<Vec<_>, _>>()?;
        let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.retain(|other| other.extension() == path.extension());
        paths.sort();
        paths.iter().map(|path| Run::open(path)).collect()
    }

    /// What is added from now on is of this version. A run speaks of one alone, unless `any` is right.
    pub fn go_on(&mut self, version: &str, any: bool) -> Result<()> {
        let versions = self.versions();
        if versions.last() == Some(&version) {
            return Ok(());
        }
        ensure!(
            any || self.entries.is_empty(),
            "{} is of {}, and this is {version}: remove it to begin anew, or go on with another version by \
             --any-version",
            self.path.display(),
            if versions.is_empty() { "no known version".into() } else { versions.join(", then ") }
        );
        self.entries.push(Entry::Of(version.to_owned()));
        Ok(())
    }

    /// Of what it speaks, one after another.
    fn versions(&self) -> Vec<&str> {
        let versions = self.entries.iter().filter_map(|entry| match entry {
            Entry::Of(version) => Some(version.as_str()),
            _ => None,
        });
        versions.collect()
    }

    /// Adds what a cell came to. The file is whole at any time.
    pub fn add(&mut self, entry: Entry) -> Result<()> {
        self.entries.push(entry);
        let mut text = String::new();
        for entry in &self.entries {
            text += &(serde_json::to_string(entry)? + "\n");
        }
        let write = || -> std::io::Result<()> {
            if let Some(directory) = self.path.parent() {
                fs::create_dir_all(directory)?;
            }
            let partial = self.path.with_extension("partial");
            fs::write(&partial, &text)?;
            fs::rename(&partial, &self.path)
        };
        write().with_context(|| format!("writing {}", self.path.display()))
    }

    /// Begins anew; what the file holds goes with the first addition.
    pub fn forget(&mut self) {
        self.entries.clear();
    }

    /// What was seen of a cell, if it held.
    pub fn held(&self, name: &str) -> Option<&Row> {
        self.entries.iter().rev().find_map(|entry| match entry {
            Entry::Held(row) if row.name == name => Some(row),
            _ => None,
        })
    }

    /// Whether a cell failed, though it may have held when it was tried again.
    pub fn failed(&self, name: &str) -> bool {
        let is = |entry: &Entry| matches!(entry, Entry::Failed { name: of, .. } if of == name);
        self.entries.iter().any(is)
    }
}

const HEADING: &str = include_str!("heading.md");
const OTHERS: &str = "\n\n## The orders in which the source ends first\n
A pod with a name or a volume of its own, and a Cold one, end before they are made again. *Target lost* means \
here that it was made again where it was, *restarted* of a Cold one that it was started again there, with its \
files. *While the source leaves*: it is frozen and dumped, or ends, and the target has nothing of it yet. *On trial* \
and *held again*: every task is restored on the target and held, before the votes and after the commit.\n
| order, fault and moment | outcome |\n| --- | --- |\n";

/// The document: rows are faults, columns moments; and a list of the faults in other orders, by name.
pub fn document(cells: &[Cell], others: &[String], runs: &[Run]) -> String {
    let mut text = HEADING.to_owned();
    let names: Vec<String> = cells.iter().map(Cell::name).chain(others.iter().cloned()).collect();
    for (run, number) in runs.iter().zip(1..) {
        text += &summary(&names, run, number);
    }
    text += "\n| fault |";
    for moment in Moment::ALL {
        text += &format!(" {} |", moment.title());
    }
    text += "\n| --- |";
    text += &" --- |".repeat(Moment::ALL.len());
    let mut faults = BTreeSet::new();
    for fault in cells.iter().map(|cell| cell.fault).filter(|fault| faults.insert(fault.name())) {
        text += &format!("\n| {} |", fault.name().replace('_', " "));
        for moment in Moment::ALL {
            let cell = cells.iter().find(|cell| cell.fault == fault && cell.moment == moment);
            text +=
                &format!(" {} |", cell.map(|cell| field(&cell.name(), runs)).unwrap_or_default());
        }
    }
    text += OTHERS;
    for name in others {
        text += &format!("| {} | {} |\n", name.replace('_', " "), field(name, runs));
    }
    text
}

/// Every outcome that a cell came to in any run.
fn field(name: &str, runs: &[Run]) -> String {
    let outcomes: BTreeSet<Outcome> =
        runs.iter().filter_map(|run| run.held(name)).map(|row| row.outcome).collect();
    let mut words: Vec<String> = outcomes.iter().map(Outcome::to_string).collect();
    if runs.iter().any(|run| run.failed(name)) {
        words.push("**failed**".into());
    }
    if words.is_empty() { "not run".into() } else { words.join(" or ") }
}

fn summary(names: &[String], run: &Run, number: usize) -> String {
    let rows: Vec<&Row> = names.iter().filter_map(|name| run.held(name)).collect();
    let failed = names.iter().filter(|name| run.failed(name)).count();
    let latest = rows.iter().map(|row| row.settled).max().unwrap_or_default();
    format!(
        "* Run {number}, of {}: {} of {} held, {failed} failed; the last outcome was there and told {:.1} s after \
         its fault's end.\n",
        run.versions().join(" and "),
        rows.len(),
        names.len(),
        latest.as_secs_f64()
    )
}

/// For the terminal.
pub fn line(row: &Row) -> String {
    format!(
        "{:56} {:16} {:28} {:>5.1} s {:>6.1} s",
        row.name,
        row.struck.as_str(),
        row.outcome.to_string(),
        row.settled.as_secs_f64(),
        row.standstill.as_secs_f64(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::fault::Fault;

    const CELLS: [Cell; 2] = [
        Cell { fault: Fault::KillLeader, moment: Moment::Dumping, outcomes: &[Outcome::Moved] },
        Cell { fault: Fault::KillOperators, moment: Moment::Voted, outcomes: &[Outcome::Moved] },
    ];

    fn row(name: &str, outcome: Outcome) -> Row {
        Row {
            name: name.into(),
            struck: Step::Freezing,
            outcome,
            settled: Duration::from_millis(4250),
            standstill: Duration::from_millis(900),
            says: "why".into(),
        }
    }

    /// Removes itself.
    struct Directory(PathBuf);

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn directory(name: &str) -> Directory {
        let name = format!("transship-table-{name}-{}", std::process::id());
        Directory(std::env::temp_dir().join(name))
    }

    #[test]
    fn a_run_that_was_broken_off_is_gone_on_with() {
        let directory = directory("broken-off");
        let path = directory.0.join("run-1.jsonl");
        let mut run = Run::open(&path).unwrap();
        run.go_on("one", false).unwrap();
        run.add(Entry::Failed { name: "a".into(), why: "x".into() }).unwrap();
        run.add(Entry::Held(row("a", Outcome::Moved))).unwrap();
        let mut again = Run::open(&path).unwrap();
        again.go_on("one", false).unwrap();
        assert_eq!(again.entries, run.entries);
        let refused = again.go_on("two", false).unwrap_err().to_string();
        assert!(refused.contains("is of one, and this is two"), "{refused}");
        again.go_on("two", true).unwrap();
        assert_eq!(again.versions(), ["one", "two"]);
        again.forget();
        again.go_on("three", false).unwrap();
        assert_eq!(again.versions(), ["three"]);
        let again = Run::open(&path).unwrap();
        assert!(again.held("a").is_some() && again.failed("a"));
        assert!(again.held("b").is_none() && !again.failed("b"));
        assert_eq!(Run::all_beside(&path).unwrap().len(), 1);
    }

    #[test]
    fn the_document_has_a_row_for_each_fault_and_every_outcome_of_all_runs() {
        let run = |number: u8, outcome: Outcome| Run {
            path: format!("run-{number}.jsonl").into(),
            entries: vec![
                Entry::Of("abc".into()),
                Entry::Held(row("kill_leader_while_dumping", outcome)),
            ],
        };
        let others = ["cold_kill_leader".to_owned()];
        let text = document(&CELLS, &others, &[run(1, Outcome::Moved), run(2, Outcome::Stayed)]);
        let line = |fault: &str| text.lines().rfind(|line| line.starts_with(fault)).unwrap();
        assert!(line("| kill leader |").contains("| moved or stayed |"), "{text}");
        assert!(line("| kill operators |").contains("| not run |"), "{text}");
        assert!(text.contains("* Run 1, of abc: 1 of 3 held, 0 failed;"), "{text}");
        assert!(text.ends_with("\n| --- | --- |\n| cold kill leader | not run |\n"), "{text}");
        let columns = |line: &str| line.matches('|').count();
        let lines: Vec<&str> = text.lines().collect();
        for rows in lines.windows(2).filter(|pair| pair.iter().all(|l| l.starts_with('|'))) {
            assert_eq!(columns(rows[0]), columns(rows[1]), "{rows:?}");
        }
    }
}
