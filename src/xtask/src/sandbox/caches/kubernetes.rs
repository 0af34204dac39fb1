//! Kubernetes and Helm, built from their Go modules.
//!
//! `go install` refuses k8s.io/kubernetes because of the replace lines in its go.mod; a small module
//! of our own repeats them with the published versions of the staging modules.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{cmd, layout, tools};

/// The version of Kubernetes.
pub const KUBERNETES: &str = "v1.36.3";
const HELM: &str = "v4.3.1";
const COMMANDS: [&str; 6] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
];

/// What the directory is made from.
pub fn key() -> String {
    format!("kubernetes {KUBERNETES} helm {HELM}")
}

/// Where the finished programs are.
pub fn directory() -> PathBuf {
    layout::cache(&format!("bin-{KUBERNETES}"))
}

/// The last file to be written says what the others are.
fn complete(directory: &Path) -> bool {
    fs::read_to_string(directory.join(".complete")).is_ok_and(|text| text.trim() == key())
}

/// Builds the programs if they are missing.
pub fn ensure() -> Result<PathBuf> {
    let directory = directory();
    if complete(&directory) {
        return Ok(directory);
    }
    cmd::note(format!("building Kubernetes {KUBERNETES} and Helm {HELM}: about 6 minutes, once"));
    cmd::step("built Kubernetes and Helm", || {
        let go = tools::go()?;
        let partial = layout::cache(&format!("bin-{KUBERNETES}.partial"));
        remove(&partial)?;
        fs::create_dir_all(&partial)?;
        build_kubernetes(&go, &partial)?;
        cmd::run(
            Command::new(&go)
                .env("CGO_ENABLED", "0")
                .env("GOBIN", &partial)
                .args(["install", &format!("helm.sh/helm/v4/cmd/helm@{HELM}")]),
        )?;
        cmd::write_file(&partial.join(".complete"), key(), 0o644)?;
        remove(&directory)?;
        fs::rename(&partial, &directory)?;
        Ok(directory)
    })
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

fn build_kubernetes(go: &Path, to: &Path) -> Result<()> {
    let module = layout::cache("k8s");
    fs::create_dir_all(&module)?;
    let command = |arguments: &[&str]| {
        let mut command = Command::new(go);
        command
            .args(arguments)
            .current_dir(&module)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=mod");
        command
    };
    // `go mod download` wants to stand in a module.
    cmd::write_file(&module.join("go.mod"), "module kubernetes-binaries\n", 0o644)?;
    let answer = cmd::output(&mut command(&[
        "mod",
        "download",
        "-json",
        &format!("k8s.io/kubernetes@{KUBERNETES}"),
    ]))?;
    let answer: Value = serde_json::from_str(&answer)?;
    let source = answer["Dir"].as_str().context("go mod download names no directory")?;
    let upstream = fs::read_to_string(Path::new(source).join("go.mod"))?;
    cmd::write_file(&module.join("go.mod"), go_mod(&upstream, KUBERNETES), 0o644)?;
    let imports: String = COMMANDS
        .iter()
        .map(|name| format!("import _ \"k8s.io/kubernetes/cmd/{name}\"\n"))
        .collect();
    let tools = format!("//go:build tools\n\npackage tools\n\n{imports}");
    cmd::write_file(&module.join("tools.go"), tools, 0o644)?;
    cmd::run(&mut command(&["mod", "tidy"]))?;
    let flags = format!("-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES}");
    for name in COMMANDS {
        cmd::run(
            command(&["build", "-trimpath", "-ldflags", &flags, "-o"])
                .arg(to.join(name))
                .arg(format!("k8s.io/kubernetes/cmd/{name}")),
        )?;
    }
    Ok(())
}

/// A go.mod that requires Kubernetes and takes its staging modules (`v0.0.0` in its own go.mod) in
/// the version that was published with it: v1.36.3 belongs to v0.36.3.
fn go_mod(upstream: &str, version: &str) -> String {
    let mut text = "module kubernetes-binaries\n".to_owned();
    if let Some(line) = upstream.lines().find(|line| line.starts_with("go ")) {
        text += &format!("{line}\n");
    }
    text += &format!("require k8s.io/kubernetes {version}\n");
    let staging = version.replacen("v1.", "v0.", 1);
    for line in upstream.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some("v0.0.0")) = (words.next(), words.next())
            && name.starts_with("k8s.io/")
        {
            text += &format!("replace {name} => {name} {staging}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_modules_get_the_version_published_with_kubernetes() {
        let upstream = "module k8s.io/kubernetes\n\ngo 1.25.0\n\nrequire (\n\tk8s.io/api v0.0.0\n\
                        \tk8s.io/klog/v2 v2.130.1\n\tk8s.io/kubelet v0.0.0 // indirect\n)\n\
                        replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        assert_eq!(
            go_mod(upstream, "v1.36.3"),
            "module kubernetes-binaries\ngo 1.25.0\nrequire k8s.io/kubernetes v1.36.3\n\
             replace k8s.io/api => k8s.io/api v0.36.3\n\
             replace k8s.io/kubelet => k8s.io/kubelet v0.36.3\n"
        );
    }

    #[test]
    fn a_directory_without_the_last_file_is_not_complete() {
        let work = tempfile::tempdir().unwrap();
        assert!(!complete(work.path()));
        fs::write(work.path().join(".complete"), "kubernetes v1 helm v1").unwrap();
        assert!(!complete(work.path()));
        fs::write(work.path().join(".complete"), key()).unwrap();
        assert!(complete(work.path()));
    }
}
