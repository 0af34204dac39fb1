//! Putting the host side in its place and taking it away: programs under /opt/transship, the wrapper as
//! containerd's default runtime, the CNI plugin at the end of the node's list.
//!
//! What a text becomes is decided by pure functions in [`containerd`] and [`cni`]; this module reads, writes
//! and copies. The user's files stay byte for byte as they were but for our additions, and removing takes
//! away exactly those, whatever was edited around them meanwhile. Every step can be repeated, and a step cut
//! off by a crash is finished by the next run. Restarting containerd is the caller's.

pub mod cni;
pub mod containerd;
mod payload;

use std::fs;
use std::path::{Path, PathBuf};

use crate::HostRoot;
use crate::bundle;
use crate::error::{Error, Result};
use crate::files;

/// Where things are on this node; all but `payload` are paths on the host.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The host.
    pub host: HostRoot,
    /// What to install, as seen by this process: `bin/` and `lib/`.
    pub payload: PathBuf,
    /// `/etc/containerd/config.toml`.
    pub containerd_config: PathBuf,
    /// containerd's major version: 1 replaces whole plugin sections on import, 2 merges them.
    pub containerd_major: u32,
    /// `/etc/cni/net.d`.
    pub cni_conf_dir: PathBuf,
    /// `/opt/cni/bin`.
    pub cni_bin_dir: PathBuf,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// containerd has to be restarted for its configuration to count; true until [`restarted`] is called.
    pub restart_containerd: bool,
    /// The CNI list with our plugin in it; `None` while the node has no CNI configuration.
    pub cni_conflist: Option<PathBuf>,
    /// The files that were changed, as paths on the host.
    pub changed: Vec<PathBuf>,
}

/// The drop-in beside containerd's configuration.
fn drop_in(plan: &Plan) -> PathBuf {
    plan.containerd_config.with_file_name("conf.d").join("transship.toml")
}

fn restart_marker(plan: &Plan) -> PathBuf {
    plan.host.opt().join("restart-pending")
}

/// Installs or upgrades everything. In this order: programs, containerd's configuration (which needs them),
/// the CNI list.
pub fn install(plan: &Plan) -> Result<Report> {
    let mut report = Report::default();
    payload::install(plan, &mut report.changed)?;
    install_containerd(plan, &mut report.changed)?;
    report.cni_conflist = install_cni(plan, &mut report.changed)?;
    report.restart_containerd = restart_marker(plan).exists();
    Ok(report)
}

/// Whether everything is in place and containerd was restarted since.
pub fn is_installed(plan: &Plan) -> Result<bool> {
    let wrapper = plan.host.bin("transship-runc");
    if !wrapper.is_file() || wrapper.is_symlink() || restart_marker(plan).exists() {
        return Ok(false);
    }
    let wanted = wanted_containerd(plan)?;
    let in_place = read_text(&plan.host.join(drop_in(plan)))?.as_deref() == Some(&wanted.drop_in)
        && read_text(&plan.host.join(&plan.containerd_config))?.as_deref() == Some(&wanted.main);
    let listed = match conflist(plan)? {
        Some(path) => cni::contains(&read_existing(&plan.host.join(&path))?)
            .map_err(|reason| Error::Configuration { path, reason })?,
        None => false,
    };
    Ok(in_place && listed)
}

/// containerd was restarted with the present configuration.
pub fn restarted(plan: &Plan) -> Result<()> {
    files::remove_durably(&restart_marker(plan)).map(drop)
}

/// Takes our additions out of the CNI list and containerd's configuration. New containers use runc directly
/// once containerd was restarted; running shims go on calling the wrapper.
pub fn remove_configuration(plan: &Plan) -> Result<Report> {
    let mut report = Report::default();
    // Every list, not only the first: another may have been the first when we were added.
    for name in files::list(&plan.host.join(&plan.cni_conf_dir))? {
        let path = plan.cni_conf_dir.join(&name);
        if path.extension().is_none_or(|extension| extension != "conflist") {
            continue;
        }
        let text = read_existing(&plan.host.join(&path))?;
        // A list that we cannot read has nothing of ours in it.
        if let Ok(Some(without)) = cni::without(&text) {
            replace(plan, &path, &without, &mut report.changed)?;
        }
    }
    let plugin = plan.cni_bin_dir.join(payload::CNI_PLUGIN);
    if files::remove_durably(&plan.host.join(&plugin))? {
        report.changed.push(plugin);
    }
    let main = &plan.containerd_config;
    let drop_in = drop_in(plan);
    let text = read_text(&plan.host.join(main))?;
    let without = match &text {
        Some(text) => containerd::without_import(text, &drop_in)
            .map_err(|reason| Error::Configuration { path: main.clone(), reason })?,
        None => None,
    };
    let has_drop_in = plan.host.join(&drop_in).exists();
    if without.is_some() || has_drop_in {
        files::write_atomic(&restart_marker(plan), b"")?;
    }
    match without {
        Some(rest) if rest.is_empty() => {
            files::remove_durably(&plan.host.join(main))?;
            report.changed.push(main.clone());
        }
        Some(rest) => replace(plan, main, &rest, &mut report.changed)?,
        None => {}
    }
    if has_drop_in {
        let on_host = plan.host.join(&drop_in);
        files::remove_durably(&on_host)?;
        // Only if nobody else uses it.
        let _ = on_host.parent().map(fs::remove_dir);
        report.changed.push(drop_in);
    }
    report.restart_containerd = restart_marker(plan).exists();
    Ok(report)
}

/// Makes the wrapper a link to the real runc, for the shims that were started with it.
pub fn link_wrapper_to_runc(plan: &Plan) -> Result<()> {
    let wrapper = plan.host.bin("transship-runc");
    let runc = real_runc(&plan.host)?;
    if fs::read_link(&wrapper).is_ok_and(|target| target == runc) {
        return Ok(());
    }
    payload::replace_by_link(&wrapper, &runc)
}

/// The OCI bundles of tasks whose shim was configured with the wrapper, under containerd's state directory
/// (`/run/containerd`). While there is one its shim will call the wrapper again.
pub fn wrapper_in_use(plan: &Plan, containerd_state: &Path) -> Result<Vec<PathBuf>> {
    let tasks = plan.host.join(containerd_state).join("io.containerd.runtime.v2.task");
    let mut used = Vec::new();
    for namespace in files::list(&tasks)? {
        for id in files::list(&tasks.join(&namespace))? {
            let bundle = tasks.join(&namespace).join(&id);
            if bundle::calls_wrapper(&bundle) {
                used.push(bundle);
            }
        }
    }
    Ok(used)
}

/// The runtime that was containerd's before us.
fn real_runc(host: &HostRoot) -> Result<PathBuf> {
    let name = read_text(&host.runc_path_file())?.unwrap_or_default();
    let name = PathBuf::from(match name.trim() {
        "" => "runc",
        name => name,
    });
    if name.is_absolute() {
        return Ok(name);
    }
    let places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    places
        .iter()
        .map(|place| Path::new(place).join(&name))
        .find(|path| host.join(path).exists())
        .ok_or_else(|| Error::Io {
            action: "find on the host's usual places",
            path: name,
            source: std::io::ErrorKind::NotFound.into(),
        })
}

fn wanted_containerd(plan: &Plan) -> Result<containerd::Wanted> {
    let main = read_text(&plan.host.join(&plan.containerd_config))?;
    containerd::wanted(main.as_deref(), &drop_in(plan), plan.containerd_major)
        .map_err(|reason| Error::Configuration { path: plan.containerd_config.clone(), reason })
}

fn install_containerd(plan: &Plan, changed: &mut Vec<PathBuf>) -> Result<()> {
    let wanted = wanted_containerd(plan)?;
    match &wanted.former_binary {
        Some(name) => {
            files::write_atomic_mode(&plan.host.runc_path_file(), name.as_bytes(), 0o644)?;
        }
        None => {
            files::remove_durably(&plan.host.runc_path_file())?;
        }
    }
    for (path, text) in
        [(drop_in(plan), &wanted.drop_in), (plan.containerd_config.clone(), &wanted.main)]
    {
        if read_text(&plan.host.join(&path))?.as_ref() != Some(text) {
            // Before the change, so that a crash after it does not lose the restart.
            files::write_atomic(&restart_marker(plan), b"")?;
            replace(plan, &path, text, changed)?;
        }
    }
    Ok(())
}

/// The configuration that the runtime uses: the first by name.
fn conflist(plan: &Plan) -> Result<Option<PathBuf>> {
    let names = files::list(&plan.host.join(&plan.cni_conf_dir))?;
    let first = names.into_iter().map(PathBuf::from).find(|name| {
        name.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json")
    });
    Ok(first.map(|name| plan.cni_conf_dir.join(name)))
}

fn install_cni(plan: &Plan, changed: &mut Vec<PathBuf>) -> Result<Option<PathBuf>> {
    let Some(path) = conflist(plan)? else { return Ok(None) };
    let wrong = |reason: String| Error::Configuration { path: path.clone(), reason };
    if path.extension().is_none_or(|extension| extension != "conflist") {
        return Err(wrong(
            "is a single plugin and comes first in its directory; make it a .conflist with a list of plugins"
                .into(),
        ));
    }
    let text = read_existing(&plan.host.join(&path))?;
    if let Some(with) = cni::with(&text).map_err(wrong)? {
        replace(plan, &path, &with, changed)?;
    }
    Ok(Some(path))
}

fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

fn read_existing(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io("read", path))
}

/// Replaces a configuration file, keeping its mode.
fn replace(plan: &Plan, path: &Path, text: &str, changed: &mut Vec<PathBuf>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let on_host = plan.host.join(path);
    let mode = fs::metadata(&on_host).map_or(0o644, |m| m.permissions().mode() & 0o777);
    files::write_atomic_mode(&on_host, text.as_bytes(), mode)?;
    changed.push(path.to_path_buf());
    Ok(())
}

#[cfg(test)]
mod tests;
