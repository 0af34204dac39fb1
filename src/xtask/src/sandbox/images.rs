//! Image archives that every node has.
//!
//! An archive is kept in the sandbox's state and listed with the references that it stands for. A
//! node imports what its containerd does not have under that reference and digest: at once when it
//! runs, and before its kubelet when it starts.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::{
    cmd::{note, output, run, step, wait_for, write_file},
    layout,
    machine::Machine,
};
use crate::oci;

/// The archives inside a node.
pub const DIRECTORY: &str = "/opt/sandbox/images";
/// This program inside a node.
pub const PROGRAM_DIRECTORY: &str = "/opt/sandbox/bin";
/// Exists in a node once it has looked at all archives.
pub const IMPORTED: &str = "/run/sandbox/images-imported";

/// How long a node may be without its containerd.
const RESTART: Duration = Duration::from_secs(30);

/// This program inside a node.
pub fn program() -> String {
    format!("{PROGRAM_DIRECTORY}/xtask")
}

/// One archive of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Archive {
    /// File name in the images directory.
    file: String,
    /// Digests by reference, as containerd has them after the import.
    references: BTreeMap<String, String>,
    /// Prefix for references that are a mere tag in the archive.
    base_name: String,
}

fn list_file(directory: &Path) -> PathBuf {
    directory.join("images.json")
}

fn read_list(directory: &Path) -> Result<Vec<Archive>> {
    let path = list_file(directory);
    if !path.exists() {
        return Ok(vec![]);
    }
    serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("reading {}", path.display()))
}

/// What an archive brings, with the references that `ctr image import --base-name` will give.
fn describe(file: String, entries: &[oci::IndexEntry], source: &Path) -> Result<Archive> {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let stem: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let base_name = format!("localhost/{}", stem.trim_matches('-'));
    let mut references = BTreeMap::new();
    for entry in entries {
        let name = match &entry.name {
            Some(name) if name.contains('/') => name.clone(),
            Some(tag) => format!("{base_name}:{tag}"),
            None => bail!(
                "{} does not say how its image is called (annotation io.containerd.image.name or \
                 org.opencontainers.image.ref.name in its index.json)",
                source.display()
            ),
        };
        references.insert(name, entry.digest.clone());
    }
    Ok(Archive { file, references, base_name })
}

/// Puts an archive onto the list. Answers the references; says nothing about nodes.
fn remember(source: &Path) -> Result<Vec<String>> {
    let directory = layout::images();
    fs::create_dir_all(&directory)?;
    let entries = oci::read_index(source)?;
    let digests: Vec<&str> = entries.iter().map(|entry| entry.digest.as_str()).collect();
    let names: Vec<&str> = entries.iter().filter_map(|entry| entry.name.as_deref()).collect();
    let key = oci::digest([digests.join(" "), names.join(" ")].join("\n").as_bytes());
    let archive = describe(format!("{}.tar", &key[7..23]), &entries, source)?;
    let references = archive.references.keys().cloned().collect();
    let mut list = read_list(&directory)?;
    let copy = directory.join(&archive.file);
    if list.contains(&archive) && copy.exists() {
        return Ok(references);
    }
    let partial = copy.with_extension("partial");
    fs::copy(source, &partial)
        .with_context(|| format!("copying {} to {}", source.display(), partial.display()))?;
    fs::rename(&partial, &copy)?;
    // A reference belongs to the archive that brought it last.
    for other in &mut list {
        other.references.retain(|name, _| !archive.references.contains_key(name));
    }
    list.retain(|other| other.file != archive.file);
    let (kept, dropped): (Vec<_>, Vec<_>) =
        list.into_iter().partition(|other| !other.references.is_empty());
    let kept = [kept, vec![archive]].concat();
    write_file(&list_file(&directory), serde_json::to_vec_pretty(&kept)?, 0o644)?;
    for other in dropped {
        // Nothing refers to it any more.
        let _ = fs::remove_file(directory.join(other.file));
    }
    Ok(references)
}

/// Puts the pause image onto the list: no pod starts without it.
pub fn remember_pause(archive: &Path) -> Result<()> {
    remember(archive).map(drop)
}

/// Puts archives onto the list and into the given running nodes.
pub fn load(archives: &[PathBuf], nodes: &[Machine]) -> Result<()> {
    for archive in archives {
        for reference in remember(archive)? {
            note(format!("image {reference}"));
        }
    }
    import(nodes)
}

/// Brings the given running nodes up to date with the list.
pub fn import(nodes: &[Machine]) -> Result<()> {
    let list = read_list(&layout::images())?;
    thread::scope(|scope| {
        let workers: Vec<_> =
            nodes.iter().map(|node| scope.spawn(|| synchronise_running(&list, node))).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().map_err(|_| anyhow!("importing images panicked")).flatten()
        })
    })
}

/// The agent of a node that has just joined restarts containerd, perhaps at this moment.
fn synchronise_running(list: &[Archive], node: &Machine) -> Result<()> {
    wait_for(
        format!("containerd of {} has all images", node.name()),
        RESTART,
        || match synchronise(list, node.name(), || node.command("ctr")) {
            Ok(()) => Ok(Some(())),
            Err(error) => {
                note(format!("{error:#}"));
                Ok(None)
            }
        },
    )
}

/// The same from inside a node, before its kubelet starts. An archive that cannot be imported does
/// not keep the node from starting: its pods will say that the image is missing.
pub fn import_here() -> Result<ExitCode> {
    let list = read_list(DIRECTORY.as_ref())?;
    for archive in list {
        if let Err(error) = synchronise(&[archive], "here", || Ok(Command::new("ctr"))) {
            note(format!("{error:#}"));
        }
    }
    write_file(IMPORTED.as_ref(), "", 0o644)?;
    Ok(ExitCode::SUCCESS)
}

fn synchronise(list: &[Archive], place: &str, ctr: impl Fn() -> Result<Command>) -> Result<()> {
    let have = output(ctr()?.args(["--namespace=k8s.io", "images", "list"]))?;
    let have = parse_image_list(&have);
    for archive in missing(list, &have) {
        let names: Vec<&str> = archive.references.keys().map(String::as_str).collect();
        step(format!("imported {} in {place}", names.join(", ")), || {
            run(ctr()?
                .args(["--namespace=k8s.io", "images", "import", "--local", "--base-name"])
                .arg(&archive.base_name)
                .arg(Path::new(DIRECTORY).join(&archive.file)))
        })?;
    }
    Ok(())
}

/// References and digests from `ctr images list`.
fn parse_image_list(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            Some((columns.next()?, columns.nth(1)?))
        })
        .collect()
}

fn missing<'a>(list: &'a [Archive], have: &BTreeMap<&str, &str>) -> Vec<&'a Archive> {
    list.iter()
        .filter(|archive| {
            archive
                .references
                .iter()
                .any(|(name, digest)| have.get(name.as_str()) != Some(&digest.as_str()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: Option<&str>) -> oci::IndexEntry {
        oci::IndexEntry { name: name.map(Into::into), digest: "sha256:1".into() }
    }

    #[test]
    fn a_mere_tag_is_completed_with_the_file_name() {
        let entries = [entry(Some("localhost/a:1")), entry(Some("2"))];
        let archive = describe("x.tar".into(), &entries, Path::new("/tmp/My App.tar")).unwrap();
        let names: Vec<&String> = archive.references.keys().collect();
        assert_eq!(names, ["localhost/a:1", "localhost/my-app:2"]);
        let error = describe("x.tar".into(), &[entry(None)], Path::new("a.tar")).unwrap_err();
        assert!(error.to_string().contains("does not say how its image is called"));
    }

    #[test]
    fn only_what_is_missing_or_different_is_imported() {
        let list: Vec<Archive> = ["localhost/a:1", "localhost/b:1", "localhost/c:1"]
            .into_iter()
            .map(|name| describe(name.into(), &[entry(Some(name))], Path::new("a.tar")).unwrap())
            .collect();
        let have = parse_image_list(
            "REF TYPE DIGEST SIZE PLATFORMS LABELS\n\
             localhost/a:1 application/vnd.oci.image.manifest.v1+json sha256:1 1.0 MiB linux/amd64 -\n\
             localhost/b:1 application/vnd.oci.image.manifest.v1+json sha256:2 1.0 MiB linux/amd64 -\n",
        );
        let files: Vec<&str> = missing(&list, &have).iter().map(|a| a.file.as_str()).collect();
        assert_eq!(files, ["localhost/b:1", "localhost/c:1"]);
    }
}
