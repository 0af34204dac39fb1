//! Recorded cases in, the engine's answers out, a line each.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use transship_core::placement::simulate;

use crate::Outcome;

/// Answers every case on stdout. A line that is no case is told on stderr and fails the command; the
/// others are answered all the same. Empty lines are skipped.
pub fn run(path: &Path) -> Result<Outcome> {
    let name = path.display().to_string();
    let out = BufWriter::new(io::stdout().lock());
    match name.as_str() {
        "-" => answer_all(io::stdin().lock(), "standard input", out, io::stderr()),
        _ => {
            let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
            answer_all(BufReader::new(file), &name, out, io::stderr())
        }
    }
}

fn answer_all(
    cases: impl BufRead,
    name: &str,
    mut out: impl Write,
    mut errors: impl Write,
) -> Result<Outcome> {
    let mut outcome = Outcome::Done;
    for (number, line) in (1..).zip(cases.lines()) {
        let line = line.with_context(|| format!("cannot read line {number} of {name}"))?;
        if line.trim().is_empty() {
            continue;
        }
        match simulate::answer(&line) {
            Ok(answer) => {
                serde_json::to_writer(&mut out, &answer)?;
                out.write_all(b"\n")?;
            }
            Err(error) => {
                outcome = Outcome::Failed;
                writeln!(errors, "error: {name}, line {number}: {error}")?;
            }
        }
    }
    out.flush()?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_no_case_is_told_and_the_others_are_answered() {
        let good = r#"{"id":7,"strategy":"binpack","nodes":[],"request":{}}"#;
        let cases = format!("{good}\n\n{{\"id\":8}}\n{good}\n");
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        let outcome = answer_all(cases.as_bytes(), "cases", &mut out, &mut errors).unwrap();
        assert_eq!(outcome, Outcome::Failed);
        let answer = r#"{"id":7,"error":"No healthy node available in the cluster"}"#;
        assert_eq!(String::from_utf8(out).unwrap(), format!("{answer}\n{answer}\n"));
        let errors = String::from_utf8(errors).unwrap();
        assert!(errors.starts_with("error: cases, line 3: missing field `strategy`"), "{errors}");
    }

    #[test]
    fn the_documented_cases_have_the_documented_answers() {
        const DOCUMENTATION: &str = include_str!("../../../../docs/placement.md");
        const COMMAND: &str = "$ kubectl transship place --simulate cases.jsonl\n";
        let (_, example) = DOCUMENTATION.split_once("$ cat cases.jsonl\n").unwrap();
        let (cases, example) = example.split_once(COMMAND).unwrap();
        let (documented, _) = example.split_once("```").unwrap();
        let (mut out, mut errors) = (Vec::new(), Vec::new());
        answer_all(cases.as_bytes(), "cases.jsonl", &mut out, &mut errors).unwrap();
        out.append(&mut errors);
        assert_eq!(String::from_utf8(out).unwrap(), documented);
    }
}
