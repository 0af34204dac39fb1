//! Of which version of the product and its tests a run speaks.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// What changes nothing of either, as the document that a run writes itself.
const DOCUMENTS: &str = ":(exclude,glob)**/*.md";
/// As much of a hash as tells one from another.
const LENGTH: usize = 12;

/// The newest commit of a checkout that is about more than documents and, if there is something else that differs from
/// it, a hash of that.
pub fn of(checkout: &Path) -> Result<String> {
    let commit = git(checkout, &["log", "-1", "--format=%H", "--", ".", DOCUMENTS], b"")?;
    let mut changes = git(checkout, &["diff", "HEAD", "--binary", "--", ".", DOCUMENTS], b"")?;
    let untracked = ["ls-files", "--others", "--exclude-standard", "-z", "--", ".", DOCUMENTS];
    for path in git(checkout, &untracked, b"")?.split(|byte| *byte == 0) {
        if path.is_empty() {
            continue;
        }
        let path = std::str::from_utf8(path).context("a file's name that is no text")?;
        changes.extend_from_slice(path.as_bytes());
        // A link may lead nowhere.
        changes.extend(fs::read(checkout.join(path)).unwrap_or_default());
    }
    let mut version = short(&commit)?;
    if !changes.is_empty() {
        version += "+";
        version += &short(&git(checkout, &["hash-object", "--stdin"], &changes)?)?;
    }
    Ok(version)
}

fn short(hash: &[u8]) -> Result<String> {
    let hash = std::str::from_utf8(hash)?.trim();
    Ok(hash.get(..LENGTH).with_context(|| format!("{hash:?} is no hash"))?.to_owned())
}

fn git(checkout: &Path, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("git")
        .current_dir(checkout)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running git, which says of which version a run is")?;
    // It reads all before it says anything, or nothing at all.
    child.stdin.take().context("no stdin")?.write_all(input)?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Removes itself.
    struct Checkout(std::path::PathBuf);

    impl Drop for Checkout {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn every_change_makes_another_version_but_that_of_a_document() {
        let name = format!("transship-version-{}", std::process::id());
        let checkout = Checkout(std::env::temp_dir().join(name));
        let path = checkout.0.as_path();
        fs::create_dir_all(path.join("docs")).unwrap();
        fs::write(path.join("file"), "one").unwrap();
        fs::write(path.join("docs/faults.md"), "none").unwrap();
        git(path, &["init", "-q"], b"").unwrap();
        let commit = || {
            let commit = ["-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "-m", "m"];
            git(path, &["add", "."], b"").unwrap();
            git(path, &commit, b"").unwrap();
        };
        commit();

        let clean = of(path).unwrap();
        assert_eq!(clean.len(), LENGTH, "{clean}");
        fs::write(path.join("docs/faults.md"), "some").unwrap();
        assert_eq!(of(path).unwrap(), clean);
        commit();
        assert_eq!(of(path).unwrap(), clean);
        fs::write(path.join("file"), "two").unwrap();
        let changed = of(path).unwrap();
        assert!(changed.starts_with(&format!("{clean}+")), "{changed}");
        fs::write(path.join("new"), "").unwrap();
        assert_ne!(of(path).unwrap(), changed);
        commit();
        assert_ne!(of(path).unwrap(), clean);
    }
}
