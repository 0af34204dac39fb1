//! Installs the product's chart with the images that `cargo xtask images` made.
//!
//! Decides only whether there is something to do: the chart is at `charts/transship`, the images are
//! `target/images/*.tar`, the values for the sandbox `src/xtask/sandbox-assets/values.yaml`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    cluster,
    cmd::{note, run, step},
    images, layout,
    machine::Machine,
    state::State,
};
use crate::oci;

/// Name of the Helm release.
pub const RELEASE: &str = "transship";
/// Where it is installed.
pub const NAMESPACE: &str = "transship-system";

/// Installs or upgrades the chart, if this checkout has it and its images; quick when nothing has
/// changed since the last time.
pub fn install(state: &mut State, nodes: &[Machine]) -> Result<()> {
    let checkout = layout::checkout()?;
    let chart = checkout.join("charts/transship");
    let values = checkout.join("src/xtask/sandbox-assets/values.yaml");
    let archives = files(&checkout.join("target/images"), &|path| has_extension(path, "tar"))?;
    if !chart.join("Chart.yaml").exists() {
        return Ok(());
    }
    if archives.is_empty() {
        note("no chart installed: there are no images yet (cargo xtask images)");
        return Ok(());
    }
    images::load(&archives, nodes)?;
    let images_digest = digest_images(&archives)?;
    let digest = format!("{} {images_digest}", digest_files(&chart, &values)?);
    let deployed = cluster::deployed(RELEASE, NAMESPACE)?;
    if deployed && state.chart.as_ref() == Some(&digest) {
        return Ok(());
    }
    step("installed the chart", || {
        let mut helm = cluster::client(
            "helm",
            &["upgrade", "--install", RELEASE, "--namespace", NAMESPACE, "--create-namespace"],
        );
        helm.args(["--wait", "--timeout=5m"]).arg(&chart);
        if values.exists() {
            helm.arg("--values").arg(&values);
        }
        run(&mut helm)
    })?;
    let old_images = state.chart.as_deref().and_then(|old| old.split_once(' ')).map(|old| old.1);
    if deployed && old_images != Some(images_digest.as_str()) {
        // The images have the same names as before, so Helm saw no reason to restart anything.
        step("restarted the product with its new images", || {
            cluster::restart_workloads(NAMESPACE)
        })?;
    }
    // An agent is ready when it has reported; what it puts on its host follows.
    step("pods can be moved", || {
        run(&mut cluster::kubectl(&[
            "wait",
            "--for=condition=Ready",
            "nodes.transship.dev",
            "--all",
            "--timeout=120s",
        ]))
    })?;
    state.chart = Some(digest);
    state.save()
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// Files below a directory that `wanted` likes, in order; none if there is no such directory.
fn files(directory: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    if !directory.exists() {
        return Ok(vec![]);
    }
    let mut found = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, wanted)?);
        } else if wanted(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn digest_files(chart: &Path, values: &Path) -> Result<String> {
    let mut all = Vec::new();
    let values = values.exists().then(|| values.to_owned());
    for file in files(chart, &|_| true)?.into_iter().chain(values) {
        all.extend(file.to_string_lossy().as_bytes());
        all.extend(oci::digest(&fs::read(&file)?).as_bytes());
    }
    Ok(oci::digest(&all))
}

fn digest_images(archives: &[PathBuf]) -> Result<String> {
    let mut all = String::new();
    for archive in archives {
        for entry in oci::read_index(archive)? {
            all += &format!("{} {}\n", entry.name.unwrap_or_default(), entry.digest);
        }
    }
    Ok(oci::digest(all.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_of_the_chart_changes_the_digest() {
        let work = tempfile::tempdir().unwrap();
        let values = work.path().join("values.yaml");
        let chart = work.path().join("chart");
        fs::create_dir_all(chart.join("templates")).unwrap();
        fs::write(chart.join("templates/a.yaml"), "1").unwrap();
        let first = digest_files(&chart, &values).unwrap();
        assert_eq!(digest_files(&chart, &values).unwrap(), first);
        fs::write(chart.join("templates/a.yaml"), "2").unwrap();
        let second = digest_files(&chart, &values).unwrap();
        assert_ne!(second, first);
        fs::write(&values, "x: 1").unwrap();
        assert_ne!(digest_files(&chart, &values).unwrap(), second);
    }

    #[test]
    fn a_missing_directory_has_no_files() {
        assert!(files(Path::new("/nowhere/at/all"), &|_| true).unwrap().is_empty());
    }
}
