//! What is slow to make and shared by all sandboxes of this machine, in
//! `/var/cache/transship-sandbox`: each part is keyed by what it is made from and appears whole or
//! not at all.

mod kubernetes;
mod pause;
mod root;
mod tools;

use std::{fs, path::PathBuf, thread};

use anyhow::{Context, Result, anyhow};

use super::{cmd, layout};

pub use kubernetes::{KUBERNETES, directory as kubernetes_directory};
pub use pause::REFERENCE as PAUSE_REFERENCE;
pub use root::mirror as debian_mirror;
pub use tools::ensure as ensure_tools;

/// The finished parts.
#[derive(Debug, Clone)]
pub struct Caches {
    /// kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy, kubectl, helm.
    pub kubernetes: PathBuf,
    /// Root file system of the machines; never written to.
    pub root: PathBuf,
    /// Image archive of the pause container.
    pub pause: PathBuf,
}

/// Makes what is missing.
pub fn ensure() -> Result<Caches> {
    fs::create_dir_all(layout::CACHE).with_context(|| format!("creating {}", layout::CACHE))?;
    tools::ensure()?;
    // Building Kubernetes is bound by the processors, the root by the network.
    thread::scope(|scope| {
        let kubernetes = scope.spawn(kubernetes::ensure);
        let root = root::ensure();
        let pause = pause::ensure();
        let kubernetes =
            kubernetes.join().map_err(|_| anyhow!("building Kubernetes panicked")).flatten();
        Ok(Caches { kubernetes: kubernetes?, root: root?, pause: pause? })
    })
}

/// Names of what [`ensure`] makes: they change when the recipes do.
pub fn key() -> String {
    format!("{} {} {}", kubernetes::key(), root::key(), pause::key())
}

/// The first 16 hexadecimal digits of a digest over all parts.
fn short_digest(parts: &[&str]) -> String {
    let text: Vec<String> = parts.iter().map(|part| format!("{} {part}", part.len())).collect();
    crate::oci::digest(text.join("\n").as_bytes())[7..23].to_owned()
}

/// Compiles a C file of the assets with the host's compiler.
fn compile(source: &str, to: &std::path::Path, options: &[&str]) -> Result<()> {
    let file = to.with_extension("c");
    cmd::write_file(&file, source, 0o644)?;
    let result = cmd::run(
        std::process::Command::new("gcc")
            .args(["-O2", "-Wall", "-Wextra", "-Werror"])
            .args(options)
            .arg("-o")
            .args([to, &file]),
    );
    fs::remove_file(&file)?;
    result
}
