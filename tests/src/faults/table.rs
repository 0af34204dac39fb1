//! The table of outcomes, on the terminal and as a document.

use std::time::Duration;

use transship_api::Step;

use super::outcome::Outcome;

/// What was seen of a cell that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
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

const HEADING: &str = "# Faults

What became of a migration in which something failed: one row for each fault and moment, written by
`cargo xtask test --faults` from a run in which every row held. In each of them one copy of the
application ran at any time, no request was lost or answered twice, the decision stayed as it was
recorded, and nothing was left behind on the nodes.

*Step* is where the Migration stood when the fault began, *told after* the time from the fault's end
until the outcome was there and the Migration said so, *longest wait* what a client with one open
connection waited for a reply.

| fault and moment | step | outcome | told after | longest wait | the Migration says |
| --- | --- | --- | --- | --- | --- |
";

/// The document.
pub fn document(rows: &[Row]) -> String {
    let line = |row: &Row| {
        format!(
            "| {} | `{}` | {} | {:.1} s | {:.1} s | {} |\n",
            row.name.replace('_', " "),
            row.struck,
            row.outcome,
            row.settled.as_secs_f64(),
            row.standstill.as_secs_f64(),
            row.says.replace('|', "\\|"),
        )
    };
    rows.iter().map(line).fold(HEADING.to_owned(), |text, line| text + &line)
}

/// For the terminal.
pub fn lines(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let line = |row: &Row| {
        format!(
            "{:width$}  {:16} {:28} {:>5.1} s {:>6.1} s\n",
            row.name,
            row.struck.as_str(),
            row.outcome.to_string(),
            row.settled.as_secs_f64(),
            row.standstill.as_secs_f64(),
        )
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_line_of_the_document() {
        let row = Row {
            name: "kill_leader_while_dumping".into(),
            struck: Step::Freezing,
            outcome: Outcome::Moved,
            settled: Duration::from_millis(4250),
            standstill: Duration::from_millis(900),
            says: "a|b".into(),
        };
        let text = document(std::slice::from_ref(&row));
        let last = "| kill leader while dumping | `Freezing` | moved | 4.2 s | 0.9 s | a\\|b |\n";
        assert!(text.ends_with(last), "{text}");
        assert_eq!(lines(&[row]).lines().count(), 1);
    }
}
