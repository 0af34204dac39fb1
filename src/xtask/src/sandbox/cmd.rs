//! Small helpers: run a program, wait for a condition, tell what was done and how long it took,
//! write a file whole.

use std::{
    fmt::Display,
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Runs a program and returns what it printed. An error carries what it complained about.
pub fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{}", complaint(command, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program for its effect.
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

fn complaint(command: &Command, output: &Output) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    let mut text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.is_empty() {
        text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    }
    format!("`{}` failed ({}): {}", words.join(" "), output.status, last_lines(&text, 20))
}

/// The last `count` lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A program with its arguments, as one writes it in a shell without quotes.
pub fn words(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// `ip …`
pub fn ip(arguments: &[&str]) -> Result<()> {
    run(&mut words("ip", arguments))
}

/// Asks until there is an answer, or fails after `limit`, saying what was awaited.
pub fn wait_for<T>(
    what: impl Display,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if started.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Does something and prints a line with the time that it took.
pub fn step<T>(what: impl Display, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "" } else { "  failed" };
    note(format!("{what:<42} {:>6.1} s{outcome}", started.elapsed().as_secs_f64()));
    result
}

/// Prints a line about progress. Progress goes to stderr; stdout is for answers.
pub fn note(line: impl Display) {
    eprintln!("sandbox: {line}");
}

/// Replaces a file: it has the old content or the new one, never a part. `mode` as for chmod.
pub fn write_file(path: &Path, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    let write = || -> Result<()> {
        let parent = path.parent().context("no directory")?;
        fs::create_dir_all(parent)?;
        let mut name = path.file_name().context("no file name")?.to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = parent.join(name);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content.as_ref())?;
        file.sync_data()?;
        fs::rename(&temporary, path)?;
        Ok(())
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// Like [`write_file`], but leaves a file that is there alone.
pub fn write_new_file(path: &Path, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    if path.exists() { Ok(()) } else { write_file(path, content, mode) }
}

/// Fills `@NAME@` marks of an embedded file.
pub fn fill(template: &str, values: &[(&str, &str)]) -> String {
    values
        .iter()
        .fold(template.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_what_the_program_complained_about() {
        let error = run(&mut words("sh", &["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no such thing") && text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn waiting_ends_with_the_answer_or_with_what_was_awaited() {
        let mut asked = 0;
        let answer = wait_for("three", Duration::from_secs(5), || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(answer.unwrap(), 3);
        let late = wait_for("never", Duration::ZERO, || Ok(None::<()>)).unwrap_err();
        assert!(late.to_string().starts_with("never"));
    }

    #[test]
    fn a_written_file_has_its_mode_and_leaves_no_temporary() {
        use std::os::unix::fs::PermissionsExt;
        let work = tempfile::tempdir().unwrap();
        let file = work.path().join("a/b");
        write_file(&file, "1", 0o600).unwrap();
        write_new_file(&file, "2", 0o600).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(work.path().join("a")).unwrap().count(), 1);
    }

    #[test]
    fn marks_are_filled() {
        assert_eq!(fill("a: @A@, @B@@A@", &[("A", "1"), ("B", "2")]), "a: 1, 21");
    }
}
